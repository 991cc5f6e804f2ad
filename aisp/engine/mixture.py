"""Decoding from a law that two models make together, token by token or speculatively.

At every step the large model's law p and the small model's law q, each on its own prefix, become
one law pi (`mix`), from which the token is drawn. `lockstep` runs both models for every token.
`speculative` lets the small model draft several tokens and the large one verify them in one pass
(Leviathan et al., arXiv:2211.17192); its tokens follow the same law pi.

Shapes: P prompts, n responses each, T new tokens at most, R rows still decoding, w drafted tokens,
vocabulary size |V|.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from aisp.engine.attention import sees_everything
from aisp.engine.decoding import Decoding, law, not_finite, sample
from aisp.engine.rollout import Rollout, Step, decode, uniforms
from aisp.engine.stepper import Stepper, left_padded
from aisp.policy import Policy

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Notes = dict[str, list[float]]


def _law(logits: Tensor, decoding: Decoding) -> Tensor:
    """The law to mix; for greedy decoding at temperature 1, as it takes the mixture's argmax."""
    return law(logits, replace(decoding, temperature=decoding.temperature or 1.0))


def _peaked(probs: Tensor, decoding: Decoding) -> Tensor:
    return law(probs, decoding) if decoding.greedy else probs


@torch.inference_mode()
def lockstep(
    models: tuple[Policy, Policy],
    prefixes: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    n: int,
    max_new_tokens: int,
    *,
    mix: Mix,
    decoding: Decoding,
    generators: Sequence[torch.Generator],
) -> tuple[Rollout, Notes]:
    """Decode with one pass of both models per token, and one uniform number per token.

    Args:
        models: large and small, over one vocabulary; the tokens of the large one's `eos_ids` end a
            response. Where one has more logits (padding of the embedding), they are not used.
        prefixes: of the large and of the small model, P each.
        n: responses per prompt.
        max_new_tokens: T.
        mix: from the laws p and q (rows, |V|) to pi (rows, |V|) and the mass (rows,) that it took
            from p and gave to q.
        decoding: shapes p and q. At temperature 0 they are those of temperature 1, and the token is
            the argmax of pi.
        generators: one per prompt, on the large model's head device.

    Returns:
        The rollout, and per prompt `deferred`, the mean mass per token, and `large_passes`, the
        mean number of passes of the large model per response.
    """
    u = uniforms(generators, n, max_new_tokens, models[0].head_device)
    total = torch.zeros(len(u), dtype=torch.float64, device=u.device)

    def take(at: Step) -> Tensor:
        p, q = (_law(x, decoding) for x in _common(*at.logits))
        pi, mass = mix(p, q)
        total[at.rows] += mass * ~at.done
        return sample(_peaked(pi, decoding), u[at.rows, at.t])

    steppers = [Stepper(m, x, n, max_new_tokens) for m, x in zip(models, prefixes, strict=True)]
    out = decode(steppers, take)
    deferred = total.view(-1, n).sum(1) / out.lengths.sum(1)
    passes = out.lengths.double().mean(1)
    return out, {"deferred": deferred.tolist(), "large_passes": passes.tolist()}


@torch.inference_mode()
def speculative(
    models: tuple[Policy, Policy],
    prefixes: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    n: int,
    max_new_tokens: int,
    *,
    window: int,
    mix: Mix,
    decoding: Decoding,
    generators: Sequence[torch.Generator],
) -> tuple[Rollout, Notes]:
    """Decode with one pass of the large model per `window` tokens drafted by the small one.

    Every position of a response has its own three uniform numbers (draft, acceptance, final draw).
    A position drafted again after a rejection reuses its numbers. This is sound: no earlier
    decision has used them. So a response depends on its
    prompt's generator alone, and not on what else is in the batch.

    Args:
        window: tokens drafted per verification, >= 1.
        others: as in `lockstep`.

    Returns:
        As `lockstep`; further per prompt `acceptance_length`, the mean number of drafted tokens
        that enter a response per verification (NaN where nothing was verified).

    Raises:
        ValueError: a model whose layers see a sliding window, see `MaskedCache`.
    """
    large, small = (MaskedCache(m, x, n) for m, x in zip(models, prefixes, strict=True))
    device, T = models[0].head_device, max_new_tokens
    u = uniforms(generators, n, 3 * T, device).view(-1, T, 3)
    responses = _Responses(models[0], len(u), T)
    rows = torch.arange(len(u), device=device)
    drafts = responses.tokens[:, :0]  # the first round verifies nothing, and draws a token from pi
    p, q = _common(large.start()[:, None], small.start()[:, None])
    q = _law(q[:, 0], decoding)[:, None]
    while True:
        # p and q: (R, w + 1, |V|), logits and law at the drafted tokens and at the one after them.
        own = u[rows[:, None], responses.positions(rows, q.shape[1])]  # (R, w + 1, 3)
        pi, mass = mix(_law(p.flatten(0, 1), decoding), q.flatten(0, 1))
        wanted, drafted = (_peaked(x, decoding).view(q.shape) for x in (pi, q.flatten(0, 1)))
        if wanted.device.type != "cpu" and not bool(wanted.amax(-1).isfinite().all()):
            raise not_finite()
        block, agreed = verify(wanted, drafted, drafts, own[..., 1:])
        alive = responses.enter(rows, block, agreed, mass.view(block.shape))
        if not len(alive):
            return responses.finished(n)
        rows, agreed, token = rows[alive], agreed[alive], block[alive, agreed[alive]]
        for cache in (large, small):
            cache.settle(alive, agreed, block.shape[1])
        # The window does not depend on the other rows: positions beyond T are ignored.
        w = min(window, T - int(responses.lengths[rows].min()))
        drawn = u[rows[:, None], responses.positions(rows, w), 0]
        fed, q = _drafted(small, token, drawn, q.shape[-1], decoding)
        p, drafts = large.feed(fed)[..., : q.shape[-1]], fed[:, 1:]


def _drafted(
    small: "MaskedCache", token: Tensor, uniforms: Tensor, size: int, decoding: Decoding
) -> tuple[Tensor, Tensor]:
    """What the small model writes after a token: (R, w + 1) tokens with that one first, and laws.

    Args:
        uniforms: (R, w), one for each drafted token.
        size: of the common vocabulary.

    Returns:
        The tokens, and the small model's laws after each of them, (R, w + 1, size).
    """
    fed, laws = [token], []
    for drawn in (*uniforms.unbind(1), None):
        logits = small.feed(fed[-1][:, None])[:, 0, :size]
        laws.append(_law(logits.to(token.device), decoding))
        if drawn is not None:
            fed.append(sample(_peaked(laws[-1], decoding), drawn))
    return torch.stack(fed, 1), torch.stack(laws, 1)


class _Responses:
    """R responses while they are written speculatively, and what is counted on the way."""

    def __init__(self, policy: Policy, R: int, T: int):
        device = policy.head_device
        self.policy, self.T = policy, T
        self.eos = torch.tensor(policy.eos_ids, dtype=torch.long, device=device)
        self.tokens = torch.full((R, T), policy.eos_ids[0] if policy.eos_ids else 0, device=device)
        self.lengths, self.accepted, self.passes = torch.zeros(
            3, R, dtype=torch.long, device=device
        )
        self.deferred = torch.zeros(R, dtype=torch.float64, device=device)

    def positions(self, rows: Tensor, width: int) -> Tensor:
        """(rows, width) positions of the next tokens; T - 1 stands for those beyond."""
        steps = torch.arange(width, device=rows.device)
        return (self.lengths[rows, None] + steps).clamp(max=self.T - 1)

    def enter(self, rows: Tensor, block: Tensor, agreed: Tensor, mass: Tensor) -> Tensor:
        """Append what was verified.

        Args:
            rows: (k,) which responses these are.
            block: (k, w + 1) tokens, of which the first `agreed` (k,) drafts and the one after
                them are meant.
            mass: (k, w + 1) mass that the law of each token took from p and gave to q.

        Returns:
            Which of the k responses go on, as indices from 0.
        """
        steps = torch.arange(block.shape[1], device=rows.device)
        at = self.lengths[rows, None] + steps
        ends = (block[..., None] == self.eos).any(-1)
        ended_before = ends.cumsum(1) - ends.long() > 0
        new = (steps <= agreed[:, None]) & (at < self.T) & ~ended_before
        self.tokens[rows[:, None].expand_as(at)[new], at[new]] = block[new]
        self.lengths[rows] += new.sum(1)
        self.deferred[rows] += (mass * new).sum(1)
        self.accepted[rows] += (new & (steps < agreed[:, None])).sum(1)
        self.passes[rows] += 1
        return torch.nonzero(~(ends & new).any(1) & (self.lengths[rows] < self.T)).squeeze(-1)

    def finished(self, n: int) -> tuple[Rollout, Notes]:
        """The responses, n to a prompt, and the columns that `speculative` promises."""
        out = Rollout.of_rows(self.policy, self.tokens, self.lengths, n)
        passes, accepted = self.passes.view(-1, n), self.accepted.view(-1, n).sum(1).tolist()
        verified = (passes - 1).sum(1).tolist()
        return out, {
            "deferred": (self.deferred.view(-1, n).sum(1) / out.lengths.sum(1)).tolist(),
            "large_passes": passes.double().mean(1).tolist(),
            "acceptance_length": [
                a / v if v else math.nan for a, v in zip(accepted, verified, strict=True)
            ],
        }


def verify(pi: Tensor, q: Tensor, drafts: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Turn tokens drafted from q into tokens that follow pi.

    Draft v_i is accepted with probability min(1, pi_i(v_i) / q_i(v_i)); the first that is not is
    drawn anew from max(pi_i - q_i, 0), normalized, and after w accepted ones the next token comes
    from pi itself (Leviathan et al., arXiv:2211.17192, theorem 1).

    Args:
        pi, q: (R, w + 1, |V|).
        drafts: (R, w).
        uniforms: (R, w + 1, 2) in [0, 1), for acceptance and for the final draw.

    Returns:
        (R, w + 1) tokens, and (R,) how many drafts were accepted; what follows the token after
        them has no meaning.
    """
    w, row = drafts.shape[1], torch.arange(len(drafts), device=drafts.device)
    # In float64 the product is exact: where pi = q every draft is accepted, where pi = 0 none.
    chance, wanted = (x[:, :w].gather(-1, drafts[..., None]).squeeze(-1).double() for x in (q, pi))
    accept = uniforms[:, :w, 0].double() * chance < wanted
    agreed = accept.long().cumprod(1).sum(1)
    target = pi[row, agreed]
    residual = (target - q[row, agreed]).clamp(min=0)
    # Rounding may reject a draft where pi and q agree, and then leave no residual.
    bonus = (agreed == w) | (residual.sum(-1) == 0)
    final = sample(torch.where(bonus[:, None], target, residual), uniforms[row, agreed, 1])
    block = torch.cat([drafts, final[:, None]], 1)
    block[row, agreed] = final
    return block, agreed


class MaskedCache:
    """One model over R = P * n responses, where the last tokens can be taken back, row by row.

    Rows take back different numbers of tokens, so these stay in the cache, hidden by the attention
    mask. A sliding window would count hidden tokens, so models that have one are refused.
    """

    def __init__(self, policy: Policy, prefixes: Sequence[Sequence[int]], n: int):
        if not sees_everything(policy.model):
            raise ValueError(
                f"{policy.name} has layers that see a sliding window or do not attend, so that "
                "rejected tokens cannot be hidden from it; decode without speculation: window=0"
            )
        self.policy, self.n = policy, n
        self.cache = DynamicCache(config=policy.model.config.get_text_config())
        self.ids, mask, _ = left_padded(prefixes, policy)
        self.mask = torch.ones_like(self.ids) if mask is None else mask  # (R, slots)

    def start(self) -> Tensor:
        """Run the prefixes: (R, |V|) logits of the first tokens."""
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(self.ids, positions, 1)[:, -1].repeat_interleave(self.n, 0)
        self.cache.batch_repeat_interleave(self.n)
        self.mask = self.mask.repeat_interleave(self.n, 0)
        return logits

    def feed(self, tokens: Tensor) -> Tensor:
        """Append (R, k) tokens: (R, k, |V|) logits of the tokens after each of them."""
        ids = tokens.to(self.policy.device)
        positions = self.mask.sum(-1, keepdim=True) + torch.arange(ids.shape[1], device=ids.device)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], -1)
        # Drafts past the last token that is wanted may pass the end of the context; none is used.
        return self._forward(ids, positions.clamp(max=self.policy.context_length - 1), 0)

    def settle(self, rows: Tensor, agreed: Tensor, fed: int) -> None:
        """Keep these rows, and of the last `fed` tokens of each the first 1 + agreed, (R,)."""
        rows, agreed = rows.to(self.mask.device), agreed.to(self.mask.device)
        if len(rows) < len(self.mask):
            self.cache.batch_select_indices(rows)
            self.mask = self.mask[rows]
        kept = torch.arange(fed, device=rows.device) <= agreed[:, None]
        self.mask[:, -fed:] *= kept
        nobodys = fed - 1 - int(agreed.max())
        if nobodys:
            self.cache.crop(-nobodys)
            self.mask = self.mask[:, :-nobodys]

    def _forward(self, ids: Tensor, positions: Tensor, keep: int) -> Tensor:
        return self.policy.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits


def _common(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the device of p, over the tokens that both have."""
    size = min(p.shape[-1], q.shape[-1])
    return p[..., :size], q[..., :size].to(p.device)
