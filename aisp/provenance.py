"""Where the project's files lie, and where a result came from: commit, versions, hashes."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What decides a result; executed notebooks, records and figures are results themselves.
INPUTS = (
    "aisp",
    "data/hub.json",
    "data/judge",
    "data/prompts.jsonl",
    "data/ram",
    "data/reward_head",
    "data/value",
    "requirements.txt",
)
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas")


def checkout() -> Path:
    """The folder that data/ and figures/ lie in: the source checkout, else the working folder."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "notebooks").is_dir() else Path.cwd()


def data_path(name: str) -> Path:
    """A file that ships with the package: in the wheel's aisp/data/ or the checkout's data/."""
    here = Path(__file__).resolve().parent
    shipped = here / "data" / name
    return shipped if shipped.exists() else here.parent / "data" / name


def git_state() -> dict[str, Any]:
    """Commit of the checkout, and whether code and inputs were as committed; None outside one."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *args], cwd=checkout(), capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changes = git("status", "--porcelain", "--", *INPUTS)
    return {
        "commit": git("rev-parse", "HEAD"),
        "clean": None if changes is None else not changes,
    }


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(values: Any) -> str:
    """SHA-256 of plain values (lists, texts, numbers, ...) written as JSON, as hex."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when the block ends without an error.

    A reader of `path`, also after a kill, sees the old content or the complete new one.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def environment(device: Any = "cpu") -> dict[str, Any]:
    """Package versions and the device, without naming the machine."""
    import torch

    device = torch.device(device)
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
