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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from aisp.attention import PrefixCache, shared_prefix, why_not
from aisp.decoding import GREEDY, Decoding, take_token
from aisp.policy import Policy


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
    record = share and _may_record(policy)
    recorded = None

    with _at_output_embeddings(policy) as edit, ExitStack() as attention:

        def forward(ids, positions, add=None):
            edit.add = add
            # Shared prefixes need no mask; without one, some models search the ids for padding,
            # for which a GPU has to wait.
            attended = torch.ones_like(ids) if isinstance(cache, PrefixCache) else mask
            logits = policy.model(
                input_ids=ids,
                attention_mask=attended,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            return logits, edit.z

        for t in range(T):
            edit.repeat = n if t == 0 else 1
            add = V[rows, t] if t < tau else None
            if record and t > 0:
                if V is not None and add is None:
                    add = V.new_zeros(len(rows), policy.d)  # the recorded step adds something
                inputs = (ids, positions) if V is None else (ids, positions, add)
                recorded = recorded or _recorded(forward, inputs)
                logits, z = recorded(*inputs)
                cache.advance()
            else:
                logits, z = forward(ids, positions, add)
            if prelogits is not None:
                prelogits[rows[~done], t] = z[~done]
            drawn = None if uniforms is None else uniforms[rows, t]
            token = take_token(logits, decoding, drawn)
            tokens[rows, t] = torch.where(done, tokens[rows, t], token)
            ended = (token[:, None] == eos).any(1) & ~done
            lengths[rows] = torch.where(ended, t + 1, lengths[rows])
            done = done | ended

            if t == 0:  # from one row per prompt to n
                positions = positions[:, -1:].repeat_interleave(n, 0)
                if share:
                    cache, mask = PrefixCache(cache, mask, n, T - 1, static=record), None
                    attention.enter_context(shared_prefix(policy.model, cache))
                else:
                    cache.batch_repeat_interleave(n)
                    mask = None if mask is None else mask.repeat_interleave(n, 0)
            # Asking a GPU whether any response is done makes it wait: do that every eighth step.
            if device.type == "cpu" or t % 8 == 7:
                finished = int(done.sum())
                if finished == len(rows):
                    break
                # Copying the cache costs about one step, recording a step anew several.
                if finished * (2 if record else 8) >= len(rows):
                    kept = torch.nonzero(~done).squeeze(-1)
                    rows, done, token = rows[kept], done[kept], token[kept]
                    kept = kept.to(policy.device)
                    cache.keep(kept) if share else cache.batch_select_indices(kept)
                    recorded = None
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


def _may_share_prefixes(model) -> bool:
    reason = why_not(model)
    if reason is not None:
        warnings.warn(
            f"{type(model).__name__} decodes without shared prefixes, slower but equally right: "
            f"{reason}",
            stacklevel=4,
        )
    return reason is None


def _may_record(policy: Policy) -> bool:
    """A step becomes a CUDA graph where the whole model is on one GPU."""
    return policy.device.type == "cuda" and policy.device == policy.head_device


class Recorded:
    """A function of tensors as a CUDA graph: recorded once, then replayed without the interpreter.

    The function must run the same operations every time, read what changes from its inputs or from
    tensors that are changed in place, and leave nothing to Python.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor]):
        self.inputs = [x.clone() for x in inputs]
        side = torch.cuda.Stream()  # libraries allocate what they need outside the recording
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs on new inputs; the next call overwrites them."""
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self.graph.replay()
        return self.outputs


def _recorded(function, inputs):
    try:
        return Recorded(function, inputs)
    except RuntimeError as error:
        warnings.warn(
            f"decoding without CUDA graphs, slower but equally right: {error}", stacklevel=5
        )
        return function


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
