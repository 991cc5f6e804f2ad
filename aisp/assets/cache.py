"""Folders that are built once and kept in a cache: whole or not there at all, and checked at use.

A folder is built under a hidden name and renamed when complete. So a folder that can be seen is
whole, whatever was interrupted, and two processes that build the same one do each other no harm. A
damaged folder stays where it is until the new one is complete.

Beside the files lies a manifest with the size, the SHA-256 and the modification time of each. A file
whose time is another one is hashed again: it may have been overwritten, or the cache was copied. If
its content is right, the new time is remembered, so that this costs seconds once and not at each
use.
"""

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aisp.provenance import file_sha256, replacing

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
STALE_SECONDS = 24 * 3600  # no build takes a day: what is older was left by a killed process


class AssetError(RuntimeError):
    """Embedded weights could not be had, or are not the ones we expect."""


def cache_dir() -> Path:
    """$AISP_CACHE, else $XDG_CACHE_HOME/aisp, else ~/.cache/aisp. Not created until needed."""
    if chosen := os.environ.get("AISP_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "aisp"


def prepared(
    name: str,
    build: Callable[[Path], None],
    *,
    digests: Mapping[str, str] | None = None,
    verify: bool = False,
) -> Path:
    """The folder `name` of the cache, whole.

    Args:
        build: fills an empty folder, and raises an OSError where it cannot be written; called if the one in the cache is absent or damaged.
        digests: file name -> SHA-256 of what `build` writes, where that is known beforehand; then a
            folder that lost its manifest is checked and kept.
        verify: hash every file, and not only those whose time of modification has changed.

    Raises:
        AssetError: the folder cannot be built or written; says what to do.
    """
    final = cache_dir() / name
    damage = _damage(final, digests, verify) if final.exists() else "absent"
    if not damage:
        return final
    with _workspace() as work:
        if damage != "absent":
            warnings.warn(f"{final} is damaged ({damage}); building it again", stacklevel=3)
        new = work / "new"  # not `work` itself, which only its owner may read: caches are shared
        new.mkdir()
        try:
            _fill(new, build, final)
        except AssetError as error:
            if damage == "absent":
                raise
            raise AssetError(
                f"{final} is damaged ({damage}) and stays as it is, because it could not be built "
                f"again: {error}"
            ) from error
        # Another process may have been faster; its folder is as good as ours.
        if final.exists() and _damage(final, digests, verify):
            with suppress(FileNotFoundError):
                final.rename(work / "damaged")
        try:
            new.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    return final


def _fill(new: Path, build: Callable[[Path], None], final: Path) -> None:
    """Build into `new`; errors of the disk name files as they would be called in the end."""
    try:
        build(new)
        _write_manifest(new)
    except OSError as error:
        raise AssetError(
            f"could not build {final}: {str(error).replace(str(new), str(final))}. If the disk is "
            "full, free 1 GB, or set AISP_CACHE to a folder on another disk"
        ) from error


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
        path.relative_to(folder).as_posix(): _stamp(path) | {"sha256": file_sha256(path)}
        for path in files
    }
    _store(folder, entries)
    for path in files:  # safetensors writes for the owner alone; follow the umask instead
        shutil.copymode(folder / MANIFEST, path)


def _store(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    with replacing(folder / MANIFEST) as new:
        new.write_text(json.dumps({"files": entries}, indent=1) + "\n", encoding="utf-8")


def _stamp(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _damage(folder: Path, digests: Mapping[str, str] | None = None, verify: bool = False) -> str:
    """What is wrong with a folder of the cache, in a few words; empty if nothing is."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: dict(entry, sha256=entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if digests is None:
            return f"{MANIFEST} is missing or unreadable"
        expected = {name: {"sha256": digest} for name, digest in digests.items()}
    checked = {}
    for name, entry in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        stamp = _stamp(path)  # before the digest: a file that changes meanwhile is hashed next time
        if stamp["bytes"] != entry.get("bytes", stamp["bytes"]):
            return f"{name} has {stamp['bytes']} bytes instead of {entry['bytes']}"
        if (verify or stamp["mtime_ns"] != entry.get("mtime_ns")) and (
            found := file_sha256(path)
        ) != entry["sha256"]:
            return f"the SHA-256 of {name} is {found} instead of {entry['sha256']}"
        checked[name] = stamp | {"sha256": entry["sha256"]}
    if checked != expected:
        with suppress(OSError):  # a cache that is only read is checked at each use
            _store(folder, checked)
    return ""
