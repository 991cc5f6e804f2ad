"""MISVO: minimally invasive steering by policy gradient ("Minimally Invasive Steering of Language
Models", 2026, which takes AISP as its baseline).

One vector u_t per position is added at the input of the output embeddings, shared by all responses,
whose tokens are sampled:

    u = 0
    repeat kappa times:
        y_i ~ softmax(W (h_t + u_t) + b),  r_i = r(x, y_i),  i = 1 .. n
        A_i = r_i - mean of the other rewards
        g_t = 1/n sum_i A_i W^T (onehot(y_t^i) - p_t^i)
        u_t = u_t + step_size (g_t - penalty F_t u_t)
    return the best of all kappa * n responses

g is an unbiased estimate of the gradient of E[r]; where AISP averages the noise that it drew, MISVO
uses the exact score of the tokens. F_t = mean_i W^T (diag(p) - p p^T) W is the Fisher matrix of the
first iteration's responses, frozen, and applied without being formed: the penalty is the KL that u
causes on their prefixes, to second order in u.

With weights "softmax" (ours) it is AISP by exact scores: A_i = n (w_i - 1/n), w = softmax(r / lam),
AISP's weights at alpha = 1 with the control variate. AISP moves u_t by the weighted noise v_t - u_t,
which is sigma^2 times the score of v_t; the reward depends on v_t only through the token, so that the
token's own score W^T (onehot(y_t) - p_t) carries the same signal without the noise in the other
directions (in the manner of Rao and Blackwell: the tokens' law here is a softmax, there the greedy
token under Gaussian noise; step_size stands in the place of sigma^2). As n grows, g is then the
gradient of log E[exp(r / lam)].

Where the text is silent (ours): a response's steps after its end count as 0 in both means over i; a
rejected response (reward -inf) has advantage 0 and enters no other's baseline, and under softmax
weights it has weight 0, so that u moves away from it; where all are rejected only the penalty moves u;
a temperature other than 1 is that of the law that is sampled and differentiated.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from aisp import control
from aisp.checks import check_finite, check_whole, choice
from aisp.engine.rollout import rollout
from aisp.policy import Policy, prelogits_changed
from aisp.rewards.base import Reward
from aisp.state import Info, SearchConfig, SearchState, check_state, unweighted

REGULARIZATIONS = ("fisher", "kl", "none")
WEIGHTS = ("advantage", "softmax")


@dataclass(frozen=True, kw_only=True)
class MISVOConfig(SearchConfig):
    """Parameters of MISVO. Published: n = kappa = 16 or 32 and 512 tokens.

    Attributes:
        n: at least 2, as an advantage is a comparison with the other responses.
        step_size: of u, in units of pre-logit^2 per unit of reward; under softmax weights, which
            have no unit, pre-logit^2.
        penalty: weight of the regularization, in units of reward per nat (softmax weights: 1 / nat).
        regularization: "fisher" as published; "kl", the gradient of the KL on the first
            iteration's prefixes in its place (exact for logits without a soft-cap); or "none".
        weights: "advantage" as published; "softmax", those of AISP in their place.
        lam: temperature of the softmax weights, in units of reward.
        temperature: of sampling, > 0; top_k and top_p cannot be set, as the score is that of the
            whole law.
    """

    step_size: float = 0.1
    penalty: float = 1.0
    regularization: str = "fisher"
    weights: str = "advantage"
    lam: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "n", least=2)
        check_finite(self, "step_size")
        check_finite(self, "penalty", zero=True)
        choice("regularization", self.regularization, REGULARIZATIONS)
        choice("weights", self.weights, WEIGHTS)
        check_finite(self, "lam")
        if self.weights != "softmax" and self.lam != type(self).lam:
            raise ValueError(
                f"lam is {self.lam:g} and weights {self.weights!r}, which have no lam: leave it out, "
                "or set weights = 'softmax'"
            )
        if self.decoding.greedy or self.top_k or self.top_p < 1:
            raise ValueError(
                f"temperature is {self.temperature:g}, top_k {self.top_k} and top_p {self.top_p:g}; "
                "MISVO samples from the whole law: set temperature > 0, top_k = 0 and top_p = 1"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class MISVOState(SearchState):
    """The state of every method, the steering vectors, and what the Fisher matrix is made from.

    Attributes:
        U: (P, T, d) float32.
        prelogits: (P, n, T, d) of the first iteration's responses; zeros before it.
        lengths: (P, n) of these; 0 before.
    """

    per_prompt: ClassVar[tuple[str, ...]] = (
        *SearchState.per_prompt,
        "U",
        "prelogits",
        "lengths",
    )

    U: Tensor
    prelogits: Tensor
    lengths: Tensor


def init(policy: Policy, prompts: Any, config: MISVOConfig, *, seed: int = 0) -> MISVOState:
    """The state before the first iteration: u = 0.

    Raises:
        ValueError: a policy that changes its logits after the output embeddings in a way that is
            not known here, whose score would be another one.
    """
    policy.require_here("MISVO")
    _check_head(policy)
    P = len(SearchState.start(policy, prompts, config, seed).prompts)
    shape = (P, config.max_new_tokens, policy.d)
    first = (P, config.n, config.max_new_tokens, policy.d)
    device = policy.head_device
    return MISVOState.start(
        policy,
        prompts,
        config,
        seed,
        U=torch.zeros(shape, device=device),
        prelogits=torch.zeros(first, dtype=policy.dtype, device=device),
        lengths=torch.zeros(first[:2], dtype=torch.long, device=device),
    )


def step(
    state: MISVOState, policy: Policy, reward: Reward, config: MISVOConfig
) -> tuple[MISVOState, Info]:
    """Sample under u, score, and move u along the advantages or weights of the responses.

    The history has `u_norm`, the length |u| of what the iteration sampled under; log-weights and
    their effective sample size are those of softmax weights, NaN without.

    Raises:
        ValueError: a state of another n or max_new_tokens.
        FloatingPointError: the next u is not finite.
    """
    check_state(state, MISVOState)
    n, T = config.n, config.max_new_tokens
    if state.prelogits.shape[1:3] != (n, T):
        raise ValueError(
            f"the state was begun with n, max_new_tokens = {tuple(state.prelogits.shape[1:3])}, and "
            f"the configuration has {(n, T)}; the first iteration's responses are used all along"
        )
    out = rollout(
        policy,
        state.prefixes,
        n,
        T,
        V=state.U.unsqueeze(1).expand(-1, n, -1, -1),
        decoding=config.decoding,
        generators=state.generators(policy.head_device),
        keep_prelogits=True,
    )
    norms = state.U.square().sum((-2, -1)).sqrt().tolist()
    following, info = unweighted(state, reward, out, u_norm=norms)
    assert out.prelogits is not None  # asked for
    if state.iteration == 0:
        following = replace(following, prelogits=out.prelogits, lengths=out.lengths)
    head = Head(policy, config.temperature)
    A = advantages(info.rewards)
    if config.weights == "softmax":
        some = info.rewards.isfinite().any(-1, keepdim=True)
        log_w = torch.log_softmax(torch.where(some, info.rewards / config.lam, 0.0), -1)
        info = replace(info, log_w=log_w, ess=control.effective_sample_size(log_w))
        A = n * log_w.exp() - 1
    move = gradient(head, out.prelogits, state.U, out.tokens, out.lengths, A.to(state.U))
    if config.regularization != "none" and state.iteration:
        at = state.U if config.regularization == "kl" else torch.zeros_like(state.U)
        pull = fisher_times(head, state.prelogits, at, state.lengths, state.U)
        move = move - config.penalty * pull
    U = state.U + config.step_size * move
    if not bool(U.isfinite().all()):
        raise FloatingPointError(
            f"the next u is not finite (step_size = {config.step_size:g}); lower step_size"
        )
    return replace(following, U=U), info


def advantages(rewards: Tensor) -> Tensor:
    """A_i = r_i minus the mean of the other finite rewards, (P, n); 0 where either does not exist."""
    finite = rewards.isfinite()
    r = rewards.masked_fill(~finite, 0.0)
    count = finite.sum(-1, keepdim=True)
    others = (r.sum(-1, keepdim=True) - r) / (count - 1).clamp(min=1)
    return torch.where(finite & (count > 1), r - others, 0.0)


class Head:
    """The output embeddings with what the model does to the logits, and their derivative.

    Attributes:
        module: the policy's output embeddings; weight: theirs, (|V|, d) float32.
        dtype: of the policy; temperature: of the law; cap: the soft-cap of the logits, or None.
    """

    def __init__(self, policy: Policy, temperature: float):
        self.module = policy.model.get_output_embeddings()
        self.weight = self.module.weight.float()
        self.dtype, self.temperature = policy.dtype, temperature
        about = policy.model.config.get_text_config()
        self.cap = getattr(about, "final_logit_softcapping", None)

    def logits(self, x: Tensor) -> Tensor:
        """As the model has them at pre-logits (..., d), (..., |V|) float32."""
        logits = self.module(x.to(self.dtype)).float()
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def law(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """softmax of the logits at pre-logits (..., d), and d logits / d (W x), (..., |V|) each."""
        logits = self.logits(x)
        slope = 1.0 if self.cap is None else 1 - (logits / self.cap) ** 2
        return torch.softmax(logits / self.temperature, -1), slope


@torch.inference_mode()
def _check_head(policy: Policy) -> None:
    """Compare the logits of `Head` with the model's, on a few tokens; ValueError where they differ."""
    seen = []

    def same(z: Tensor) -> Tensor:
        seen.append(z)
        return z

    head = Head(policy, 1.0)
    ids = torch.arange(8, device=policy.device).unsqueeze(0) % len(head.weight)
    with prelogits_changed(policy.model, same):
        theirs = policy.model(input_ids=ids, use_cache=False).logits.float()
    ours = head.logits(seen[0])
    off = (ours - theirs).abs().max().item()
    if off > 0.02 * theirs.abs().max().item():
        raise ValueError(
            f"the logits of {policy.name} are not those of its output embeddings (they differ by up "
            f"to {off:.2g}): it scales or caps them in a way that MISVO does not know, and its score "
            "would be of another law. Use a method that needs no score, such as 'aisp_cv'"
        )


@torch.inference_mode()
def gradient(
    head: Head, z: Tensor, U: Tensor, tokens: Tensor, lengths: Tensor, A: Tensor
) -> Tensor:
    """1/n sum_i A_i grad_u log p(y^i | u), (P, T, d).

    Args:
        z: (P, n, T, d) unperturbed pre-logits of the responses.
        tokens: (P, n, T); lengths: (P, n), steps after a response's end count as 0.
        A: (P, n).
    """
    found = torch.zeros_like(U)
    for t in range(int(lengths.max())):
        p, slope = head.law(z[:, :, t].float() + U[:, None, t])  # (P, n, |V|)
        weight = (A * (t < lengths) / A.shape[1]).unsqueeze(-1)
        score = -weight * p
        score.scatter_add_(-1, tokens[:, :, t, None], weight)
        found[:, t] = (score * slope).sum(1) / head.temperature @ head.weight
    return found


@torch.inference_mode()
def fisher_times(head: Head, z: Tensor, at: Tensor, lengths: Tensor, u: Tensor) -> Tensor:
    """F u with F_t = mean_i W^T (diag(p) - p p^T) W, p = softmax at z_t^i + at_t; (P, T, d).

    With at = 0 that is the gradient of KL(p_u || p_0) to first order in u, and with at = u, for
    logits without a soft-cap, the gradient itself: log p_u - log p_0 is W u but for a constant.
    """
    found = torch.zeros_like(u)
    for t in range(int(lengths.max())):
        p, slope = head.law(z[:, :, t].float() + at[:, None, t])
        v = (u[:, t] @ head.weight.T).unsqueeze(1) * slope / head.temperature  # (P, n or 1, |V|)
        there = (t < lengths).unsqueeze(-1) / lengths.shape[1]
        spread = there * p * (v - (p * v).sum(-1, keepdim=True)) * slope
        found[:, t] = spread.sum(1) / head.temperature @ head.weight
    return found
