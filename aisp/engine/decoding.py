"""How a token is taken from logits: greedily, or by temperature, top-k and top-p."""

from dataclasses import dataclass

import torch
from torch import Tensor


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


def take_token(
    logits: Tensor, decoding: Decoding, uniforms: Tensor | None, *, rows_at_once: int = 16
) -> Tensor:
    """Token ids from logits, by inversion: one uniform number decides one token.

    Args:
        logits: (rows, |V|).
        decoding: greedy, or temperature, then top-k, then top-p, in that order.
        uniforms: (rows,) in [0, 1); None for greedy decoding.
        rows_at_once: how many rows are sampled together on a CPU; it changes no token.

    Returns:
        (rows,) token ids.
    """
    if decoding.greedy:
        return logits.max(-1).indices  # argmax, several times faster in bfloat16 on a CPU
    if logits.is_cuda:
        return _sampled(logits, decoding, uniforms)
    # A few rows at a time stay in a CPU's cache, where the whole batch in float32 would not.
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
    size = probs.shape[-1]
    k = size if probs.is_cuda else min(64, size)  # most are small, and sorting is slow on a CPU
    inside = torch.zeros_like(probs, dtype=torch.bool)
    left = torch.arange(len(probs), device=probs.device)
    while True:
        top, ids = probs[left].topk(k)
        total = top.cumsum(-1, dtype=torch.float64)
        inside[left[:, None], ids] = total - top < mass  # what is above a token falls short
        more = total[:, -1] < mass
        if k == size or not bool(more.any()):
            return inside
        left, k = left[more], min(16 * k, size)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inversion from (rows, |V|) weights, normalized or not, one uniform each."""
    return _invert(probs.cumsum(-1, dtype=torch.float64), uniforms)


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
