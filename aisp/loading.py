"""Loading of models and weights: from a name to the objects of transformers, or a clear error.

What is loaded is what the files hold: weights that are missing, and would stay random, and weights
that are no finite numbers are errors.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aisp import assets
from aisp.checks import choice
from aisp.pins import note_commit, with_revision

log = logging.getLogger(__name__)

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def load_pretrained(
    auto_class: Any,
    name: str | Path,
    *,
    device: torch.device,
    folder: Callable[[], Path] | None = None,
    optional: Callable[[str], bool] = lambda weight: False,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from the embedded assets, a local path or the hub.

    Args:
        auto_class: the transformers Auto class that builds the model.
        name: as in `aisp.load_policy`.
        device: where the model goes, unless device_map is among the options.
        folder: finds the embedded model; default that of the policy.
        optional: from a weight's name to whether the checkpoint may lack it.
        **options: of the model's `from_pretrained`; the revision is that of `aisp.pins`, if not given.

    Raises:
        ValueError: a model or tokenizer that cannot be found or loaded, with what was tried; weights
            that are missing or not finite.
    """
    import transformers

    embedded = assets.is_embedded(name)
    source = (folder or assets.policy_dir)() if embedded else name
    options = with_revision(name, options)
    shared = {k: v for k, v in options.items() if k in ("revision", "token", "trust_remote_code")}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        what = auto_class.__name__
        model, info = auto_class.from_pretrained(source, output_loading_info=True, **options)
        what = "tokenizer"
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **shared)
    except Exception as error:
        # A damaged tokenizer.json raises a plain Exception, shapes that do not fit a RuntimeError.
        known = isinstance(error, OSError | ValueError | SafetensorError)
        if not known and type(error) not in (Exception, RuntimeError):
            raise
        told = _not_loaded(name, source, what, embedded, options.get("revision"), error)
        raise ValueError(told) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    _check_complete(model, info, name, optional)
    if not embedded:
        note_commit(model.config, name, options)
    if options.get("device_map") is None:
        model = model.to(device)
    require_finite(model.named_parameters(), repr(str(name)))
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of no files
        raise ValueError(
            f"{str(name)!r} has a model but no tokenizer: no vocabulary was found. Put the model's "
            "tokenizer files (tokenizer.json, tokenizer_config.json) beside its weights"
        )
    return model, tokenizer


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Args:
        kind: what it holds, for errors.

    Raises:
        ValueError: a file that cannot be read, or numbers in it that are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot read the {kind} at {path}: {error}. Fetch the file again, or train another one"
        ) from error
    require_finite(tensors.items(), f"the {kind} at {path}")
    return tensors, metadata


def require_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse NaN and infinities: one pass over each tensor, and nothing is allocated.

    Args:
        tensors: names and tensors; those that are quantized, or not in memory, are passed over.
        name: what they belong to, for the error.

    Raises:
        ValueError: names the first tensor that is not finite.
    """
    plain = [
        (key, t.detach())
        for key, t in tensors
        if type(t) in (Tensor, nn.Parameter) and t.dtype in FLOATS and t.numel() and not t.is_meta
    ]
    extremes = [torch.stack(torch.aminmax(t)) for _, t in plain]  # NaN is passed on
    for (key, t), extreme in zip(plain, extremes, strict=True):
        if not extreme.isfinite().all():
            count = int((~t.isfinite()).sum())
            raise ValueError(
                f"{name} has {count} of {t.numel()} numbers in {key} that are NaN or infinite; the "
                f"file is damaged (fetch it again), or {t.dtype} cannot hold its numbers"
            )


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; default the GPU if there is one.

    Raises:
        ValueError: not a device, or one that this machine does not have.
    """
    if device is None or device == "":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = accelerator.type if accelerator else "none"
    here = [f"{kind}:{i}" for i in range(torch.accelerator.device_count() if accelerator else 0)]
    known = f"available: {', '.join(['cpu', *here])}"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}, which torch does not know; {known}") from error
    # Weights that a device_map leaves on disk are on "meta", and so may be a policy's own device.
    if found.type not in ("cpu", "meta") and f"{found.type}:{found.index or 0}" not in here:
        raise ValueError(
            f"device is {str(device)!r}, which this torch does not find on this machine; {known}"
        )
    return found


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, or the fastest sound one for the device."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        fast = device.type == "cuda" or any(
            cpu.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16")
        )
        chosen = torch.bfloat16 if fast else torch.float32
        log.info("dtype %s chosen for %s", chosen, device)
        return chosen
    return getattr(torch, choice("dtype", dtype, ("bfloat16", "float16", "float32", "float64")))


def _not_loaded(
    name: str | Path,
    source: str | Path,
    what: str,
    embedded: bool,
    revision: str | None,
    error: Exception,
) -> str:
    cause = " ".join(str(error).split())  # of one line; some list all that was tried
    if embedded:
        return (
            f"the embedded model at {source} cannot be loaded ({what}): run `python -m aisp.assets`, "
            "which checks every byte of it and builds it again where one is wrong. "
            f"Cause: {cause}"
        )
    if what == "tokenizer":
        return (
            f"{str(name)!r} has a model but no tokenizer that can be loaded: put the model's "
            "tokenizer files (tokenizer.json, tokenizer_config.json) beside its weights. "
            f"Cause: {cause}"
        )
    if Path(source).exists():
        return (
            f"cannot load {str(name)!r} ({what}) from this local path: the folder must hold "
            f"config.json and the weights as *.safetensors. Cause: {cause}"
        )
    at = f", revision {revision} (revision='main' is the newest)" if revision else ""
    return (
        f"cannot load {str(name)!r} ({what}{at}); tried it as a local path and on the hub. Check the "
        "name; without network, or for gated models without a token, the Hugging Face hub is out "
        f"of reach: download the model first, or use 'embedded'. Cause: {cause}"
    )


def _check_complete(
    model: nn.Module, info: dict[str, Any], name: str | Path, optional: Callable[[str], bool]
) -> None:
    missing = {key for key in info["missing_keys"] if not optional(key)}
    missing |= {key for key, *_ in info["mismatched_keys"]}
    if missing:
        first = ", ".join(sorted(missing)[:3])
        raise ValueError(
            f"{str(name)!r} has no weights for {first}{', ...' if len(missing) > 3 else ''}, which "
            f"would stay random: it is no {type(model).__name__}, or its files are incomplete"
        )
