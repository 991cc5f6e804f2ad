"""Responses whose first tokens are kept: only the rest of each is decoded.

What a sampler needs that proposes a new ending of a response, and what a search needs that goes on
with some of the responses that it has begun. Kept tokens run through the model once, all together in
place of one step each, and are not counted as decoded (`Rollout.decoded`). A prefix runs once for
all responses to it, but each of these has its own copy of its keys and values.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from aisp.engine import prefill
from aisp.engine.attention import PrefixCache, sees_everything
from aisp.engine.decoding import GREEDY, Decoding, take_token
from aisp.engine.perturbation import Perturbation, uniforms
from aisp.engine.rollout import Rollout, Step, check, decode
from aisp.engine.stepper import Stepper, left_padded
from aisp.policy import Policy


@torch.inference_mode()
def continuation(
    policy: Policy,
    prefixes: Sequence[Sequence[int]],
    begun: Rollout,
    kept: Tensor,
    max_new_tokens: int,
    *,
    V: Tensor | Perturbation | None = None,
    decoding: Decoding = GREEDY,
    generators: Sequence[torch.Generator] | None = None,
) -> Rollout:
    """Keep the first tokens of every response, and decode on from there.

    In float32 a response is the one that `aisp.engine.rollout` would have found from the start with
    these V and generators, wherever that one has the same first tokens. Greedily with the V that
    decoded `begun` it is that of `begun`.

    Args:
        policy, prefixes, V, decoding, generators: as `rollout` takes them; V and the uniform
            numbers belong to the steps of whole responses, so that those of kept steps are not used.
        begun: n responses to each of the P prefixes, whole or cut off.
        kept: (P, n) whole numbers from 0 to the response's length, how many tokens stay. Where they
            end with an end-of-turn token, or are max_new_tokens, the response stays as it is.
        max_new_tokens: T, of whole responses, kept tokens among them; may differ from that of
            `begun`.

    Returns:
        Whole responses, (P, n); their `fresh` has the tokens that were decoded here.

    Raises:
        ValueError: arguments that do not fit each other, or a policy of another engine.
    """
    T, n, device = max_new_tokens, begun.tokens.shape[1], policy.head_device
    policy.require_here("decoding on from kept tokens")
    check(policy, prefixes, n, T, V, decoding, generators)
    _check_kept(begun, kept, len(prefixes), T)
    u = None if decoding.greedy else uniforms(generators or (), n, T, device)
    kept = kept.to(device, torch.long).flatten()  # (P * n,)
    end = policy.eos_ids[0] if policy.eos_ids else 0
    tokens = torch.full((len(kept), T), end, device=device)
    steps = torch.arange(T, device=device)
    old = begun.tokens.flatten(0, 1)[:, :T].to(device)
    stays = steps[: old.shape[1]] < kept[:, None]
    tokens[:, : old.shape[1]] = torch.where(stays, old, end)
    last = tokens.gather(1, (kept - 1).clamp(min=0)[:, None])
    over = (last == torch.tensor(policy.eos_ids, device=device)).any(1) & (kept > 0)
    rows = torch.nonzero(~over & (kept < T)).flatten()
    fresh = torch.zeros_like(kept)
    if len(rows):
        text, cut = tokens.tolist(), kept.tolist()
        starts = [text[r][: cut[r]] for r in rows.tolist()]
        stepper = _Begun(policy, prefixes, rows // n, starts, int((T - kept[rows]).max()))
        found = _rest(stepper, rows, kept[rows], T, V, decoding, u)
        fresh[rows] = found.lengths[:, 0]
        new = (steps >= kept[:, None]) & (steps < (kept + fresh)[:, None])
        width = torch.arange(found.tokens.shape[2], device=device)
        tokens[new] = found.tokens[:, 0][width < found.lengths]
    joined = Rollout.of_rows(policy, tokens, kept + fresh, n)
    return replace(joined, fresh=fresh.view(-1, n))


class _Begun(Stepper):
    """A stepper over R responses, each of which begins with tokens of its own."""

    def __init__(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        owner: Tensor,
        begun: Sequence[Sequence[int]],
        max_new_tokens: int,
    ):
        """
        Args:
            owner: (R,) which of the prefixes each response has.
            begun: R token id sequences that follow it; empty ones among them.
            max_new_tokens: T; `step` can be called T - 1 times.
        """
        whole = [[*prefixes[p], *own] for p, own in zip(owner.tolist(), begun, strict=True)]
        super().__init__(policy, whole, 1, max_new_tokens)
        self.owner, self.parts = owner.to(policy.device), (prefixes, whole)

    def start(self, add: Tensor | None = None) -> Tensor:
        """As `Stepper.start`, but the prefixes run once each, without their last token.

        That one runs with the kept tokens, so that no row is empty. Where layers attend to a window,
        which padding in the middle would shift, all runs at once; and where nothing is kept, as ever.
        """
        prefixes, whole = self.parts
        policy, owner = self.policy, self.owner
        apart = self.share and self.per_prefix == 1 and sees_everything(policy.model)
        if not apart or min(map(len, prefixes)) < 2:
            return super().start(add)
        short = [p[:-1] for p in prefixes]
        ids, mask, positions = left_padded(short, policy)
        known = prefill.known(policy.model, short)
        if known is None:
            self.mask = mask
            _, z = self._forward(ids, positions)
            assert isinstance(self.cache, DynamicCache)
            known = prefill.keep(policy.model, short, self.cache, z)
        self.cache = known.copied()
        self.cache.batch_select_indices(owner)
        lengths = [len(prefixes[p]) - 1 for p in owner.tolist()]
        rest = [own[at:] for own, at in zip(whole, lengths, strict=True)]
        more, more_mask, _ = left_padded(rest, policy)
        before = torch.ones_like(ids) if mask is None else mask
        after = torch.ones_like(more) if more_mask is None else more_mask
        self.mask = torch.cat([before[owner], after], -1)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -more.shape[1] :]
        logits, self.z = self._forward(more, positions, add)
        self.positions = positions[:, -1:]
        assert isinstance(self.cache, DynamicCache)
        self.cache = PrefixCache(self.cache, self.mask, 1, self.T - 1, static=self.record)
        self.mask = None
        return logits


def _rest(
    stepper: Stepper,
    rows: Tensor,
    kept: Tensor,
    T: int,
    V: Tensor | Perturbation | None,
    decoding: Decoding,
    u: Tensor | None,
) -> Rollout:
    """The rest of R responses, whose prefixes and kept tokens the stepper has; (R, 1, ...).

    Args:
        rows: (R,) which of the P * n responses they are; kept: (R,) how many tokens each keeps.
        V: (P, n, tau, d); u: (P * n, T) uniform numbers; both by the steps of whole responses.
    """
    drawn = V.tensor if isinstance(V, Perturbation) else V
    drawn = None if drawn is None else drawn.flatten(0, 1).to(stepper.policy.head_device)

    def whole(at: Step) -> tuple[Tensor, Tensor]:
        """Rows among the P * n, and their steps in whole responses; any step once they ended."""
        return rows[at.rows], (kept[at.rows] + at.t).clamp(max=T - 1)

    def add(at: Step) -> Tensor:
        assert drawn is not None
        row, step = whole(at)
        tau = drawn.shape[1]
        return drawn[row, step.clamp(max=tau - 1)].masked_fill((step >= tau)[:, None], 0.0)

    def take(at: Step) -> Tensor:
        return take_token(at.logits[0], decoding, None if u is None else u[whole(at)])

    return decode([stepper], take, add=None if V is None else add, limits=T - kept)


def _check_kept(begun: Rollout, kept: Tensor, P: int, T: int) -> None:
    if len(begun.tokens) != P:
        raise ValueError(f"begun has responses to {len(begun.tokens)} prefixes, not to {P}")
    if not isinstance(kept, Tensor) or kept.is_floating_point() or kept.dtype == torch.bool:
        raise ValueError(f"kept is {kept!r}; it must be a tensor (P, n) of whole numbers")
    if kept.shape != begun.lengths.shape:
        raise ValueError(
            f"kept has shape {tuple(kept.shape)}; the responses are {tuple(begun.lengths.shape)}"
        )
    most = begun.lengths.to(kept.device).clamp(max=T)
    wrong = torch.nonzero((kept < 0) | (kept > most)).tolist()
    if wrong:
        p, i = wrong[0]
        raise ValueError(
            f"kept is {int(kept[p, i])} at {[p, i]}; of that response 0 to {int(most[p, i])} tokens "
            f"can be kept, its length or max_new_tokens ({T})"
        )
