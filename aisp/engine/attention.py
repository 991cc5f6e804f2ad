"""Attention over a prefix that is stored once per prompt and shared by its n responses.

n responses to one prompt agree on the keys and values of the prompt. Here they are kept once, and
all queries of a prompt meet them in one matrix product; each response owns only the keys and values
of its own tokens, in a buffer allocated once. Scores over both parts go through one softmax, so
that the result is that of ordinary attention up to rounding (the idea is that of Hydragen, Juravsky
et al., arXiv:2402.05099, and of cascade inference). Layers may see a sliding window of the tokens
before; layers that keep a convolution's state in the place of keys and values have one for each
response, as they always do.

It enters through the public attention interface of transformers: `shared_prefix` names this
function as a model's attention while it is active, and puts back what was there. Not thread-safe
for one model, which holds the name of its attention in its config.

Shapes: P prompts, R rows (responses still decoding, grouped by prompt), H heads over K key-value
heads of width w, longest prefix L, T new tokens at most.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "aisp_shared_prefix"
_active: ContextVar["PrefixCache"] = ContextVar("aisp_prefix_cache")


def sees_everything(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all tokens before, and not to a sliding window of them."""
    config = model.config.get_text_config()
    return _kinds(model) == {"full_attention"} and not getattr(config, "sliding_window", None)


def _kinds(model: PreTrainedModel) -> set[str]:
    """Of the model's layers."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])


def no_mask(model: PreTrainedModel, ids: Tensor) -> Any:
    """What a model takes in the place of a mask while `attend` is its attention.

    Without any, some models search the ids for padding, for which a GPU has to wait; those with
    layers of several kinds take a mask for each, ready-made.
    """
    kinds = _kinds(model)
    return torch.ones_like(ids) if len(kinds) == 1 else dict.fromkeys(kinds)


def obstacle_to_sharing(model: PreTrainedModel) -> str | None:
    """Why a model's attention cannot be replaced by this one; None where it can."""
    config = model.config.get_text_config()
    if not model._supports_attention_backend:
        return "its attention does not go through transformers' attention interface"
    strange = _kinds(model) - {"full_attention", "sliding_attention", "conv"}
    if strange:
        return f"it has layers of kinds that are not known here: {', '.join(sorted(strange))}"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are soft-capped"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {config._attn_implementation!r}"
    return None


def select(cache: Any, rows: Tensor) -> None:
    """Keep these rows of a cache or a layer. Of the ways that they have, the one that all know."""
    cache.reorder_cache(rows)


class PrefixCache(Cache):
    """Keys and values of P prefixes, and of the responses to each."""

    layers: list["_Layer | LinearAttentionLayer"]  # type: ignore[assignment]  # no layer of another kind

    def __init__(
        self, prefill: Cache, mask: Tensor | None, n: int, steps: int, *, static: bool = False
    ):
        """Take over the prefixes of a cache that one pass over the prompts has filled.

        Args:
            prefill: with one row per prompt.
            mask: (P, L), 0 at padding; None where nothing is padded.
            n: responses per prompt; row p * n + i is response i to prompt p.
            steps: tokens that will be added to each response.
            static: every step runs the same operations on tensors of the same shape, so that a
                step can be recorded once and replayed, at the price of attending to the whole
                buffer with what lies ahead hidden.
        """
        super().__init__(layers=[_taken_over(x, n, steps) for x in prefill.layers])
        self.attending = [x for x in self.layers if isinstance(x, _Layer)]
        prompts = len(self.attending[0].prefix_keys)
        if static:
            for layer in self.attending:
                device = layer.keys.device
                layer.step = torch.zeros(1, dtype=torch.long, device=device)
                layer.ahead = torch.full((steps,), float("-inf"), device=device)
        self.prompt = torch.arange(prompts).repeat_interleave(n)  # (R,) of each row
        self.padding = None if mask is None or bool(mask.all()) else mask == 0  # (P, L)
        self._group()

    def advance(self) -> None:
        """Between two steps of a static cache: the next token goes one further."""
        for layer in self.attending:
            layer.length += 1
            if layer.step is not None:
                layer.step += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, given in ascending order."""
        self.prompt = self.prompt[rows.cpu()]
        alive, self.prompt = self.prompt.unique_consecutive(return_inverse=True)
        for layer in self.layers:
            if isinstance(layer, _Layer):
                layer.keep(rows, alive if len(alive) < len(layer.prefix_keys) else None)
            else:
                select(layer, rows)
        if self.padding is not None:
            self.padding = self.padding[alive.to(self.padding.device)]
        self._group()

    def _group(self) -> None:
        """Where each row stands in a (P, m) table, m being the most rows of one prompt."""
        counts = torch.bincount(self.prompt)
        self.shape = (len(counts), int(counts.max()))
        self.slot: Tensor | None = None  # both None where the table has no holes
        self.row: Tensor | None = None
        if not bool((counts == counts[0]).all()):
            within = torch.arange(len(self.prompt)) - (counts.cumsum(0) - counts)[self.prompt]
            slot = self.prompt * self.shape[1] + within  # (R,)
            row = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.long)
            row[slot] = torch.arange(len(self.prompt))  # holes repeat row 0
            device = self.attending[0].keys.device
            self.slot, self.row = slot.to(device), row.to(device)

    def states(self) -> list[Tensor]:
        """What a step changes in place, so that the same step twice is not the same as once."""
        return [
            state
            for layer in self.layers
            if isinstance(layer, LinearAttentionLayer)
            for state in layer.conv_states.values()
            if state is not None
        ]

    def gather(self, x: Tensor) -> Tensor:
        """(R, K, G, w) -> (P, K, m * G, w)."""
        x = x if self.row is None else x[self.row.to(x.device)]
        P, m = self.shape
        return x.unflatten(0, (P, m)).transpose(1, 2).flatten(2, 3)

    def scatter(self, x: Tensor, G: int) -> Tensor:
        """(P, K, m * G, w) -> (R, K, G, w)."""
        x = x.unflatten(2, (-1, G)).transpose(1, 2).flatten(0, 1)
        return x if self.slot is None else x[self.slot.to(x.device)]


def _taken_over(layer: Any, n: int, steps: int) -> "_Layer | LinearAttentionLayer":
    """A layer of a cache that is filled with one row per prompt, as one with n rows for each."""
    if isinstance(layer, LinearAttentionLayer):
        prompts = next(len(x) for x in layer.conv_states.values() if x is not None)
        layer = copy.deepcopy(layer)  # rows are chosen in place, and the prefill may be used again
        select(layer, torch.arange(prompts).repeat_interleave(n))
        return layer
    window = layer.sliding_window if layer.is_sliding else None
    return _Layer(layer.keys, layer.values, n, steps, window)


class _Layer(CacheLayerMixin):
    is_sliding = False  # for masks that transformers makes, and `attend` does not read
    keys: Tensor
    values: Tensor
    step: Tensor | None  # (1,) of a static cache: where the next token goes
    ahead: Tensor | None  # (steps,) of a static cache: -inf where nothing was written yet

    def __init__(
        self, prefix_keys: Tensor, prefix_values: Tensor, n: int, steps: int, window: int | None
    ):
        super().__init__()
        # (P, K, L, w); with a window L is below it, and only the last keys of the prefix are here.
        self.prefix_keys, self.prefix_values, self.window = prefix_keys, prefix_values, window
        P, K, _, width = prefix_keys.shape
        # Zeros, not empty: what is hidden still meets a weight of 0, and 0 * NaN is NaN.
        self.keys = prefix_keys.new_zeros(P * n, K, steps, width)
        self.values = prefix_values.new_zeros(P * n, K, steps, prefix_values.shape[-1])
        self.length = 0
        self.step = self.ahead = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass  # shapes are known from the prefix

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Write one token's keys and values, and return those of the response so far.

        A static layer returns the whole buffers; `ahead` marks the positions to hide.
        """
        if self.step is not None and self.ahead is not None:
            self.keys.index_copy_(2, self.step, key_states)
            self.values.index_copy_(2, self.step, value_states)
            self.ahead.index_fill_(0, self.step, 0.0)
            return self.keys, self.values
        t = self.length
        self.keys[:, :, t : t + 1] = key_states
        self.values[:, :, t : t + 1] = value_states
        self.length = t + 1
        return self.keys[:, :, : t + 1], self.values[:, :, : t + 1]

    def left_behind(self) -> Tensor | None:
        """(L + t,) which keys the window of the token just written has left; None where none."""
        L, static = self.prefix_keys.shape[2], self.step is not None
        last = L + (self.keys.shape[2] if static else self.length)
        if self.window is None or last <= self.window:
            return None
        written = self.length - 1 if self.step is None else self.step
        return torch.arange(last, device=self.keys.device) <= written + (L - self.window)

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
        if prompts is not None:
            prompts = prompts.to(self.keys.device)
            self.prefix_keys = self.prefix_keys[prompts]
            self.prefix_values = self.prefix_values[prompts]

    def get_seq_length(self) -> int:
        return self.prefix_keys.shape[2] + self.length

    def get_max_length(self) -> int:
        return self.prefix_keys.shape[2] + self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


@contextmanager
def shared_prefix(model: PreTrainedModel, cache: PrefixCache) -> Iterator[None]:
    """Make `attend` over this cache the attention of the model."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    token = _active.set(cache)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _active.reset(token)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """One decoding step of attention, in the signature of the attention interface.

    Args:
        query: (R, H, 1, w).
        key, value: (R, K, t, w), of the response's own tokens.

    Returns:
        (R, 1, H, w), and no weights.
    """
    cache = _active.get()
    layer = cache.layers[module.layer_idx]
    assert isinstance(layer, _Layer)  # of the other kind are those that do not attend
    R, H, _, width = query.shape
    G = H // key.shape[1]
    scaling = width**-0.5 if scaling is None else scaling
    q = query.view(R, -1, G, width)
    shared = cache.gather(q) @ layer.prefix_keys.transpose(2, 3)  # (P, K, m G, L)
    L = layer.prefix_keys.shape[2]
    if cache.padding is not None:
        hidden = cache.padding[:, None, None, -L:].to(shared.device)
        shared = shared.masked_fill(hidden, float("-inf"))
    own = q @ key.transpose(2, 3)  # (R, K, G, t)
    if layer.ahead is not None:
        own = own + layer.ahead.to(own.dtype)
    scores = torch.cat([cache.scatter(shared, G), own], -1).float() * scaling
    behind = layer.left_behind()
    if behind is not None:
        scores = scores.masked_fill(behind, float("-inf"))
    weights = torch.softmax(scores, -1).to(value.dtype)
    out = weights[..., L:] @ value
    out += cache.scatter(cache.gather(weights[..., :L]) @ layer.prefix_values, G)
    return out.reshape(R, 1, H, -1), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
