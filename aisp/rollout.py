"""The decoding engine: many responses from one prefix, their pre-logits perturbed or not.

A forward pre-hook on the model's own output embeddings adds the perturbation to the pre-logit
(arXiv:2510.26219, the perturbed decoding rule), so that biases, logit scaling and soft-capping stay
the model's business and no model code is copied. Three things make it cheaper than `generate`:

- a prefix runs through the model once per prompt, and its keys and values are kept once (see
  `aisp.attention`); the first step's n perturbed pre-logits are formed inside the hook;
- sampling needs one uniform number per token and no sort of the vocabulary;
- finished responses leave the batch.

Shapes: P prompts, n responses each, T new tokens at most, tau perturbed steps, pre-logit width d,
vocabulary size |V|. Peak memory beyond the weights: keys and values of P * (longest prefix + n * T)
positions, or P * n * (longest prefix + T) where prefixes cannot be shared, the logits (P * n, |V|), and V itself, (P, n, tau, d).
"""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from aisp.attention import PrefixCache, shared_prefix, why_not
from aisp.policy import Policy


@dataclass(frozen=True)
class Decoding:
    """How a token is taken from its logits.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: sample among this many most likely tokens; 0 is all of them.
        top_p: sample among the fewest most likely tokens that hold this much probability
            (nucleus sampling, Holtzman et al., arXiv:1904.09751); 1 is all of them.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be >= 0 (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0 or int(self.top_k) != self.top_k:
            raise ValueError(f"top_k is {self.top_k}; it must be a whole number >= 0 (0 is all)")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Decoding()


@dataclass(frozen=True, eq=False)
class Rollout:
    """Responses to P prompts, n each.

    Attributes:
        tokens: (P, n, T) token ids; after a response's end, the end-of-turn id.
        lengths: (P, n) tokens decoded, the end-of-turn token counted.
        texts: P lists of n responses, special tokens left out.
        prelogits: (P, n, T, d) unperturbed pre-logits z_t in the model's dtype, zero after the
            end; None unless asked for.
    """

    tokens: Tensor
    lengths: Tensor
    texts: list[list[str]]
    prelogits: Tensor | None = None


@torch.inference_mode()
def rollout(
    policy: Policy,
    prefixes: Sequence[Sequence[int]],
    n: int,
    max_new_tokens: int,
    *,
    V: Tensor | None = None,
    decoding: Decoding = GREEDY,
    generators: Sequence[torch.Generator] | None = None,
    keep_prelogits: bool = False,
) -> Rollout:
    """Decode n responses to each prefix in one batch.

    Args:
        policy: the frozen model.
        prefixes: P token id sequences, of any lengths, as `Policy.prefix` gives them.
        n: responses per prefix.
        max_new_tokens: T, tokens decoded per response at most.
        V: (P, n, tau, d) perturbations, tau <= T: step t < tau decodes from head(z_t + V[:, :, t]),
            later steps from head(z_t). The sum is formed in float32, then rounded to the model's
            dtype. None decodes the policy as it is.
        decoding: how tokens are taken from the logits.
        generators: one per prefix, on the policy's device; needed where `decoding` samples. Each
            prompt draws only from its own, (n, T) uniform numbers at once, so that a response does
            not depend on what else is in the batch.
        keep_prelogits: also return the pre-logits.

    Raises:
        ValueError: shapes or arguments that do not fit each other.
    """
    P, T = len(prefixes), max_new_tokens
    _check(policy, prefixes, n, T, V, decoding, generators)
    device = policy.head_device
    tau = 0 if V is None else V.shape[2]
    V = None if V is None else V.flatten(0, 1).to(device)  # (P n, tau, d)
    uniforms = None
    if not decoding.greedy:
        uniforms = torch.cat(
            [torch.rand(n, T, generator=g, device=g.device) for g in generators]
        ).to(device)  # (P n, T)

    eos = torch.tensor(policy.eos_ids, device=device)
    tokens = torch.full((P * n, T), policy.eos_ids[0] if policy.eos_ids else 0, device=device)
    lengths = torch.full((P * n,), T, device=device)
    prelogits = (
        torch.zeros(P * n, T, policy.d, dtype=policy.dtype, device=device)
        if keep_prelogits
        else None
    )
    rows = torch.arange(P * n, device=device)  # the responses still in the batch
    done = torch.zeros(P * n, dtype=torch.bool, device=device)  # of those, the finished ones
    ids, mask, positions = _left_padded(prefixes, policy)
    cache = DynamicCache(config=policy.model.config.get_text_config())
    share = _may_share_prefixes(policy.model) and T > 1

    with _at_output_embeddings(policy) as edit, ExitStack() as attention:
        for t in range(T):
            edit.repeat = n if t == 0 else 1
            edit.add = V[rows, t] if t < tau else None
            logits = policy.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if prelogits is not None:
                prelogits[rows[~done], t] = edit.z[~done]
            drawn = None if uniforms is None else uniforms[rows, t]
            token = take_token(logits, decoding, drawn)
            tokens[rows, t] = torch.where(done, tokens[rows, t], token)
            ended = torch.isin(token, eos) & ~done
            lengths[rows[ended]] = t + 1
            done = done | ended

            if t == 0:  # from one row per prompt to n
                positions = positions[:, -1:].repeat_interleave(n, 0)
                if share:
                    cache, mask = PrefixCache(cache, mask, n, T - 1), None
                    attention.enter_context(shared_prefix(policy.model, cache))
                else:
                    cache.batch_repeat_interleave(n)
                    mask = None if mask is None else mask.repeat_interleave(n, 0)
            # Asking a GPU whether any response is done makes it wait: do that every eighth step.
            if device.type == "cpu" or t % 8 == 7:
                finished = int(done.sum())
                if finished == len(rows):
                    break
                if finished * 8 >= len(rows):  # copying the cache costs about one step
                    kept = torch.nonzero(~done).squeeze(-1)
                    rows, done, token = rows[kept], done[kept], token[kept]
                    kept = kept.to(policy.device)
                    cache.keep(kept) if share else cache.batch_select_indices(kept)
                    positions = positions[kept]
                    mask = None if mask is None else mask[kept]
            ids = token[:, None].to(policy.device)
            positions = positions + 1
            mask = None if mask is None else torch.cat([mask, torch.ones_like(ids)], -1)

    flat, ends = tokens.tolist(), lengths.tolist()
    texts = policy.decode([row[:end] for row, end in zip(flat, ends, strict=True)])
    return Rollout(
        tokens.view(P, n, T),
        lengths.view(P, n),
        [texts[p * n : (p + 1) * n] for p in range(P)],
        None if prelogits is None else prelogits.view(P, n, T, -1),
    )


def take_token(logits: Tensor, decoding: Decoding, uniforms: Tensor | None) -> Tensor:
    """Token ids from logits, by inversion: one uniform number decides one token.

    Args:
        logits: (rows, |V|).
        decoding: greedy, or temperature, then top-k, then top-p, in that order.
        uniforms: (rows,) in [0, 1); None for greedy decoding.

    Returns:
        (rows,) token ids.
    """
    if decoding.greedy:
        return logits.max(-1).indices  # argmax, several times faster in bfloat16 on a CPU
    if logits.is_cuda:
        return _sampled(logits, decoding, uniforms)
    # A few rows at a time stay in a CPU's cache, where the whole batch in float32 would not.
    parts = zip(logits.split(16), uniforms.split(16), strict=True)
    return torch.cat([_sampled(rows, decoding, u) for rows, u in parts])


def _sampled(logits: Tensor, decoding: Decoding, uniforms: Tensor) -> Tensor:
    if decoding.temperature != 1:
        logits = logits.float() / decoding.temperature
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    if decoding.top_k == 0 and decoding.top_p == 1:
        return _invert(probs.cumsum(-1, dtype=torch.float64), uniforms)
    size = probs.shape[-1]
    limit = min(decoding.top_k or size, size)
    # Most nuclei are small, and sorting a vocabulary is slow on a CPU: look at the 64 most likely
    # tokens first, and at more for the rows where they do not hold enough probability.
    k = limit if decoding.top_k or logits.is_cuda else min(64, limit)
    token = torch.empty(len(probs), dtype=torch.long, device=probs.device)
    left = torch.arange(len(probs), device=probs.device)
    while True:
        top, ids = probs.topk(k)
        mass = top.cumsum(-1, dtype=torch.float64)
        if decoding.top_k:
            mass = mass / mass[:, -1:]
        size_of_nucleus = (mass < decoding.top_p).sum(-1, keepdim=True).clamp(max=k - 1)
        nucleus = mass.minimum(mass.gather(-1, size_of_nucleus))  # flat after the nucleus
        token[left] = ids.gather(-1, _invert(nucleus, uniforms[left])[:, None]).squeeze(-1)
        if k == limit:
            return token
        more = mass[:, -1] < decoding.top_p
        if not bool(more.any()):
            return token
        left, probs, k = left[more], probs[more], min(16 * k, limit)


def _invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """First index at which the cumulative mass (rows, k) exceeds uniform * total."""
    wanted = uniforms.double()[:, None] * mass[:, -1:]
    index = torch.searchsorted(mass, wanted, right=True).squeeze(-1)
    return index.clamp(max=mass.shape[-1] - 1)


def _may_share_prefixes(model) -> bool:
    reason = why_not(model)
    if reason is not None:
        warnings.warn(
            f"{type(model).__name__} decodes without shared prefixes, slower but equally right: "
            f"{reason}",
            stacklevel=4,
        )
    return reason is None


class _Edit:
    """What the hook does at this step, and the pre-logits it saw."""

    repeat: int = 1
    add: Tensor | None = None  # (rows, d)
    z: Tensor | None = None  # (rows, d), before the perturbation


@contextmanager
def _at_output_embeddings(policy: Policy):
    edit = _Edit()

    def hook(module, args):
        z = args[0][:, -1]  # only the last position decides the next token
        edit.z = z = z.repeat_interleave(edit.repeat, 0) if edit.repeat > 1 else z
        if edit.add is not None:
            z = (z.float() + edit.add).to(z.dtype)
        return (z[:, None], *args[1:])

    handle = policy.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield edit
    finally:
        handle.remove()


def _left_padded(prefixes, policy) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids, mask and positions, each (P, longest); no mask where nothing is padded."""
    longest = max(map(len, prefixes))
    pads = [longest - len(p) for p in prefixes]
    fill = policy.eos_ids[0] if policy.eos_ids else 0
    ids = torch.tensor([[fill] * k + list(p) for k, p in zip(pads, prefixes, strict=True)])
    mask = torch.tensor([[0] * k + [1] * len(p) for k, p in zip(pads, prefixes, strict=True)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    device = policy.device
    padded = any(pads)
    return ids.to(device), mask.to(device) if padded else None, positions.to(device)


def _check(policy, prefixes, n, T, V, decoding, generators) -> None:
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
