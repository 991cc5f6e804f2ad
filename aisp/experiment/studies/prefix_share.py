"""Where in time the signal is: how much of the reward the first t perturbations decide (notebook 10).

The share of the reward's variance that v_1 ... v_t explain is Var(E[r | v_1 ... v_t]) / Var(r). A
regression on 48 x 576 coordinates could not find it, and nothing has to be fitted: two responses that
share v_1 ... v_t, and draw the rest anew, are independent given what they share, so that the
covariance of their rewards *is* Var(E[r | v_1 ... v_t]). (This is the "pick-freeze" estimate of
Sobol's index: Sobol, 1993; Janon et al., arXiv:1303.6447.)

A group is one perturbation V and, for each t, another one that keeps its first t steps. Members that
keep s and t steps share min(s, t), so that every pair of members is such a pair.

Beside it, what credit by token would have: r(y) - r(y_<t), the reward less that of the text before
step t, as the weight's reward for the control at step t.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp.engine.rollout import rollout
from aisp.experiment.profiles import TOYS, records_path
from aisp.experiment.report.measures import computed_once
from aisp.policy import Policy
from aisp.prompts import Prompt, load_prompts
from aisp.rewards.base import Reward, score
from aisp.sampler import perturbations
from aisp.state import generator

if TYPE_CHECKING:
    import pandas as pd

SIGMA = 0.65  # as the trials of noise only chose it (notebook 11)
STEPS = (1, 2, 4, 8, 16, 24, 32)
SIZES = {
    "smoke": {"prompts": 1, "groups": 4, "samples": 4},
    "cpu": {"prompts": 8, "groups": 64, "samples": 32},
}


def path_of(name: str, profile: str) -> Path:
    """Where `kept` keeps a table."""
    return records_path(f"drift_{name}", profile).with_suffix(".csv")


def kept(
    profile: str, policy: Policy, reward: Reward, *, max_new_tokens: int, seed: int = 0
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """`shared_noise` and `prefix_rewards` on development prompts, computed once.

    In data/results/<profile>/drift_prefixes.csv and drift_credit.csv.
    """
    size = SIZES["smoke" if profile in TOYS else "cpu"]
    prompts = load_prompts("builtin", split="dev", limit=size["prompts"])
    common: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sigma": SIGMA, "seed": seed}
    common["steps"] = [t for t in STEPS if t < max_new_tokens]
    made = {"policy": policy.name, "reward": reward.name, "dtype": str(policy.dtype)[6:], **common}
    made["prompts"] = [p.id for p in prompts]

    def one(name: str, measure: "Callable[..., pd.DataFrame]", **own: int) -> "pd.DataFrame":
        path = path_of(name, profile)
        path.parent.mkdir(parents=True, exist_ok=True)

        def compute() -> "pd.DataFrame":
            return measure(policy, reward, prompts, **common, **own).round(5)

        return computed_once(path, [], compute, **made, **own)

    shared = one("prefixes", shared_noise, groups=size["groups"])
    return shared, one("credit", prefix_rewards, samples=size["samples"])


def shared_noise(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    *,
    steps: Sequence[int],
    groups: int,
    max_new_tokens: int,
    sigma: float = SIGMA,
    seed: int = 0,
    rows: int = 128,
) -> "pd.DataFrame":
    """Rewards of responses that share the perturbations of their first steps, decoded greedily.

    Args:
        steps: how many steps the members of a group share with its first, each < max_new_tokens.
        groups: per prompt.
        rows: responses decoded as one batch.

    Returns:
        One row per prompt and group: prompt, group, and the reward of each member, in columns named
        by the number of steps that it shares: those of `steps`, and max_new_tokens for the first.
    """
    import pandas as pd

    T, parts = max_new_tokens, []
    columns = [*map(str, steps), str(T)]
    for prompt in prompts:
        drawn: list[Tensor] = []
        zero = torch.zeros(1, T, policy.d, device=policy.head_device)
        for k, t in enumerate([T, *steps]):
            source = generator(seed, prompt, k, policy.head_device)
            V = perturbations(zero, groups, sigma, [source])[0]
            if drawn:
                V[:, :t] = drawn[0][:, :t]
            drawn.append(V)
        rewards = []
        for V in torch.cat([*drawn[1:], drawn[0]]).split(rows):
            prefix = policy.prefix(prompt, T)
            out = rollout(policy, [prefix], len(V), T, V=V.unsqueeze(0))
            rewards.append(score(reward, [prompt], out.texts)[0])
        table = torch.cat(rewards).view(len(columns), groups).T.numpy()
        found = pd.DataFrame(table, columns=columns)
        found.insert(0, "group", range(groups))
        found.insert(0, "prompt", prompt.id)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def prefix_rewards(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    *,
    steps: Sequence[int],
    samples: int,
    max_new_tokens: int,
    sigma: float = SIGMA,
    seed: int = 0,
) -> "pd.DataFrame":
    """Rewards of responses to noise only, and of their texts as they are after some of the steps.

    Returns:
        One row per prompt and response: prompt, group (its number), and rewards in columns named by
        the number of tokens: those of `steps`, and max_new_tokens for the whole response.
    """
    import pandas as pd

    T, parts = max_new_tokens, []
    zero = torch.zeros(1, T, policy.d, device=policy.head_device)
    for prompt in prompts:
        source = generator(seed, prompt, 0, policy.head_device)
        V = perturbations(zero, samples, sigma, [source])
        out = rollout(policy, [policy.prefix(prompt, T)], samples, T, V=V)
        ends = list(zip(out.tokens[0].tolist(), out.lengths[0].tolist(), strict=True))
        found = {"prompt": prompt.id, "group": range(samples)}
        for t in (*steps, T):
            texts = policy.decode([tokens[: min(t, end)] for tokens, end in ends])
            found[str(t)] = score(reward, [prompt], [texts])[0].tolist()
        parts.append(pd.DataFrame(found))
    return pd.concat(parts, ignore_index=True)


def credit(table: "pd.DataFrame") -> "pd.DataFrame":
    """What credit by token does to the spread of the rewards, within prompts.

    Args:
        table: from `prefix_rewards`.

    Returns:
        Index: the step that the credit is for (steps before it + 1). Columns, variances over that of
        r(y): credit, of r(y) - r(y_<t); best c, the c with the smallest variance of r(y) - c r(y_<t);
        and with c, that variance.
    """
    import numpy as np
    import pandas as pd

    columns = [x for x in table.columns if x not in ("prompt", "group")]
    C = np.mean([np.cov(of[columns].T) for _, of in table.groupby("prompt")], axis=0)
    whole, before, both = C[-1, -1], C.diagonal()[:-1], C[-1, :-1]
    best = both / before
    return pd.DataFrame(
        {
            "credit": (whole - 2 * both + before) / whole,
            "best c": best,
            "with c": 1 - best * both / whole,
        },
        index=pd.Index([int(x) + 1 for x in columns[:-1]], name="step"),
    )


def credit_sentence(found: "pd.DataFrame") -> str:
    """Whether credit by token would take noise out where the signal is."""
    worse = found[found["credit"] > 1]
    listed = ", ".join(f"{v:.2f} at step {t}" for t, v in found["credit"].items())
    until = f", up to step {worse.index[-1]}" if len(worse) else ""
    return (
        f"The variance of $r(y) - r(y_{{<t}})$, as a multiple of that of $r(y)$: {listed}. It is larger "
        f"than without credit at {len(worse)} of {len(found)} steps measured{until}. With a fitted "
        f"constant before $r(y_{{<t}})$ it would be {found['with c'].iloc[0]:.2f} at step "
        f"{found.index[0]} and {found['with c'].iloc[-1]:.2f} at step {found.index[-1]}."
    )


def explained(table: "pd.DataFrame", *, draws: int = 10_000, seed: int = 0) -> "pd.DataFrame":
    """The share of the reward's variance within a prompt that the first t perturbations explain.

    Covariances over a prompt's groups, averaged over all pairs of members that share t steps, are
    unbiased; their sum over prompts is divided by that of the variances.

    Args:
        table: from `shared_noise`.

    Returns:
        One row per t: t, share, low, high (95% bootstrap interval over prompts), per_step (what one
        step adds, on average since the t before). 0 at t = 0 and 1 at the last are so by definition.
    """
    import numpy as np
    import pandas as pd

    columns = [x for x in table.columns if x not in ("prompt", "group")]
    covariances = np.array([np.cov(of[columns].T) for _, of in table.groupby("prompt")])
    variance = covariances.diagonal(axis1=1, axis2=2).mean(1)  # (P,), every member has one law
    among = np.random.default_rng(seed).integers(len(variance), size=(draws, len(variance)))
    rows = [(0, 0.0, 0.0, 0.0)]
    for k, column in enumerate(columns[:-1]):
        common = covariances[:, k, k + 1 :].mean(1)
        shares = common[among].sum(1) / variance[among].sum(1)
        low, high = np.quantile(shares, [0.025, 0.975])
        rows.append((int(column), common.sum() / variance.sum(), low, high))
    rows.append((int(columns[-1]), 1.0, 1.0, 1.0))
    found = pd.DataFrame(rows, columns=["t", "share", "low", "high"])
    return found.assign(per_step=found["share"].diff() / found["t"].diff())


def sentences(shares: "pd.DataFrame", table: "pd.DataFrame") -> list[str]:
    """Where in time the signal is, in sentences with their numbers."""
    T, prompts = int(shares["t"].max()), table["prompt"].nunique()
    over = f"{prompts} prompt{'s' * (prompts != 1)}, {len(table)} groups of {table.shape[1] - 2}"
    inner = shares[shares["t"].between(1, T - 1)]
    listed = [
        f"{r.share:.0%} [{r.low:.0%}, {r.high:.0%}] by step {r.t}" for r in inner.itertuples()
    ]
    said = [
        f"The perturbations explain this much of the reward's variance within a prompt: "
        f"{', '.join(listed)}, of {T} steps ({over} responses; 95% over prompts)."
    ]
    if len(shares) > 2:
        first, last = shares["per_step"].iloc[1], shares["per_step"].iloc[-1]
        since = shares["t"].iloc[-2] + 1
        said.append(
            f"The first perturbation alone decides {first:.0%}; each of steps {since} to {T} adds "
            f"{last:.1%} on average, where {1 / T:.1%} would be an equal part."
        )
    return said
