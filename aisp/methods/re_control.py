"""RE-Control: value-guided representation editing (Kong et al., arXiv:2406.05954).

A value function V(h) is an MLP that predicts the final reward of the policy's own responses from a
pre-logit (`aisp.methods.value`). Every step of decoding ascends it,

    h <- h + step_size * grad V(h),    `steps` times,

and the token is taken from the edited pre-logit. Nothing is learned at test time: what AISP finds
by sampling, RE-Control must learn beforehand from labeled responses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aisp.checks import check_finite, check_whole
from aisp.engine.decoding import take_token
from aisp.engine.rollout import Step, decode, uniforms
from aisp.engine.stepper import Stepper
from aisp.methods.value import ValueFunction, load_value
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.state import Info, SearchConfig, SearchState, check_state, unweighted


@dataclass(frozen=True, kw_only=True)
class ReControlConfig(SearchConfig):
    """Parameters of RE-Control.

    Attributes:
        value: the value function: a `ValueFunction`, the path of a saved one, or "embedded", the
            one trained for the embedded policy and reward (data/value).
        steps: steps of gradient ascent per token.
        step_size: of each, in units of pre-logit^2 per unit of reward; 0 edits nothing.
        temperature, top_p: as in best-of-n, so that the two differ only in the editing.

    The others are those of `SearchConfig`.
    """

    value: ValueFunction | Path | str = "embedded"
    steps: int = 30
    step_size: float = 1.0
    temperature: float = 1.0
    top_p: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "steps")
        check_finite(self, "step_size", zero=True)
        if not isinstance(self.value, ValueFunction | Path | str):
            raise ValueError(
                f"value is {self.value!r}; pass a ValueFunction, the path of a saved one, or "
                "'embedded'"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class ReControlState(SearchState):
    """The state of every method, and the value function, which does not change."""

    value: ValueFunction


def init(policy: Policy, prompts: Any, config: ReControlConfig, *, seed: int = 0) -> ReControlState:
    """The state before the first iteration.

    Raises:
        ValueError: a value function that cannot be loaded, or of another width of the pre-logit.
    """
    policy.require_here("RE-Control")
    value = load_value(config.value, policy)
    return ReControlState.start(policy, prompts, config, seed, value=value)


def step(
    state: ReControlState, policy: Policy, reward: Reward, config: ReControlConfig
) -> tuple[ReControlState, Info]:
    """Edit every pre-logit uphill on the value function, then decode as best-of-n does.

    The history has `edit`, the mean length of an edit, |h' - h|, and `value_gain`, the mean of
    V(h') - V(h), over the iteration's tokens.
    """
    check_state(state, ReControlState)
    value, n, T, device = state.value, config.n, config.max_new_tokens, policy.head_device
    sources = state.generators(device)
    u = None if config.decoding.greedy else uniforms(sources, n, T, device)
    sums = torch.zeros(len(state.prompts) * n, 2, device=device)  # of length and of gain

    def edit(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        edited = value.ascend(h, config.steps, config.step_size)
        gain = value(edited) - value(h)
        return edited.to(h.dtype), torch.stack([(edited - h).norm(dim=-1), gain], -1)  # (R, 2)

    stepper = Stepper(policy, state.prefixes, n, T, edit=edit)

    def take(at: Step) -> torch.Tensor:
        sums[at.rows] += stepper.edit_notes * ~at.done[:, None]
        return take_token(at.logits[0], config.decoding, None if u is None else u[at.rows, at.t])

    out = decode([stepper], take)
    means = sums.view(-1, n, 2).sum(1) / out.lengths.sum(1, keepdim=True)
    length, gain = means.T.tolist()
    return unweighted(state, reward, out, edit=length, value_gain=gain)
