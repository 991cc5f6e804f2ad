"""How far AISP and MISVO move the model, and what for (notebook 10).

MISVO's text takes AISP as its baseline and finds that it steers several times farther, by |u| and by
KL, for less reward. Here that is measured on development prompts, at this project's scale. The KL is
theirs: that of the steered law softmax(W (z + u) + b) from the policy's own, summed over the tokens
of responses that the policy itself gives ("reference prefixes"), the mean over these.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp import control
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import Rollout, rollout
from aisp.experiment.profiles import TOYS, records_path
from aisp.experiment.report import findings
from aisp.experiment.report.measures import computed_once
from aisp.intervals import bootstrap
from aisp.methods import align, misvo
from aisp.metrics import token_kl
from aisp.policy import Policy
from aisp.prompts import Prompt, load_prompts
from aisp.rewards.base import Reward
from aisp.state import generator

if TYPE_CHECKING:
    import pandas as pd

AISP, MISVO = "AISP", "MISVO"
PENALTIES = {MISVO: "fisher", "MISVO, KL penalty": "kl", "MISVO, no penalty": "none"}
STEPS = (0.1, 1.0, 5.0)  # the first one is MISVO's published step
SIGMA = 0.65  # of AISP, as its trials chose it (notebook 11)
PROMPTS, TRIAL_PROMPTS = 8, 4  # development prompts: those of the table, then those of the trials
MEASURES = {
    "u": "length of U",
    "kl": "KL on reference prefixes (nats)",
    "gaussian": "KL of the Gaussian (nats)",
    "reward": "best reward",
    "last": "mean of the last samples",
    "seconds": "processor seconds per prompt",
}


def settings(budget: dict[str, int], step: float) -> dict[str, dict[str, Any]]:
    """The methods that are compared, as `align` takes them.

    Args:
        budget: n, kappa and max_new_tokens.
        step: MISVO's step_size.
    """
    return {
        AISP: {"method": "aisp", "sigma": SIGMA, **budget},
        MISVO: {"method": "misvo", "step_size": step, "regularization": "fisher", **budget},
    }


def trials(budget: dict[str, int]) -> dict[str, dict[str, Any]]:
    """MISVO and its two ablations with every step of STEPS, as `align` takes them."""
    return {
        f"{label}, step {step:g}": {
            "method": "misvo",
            "step_size": step,
            "regularization": penalty,
            **budget,
        }
        for step in STEPS
        for label, penalty in PENALTIES.items()
    }


def chosen_steps(tried: "pd.DataFrame") -> dict[str, float]:
    """The step of each label with the highest mean of the best reward over the trials' prompts."""
    means = tried.groupby("label")["reward"].mean()
    return {x: max(STEPS, key=lambda s: means[f"{x}, step {s:g}"]) for x in PENALTIES}


def kept(
    profile: str, policy: Policy, reward: Reward, budget: dict[str, int], *, seed: int = 0
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The trials and the table's measurements, computed once.

    In data/results/<profile>/drift_steering_trials.csv and drift_steering.csv.
    """
    few = (1, 1) if profile in TOYS else (PROMPTS, TRIAL_PROMPTS)
    prompts = load_prompts("builtin", split="dev", limit=sum(few))
    made = {"policy": policy.name, "reward": reward.name, "dtype": str(policy.dtype)[6:]}
    path = records_path("drift_steering", profile).with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)

    def one(path, own, methods):
        about = made | {"seed": seed, "methods": methods, "prompts": [p.id for p in own]}
        return computed_once(
            path, [], lambda: measured(policy, reward, own, methods, seed=seed).round(4), **about
        )

    tried = one(path.with_stem("drift_steering_trials"), prompts[few[0] :], trials(budget))
    return tried, one(path, prompts[: few[0]], settings(budget, chosen_steps(tried)[MISVO]))


def measured(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    methods: dict[str, dict[str, Any]],
    *,
    seed: int = 0,
) -> "pd.DataFrame":
    """Run each method on all prompts together, and measure where its u ended.

    Returns:
        One row per label and prompt: label, prompt, and the columns of MEASURES. `gaussian` is NaN where it is not the mean of a Gaussian; `seconds` are those
        of this process on its processors, for the whole run, by prompt.
    """
    import pandas as pd

    first = next(iter(methods.values()))
    sources = [generator(seed, p, -1, policy.head_device) for p in prompts]
    T = first["max_new_tokens"]
    reference = rollout(
        policy,
        [policy.prefix(p, T) for p in prompts],
        first["n"],
        T,
        decoding=Decoding(1.0),
        generators=sources,
        keep_prelogits=True,
    )
    parts = []
    for label, given in methods.items():
        begun = time.process_time()
        outs = align(list(prompts), policy, reward, seed=seed, progress=False, **given)
        seconds = (time.process_time() - begun) / len(prompts)
        U = torch.stack([out.U for out in outs])
        sigma = given.get("sigma")
        rows = {
            "label": label,
            "prompt": [p.id for p in prompts],
            "u": U.square().sum((-2, -1)).sqrt().tolist(),
            "kl": steered_kl(policy, reference, U).tolist(),
            "gaussian": control.gaussian_kl(U, sigma).tolist() if sigma else float("nan"),
            "reward": [out.reward for out in outs],
            "last": [out.history["reward_mean"].iloc[-1] for out in outs],
            "seconds": seconds,
        }
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


@torch.inference_mode()
def steered_kl(policy: Policy, reference: Rollout, U: Tensor) -> Tensor:
    """mean_i sum_t KL(softmax(W (z_t^i + u_t) + b) || softmax(W z_t^i + b)), (P,) nats.

    Args:
        reference: (P, n) responses with their pre-logits.
        U: (P, tau, d).
    """
    z = reference.prelogits
    assert z is not None
    head = misvo.Head(policy, 1.0)
    P, n = reference.lengths.shape
    total = torch.zeros(P, dtype=torch.float64, device=z.device)
    for t in range(min(int(reference.lengths.max()), U.shape[1])):
        at = z[:, :, t].float()
        laws = [head.logits(x) for x in (at + U[:, None, t], at)]
        total += (token_kl(*laws) * (t < reference.lengths)).sum(1) / n
    return total


def table(found: "pd.DataFrame") -> "pd.DataFrame":
    """One row per label: means over prompts with their 95% intervals, as text.

    Args:
        found: from `measured`.
    """
    import pandas as pd

    rows: dict[str, dict[str, str]] = {}
    for label, of in found.groupby("label", sort=False):
        rows[str(label)] = {
            name: "" if of[column].isna().all() else _with_interval(of[column])
            for column, name in MEASURES.items()
        }
    return pd.DataFrame(rows).T


def _with_interval(values: "pd.Series") -> str:
    mean, (low, high) = values.mean(), bootstrap(values.to_numpy())
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 2
    return f"{mean:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def times(
    found: "pd.DataFrame", column: str, first: str, second: str
) -> tuple[float, float, float]:
    """How many times the mean of the second label the first one's is, with a 95% interval.

    Prompts are drawn anew, both labels of a prompt together.
    """
    import numpy as np

    wide = found.pivot(index="prompt", columns="label", values=column)[[first, second]].to_numpy()
    among = np.random.default_rng(0).integers(len(wide), size=(10_000, len(wide)))
    one, other = wide[among].mean(1).T
    low, high = np.quantile(one / other, [0.025, 0.975])
    return float(np.divide(*wide.mean(0))), float(low), float(high)


def against(
    found: "pd.DataFrame", first: str, second: str, column: str = "reward"
) -> findings.Contrast:
    """The first label's mean of a measure minus the second's, with its interval over prompts."""
    wide = found.pivot(index="prompt", columns="label", values=column)
    names = {"reward": "reward", "last": "the mean of the last samples"}
    return findings.gap(wide[first] - wide[second], first, second, names[column])


def trial_sentences(tried: "pd.DataFrame") -> list[str]:
    """Which steps were chosen, and how far each penalty lets the samples themselves rise."""
    steps = [f"{step:g} for {label}" for label, step in chosen_steps(tried).items()]
    said = [f"Steps chosen, of {', '.join(f'{x:g}' for x in STEPS)}: {', '.join(steps)}."]
    means, highest = tried.groupby("label")[["last", "kl", "u"]].mean(), []
    for label in PENALTIES:
        top = means.loc[[f"{label}, step {s:g}" for s in STEPS]].sort_values("last").iloc[-1]
        highest.append(f"{top['last']:.2f} at a KL of {top['kl']:.1f} for {top.name}")
    said.append(f"Highest mean of the last iteration's samples: {'; '.join(highest)}.")
    lost = means.index[means["u"] > 1000]
    if len(lost):
        said.append(f"u grows to a length over 1,000 in: {'; '.join(lost)}.")
    return said


def sentences(found: "pd.DataFrame") -> list[str | findings.Contrast]:
    """What is left of MISVO's claim: that AISP steers several times farther, for less reward."""
    u, kl = (times(found, column, AISP, MISVO) for column in ("u", "kl"))
    said: list[str | findings.Contrast] = [
        f"**{AISP}** ends with a U {_times(u)} as long as that of {MISVO}, and a KL on reference "
        f"prefixes {_times(kl)} as large."
    ]
    said += [against(found, AISP, MISVO, measure) for measure in ("reward", "last")]
    farther = min(u[1], kl[1]) > 1
    gain = against(found, AISP, MISVO).verdict
    finds = {"lower": "finds less", "higher": "finds more, not less"}
    said.append(
        f"Of the claim: AISP as published {'steers' if farther else 'is not shown to steer'} farther, "
        f"and {finds.get(gain, 'is not shown to find less')}, here."
    )
    cost = times(found, "seconds", MISVO, AISP)[0]
    said.append(f"{MISVO} takes {cost:.2f} times the processor time of AISP.")
    return said


def _times(ratio: tuple[float, float, float]) -> str:
    mean, low, high = ratio
    return f"{mean:.3g} times [{low:.3g}, {high:.3g}]"
