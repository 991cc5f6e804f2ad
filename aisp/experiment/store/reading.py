"""Reading a file of records, and the file of the runs that wrote it, which lies beside it."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisp.experiment.store.text import storable

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, str, int]  # label, prompt id, seed

# What makes a line a record, and what tables take for granted besides.
FIELDS = ("label", "prompt", "seed", "reward", "samples", "tokens", "seconds")
DEFAULTS: dict[str, Any] = {"method": None, "config": None, "prompt_text": None, "response": None}
DEFAULTS |= {"history": None, "interrupted": False, "error": None}


def load(path: str | Path) -> "pd.DataFrame":
    """Records as a table, one row per (label, prompt, seed); the newest where there are several.

    Failed records have an `error` and no reward (NaN). A torn last line, of a run that was killed
    or is just writing it, is left out with a warning, and the file left as it is. Half of a
    surrogate pair, which is no text, is shown as its escape.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken line before the last, one that is no record, or no regular file.
    """
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no records at {path}; `aisp.experiment.run` makes them")
    records, torn = parse(path.name, read(path))
    if torn:
        warnings.warn(
            f"{path.name}: the last line is torn and was left out; the next run sets it aside",
            stacklevel=2,
        )
    rows = []
    for one in records.values():
        # Early records do not count reward calls: their methods scored each sample once.
        filled = {"reward_calls": one.get("reward_calls", one["samples"])}
        filled |= {name: value for name, value in DEFAULTS.items() if name not in one}
        filled["reward"] = float("nan") if one["reward"] is None else one["reward"]
        rows.append(one | filled)
    return pd.DataFrame(rows)


def read(path: Path) -> bytes:
    """The bytes of a regular file."""
    check_regular(path)
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Raise ValueError for a folder, and for a pipe, which could keep one waiting for ever."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise ValueError(f"{path} is {kind}; records are a regular file, NAME.jsonl")


def parse(name: str, content: bytes) -> tuple[dict[Key, dict[str, Any]], bytes]:
    """The newest record of each key, and the last line where that is torn.

    Args:
        name: of the file, for the error.
        content: its bytes, JSON Lines.

    Raises:
        ValueError: a broken line before the last, or JSON that is no record.
    """
    records: dict[Key, dict[str, Any]] = {}
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return records, line
            raise ValueError(
                f"{name}, line {number} of {len(lines)} is no record ({error}). A killed run tears "
                "the last line only, so this one was edited or damaged: delete it and run again"
            ) from error
        if missing := _missing(one):
            raise ValueError(
                f"{name}, line {number} of {len(lines)} is no record ({missing}). If it is a file of "
                "records, the line was edited or damaged: delete it and run again"
            )
        if b"\\ud" in line.lower():  # a surrogate, or two that make a character
            one = storable(one)
        records[one["label"], one["prompt"], one["seed"]] = one
    return records, b""


def _missing(one: Any) -> str:
    """What a line of JSON lacks to be a record; empty where that is nothing."""
    if not isinstance(one, dict):
        return f"it is a {type(one).__name__}"
    missing = [repr(field) for field in FIELDS if field not in one]
    if missing:
        return f"it has no {', '.join(missing)}"
    kinds: dict[str, Any] = {
        "label": str,
        "prompt": str,
        "seed": int,
        "config": dict | None,
        "samples": int,
    }
    kinds |= dict.fromkeys(("tokens", "seconds"), int | float) | {"reward": int | float | None}
    pairs = {name: one.get(name) for name in kinds}
    wrong = [f"{k} is {v!r}" for k, v in pairs.items() if not isinstance(v, kinds[k])]
    return "; ".join(wrong)


def sidecar(path: Path) -> Path:
    """The file beside NAME.jsonl that tells of the runs that wrote it: NAME.runs.json."""
    return path.with_suffix(".runs.json")


def provenance_of(path: Path) -> dict[str, dict[str, Any]]:
    """The runs that wrote a file of records, by id; none where nothing tells of them.

    Where the path is a link, runs noted beside the link and beside the file count.

    Raises:
        ValueError: a file of runs that is broken.
    """
    runs: dict[str, dict[str, Any]] = {}
    for beside in dict.fromkeys((sidecar(path), sidecar(path.resolve()))):
        if beside.exists():
            runs |= _runs(beside)
    return runs


def stored_dtype(path: Path) -> str | None:
    """The dtype that the records of a file were computed in; None where it has none, or several.

    A notebook that shows stored records loads its policy in it: the records of another dtype are
    refused, and which one `load_policy` takes by itself depends on the processor.
    """
    if not path.exists():
        return None
    runs = provenance_of(path)
    about = [
        runs.get(one.get("run", ""), {}) | (one.get("made_with") or {})
        for one in parse(path.name, read(path))[0].values()
    ]
    found = {one.get("dtype") for one in about}
    return found.pop() if len(found) == 1 else None


def _runs(path: Path) -> dict[str, dict[str, Any]]:
    advice = (
        "restore it, from version control or a copy, or move it away together with the records to "
        "begin anew: it tells what early records were made with, and where all come from"
    )
    try:
        runs = json.loads(read(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {advice}") from error
    if not isinstance(runs, dict) or not all(isinstance(run, dict) for run in runs.values()):
        raise ValueError(
            f"{path} holds no runs by their ids (it is a {type(runs).__name__}); {advice}"
        )
    return runs
