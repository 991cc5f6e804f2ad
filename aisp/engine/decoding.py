"""How a token is taken from logits: greedily, or by temperature, top-k and top-p."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aisp.checks import check_real, check_whole

# Below, float32 logits divided by the temperature overflow.
LEAST_TEMPERATURE = 1e-6


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

    def __post_init__(self) -> None:
        check_real(self, "temperature", least=0, note=" (0 is greedy)")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or at least "
                f"{LEAST_TEMPERATURE:g}"
            )
        check_real(self, "top_p", above=0, most=1)
        check_whole(self, "top_k", least=0, note=" (0 is all)")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Decoding()


def take_token(
    logits: Tensor, decoding: Decoding, uniforms: Tensor | None, *, rows_at_once: int = 8
) -> Tensor:
    """Token ids from logits, by inversion: one uniform number decides one token.

    Args:
        logits: (rows, |V|).
        decoding: greedy, or temperature, then top-k, then top-p, in that order.
        uniforms: (rows,) in [0, 1); None for greedy decoding.
        rows_at_once: how many rows are sampled together on a CPU; it changes no token.

    Returns:
        (rows,) token ids.

    Raises:
        FloatingPointError: logits that are not finite, on a CPU.
    """
    if decoding.greedy:
        highest, token = logits.max(-1)  # argmax, several times faster in bfloat16 on a CPU
        require_finite(highest)
        return token
    if uniforms is None:
        raise ValueError("uniforms is None; sampled decoding takes one number in [0, 1) per row")
    if logits.device.type != "cpu":
        return _sampled(logits, decoding, uniforms)
    # A few rows at a time fit in a CPU's cache, and in memory that the process keeps: the whole batch
    # in float32 would be asked of the system, and zeroed by it, anew at every step.
    parts = zip(logits.split(rows_at_once), uniforms.split(rows_at_once), strict=True)
    return torch.cat([_sampled(rows, decoding, u) for rows, u in parts])


def law(logits: Tensor, decoding: Decoding) -> Tensor:
    """The law that `take_token` draws from, for methods that compute with probabilities.

    Args:
        logits: (rows, |V|).

    Returns:
        (rows, |V|) float32 probabilities; greedy decoding puts all on the most likely token.
    """
    if decoding.greedy:
        require_finite(logits.amax(-1))
        return torch.zeros(logits.shape, device=logits.device).scatter_(
            -1, logits.argmax(-1, keepdim=True), 1.0
        )
    if decoding.temperature != 1:
        logits = logits.float() / decoding.temperature
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    if decoding.top_k:
        top, ids = probs.topk(min(decoding.top_k, probs.shape[-1]))
        probs = torch.zeros_like(probs).scatter_(-1, ids, top / top.sum(-1, keepdim=True))
    if decoding.top_p < 1:
        probs = probs * nucleus(probs, decoding.top_p)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def nucleus(probs: Tensor, mass: float) -> Tensor:
    """The fewest most likely tokens that hold at least this much probability.

    Args:
        probs: (rows, |V|).
        mass: in (0, 1].

    Returns:
        (rows, |V|) bool.
    """
    inside = torch.zeros_like(probs, dtype=torch.bool)
    for rows, top, ids, total in _most_likely(probs, mass, probs.shape[-1]):
        inside[rows[:, None], ids] = total - top < mass  # what is above a token falls short
    return inside


def sample(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inversion from (rows, |V|) weights, normalized or not, one uniform each."""
    return _invert(weights.cumsum(-1, dtype=torch.float64), uniforms)


def _sampled(logits: Tensor, decoding: Decoding, uniforms: Tensor) -> Tensor:
    if decoding.temperature != 1:
        logits = logits.float() / decoding.temperature
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    if decoding.top_k == 0 and decoding.top_p == 1:
        return sample(probs, uniforms)
    size = probs.shape[-1]
    limit = min(decoding.top_k or size, size)
    token = torch.empty(len(probs), dtype=torch.long, device=probs.device)
    for rows, _, ids, mass in _most_likely(
        probs, decoding.top_p, limit, all_at_once=bool(decoding.top_k)
    ):
        if decoding.top_k:
            mass = mass / mass[:, -1:]
        last = (mass < decoding.top_p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
        flat = mass.minimum(mass.gather(-1, last))  # after the nucleus nothing is added
        token[rows] = ids.gather(-1, _invert(flat, uniforms[rows])[:, None]).squeeze(-1)
    return token


def _most_likely(
    probs: Tensor, mass: float, limit: int, *, all_at_once: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Rows with their most likely tokens: as many as hold so much probability, `limit` at most.

    Most nuclei are small, and sorting a vocabulary is slow on a CPU. So 64 tokens are looked at
    first, and more only for the rows in which these do not hold enough.

    Args:
        probs: (rows, |V|).
        all_at_once: look at `limit` tokens of every row.

    Yields:
        Some of the rows (r,), each row once; their k most likely tokens' probabilities and ids
        (r, k), descending; and the probabilities' cumulative sum (r, k) float64.
    """
    on_cpu = probs.device.type == "cpu"
    k = min(64, limit) if on_cpu and not all_at_once else limit
    rows = torch.arange(len(probs), device=probs.device)
    while len(rows):
        top, ids = probs.topk(k)
        total = top.cumsum(-1, dtype=torch.float64)
        short = total[:, -1] < mass
        if k == limit or not bool(short.any()):
            yield rows, top, ids, total
            return
        enough = ~short
        yield rows[enough], top[enough], ids[enough], total[enough]
        rows, probs, k = rows[short], probs[short], min(16 * k, limit)


def _invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """First index at which the cumulative mass (rows, k) exceeds uniform * total."""
    total = mass[:, -1:]
    require_finite(total)
    index = torch.searchsorted(mass, uniforms.double()[:, None] * total, right=True).squeeze(-1)
    return index.clamp(max=mass.shape[-1] - 1)


def require_finite(values: Tensor) -> None:
    """Raise where a law that a token was to be taken from is none.

    Not on a GPU, which would have to be waited for: `aisp.engine.rollout` asks it later.
    """
    if values.device.type == "cpu" and not bool(values.isfinite().all()):
        raise not_finite()


def not_finite() -> FloatingPointError:
    return FloatingPointError(
        "a token's logits are not finite (NaN or infinite): the perturbation or edit of the "
        "pre-logit is too large for the model's dtype, or its weights are broken; lower sigma (or "
        "step_size), or load the model again"
    )
