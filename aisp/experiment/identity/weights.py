"""Which weights a model has: a digest of those in memory, and the files that they came from."""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aisp import assets
from aisp.provenance import file_sha256

CHUNK = (1 << 20) - 1  # elements per number of the digest: 8 MB while it is computed


def weights_sha256(model: nn.Module) -> str:
    """A digest of every parameter and stored buffer: name, dtype, shape and bits.

    The same on every device. It takes under a second for 135M parameters, because before they are
    hashed, the bits of a million elements become one number: the sum, modulo 2^64, of each element
    times a fixed odd number of its own. One changed bit always changes it. Other changes could
    leave it as it is by chance, one in about 2^64, or where they are made to deceive. Weights that
    are kept off their device ("meta") are told by name, dtype, shape and commit on the hub alone.
    """
    digest, known = hashlib.sha256(), {}
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):  # "extra state", which few modules have
            continue
        if tensor.is_meta:
            content = f"meta {tuple(tensor.shape)} {tensor.dtype} {_revision(model)}".encode()
        else:  # a tied weight, which has two names, is read once
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place not in known:
                known[place] = tensor_digest(tensor)
            content = known[place]
        digest.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> bytes:
    """Of dtype, shape and bits of a tensor, see `weights_sha256`."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.sha256(b" ".join([kind, *_sums(tensor.detach())])).digest()


def _sums(tensor: Tensor) -> Iterator[bytes]:
    """The weighted sums of a tensor's bits, chunk by chunk."""
    if hasattr(tensor, "__tensor_flatten__"):  # a quantized tensor, say, that is made of others
        names, _ = tensor.__tensor_flatten__()
        yield from (tensor_digest(getattr(tensor, name)) for name in names)
        return
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.contiguous().reshape(-1).view(width)
    multipliers = _multipliers(min(len(bits), CHUNK).bit_length()).to(tensor.device)
    sums = [
        (part.to(torch.int64) * multipliers[: len(part)]).sum()
        for part in bits.split(CHUNK)
        if len(part)
    ]
    if sums:
        yield torch.stack(sums).cpu().numpy().astype("<i8").tobytes()


@cache
def _multipliers(power: int) -> Tensor:
    """2^power odd 64-bit numbers, by splitmix64 (Steele et al., 2014), which no version changes."""
    with np.errstate(over="ignore"):
        z = np.arange(1, 2**power + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(z.view(np.int64))


def weight_files(thing: Any) -> dict[str, str]:
    """Where a policy or reward had its weights: file -> SHA-256, or "revision" -> commit on the hub.

    Files are hashed as they are now.

    Returns:
        Empty where there are no files, or none that can be told, as of a Python function.
    """
    name, model = str(getattr(thing, "name", "")), getattr(thing, "model", None)
    files = list(getattr(thing, "files", ()))
    folder = assets.cache_dir() / assets.POLICY_FOLDER if assets.is_embedded(name) else Path(name)
    if model is not None and name and folder.is_dir():
        files += stored_weights(folder)
    if files:
        return {path.name: file_sha256(path) for path in files}
    return {"revision": commit} if (commit := _revision(model)) else {}


def stored_weights(folder: Path) -> list[Path]:
    """The files of a folder that hold weights."""
    kinds = (".safetensors", ".bin", ".gguf")
    return sorted(path for path in folder.iterdir() if path.suffix in kinds)


def stored_content(source: str, config: Any) -> list[str]:
    """What tells weights that are in no memory of ours: SHA-256 of their files, else their commit.

    Args:
        source: a folder, or an id on the hub.
        config: of the model, as transformers loads it.

    Raises:
        ValueError: neither is known.
    """
    folder, commit = Path(source), getattr(config, "_commit_hash", None)
    found = [file_sha256(path) for path in stored_weights(folder)] if folder.is_dir() else []
    if not found and commit is None:
        raise ValueError(
            f"{source} has no files of weights and no commit, by which to know it again"
        )
    return found or [str(commit)]


def _revision(model: Any) -> str | None:
    return getattr(getattr(model, "config", None), "_commit_hash", None)
