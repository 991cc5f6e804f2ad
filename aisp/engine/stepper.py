"""One frozen model over many responses that decode in lockstep: from tokens to the next logits.

A forward pre-hook on the model's own output embeddings changes the pre-logits (arXiv:2510.26219,
the perturbed decoding rule), so the model itself applies biases, logit scaling
and soft-capping, and no model code is copied. A prefix runs through the model once per prompt; its
keys and values are kept once where the model's attention allows that (`aisp.engine.attention`), and
from one iteration of a search to the next (`aisp.engine.prefill`).

Hook, attention and packed products (`aisp.engine.packed`) are in place only while a `Stepper` runs
its model. Several steppers, over one model or over models that share weights, can therefore take
turns.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from aisp.engine import prefill
from aisp.engine.attention import PrefixCache, no_mask, obstacle_to_sharing, select, shared_prefix
from aisp.engine.packed import packed
from aisp.policy import Policy, prelogits_changed

Edit = Callable[[Tensor], tuple[Tensor, Tensor]]


class Stepper:
    """R = P * n responses to P prefixes, n each; row p * n + i is response i to prefix p.

    Use: `start()` gives the logits of the first tokens, each `step(tokens)` those of the next ones,
    and `keep(rows)` in between drops the other rows.

    Attributes:
        prompts, n: P, and the responses to each.
        z: (R, d) unperturbed pre-logits of the last step.
        edit_notes: (R, k) what `edit` said of its last edits.
    """

    z: Tensor
    edit_notes: Tensor

    def __init__(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        n: int,
        max_new_tokens: int,
        *,
        edit: Edit | None = None,
        share_prefixes: bool = True,
        pack_weights: bool = True,
    ):
        """Prepare; nothing is computed yet.

        Args:
            policy: the frozen model.
            prefixes: P token id sequences, of any lengths.
            n: responses per prefix.
            max_new_tokens: T; `step` can be called T - 1 times.
            edit: from pre-logits (R, d) to those that are used in their place, and what the caller
                wants to know of the change, (R, k), kept as `edit_notes`.
            share_prefixes: keep each prefix once where the model allows it; False keeps a copy
                for every response, which is slower.
            pack_weights: see `aisp.engine.packed`; False leaves the model's products as they are.
        """
        policy.require_here("decoding step by step")
        self.policy, self.n, self.T, self.edit = policy, n, max_new_tokens, edit
        self.prompts = len(prefixes)
        self.distinct, self.per_prefix = _merged(prefixes, n)
        self.ids, self.mask, self.positions = left_padded(self.distinct, policy)
        self.cache: DynamicCache | PrefixCache = DynamicCache(
            config=policy.model.config.get_text_config()
        )
        self.share = share_prefixes and _may_share_prefixes(policy.model) and max_new_tokens > 1
        self.record = self.share and edit is None and _may_record(policy)
        self.recorded: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.packed = packed(policy.model) if pack_weights else nullcontext

    def start(self, add: Tensor | None = None) -> Tensor:
        """Run the prefixes, unless `prefill.kept` has what they give.

        Args:
            add: (R, d), added to the pre-logits in float32.

        Returns:
            (R, |V|) logits of the first tokens.
        """
        repeat, model = self.per_prefix, self.policy.model
        several = self.share and repeat > 1
        known = prefill.known(model, self.distinct) if several else None
        logits, self.z = self._forward(self.ids, self.positions, add, repeat=repeat, known=known)
        if known is not None:
            self.cache = known.cache
        elif isinstance(self.cache, DynamicCache) and several:
            prefill.keep(model, self.distinct, self.cache, self.z[::repeat])
        self.positions = self.positions[:, -1:].repeat_interleave(repeat, 0)
        if isinstance(self.cache, DynamicCache) and self.share:
            self.cache = PrefixCache(self.cache, self.mask, repeat, self.T - 1, static=self.record)
            self.mask = None
        else:
            rows = torch.arange(len(self.ids), device=self.ids.device)
            select(self.cache, rows.repeat_interleave(repeat))
            self.mask = None if self.mask is None else self.mask.repeat_interleave(repeat, 0)
        return logits

    def step(self, tokens: Tensor, add: Tensor | None = None) -> Tensor:
        """Append one token to every row.

        Args:
            tokens: (R,), on any device.
            add: (R, d); given always or never, because a step may be recorded once and replayed.

        Returns:
            (R, |V|) logits of the next tokens. A recorded step overwrites them at the next call.
        """
        ids = tokens[:, None].to(self.policy.device)
        # A row that has ended and waits to leave the batch may be past the context's last position.
        self.positions = (self.positions + 1).clamp(max=self.policy.context_length - 1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(ids)], -1)
        if not (self.record and isinstance(self.cache, PrefixCache)):
            logits, self.z = self._forward(ids, self.positions, add)
            return logits
        inputs = (ids, self.positions) if add is None else (ids, self.positions, add)
        if self.recorded is None:
            self.recorded = _recorded(self._forward, inputs, self.cache.states())
        logits, self.z = self.recorded(*inputs)
        self.cache.advance()
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, given in ascending order."""
        rows = rows.to(self.policy.device)
        if isinstance(self.cache, PrefixCache):
            self.cache.keep(rows)
        else:
            select(self.cache, rows)
        if isinstance(self.recorded, Recorded):  # and not a step that could not be recorded
            self.recorded = None
        self.positions = self.positions[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        add: Tensor | None = None,
        repeat: int = 1,
        known: prefill.Prefill | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One pass of the model: (R, |V|) logits, and the (R, d) pre-logits before any change.

        Args:
            known: its pre-logits are used; a single token runs, to reach the model's head.
        """
        seen = []

        def change(z: Tensor) -> Tensor:
            # Only the last position decides the next token.
            z = z[:, -1] if known is None else known.z
            z = z.repeat_interleave(repeat, 0) if repeat > 1 else z
            seen.append(z)
            if self.edit is not None:
                z, self.edit_notes = self.edit(z)
            if add is not None:
                z = (z.float() + add).to(z.dtype)
            return z[:, None]

        shared = isinstance(self.cache, PrefixCache)
        attention: AbstractContextManager[None] = nullcontext()
        if isinstance(self.cache, PrefixCache):
            attention = shared_prefix(self.policy.model, self.cache)
        mask = no_mask(self.policy.model, ids) if shared else self.mask
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions}
        inputs |= {"attention_mask": mask, "past_key_values": self.cache, "use_cache": True}
        if known is not None:
            inputs = {"input_ids": ids[:, -1:], "use_cache": False}
        with self.packed(), prelogits_changed(self.policy.model, change), attention:
            logits = self.policy.model(**inputs, logits_to_keep=1).logits[:, -1]
        return logits, seen[0]


class Recorded:
    """A function of tensors as a CUDA graph: recorded once, then replayed without the interpreter.

    The function must run the same operations every time, read what changes from its inputs or from
    tensors that are changed in place, and leave nothing to Python.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor]):
        self.inputs = [x.clone() for x in inputs]
        # The current device, whose stream is recorded, may be another one.
        self.device = inputs[0].device
        with torch.cuda.device(self.device):
            own = torch.cuda.current_stream()
            side = torch.cuda.Stream()  # libraries allocate what they need outside the recording
            side.wait_stream(own)
            with torch.cuda.stream(side):
                function(*self.inputs)
            own.wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph):
                    self.outputs = function(*self.inputs)
            finally:
                torch.cuda.set_stream(own)  # a recording that fails leaves its own stream in place

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs on new inputs; the next call overwrites them."""
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        with torch.cuda.device(self.device):
            self.graph.replay()
        return self.outputs


def _recorded(function, inputs, states):
    """The function recorded, or as it is; the states, which trying it out changes, are put back."""
    before = [state.clone() for state in states]
    try:
        return Recorded(function, inputs)
    except RuntimeError as error:
        warnings.warn(
            f"decoding without CUDA graphs, slower but equally right: {error}", stacklevel=6
        )
        return function
    finally:
        for state, old in zip(states, before, strict=True):
            state.copy_(old)


def _may_share_prefixes(model) -> bool:
    reason = obstacle_to_sharing(model)
    if reason is not None:
        warnings.warn(
            f"{type(model).__name__} decodes without shared prefixes, slower but equally right: "
            f"{reason}",
            stacklevel=5,
        )
    return reason is None


def _may_record(policy: Policy) -> bool:
    """A step becomes a CUDA graph where the whole model is on one GPU."""
    return policy.device.type == "cuda" and policy.device == policy.head_device


def _merged(prefixes: Sequence[Sequence[int]], n: int) -> tuple[Sequence[Sequence[int]], int]:
    """Prefixes that each stand k times in a row, as one each with k * n responses."""
    runs = [(list(prefix), len(list(run))) for prefix, run in groupby(prefixes, list)]
    k = runs[0][1]
    if all(length == k for _, length in runs):
        return [prefix for prefix, _ in runs], k * n
    return prefixes, n


def left_padded(prefixes, policy) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids, mask and positions, each (P, longest); no mask where nothing is padded."""
    longest = max(map(len, prefixes))
    pads = [longest - len(p) for p in prefixes]
    fill = max(policy.eos_ids[0], 0) if policy.eos_ids else 0  # -1 ends nothing, and is no token
    ids = torch.tensor([[fill] * k + list(p) for k, p in zip(pads, prefixes, strict=True)])
    mask = torch.tensor([[0] * k + [1] * len(p) for k, p in zip(pads, prefixes, strict=True)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    device = policy.device
    padded = any(pads)
    return ids.to(device), mask.to(device) if padded else None, positions.to(device)
