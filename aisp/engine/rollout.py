"""The decoding engine: many responses to each prompt, one step of all of them at a time.

`decode` runs the loop that every method shares, over one `Stepper` or several in lockstep, and asks
a function for the tokens; `rollout` is that loop over one policy, its pre-logits perturbed or not.
Four things make it cheaper than `generate`:

- a prefix runs through the model once per prompt, and its keys and values are kept once (see
  `aisp.engine.stepper` and `aisp.engine.attention`);
- on a CPU the weights are laid out once for its matrix products (`aisp.engine.packed`);
- sampling needs one uniform number per token and no sort of the vocabulary (`aisp.engine.decoding`);
- finished responses leave the batch.

Shapes: P prompts, n responses each, T new tokens at most, tau perturbed steps, pre-logit width d,
vocabulary size |V|. Peak memory beyond the weights: keys and values of P * (longest prefix + n * T)
positions, or P * n * (longest prefix + T) where prefixes cannot be shared, the logits (P * n, |V|),
and V itself, (P, n, tau, d). Sampling takes probabilities beside the logits: on a CPU those of eight
rows, on a GPU those of all, in float32 and summed in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aisp.engine.decoding import GREEDY, Decoding, not_finite, take_token
from aisp.engine.job import Job
from aisp.engine.perturbation import Perturbation, uniforms
from aisp.engine.stepper import Stepper
from aisp.policy import Policy, RemotePolicy


@dataclass(frozen=True, eq=False)
class Rollout:
    """Responses to P prompts, n each.

    Attributes:
        tokens: (P, n, T) token ids; after a response's end, the end-of-turn id.
        lengths: (P, n) tokens of each response, the end-of-turn token counted.
        texts: P lists of n responses, special tokens left out.
        prelogits: (P, n, T, d) unperturbed pre-logits z_t in the model's dtype, zero after the
            end; None unless asked for.
        fresh: (P, n) how many of these tokens were decoded for this rollout, where the others were
            kept from an earlier one (`aisp.engine.continuation`); None is all of them.
    """

    tokens: Tensor
    lengths: Tensor
    texts: list[list[str]]
    prelogits: Tensor | None = None
    fresh: Tensor | None = None

    @property
    def decoded(self) -> Tensor:
        """(P, n) tokens that were decoded for each response, what it is charged for."""
        return self.lengths if self.fresh is None else self.fresh

    @classmethod
    def of_rows(cls, policy: Policy, tokens: Tensor, lengths: Tensor, n: int) -> "Rollout":
        """From rows (P * n, T) of tokens and (P * n,) lengths, with the policy's texts of them."""
        rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
        texts = policy.decode([row[:end] for row, end in rows])
        groups = [texts[i : i + n] for i in range(0, len(texts), n)]
        return cls(tokens.view(len(groups), n, -1), lengths.view(-1, n), groups)

    def interleaved(self, k: int) -> "list[Rollout]":
        """Every k-th prompt from the first on, every k-th from the second on, and so on: k rollouts."""
        return [
            Rollout(
                self.tokens[i::k],
                self.lengths[i::k],
                self.texts[i::k],
                None if self.prelogits is None else self.prelogits[i::k],
                None if self.fresh is None else self.fresh[i::k],
            )
            for i in range(k)
        ]


@dataclass
class Step:
    """Where the loop of `decode` stands.

    Attributes:
        t: the step, from 0.
        rows: (R,) which of the P * n responses are still in the batch, in ascending order.
        done: (R,) which of those have ended, and only wait to leave it.
        tokens: (P * n, T) all tokens so far, those of step t not yet among them.
        logits: one (R, |V|) per stepper, filled in before a token is asked for.
    """

    t: int
    rows: Tensor
    done: Tensor
    tokens: Tensor
    logits: list[Tensor]


@torch.inference_mode()
def decode(
    steppers: Sequence[Stepper],
    take: Callable[[Step], Tensor],
    *,
    add: Callable[[Step], Tensor] | None = None,
    limits: Tensor | None = None,
) -> Rollout:
    """Decode responses token by token, all steppers on the same tokens.

    Args:
        steppers: over the same number of rows; the first one's policy says which tokens end a
            response, and how tokens become text.
        take: from a step to its tokens, (R,); what it gives for rows that are done is not used.
        add: from a step to what is added to the first stepper's pre-logits, (R, d).
        limits: (P * n,) from 1 to T, tokens decoded at most by each row; None is T for all.

    Raises:
        FloatingPointError: logits that are not finite, of a response that has not ended.
    """
    first = steppers[0]
    policy, n, T = first.policy, first.n, first.T
    device = policy.head_device
    P = first.prompts
    eos = torch.tensor(policy.eos_ids, device=device)
    tokens = torch.full((P * n, T), policy.eos_ids[0] if policy.eos_ids else 0, device=device)
    lengths = torch.full((P * n,), T, device=device)
    limits = lengths.clone() if limits is None else limits.to(device)
    none_done = torch.zeros(P * n, dtype=torch.bool, device=device)
    at = Step(0, torch.arange(P * n, device=device), none_done, tokens, [])
    broken = torch.zeros((), dtype=torch.bool, device=device)
    token = tokens[:, 0]  # of no step yet
    for t in range(T):
        at.t = t
        added = [None if add is None else add(at), *[None] * (len(steppers) - 1)]
        at.logits = [
            s.start(a) if t == 0 else s.step(token, a) for s, a in zip(steppers, added, strict=True)
        ]
        rows = at.rows
        token = take(at)
        if device.type != "cpu":  # on a CPU the token's law was looked at (`aisp.engine.decoding`)
            broken = broken | _any_broken(at)
        tokens[rows, t] = torch.where(at.done, tokens[rows, t], token)
        ended = ((token[:, None] == eos).any(1) | (limits[rows] == t + 1)) & ~at.done
        lengths[rows] = torch.where(ended, t + 1, lengths[rows])
        at.done = at.done | ended
        # Asking a GPU whether any response is done makes it wait: do that every eighth step.
        if device.type == "cpu" or t % 8 == 7:
            finished = int(at.done.sum())
            if device.type != "cpu" and bool(broken):
                raise not_finite()
            if finished == len(rows):
                break
            # Copying the cache costs about one step, recording a step anew several.
            if finished * (2 if first.record else 8) >= len(rows):
                kept = torch.nonzero(~at.done).squeeze(-1)
                at.rows, at.done, token = rows[kept], at.done[kept], token[kept]
                for stepper in steppers:
                    stepper.keep(kept)

    if bool(broken.any()):
        raise not_finite()
    return Rollout.of_rows(policy, tokens, lengths, n)


def _any_broken(at: Step) -> Tensor:
    """Whether a row that has not ended has logits that are not finite, a bool on its device."""
    finite = [x.amax(-1).isfinite().to(at.done.device) for x in at.logits]
    return (~torch.stack(finite).all(0) & ~at.done).any()


@torch.inference_mode()
def rollout(
    policy: Policy,
    prefixes: Sequence[Sequence[int]],
    n: int,
    max_new_tokens: int,
    *,
    V: Tensor | Perturbation | None = None,
    decoding: Decoding = GREEDY,
    generators: Sequence[torch.Generator] | None = None,
    keep_prelogits: bool = False,
    share_prefixes: bool = True,
    pack_weights: bool = True,
    take_token: Callable[[Tensor, Decoding, Tensor | None], Tensor] = take_token,
) -> Rollout:
    """Decode n responses to each prefix in one batch.

    Args:
        policy: the frozen model; one of another engine decodes there, see `aisp.engine.job`.
        prefixes: P token id sequences, of any lengths, as `Policy.prefix` gives them.
        n: responses per prefix.
        max_new_tokens: T, tokens decoded per response at most.
        V: (P, n, tau, d) perturbations, tau <= T: step t < tau decodes from head(z_t + V[:, :, t]),
            later steps from head(z_t). The sum is formed in float32, then rounded to the model's
            dtype. None decodes the policy as it is. A `Perturbation` is drawn first.
        decoding: how tokens are taken from the logits.
        generators: one per prefix, on the policy's device; needed where `decoding` samples. Each
            prompt draws only from its own, see `uniforms`.
        keep_prelogits: also return the pre-logits.
        share_prefixes, pack_weights: see `Stepper`.
        take_token: from logits (R, |V|), `decoding` and one uniform number per row to tokens.

    Raises:
        ValueError: shapes or arguments that do not fit each other.
    """
    P, T = len(prefixes), max_new_tokens
    check(policy, prefixes, n, T, V, decoding, generators)
    if isinstance(policy, RemotePolicy):
        if keep_prelogits:
            policy.require_here("keeping pre-logits")
        return _remote(policy, prefixes, Job.of(n, T, decoding, V, generators))
    device = policy.head_device
    add = None if V is None else _added(V, device)
    u = None if decoding.greedy else uniforms(generators or (), n, T, device)
    prelogits = None
    if keep_prelogits:
        prelogits = torch.zeros(P * n, T, policy.d, dtype=policy.dtype, device=device)
    stepper = Stepper(
        policy, prefixes, n, T, share_prefixes=share_prefixes, pack_weights=pack_weights
    )

    def take(at: Step) -> Tensor:
        if prelogits is not None:
            # Zeros for rows that are done: leaving them out by a mask would make a GPU wait.
            prelogits[at.rows, at.t] = stepper.z.masked_fill(at.done[:, None], 0.0)
        return take_token(at.logits[0], decoding, None if u is None else u[at.rows, at.t])

    out = decode([stepper], take, add=add)
    if prelogits is None:
        return out
    return replace(out, prelogits=prelogits.view(P, n, T, -1))


def _added(V: Tensor | Perturbation, device: torch.device) -> Callable[[Step], Tensor]:
    """What `decode` adds to the pre-logits of a step."""
    drawn = (V.tensor if isinstance(V, Perturbation) else V).flatten(0, 1).to(device)
    tau, zero = drawn.shape[1], drawn.new_zeros(1, drawn.shape[2])  # (P n, tau, d)

    def add(at: Step) -> Tensor:
        return drawn[at.rows, at.t] if at.t < tau else zero.expand(len(at.rows), -1)

    return add


def _remote(policy: RemotePolicy, prefixes: Sequence[Sequence[int]], job: Job) -> Rollout:
    rows = [prefix for prefix in prefixes for _ in range(job.n)]
    stop = [token for token in policy.eos_ids if token >= 0]
    found = policy.model.decode(rows, job.T, stop, job.to_bytes() if job.changes_logits else None)
    if found is None:
        raise not_finite()
    end = policy.eos_ids[0] if policy.eos_ids else 0
    tokens = torch.tensor([[*row, *[end] * (job.T - len(row))] for row in found])
    return Rollout.of_rows(policy, tokens, torch.tensor([len(row) for row in found]), job.n)


def check(policy, prefixes, n, T, V, decoding, generators) -> None:
    """Raise ValueError where arguments of `rollout` do not fit each other."""
    for name, value in {"n": n, "max_new_tokens": T}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not prefixes or not all(map(len, prefixes)):
        raise ValueError("prefixes must be one or more non-empty token sequences")
    if V is not None:
        expected = (len(prefixes), n, V.shape[2] if V.ndim == 4 else "tau", policy.d)
        if V.ndim != 4 or tuple(V.shape) != expected or V.shape[2] > T:
            raise ValueError(
                f"V has shape {tuple(V.shape)}; expected (P, n, tau, d) = {expected} with tau <= "
                f"max_new_tokens = {T}"
            )
    if not decoding.greedy and (generators is None or len(generators) != len(prefixes)):
        raise ValueError(
            f"sampled decoding takes one torch.Generator per prefix: {len(prefixes)} prefixes, "
            f"{len(generators or ())} generators"
        )
