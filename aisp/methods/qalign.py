"""QAlign: Metropolis-Hastings over responses (Faria and Smith, arXiv:2504.03790).

The target is p(y) exp(r(y) / lam), p being the policy at the temperature that is sampled at. Each of
n chains proposes a new ending of its response y, of L tokens:

    c uniform on {0, ..., L - 1};  y' = y up to c, then tokens from p
    accept with probability min(1, exp((r' - r) / lam) L / L')

p(y) does not enter, since the ending is drawn from p; L / L' is there because the way back has the
same c with probability 1 / L'. Kept tokens are not decoded, and not counted in the history's tokens.
The chains begin at n draws from p. The paper aggregates the responses of one long chain, as by a
majority vote; here the best of all that were decoded is returned, as in all methods.
"""

from dataclasses import dataclass
from typing import Any

from aisp.checks import check_finite
from aisp.engine.continuation import continuation
from aisp.methods.chains import (
    ChainsState,
    Proposal,
    beginning,
    check_chains,
    current,
    cuts,
    decide,
    log_lengths,
)
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.state import Info, SearchConfig


@dataclass(frozen=True, kw_only=True)
class QAlignConfig(SearchConfig):
    """Parameters of QAlign.

    Attributes:
        n: chains per prompt.
        lam: temperature of the reward, in units of reward (beta in the paper).
        temperature: of the policy p, > 0; with top_k or top_p, p is the law that they leave.
    """

    lam: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "lam")
        if self.decoding.greedy:
            raise ValueError(
                "temperature is 0; QAlign samples its proposals: set temperature > 0. The method "
                "'metropolis' moves perturbations of greedy decoding"
            )


def init(policy: Policy, prompts: Any, config: QAlignConfig, *, seed: int = 0) -> ChainsState:
    """The state before the first iteration.

    Raises:
        ValueError: a policy of another engine.
    """
    policy.require_here("QAlign")
    at = beginning(policy, prompts, config)
    return ChainsState.start(policy, prompts, config, seed, **at)


def step(
    state: ChainsState, policy: Policy, reward: Reward, config: QAlignConfig
) -> tuple[ChainsState, Info]:
    """Propose a new ending for every chain; at first, a whole response.

    The history has `accepted`, the share of the proposals that were.

    Raises:
        ValueError: a state of another method, n or max_new_tokens.
    """
    check_chains(state, ChainsState, policy, config)
    sources = state.generators(policy.head_device)
    # At first nothing is kept, and no number is drawn before the tokens: best-of-n's first responses.
    kept = cuts(state.lengths, sources) if state.iteration else state.lengths
    out = continuation(
        policy,
        state.prefixes,
        current(state),
        kept,
        config.max_new_tokens,
        decoding=config.decoding,
        generators=sources,
    )
    ratio = log_lengths(state.lengths) - log_lengths(out.lengths)
    return decide(state, reward, Proposal(out, ratio), config.lam, sources)
