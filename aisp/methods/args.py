"""ARGS: alignment as reward-guided search (Khanov et al., arXiv:2402.01694).

At every step the k most likely tokens are candidates, and token v scores

    logit(v) + w * r(x, y_<t v),

its logit plus the weighted reward of the response extended by v. Greedy search takes the best score;
stochastic search draws from the softmax of score / temperature over the k. The reward reads
unfinished responses, for which few rewards were trained, and it is called k times per token. So the
cost of ARGS is reward calls, not samples; `history` counts them.
"""

from dataclasses import dataclass
from typing import Any

import torch

from aisp.checks import check_finite, check_whole
from aisp.engine.decoding import Decoding, take_token
from aisp.engine.rollout import Step, decode, uniforms
from aisp.engine.stepper import Stepper
from aisp.policy import Policy
from aisp.rewards.base import Reward, require_prefixes, score
from aisp.state import Info, SearchConfig, SearchState, unweighted


@dataclass(frozen=True, kw_only=True)
class ARGSConfig(SearchConfig):
    """Parameters of ARGS.

    Attributes:
        n, kappa: 1, because greedy search finds the same response every time.
        k: candidates per step.
        w: weight of the reward, in units of logit per unit of reward.
        temperature: 0 is ARGS-greedy, above it ARGS-stochastic.
        top_k, top_p: not used; k decides what is considered.

    The others are those of `SearchConfig`.
    """

    n: int = 1
    kappa: int = 1
    k: int = 10
    w: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "k")
        check_finite(self, "w", zero=True)
        for name, unused in {"top_k": 0, "top_p": 1.0}.items():
            if getattr(self, name) != unused:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but args looks at the k = {self.k} most "
                    f"likely tokens and at nothing else; leave out {name} and set k"
                )


def init(policy: Policy, prompts: Any, config: ARGSConfig, *, seed: int = 0) -> SearchState:
    """The state before the first iteration."""
    policy.require_here("ARGS")
    return SearchState.start(policy, prompts, config, seed)


def step(
    state: SearchState, policy: Policy, reward: Reward, config: ARGSConfig
) -> tuple[SearchState, Info]:
    """Guide every token of n responses to each prompt by the reward of the response so far.

    The history has `reward_calls`: responses scored in the iteration, partial and whole.
    """
    require_prefixes(reward, "ARGS")
    n, T, device = config.n, config.max_new_tokens, policy.head_device
    choice = Decoding(config.temperature)
    u = None if choice.greedy else uniforms(state.generators(device), n, T, device)
    calls = [n] * len(state.prompts)  # the whole responses, scored at the end

    def take(at: Step) -> torch.Tensor:
        logits, ids = at.logits[0].double().topk(min(config.k, at.logits[0].shape[-1]))
        live = torch.nonzero(~at.done).squeeze(-1)
        rows = at.rows[live]
        owners = (rows // n).tolist()
        texts = _extended(policy, at.tokens[rows, : at.t], ids[live])
        r = score(reward, [state.prompts[p] for p in owners], texts).to(device)  # (live, k)
        for p in owners:
            calls[p] += r.shape[-1]
        drawn = None if u is None else u[rows, at.t]
        taken = take_token(logits[live] + config.w * r, choice, drawn)
        token = ids[:, 0].clone()  # of rows that are done, never used
        token[live] = ids[live].gather(-1, taken[:, None]).squeeze(-1)
        return token

    out = decode([Stepper(policy, state.prefixes, n, T)], take)
    return unweighted(state, reward, out, reward_calls=calls)


def _extended(policy: Policy, tokens: torch.Tensor, candidates: torch.Tensor) -> list[list[str]]:
    """Texts of R responses so far, (R, t), each extended by each of its k candidates, (R, k)."""
    k = candidates.shape[-1]
    so_far = tokens[:, None].expand(-1, k, -1)
    flat = torch.cat([so_far, candidates[..., None]], -1).flatten(0, 1).tolist()
    texts = policy.decode(flat)
    return [texts[i : i + k] for i in range(0, len(texts), k)]
