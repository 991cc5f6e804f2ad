"""Speculative rejection: best-of-n that stops responses which begin badly (Sun et al., arXiv:2410.20290).

n responses are decoded together. At a few checkpoints the reward reads what each of them has so far,
and the worst share is stopped: its remaining tokens are never decoded, and it is no candidate. The
others are those that best-of-n finds from the same seed, so that the best response is the same where
the reward of a beginning ranks as that of the whole. (The paper stops some when the memory of the GPU
is full; here checkpoints are evenly spaced, which makes the cost the same on every machine.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aisp.checks import check_real, check_whole
from aisp.engine.decoding import take_token
from aisp.engine.perturbation import uniforms
from aisp.engine.rollout import Rollout, Step, decode
from aisp.engine.stepper import Stepper
from aisp.methods.best_of_n import BestOfNConfig
from aisp.policy import Policy
from aisp.rewards.base import Reward, RewardError, described, require_prefixes, score, shaped
from aisp.state import Info, SearchState, unweighted


@dataclass(frozen=True, kw_only=True)
class SpeculativeRejectionConfig(BestOfNConfig):
    """Parameters of speculative rejection: those of best-of-n, and what is stopped.

    Attributes:
        share: of the responses that are left, the part that each checkpoint stops, rounded down;
            0 is best-of-n.
        checkpoints: how many, evenly spaced over max_new_tokens: with 3, after one, two and three
            quarters of it. Fewer where there are fewer tokens.
    """

    share: float = 0.5
    checkpoints: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real(self, "share", least=0, most=1, note=", and below 1")
        if self.share == 1:
            raise ValueError("share is 1; it must be below 1: some response has to be left")
        check_whole(self, "checkpoints")

    @property
    def lengths(self) -> list[int]:
        """After how many tokens the checkpoints are."""
        spaces, T = self.checkpoints + 1, self.max_new_tokens
        return sorted({j * T // spaces for j in range(1, spaces)} - {0})


class _Race:
    """Which of the n responses of each of G groups are still wanted, as decoding goes on.

    Attributes:
        wanted: (G, m) indices, as many in each group. In a group whose wanted ones have all ended
            nothing is compared any more.
        stopped: (G, n) bool, cut off before their end.
        calls: (G,) beginnings that were scored.
        limits: (G * n,) tokens that each response has at most; `decode` reads it at every step.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        prompts: Sequence[Any],
        config: SpeculativeRejectionConfig,
    ):
        G, n = len(prompts), config.n
        self.policy, self.reward, self.prompts, self.config = policy, reward, prompts, config
        self.wanted = torch.arange(n).expand(G, -1)
        self.stopped = torch.zeros(G, n, dtype=torch.bool)
        self.calls = torch.zeros(G, dtype=torch.long)
        self.limits = torch.full((G * n,), config.max_new_tokens, device=policy.head_device)

    def check(self, tokens: Tensor) -> None:
        """Score beginnings, and of the worst share stop those that have not ended.

        Beginnings may all be rejected: they are level then, and the last of them are the worst.

        Args:
            tokens: (G * n, t) all tokens so far.
        """
        G, m = self.wanted.shape
        drop = int(self.config.share * m)
        if not drop:
            return
        tokens, t = tokens.cpu(), tokens.shape[1]
        ends = (tokens[..., None] == torch.tensor(self.policy.eos_ids)).any(-1)  # (G * n, t)
        lengths = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, t)
        rows = self.wanted + torch.arange(G)[:, None] * self.config.n
        live = torch.nonzero(~ends.any(-1)[rows].all(-1)).flatten().tolist()
        texts = self.policy.decode([tokens[r, : lengths[r]].tolist() for r in rows[live].flatten()])
        scores = torch.zeros(G, m, dtype=torch.float64)
        if live:
            own = [texts[i * m : (i + 1) * m] for i in range(len(live))]
            prompts = [self.prompts[g] for g in live]
            scores[live] = score(self.reward, prompts, own, [True] * len(live))
        self.calls[live] += m
        order = scores.argsort(dim=-1, descending=True, stable=True)
        worst = rows.gather(-1, order[:, m - drop :])
        cut = worst[~ends.any(-1)[worst]]  # nothing is saved by stopping what has ended
        self.stopped.view(-1)[cut] = True
        self.limits[cut.to(self.limits.device)] = t
        self.wanted = self.wanted.gather(-1, order[:, : m - drop])


class _Finished(Reward):
    """A reward for whole responses only: those that were stopped are rejected without a call."""

    def __init__(self, reward: Reward, stopped: Tensor, found: Sequence[bool]):
        self.reward, self.name, self.stopped, self.found = reward, reward.name, stopped, found
        self.rows = torch.nonzero(~stopped.flatten()).flatten().tolist()

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        found = torch.full((len(responses),), -torch.inf, dtype=torch.float64)
        try:
            values = self.reward.score(
                [prompts[r] for r in self.rows], [responses[r] for r in self.rows]
            )
        except RewardError as error:
            error.index = None if error.index is None else self.rows[error.index]
            raise
        values = shaped(values, self.name, len(self.rows))
        found[self.rows] = values.detach().to("cpu", torch.float64)
        n = self.stopped.shape[1]
        for p, own in enumerate(found.view(-1, n)):
            if not self.found[p] and bool((own == -torch.inf).all()):
                left = torch.nonzero(~self.stopped[p]).flatten().tolist()
                first = p * n + left[0]
                raise RewardError(
                    f"reward {self.name!r} rejected (-inf) the {len(left)} of {n} candidates that "
                    f"were not stopped, the first of them {described(prompts[first], responses[first])}"
                    ": there is none to return. Lower share, raise n, or return a low finite reward"
                )
        return found


def init(
    policy: Policy, prompts: Any, config: SpeculativeRejectionConfig, *, seed: int = 0
) -> SearchState:
    """The state before the first iteration."""
    policy.require_here("speculative rejection")
    return SearchState.start(policy, prompts, config, seed)


def step(
    state: SearchState, policy: Policy, reward: Reward, config: SpeculativeRejectionConfig
) -> tuple[SearchState, Info]:
    """Sample n responses to each prompt, and stop those that begin badly.

    What was stopped has a reward of -inf, and is charged for the tokens that it has. The history has
    `reward_calls`, beginnings and whole responses, and `stopped`.

    Raises:
        ValueError: a reward that cannot score beginnings.
    """
    return next(steps(state, policy, reward, config, 1))


def steps(
    state: SearchState, policy: Policy, reward: Reward, config: SpeculativeRejectionConfig, k: int
) -> Iterator[tuple[SearchState, Info]]:
    """k iterations, decoded as one batch; each stops its own worst."""
    require_prefixes(reward, "speculative rejection")
    race = _Race(policy, reward, [p for p in state.prompts for _ in range(k)], config)
    out = _decoded(state, policy, config, k, race)
    parts = out.interleaved(k)
    for i, part in enumerate(parts):
        stopped = race.stopped[i::k]
        state, info = unweighted(
            state,
            _Finished(reward, stopped, state.found),
            part,
            parts[i + 1 :],
            reward_calls=(race.calls[i::k] + (~stopped).sum(-1)).tolist(),
            stopped=stopped.sum(-1).tolist(),
        )
        yield state, info


def _decoded(
    state: SearchState, policy: Policy, config: SpeculativeRejectionConfig, k: int, race: _Race
) -> Rollout:
    n, T, device = config.n, config.max_new_tokens, policy.head_device
    generators = state.generators(device, k)
    u = None if config.decoding.greedy else uniforms(generators, n, T, device)

    def take(at: Step) -> Tensor:
        drawn = None if u is None else u[at.rows, at.t]
        token = take_token(at.logits[0], config.decoding, drawn)
        if at.t + 1 in config.lengths:
            tokens = at.tokens[:, : at.t + 1].clone()
            live = at.rows[~at.done]
            tokens[live, at.t] = token[~at.done]
            race.check(tokens)
        return token

    stepper = Stepper(policy, state.repeated_prefixes(k), n, T)
    return decode([stepper], take, limits=race.limits)
