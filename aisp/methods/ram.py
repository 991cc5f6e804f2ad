"""RAM, the Residual Alignment Model (Liu et al., arXiv:2505.19700).

The aligned law of a response is proportional to P_M(y | x) Q(y | x): the frozen policy P_M proposes,
and a small autoregressive aligner Q with the same vocabulary estimates the importance weights. One
token at a time:

    Propose  m candidate tokens from P_M by nucleus sampling, with replacement;
    Align    weights proportional to Q(token | prefix), a token drawn twice counting twice;
    Reduce   normalize over the candidates and draw one.

This is self-normalized importance sampling of the token law P_M Q: exact as m grows, P_M itself at
m = 1. Safeguard: where KL(P_M || Q) of a step exceeds a limit, the token is taken from P_M.

Q is any causal LM with the policy's vocabulary. Most often it is the policy with LoRA adapters
(`aligner.with_adapter`), trained by `aisp.training.ram`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aisp.checks import check_real, check_whole
from aisp.engine.decoding import law, require_finite, sample, take_token
from aisp.engine.rollout import Rollout, Step, decode, uniforms
from aisp.engine.stepper import Stepper
from aisp.methods.aligner import load_aligner
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.state import IndependentConfig, Info, SearchState, check_state, each_unweighted


@dataclass(frozen=True, kw_only=True)
class RAMConfig(IndependentConfig):
    """Parameters of RAM: those of `IndependentConfig`, sampled by default, and its own.

    The history has, besides the usual columns: kl_step (KL(P_M || Q) of a token in nats, mean over
    tokens), safeguarded (fraction of tokens taken from P_M because of the limit),
    first_token_seconds and tokens_per_second (of the decoding alone; of a batch, one value).

    Attributes:
        aligner: Q: a `Policy` (read at this policy's prefixes: its template is not used), the
            folder of LoRA adapters for this policy, "embedded", those shipped for the embedded
            policy, or "untrained", the policy itself: RAM's control, as P_M P_M, normalized token
            by token, is sampling at half the temperature without anything learned.
        candidates: m, tokens proposed per step, with replacement.
        kl_limit: take the token from P_M where KL(P_M || Q) of the step, over the whole vocabulary
            at temperature 1, exceeds this many nats; None for no limit.
        temperature: with top_k and top_p, the proposal. 0 takes the most likely token under P_M Q,
            without randomness.
        top_p: 0.9 is usual.
    """

    aligner: Policy | str | Path = "embedded"
    candidates: int = 20
    kl_limit: float | None = 0.1
    temperature: float = 1.0
    top_p: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.aligner, Policy | str | Path):
            raise ValueError(
                f"aligner is {self.aligner!r}; pass a Policy, the folder of an adapter, "
                "'embedded' or 'untrained'"
            )
        check_whole(self, "candidates")
        if self.kl_limit is not None:
            check_real(self, "kl_limit", least=0, note=" (nats), or None for no limit")


@dataclass(frozen=True, eq=False, kw_only=True)
class RAMState(SearchState):
    """The state of every method, and the aligner, which does not change."""

    aligner: Policy


def init(policy: Policy, prompts: Any, config: RAMConfig, *, seed: int = 0) -> RAMState:
    """The state before the first iteration.

    Raises:
        ValueError: an aligner that cannot be loaded, or whose vocabulary is not the policy's.
    """
    policy.require_here("RAM")
    aligner = load_aligner(config.aligner, policy)
    return RAMState.start(policy, prompts, config, seed, aligner=aligner)


def step(
    state: RAMState, policy: Policy, reward: Reward, config: RAMConfig
) -> tuple[RAMState, Info]:
    """Sample from the residually aligned policy; nothing is learned on the way."""
    return next(steps(state, policy, reward, config, 1))


def steps(
    state: RAMState, policy: Policy, reward: Reward, config: RAMConfig, k: int
) -> Iterator[tuple[RAMState, Info]]:
    """k iterations, decoded as one batch."""
    check_state(state, RAMState)
    sources = state.generators(policy.head_device, k)
    prefixes = state.repeated_prefixes(k)
    out, columns = propose_align_reduce(policy, state.aligner, prefixes, config, sources)
    yield from each_unweighted(state, reward, out, k, columns)


def propose_align_reduce(
    policy: Policy,
    aligner: Policy,
    prefixes: Sequence[Sequence[int]],
    config: RAMConfig,
    generators: Sequence[torch.Generator],
) -> tuple[Rollout, dict[str, list[float]]]:
    """Decode n responses to each of P prefixes, both models in lockstep.

    Returns:
        The responses, and the columns of the history that `RAMConfig` names, P values each.
    """
    P, n, T, device = len(prefixes), config.n, config.max_new_tokens, policy.head_device
    longest = max(map(len, prefixes))
    if longest + T > aligner.context_length:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens of {T} exceed the "
            f"{aligner.context_length} positions of the aligner {aligner.name}; shorten either"
        )
    began = time.perf_counter()
    # The first candidate uses the random numbers of plain sampling, and the safeguard takes it.
    # If the safeguard always acts, responses are those of best-of-n, token by token.
    own = uniforms(generators, n, T, device)[..., None]
    more = uniforms(generators, n, T * config.candidates, device).unflatten(1, (T, -1))
    noise = torch.cat([own, more], -1)  # (P n, T, m + 1): m candidates, and one to reduce them
    kl_sum, guarded_sum = torch.zeros(2, P * n, dtype=torch.float64, device=device)
    first_token = []

    def take(at: Step) -> Tensor:
        p, q = at.logits[0], at.logits[-1].to(device)
        # A few rows at a time stay in a CPU's cache, where the whole batch would not.
        size = 16 if p.device.type == "cpu" else len(p)
        parts = (x.split(size) for x in (p, q, noise[at.rows, at.t]))
        chosen = [choose(a, b, u, config) for a, b, u in zip(*parts, strict=True)]
        token, kl, guarded = (torch.cat(x) for x in zip(*chosen, strict=True))
        kl_sum[at.rows] += torch.where(at.done, 0, kl)
        guarded_sum[at.rows] += guarded & ~at.done
        if at.t == 0:
            token[0].item()  # a GPU has computed it now
            first_token.append(time.perf_counter() - began)
        return token

    models = [policy] if aligner is policy else [policy, aligner]
    out = decode([Stepper(p, prefixes, n, T) for p in models], take)
    seconds = time.perf_counter() - began
    tokens = out.lengths.sum(1)
    return out, {
        "kl_step": (kl_sum.view(P, n).sum(1) / tokens).tolist(),
        "safeguarded": (guarded_sum.view(P, n).sum(1) / tokens).tolist(),
        "first_token_seconds": first_token * P,
        "tokens_per_second": [int(tokens.sum()) / seconds] * P,
    }


def choose(
    p: Tensor, q: Tensor, uniforms: Tensor, config: RAMConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row: propose, align, reduce, unless the safeguard acts.

    Args:
        p, q: (rows, |V|) logits of the policy and of the aligner.
        uniforms: (rows, m + 1) in [0, 1): one per candidate, and one that reduces them.

    Returns:
        The tokens, KL(P_M || Q) in nats, and where the safeguard held, (rows,) each.
    """
    log_p, log_q = (torch.log_softmax(x, -1, dtype=torch.float32) for x in (p, q))
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    guarded = kl > (torch.inf if config.kl_limit is None else config.kl_limit)
    plain = take_token(p, config.decoding, uniforms[:, 0])
    if config.decoding.greedy:
        highest, aligned = (log_p + log_q).max(-1)
        require_finite(highest)
    else:
        mass = law(p, config.decoding).cumsum(-1, dtype=torch.float64)
        wanted = uniforms[:, 1:-1].double() * mass[:, -1:]
        others = torch.searchsorted(mass, wanted, right=True)
        candidates = torch.cat([plain[:, None], others], -1)  # (rows, m)
        weights = torch.softmax(log_q.gather(-1, candidates), -1)
        picked = sample(weights, uniforms[:, -1])
        aligned = candidates.gather(-1, picked[:, None]).squeeze(-1)
    return torch.where(guarded, plain, aligned), kl, guarded
