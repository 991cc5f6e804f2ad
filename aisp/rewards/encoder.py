"""A frozen sentence encoder, for `aisp.metrics.coherence`: the embedded one, or any by its id."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aisp.assets import EMBEDDED, encoder_dir, is_embedded
from aisp.checks import whole
from aisp.loading import load_pretrained, resolve_device
from aisp.rewards.base import length_batches

POOLINGS = ("mean", "cls", "pooler")


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A frozen encoder of texts; build one with `load_encoder`.

    Attributes:
        pooling: "mean" of the last layer over the tokens, its first token ("cls"), or the model's
            own dense layer and tanh on top of that ("pooler").
        max_length: tokens that are read; of a longer text the first ones, with a warning.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: str
    max_length: int
    name: str = "custom"

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """(N, d) float32 embeddings of unit length, on the CPU."""
        encoded = [self.tokenizer(text) for text in texts]
        longer = sum(len(e["input_ids"]) > self.max_length for e in encoded)
        if longer:
            warnings.warn(
                f"{longer} of {len(texts)} texts are longer than the {self.max_length} tokens that "
                f"encoder {self.name} reads; the rest of each is left out",
                stacklevel=3,
            )
            cut = dict(truncation=True, max_length=self.max_length)
            encoded = [self.tokenizer(text, **cut) for text in texts]
        rows: list[Any] = [None] * len(texts)
        for batch in length_batches([len(e["input_ids"]) for e in encoded], batch_size):
            padded = self.tokenizer.pad(
                [encoded[i] for i in batch], padding_side="right", return_tensors="pt"
            )
            padded = padded.to(self.model.device)
            for i, row in zip(batch, self._pool(self.model(**padded), padded), strict=True):
                rows[i] = row
        return torch.nn.functional.normalize(torch.stack(rows).float().cpu(), dim=-1)

    def _pool(self, out: Any, padded: Any) -> Tensor:
        if self.pooling == "pooler":
            return out.pooler_output
        if self.pooling == "cls":
            return out.last_hidden_state[:, 0]
        # The sum points where the mean does, and lengths are made 1.
        return (out.last_hidden_state * padded["attention_mask"][..., None]).sum(1)


def load_encoder(
    source: str | Path = EMBEDDED,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    device: str | torch.device = "cpu",
    **from_pretrained: Any,
) -> SentenceEncoder:
    """Load a sentence encoder.

    Args:
        source: "embedded" is all-MiniLM-L6-v2 (Reimers and Gurevych, arXiv:1908.10084), which works
            offline (`aisp.assets`). Or the id or path of any encoder, such as the one of the papers,
            princeton-nlp/sup-simcse-bert-base-uncased (Gao et al., arXiv:2104.08821), which its
            authors' tool reads with pooling "pooler" and max_length 128 (not checked here: the
            checkpoint itself).
        pooling: see `SentenceEncoder`; no checkpoint says it reliably, so all but "embedded" ("mean")
            need it.
        max_length: tokens; default 256 for "embedded", as it was trained, else what the model takes.
        **from_pretrained: as in `load_policy`; weights in .bin files are read too (tensors only).

    Raises:
        ValueError: an encoder that cannot be loaded or has no weights for its pooling.
    """
    from transformers import AutoModel

    embedded = is_embedded(source)
    pooling = pooling or ("mean" if embedded else None)
    if pooling not in POOLINGS:
        raise ValueError(
            f"pooling of {str(source)!r} is {pooling!r}; choose what it was trained with: 'pooler' "
            "(supervised SimCSE), 'cls' (unsupervised SimCSE), 'mean' (most sentence-transformers)"
        )
    model, tokenizer = load_pretrained(
        AutoModel,
        source,
        folder=encoder_dir,
        device=resolve_device(device),
        optional=lambda weight: pooling != "pooler" and "pooler" in weight,
        **{"dtype": torch.float32, **from_pretrained},
    )
    taken = min(
        tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1 << 30)
    )
    if max_length is None:
        max_length = 256 if embedded else taken
    note = f": what {str(source)!r} takes, in tokens"
    limit = whole("max_length", max_length, least=2, most=taken, note=note)
    model.eval().requires_grad_(False)
    return SentenceEncoder(model, tokenizer, pooling, limit, str(source))
