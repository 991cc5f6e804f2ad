"""Responses whose first tokens are kept: only the rest of each is decoded.

What a sampler needs that proposes a new ending of a response, and what a search needs that goes on
with some of the responses that it has begun. Kept tokens run through the model once, together with
the prefix, in place of one step each, and are not counted as decoded (`Rollout.decoded`). Each
response has its own keys and values of the prefix, unless all keep nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from aisp.engine.decoding import GREEDY, Decoding, take_token
from aisp.engine.perturbation import Perturbation, uniforms
from aisp.engine.rollout import Rollout, Step, check, decode
from aisp.engine.stepper import Stepper
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
        starts = [[*prefixes[r // n], *text[r][: cut[r]]] for r in rows.tolist()]
        found = _rest(policy, starts, rows, kept[rows], T, V, decoding, u)
        fresh[rows] = found.lengths[:, 0]
        new = (steps >= kept[:, None]) & (steps < (kept + fresh)[:, None])
        width = torch.arange(found.tokens.shape[2], device=device)
        tokens[new] = found.tokens[:, 0][width < found.lengths]
    joined = Rollout.of_rows(policy, tokens, kept + fresh, n)
    return replace(joined, fresh=fresh.view(-1, n))


def _rest(
    policy: Policy,
    starts: Sequence[Sequence[int]],
    rows: Tensor,
    kept: Tensor,
    T: int,
    V: Tensor | Perturbation | None,
    decoding: Decoding,
    u: Tensor | None,
) -> Rollout:
    """One response to each of R starts, which are a prefix and what is kept.

    Args:
        rows: (R,) which of the P * n responses they are; kept: (R,) how many tokens each keeps.
        V: (P, n, tau, d); u: (P * n, T) uniform numbers; both by the steps of whole responses.
    """
    drawn = V.tensor if isinstance(V, Perturbation) else V
    drawn = None if drawn is None else drawn.flatten(0, 1).to(policy.head_device)
    stepper = Stepper(policy, starts, 1, int((T - kept).max()))

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
