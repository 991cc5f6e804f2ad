"""KAD, Knapsack Approximation Deferral (Hammal et al., EACL 2026, arXiv:2510.27017).

A large unaligned model p and a small aligned model q over one vocabulary. A token is drawn from p;
where the deferral rule d says so, it is drawn again from q. The law of the result is

    pi(y) = (1 - d(y)) p(y) + q(y) sum_v d(v) p(v).

Which tokens to defer is a 0-1 knapsack: token v weighs p(v), the budget B is the mass that may be
deferred, and the value of v is p(v) * -log p(v), the surprise of the large model that the small one
takes over. (This interpretation is ours; value per weight is then -log p, the paper's order.) The
greedy solution defers the least likely tokens first, until a token c does not fit. This solution

- is optimal for the mass that it does defer, and at most (B - mass) * -log p(c) below the optimum
  for B, which is less than p(c) * -log p(c) <= 1/e nats;
- is a threshold, d(v) = 1 where p(v) < p(c) up to ties, and so solves the Lagrangian dual;
- keeps exactly the nucleus of p that holds 1 - B.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from aisp.checks import check_real, check_whole, choice
from aisp.engine.decoding import nucleus
from aisp.engine.mixture import lockstep, speculative
from aisp.policy import Policy, require_same_vocabulary
from aisp.prompts import prompt_list
from aisp.rewards.base import Reward
from aisp.state import (
    IndependentConfig,
    Info,
    SearchState,
    check_state,
    each_unweighted,
)


def primal(p: Tensor, q: Tensor, budget: float) -> Tensor:
    """Defer the least likely tokens under p while their mass is at most the budget.

    The ends are exact: 0 defers nothing, 1 everything. In between, a token whose inclusion meets
    the budget to within the rounding of p (float32) may fall on either side.
    """
    if budget <= 0 or budget >= 1:
        return torch.full_like(p, budget >= 1, dtype=torch.bool)
    return ~nucleus(p, 1 - budget)


def _peak(law: Tensor) -> Tensor:
    return law.max(-1, keepdim=True).values


# Which tokens to defer, from p and q (rows, |V|) and the budget or threshold: (rows, |V|) bool.
RULES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "primal": primal,
    "dual": lambda p, q, a: p < a,
    "max_p": lambda p, q, a: p < _peak(p) - a,
    "max_q_minus": lambda p, q, a: p < _peak(q) - a,
    "max_q_plus": lambda p, q, a: p < _peak(q) + a,
    "nudging": lambda p, q, a: (_peak(p) < a).expand_as(p),
}


def cascade(p: Tensor, q: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The law of a token drawn from p, and drawn again from q where it is deferred.

    Args:
        p, q: (rows, |V|) probabilities.
        d: (rows, |V|) bool.

    Returns:
        pi (rows, |V|), and the deferred mass (rows,) float64. pi is p itself where nothing is
        deferred, and q itself where everything is.
    """
    mass = (p * d).sum(-1, dtype=torch.float64) / p.sum(-1, dtype=torch.float64)
    return torch.where(d, 0.0, p) + q * mass[:, None].to(q.dtype), mass


@dataclass(frozen=True, kw_only=True)
class KADConfig(IndependentConfig):
    """Parameters of KAD. The policy that is aligned is the large model p.

    Attributes:
        aligned: the small aligned policy q, with the same vocabulary; None is the policy's own
            weights under its tokenizer's chat template.
        rule: which tokens are deferred. "primal": the least likely under p within `budget`. By
            `threshold` a: "dual", p(v) < a; its variants "max_p", p(v) < max p - a, "max_q_minus",
            p(v) < max q - a, and "max_q_plus", p(v) < max q + a; and the baseline "nudging", all
            tokens where max p < a.
        budget: of rule "primal", the mass under p that may be deferred at each token, in [0, 1];
            None is 0.5.
        threshold: of the other rules, in [0, 1]; they have no default.
        window: tokens that the small model drafts before the large one verifies them (speculative
            decoding); 0 runs both models for every token. Either way tokens follow the same law.
        temperature: as top_k and top_p, it shapes p and q. 0 takes the most likely token of pi,
            computed from p and q at temperature 1 (two greedy laws would leave nothing to mix).
        top_k, top_p: applied to p and to q separately.
    """

    aligned: Policy | None = None
    rule: str = "primal"
    budget: float | None = None
    threshold: float | None = None
    window: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("rule", self.rule, list(RULES))
        if self.aligned is not None and not isinstance(self.aligned, Policy):
            raise ValueError(
                f"aligned is {self.aligned!r}; it must be a Policy, see aisp.load_policy, or None"
            )
        if self.rule == "primal" and self.budget is None:
            object.__setattr__(self, "budget", 0.5)
        used, unused = ("budget", "threshold")[:: 1 if self.rule == "primal" else -1]
        if getattr(self, unused) is not None:
            raise ValueError(
                f"{unused} is {getattr(self, unused)}, but rule {self.rule!r} has none; give "
                f"{used} instead, or choose another rule"
            )
        check_real(self, used, least=0, most=1, note=f", for rule {self.rule!r}")
        check_whole(self, "window", least=0, note=" (0 is no speculation)")

    @property
    def amount(self) -> float:
        """The budget or the threshold, whichever the rule goes by."""
        value = self.budget if self.rule == "primal" else self.threshold
        assert value is not None  # checked when it was made
        return value

    def describe(self) -> dict[str, Any]:
        """As for every method; the aligned policy by its name and template."""
        described = super().describe()
        if self.aligned is not None:
            template = self.aligned.template
            described["aligned"] += f" ({'custom' if callable(template) else template})"
        return described


@dataclass(frozen=True, eq=False, kw_only=True)
class KADState(SearchState):
    """The state of every method, and the small aligned model.

    Attributes:
        aligned: its policy, which does not change.
        aligned_prefixes: P token id sequences of the prompts under its template.
    """

    per_prompt: ClassVar[tuple[str, ...]] = (*SearchState.per_prompt, "aligned_prefixes")

    aligned: Policy
    aligned_prefixes: tuple[list[int], ...]


def init(policy: Policy, prompts: Any, config: KADConfig, *, seed: int = 0) -> KADState:
    """The state before the first iteration.

    Raises:
        ValueError: no aligned policy given and the policy is its own; different vocabularies.
    """
    policy.require_here("KAD")
    aligned = _aligned(policy, config)
    listed, _ = prompt_list(prompts)
    own = tuple(aligned.prefix(prompt, config.max_new_tokens) for prompt in listed)
    return KADState.start(policy, listed, config, seed, aligned=aligned, aligned_prefixes=own)


def step(
    state: KADState, policy: Policy, reward: Reward, config: KADConfig
) -> tuple[KADState, Info]:
    """Sample from the cascade of a large unaligned and a small aligned policy.

    The history also has `deferred`, the mean mass deferred per token; `large_passes`, passes of the
    large model per response; `tokens_per_second` of decoding, the same for all prompts of a batch;
    and with `window`, `acceptance_length`, drafted tokens that enter a response per verification.

    Raises:
        ValueError: a model that cannot be decoded speculatively.
    """
    return next(steps(state, policy, reward, config, 1))


def steps(
    state: KADState, policy: Policy, reward: Reward, config: KADConfig, k: int
) -> Iterator[tuple[KADState, Info]]:
    """k iterations, decoded as one batch."""
    check_state(state, KADState)
    ends = tuple(sorted({*policy.eos_ids, *state.aligned.eos_ids}))  # either model may end one
    rule = RULES[config.rule]
    decode = partial(speculative, window=config.window) if config.window else lockstep
    own = [prefix for prefix in state.aligned_prefixes for _ in range(k)]
    began = time.perf_counter()
    out, notes = decode(
        (replace(policy, eos_ids=ends), state.aligned),
        (state.repeated_prefixes(k), own),
        config.n,
        config.max_new_tokens,
        mix=lambda p, q: cascade(p, q, rule(p, q, config.amount)),
        decoding=config.decoding,
        generators=state.generators(policy.head_device, k),
    )
    speed = int(out.lengths.sum()) / (time.perf_counter() - began)
    columns = {**notes, "tokens_per_second": [speed] * len(out.texts)}
    yield from each_unweighted(state, reward, out, k, columns)


def _aligned(policy: Policy, config: KADConfig) -> Policy:
    aligned = config.aligned
    if aligned is None:
        if policy.template == "chat":
            raise ValueError(
                f"aligned is None, which is {policy.name} under its chat template, but that is the "
                "policy itself; pass a small aligned policy as `aligned`, or a policy loaded with "
                "template='continuation'"
            )
        return replace(policy, template="chat")
    why = "a cascade mixes laws over one vocabulary: choose models of one family"
    require_same_vocabulary(policy, aligned, why)
    return aligned
