"""A file of records in the hands of one run: locked, repaired, appended to, and never lost.

Every record is written, flushed and synced at once, so that a process killed at any moment loses
no more than what it was computing. If the file at the path is removed, replaced or overwritten
meanwhile, all that it held goes to a new file beside it.
"""

import contextlib
import glob
import importlib
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from aisp.experiment.store.reading import check_regular, parse, provenance_of, read, sidecar
from aisp.experiment.store.text import storable
from aisp.provenance import replacing

# Windows has no flock.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_held: set[FileIO] = set()  # files that this process has locked


class RecordsFile:
    """A file of records that no other run writes; `opened` makes one.

    Attributes:
        path: of the file; another one once the first was replaced.
        records: what it held when it was opened, by key.
        runs: those that wrote it, by id.
        unfinished: the batches in which runs before were killed, as `begin` noted them; whoever
            computes them, or finds them done, takes them out.
    """

    def __init__(self, path: Path, file: FileIO, refused: OSError | None) -> None:
        self.path, self.file, self.refused, self.noted = path.resolve(), file, refused, False
        self.kept = bytearray(read(self.path))  # what it holds, should it be lost
        self.records, torn = parse(path.name, bytes(self.kept))
        self.runs = provenance_of(path)
        self.batch_note = self.path.with_suffix(".batch.json")
        self.unfinished = _notes(self.batch_note)
        if self.refused is None:
            self._mend(torn)
            for old in _leftovers(self.path):
                old.unlink(missing_ok=True)

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records at the end, safely on the disk."""
        self.keep()
        content = "".join(json.dumps(storable(one)) + "\n" for one in records).encode()
        try:
            _write(self.file, content)
        except OSError:  # what a full disk took of it is a torn line
            size = os.fstat(self.file.fileno()).st_size
            self.kept += content[: max(0, size - len(self.kept))]
            raise
        self.kept += content

    def note_run(self, runs: dict[str, dict[str, Any]]) -> None:
        """Note runs in NAME.runs.json, before their first record.

        Raises:
            OSError: a file that cannot be written, with the reason.
        """
        if self.refused is not None:
            why = f"{self.refused.strerror}, and not all is computed. Make it writable, or use another"
            raise type(self.refused)(self.refused.errno, why, str(self.path))
        self.runs |= runs
        self.noted = True
        self._write_runs()

    def begin(self, batch: dict[str, Any]) -> None:
        """Note that a batch is being computed, for the next run, should this one be killed by it.

        Args:
            batch: its label, its seed and its prompts' ids.
        """
        self.unfinished = [note for note in self.unfinished if note["label"] != batch["label"]]
        with replacing(self.batch_note) as new:
            new.write_text(json.dumps(storable([*self.unfinished, batch])), encoding="utf-8")

    def keep(self) -> None:
        """Go on in a new file if the one at the path is no longer the one that was opened."""
        if self.refused is not None or self._in_place():
            return
        lost, file = self.path, self.file
        lost.parent.mkdir(parents=True, exist_ok=True)
        run = list(self.runs)[-1] if self.noted else "copy"
        for more in itertools.count():
            end = f"-{more}" if more else ""
            self.path = lost.with_name(f"{lost.stem}.rescued-{run}{end}.jsonl")
            with contextlib.suppress(FileExistsError):
                self.file = FileIO(str(self.path), "x+")
                break
        _lock(self.file)
        _write(self.file, self.kept)
        self._write_runs()
        _release(file)
        print(
            f"{lost.name} was removed, replaced or changed by something else while this run wrote "
            f"it. All that it held, and what this run adds, is now in {self.path}. To go on with "
            f"that, rename it to {lost.name} and {sidecar(self.path).name} to {sidecar(lost).name}",
            file=sys.stderr,
        )

    def close(self) -> None:
        """Release the file, and see to it that records and runs are where they should be."""
        if self.file.closed:  # in a child process, whose parent has it
            return
        try:
            if self.noted:
                self.keep()
                self._keep_runs()
        finally:
            if self.refused is None:
                self._keep_notes()
            _release(self.file)

    def _keep_runs(self) -> None:
        try:
            noted = provenance_of(self.path)
        except ValueError:  # broken since
            noted = {}
        if not self.runs.keys() <= noted.keys():
            self.runs = noted | self.runs
            self._write_runs()

    def _keep_notes(self) -> None:
        """Leave the notes of batches that another run is to compute, and no others."""
        if not self.unfinished:
            self.batch_note.unlink(missing_ok=True)
        elif self.unfinished != _notes(self.batch_note):
            with replacing(self.batch_note) as new:
                new.write_text(json.dumps(storable(self.unfinished)), encoding="utf-8")

    def _in_place(self) -> bool:
        mine = os.fstat(self.file.fileno())
        try:
            there = os.stat(self.path)
        except OSError:
            return False
        return os.path.samestat(mine, there) and mine.st_size == len(self.kept)

    def _mend(self, torn: bytes) -> None:
        """Move a torn last line, left by a killed run, to NAME.torn; end the last one with a newline."""
        if torn:
            aside = self.path.with_suffix(".torn")
            with FileIO(str(aside), "a") as file:
                _write(file, torn.rstrip(b"\n") + b"\n")
            del self.kept[len(self.kept) - len(torn) :]
            self.file.truncate(len(self.kept))
            warnings.warn(
                f"{self.path.name}: the last line was torn, by a run that was killed; moved to "
                f"{aside.name}",
                stacklevel=6,
            )
        elif self.kept and not self.kept.endswith(b"\n"):
            self.kept += b"\n"
            _write(self.file, b"\n")

    def _write_runs(self) -> None:
        with replacing(sidecar(self.path)) as new:
            new.write_text(json.dumps(storable(self.runs), indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[RecordsFile]:
    """A file of records for this run alone; made where it does not exist.

    A file that may only be read is opened all the same; `note_run` raises what stands against
    writing it.

    Raises:
        RuntimeError: another run is writing the file.
        ValueError: a broken line before its last, or a broken file of runs.
    """
    path.resolve().parent.mkdir(parents=True, exist_ok=True)
    file, refused = _open(path.resolve())
    try:
        records = RecordsFile(path, file, refused)
    except BaseException:
        _release(file)
        raise
    try:
        yield records
    finally:
        records.close()


def _open(path: Path) -> tuple[FileIO, OSError | None]:
    """The file, locked; or open for reading only, with the error that writing it met."""
    while True:
        check_regular(path)
        try:
            file = FileIO(str(path), "a+")
        except OSError as error:
            if not path.is_file():
                raise
            return FileIO(str(path)), error
        try:
            _lock(file)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file, None
        except BaseException:
            file.close()
            raise
        _release(file)  # it was replaced before it was locked


def _lock(file: FileIO) -> None:
    """Take the file for this process until `_release`, or until it is gone, however it ends."""
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RuntimeError(
            f"{file.name} is being written by another run; wait for its end, stop it, or use "
            "another file"
        ) from error
    except OSError as error:  # some network file systems have none either
        warnings.warn(
            f"{file.name} cannot be locked ({error}): see to it that no other run writes it",
            stacklevel=7,
        )
    _held.add(file)


def _release(file: FileIO) -> None:
    _held.discard(file)
    if fcntl is not None and not file.closed:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # for a copy too that a child process may have
    file.close()


def _forget() -> None:
    """In a child process: close what its parent has locked, so that it outlives no lock."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _write(file: FileIO, content: bytes | bytearray) -> None:
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or file.name
        raise


def _notes(path: Path) -> list[dict[str, Any]]:
    """The notes of batches in a file; none where it is missing or holds something else."""
    try:
        notes = json.loads(read(path))
        return [note for note in notes if {"label", "seed"} < note.keys() and set(note["prompts"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _leftovers(path: Path) -> list[Path]:
    """What killed runs were writing besides records when they were killed."""
    parts = (sidecar(path).name, path.with_suffix(".batch.json").name)
    patterns = [f".{glob.escape(name)}.*.new" for name in parts]
    return [old for pattern in patterns for old in path.parent.glob(pattern)]
