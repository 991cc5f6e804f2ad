r"""Rows of data sets, and the formats of two public ones: SHP and HH-RLHF.

Both hold human preferences between two replies. Prompts are taken from them (`aisp.prompts`), and
`hh_pairs` also keeps the two replies, for training a reward head.

HH-RLHF stores a dialogue as one string, "\n\nHuman: ... \n\nAssistant: ...". RE-Control
(arXiv:2406.05954) prompts with everything up to the last "Assistant:"; `hh_rows` does the same, as
messages.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aisp.pins import revision_of

Messages = list[dict[str, str]]
Row = tuple[str, int, dict[str, Any]]  # where it stands (for errors), row number from 0, record


class PromptRow(NamedTuple):
    """A prompt as a data set has it.

    Attributes:
        where: it stands, for errors.
        checks: of its responses, see `aisp.checked_data`.
    """

    where: str
    id: str
    messages: Messages
    checks: Mapping[str, Any] = {}


HUB: dict[str, tuple[str, str | None, list[str], tuple[str, ...]]] = {
    # source -> (dataset, data_dir, the fields that are read, splits on the hub)
    "shp": ("stanfordnlp/SHP", None, ["post_id", "history"], ("train", "validation", "test")),
    "hh": ("Anthropic/hh-rlhf", "harmless-base", ["chosen"], ("train", "test")),
    "ifeval": (
        "google/IFEval",
        None,
        ["key", "prompt", "instruction_id_list", "kwargs"],
        ("train",),
    ),
}
# Only a marker that opens a paragraph separates turns: replies do quote "Human:" within a line.
_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, `chosen` preferred to `rejected`; id is "hh-<row>"."""

    id: str
    messages: tuple[dict[str, str], ...] = field(hash=False)
    chosen: str
    rejected: str


def file_rows(path: Path) -> Iterator[Row]:
    """The records of a .jsonl or .jsonl.gz file; blank lines are passed over.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: a line that is no JSON object (the message names file and line), or a damaged
            gzip file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; give the path of a .jsonl or .jsonl.gz file")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for row, line in enumerate(lines):
                if not line.strip():
                    continue
                where = f"{path}, line {row + 1}"
                with located(f"{where}: expected a JSON object"):
                    record = json.loads(line)  # a ValueError also where it is not UTF-8
                    if not isinstance(record, dict):
                        raise TypeError(f"found a {type(record).__name__}")
                yield where, row, record
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or not gzip ({error}). Fetch it again") from error


def hub_rows(source: str, split: str | None, *, streaming: bool = False) -> Iterator[Row]:
    """The records of a data set on the Hugging Face hub, with the fields that are read.

    It is loaded at the revision of `aisp.pins`.

    Args:
        source: a key of HUB.
        split: of the data set; None is the last, "test" where there is one.
        streaming: download no more than what is read.

    Raises:
        ValueError, ImportError, RuntimeError: an unknown split; no `datasets`; the hub out of reach.
    """
    dataset, data_dir, fields, splits = HUB[source]
    split = splits[-1] if split is None else split
    if split not in splits:
        raise ValueError(f"split is {split!r}; {dataset} has {', '.join(splits)}")
    local = f'or use a local file: "{source}:PATH" with a .jsonl or .jsonl.gz'
    try:
        import datasets

        place = {"data_dir": data_dir, "revision": revision_of(dataset, "dataset")}
        rows = datasets.load_dataset(dataset, split=split, streaming=streaming, **place)
    except ImportError as error:
        raise ImportError(f"{dataset} needs `pip install datasets` ({error}), {local}") from error
    except Exception as error:  # offline, gated, moved: the hub raises many types
        raise RuntimeError(
            f"could not load {dataset} from the Hugging Face hub ({error}). Get online, {local}"
        ) from error
    for row, record in enumerate(rows.select_columns(fields)):
        yield f"{dataset}, {split} row {row}", row, record


@contextmanager
def located(where: str) -> Iterator[None]:
    """Errors within say where the line stands."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def text_field(record: dict[str, Any], key: str) -> str:
    """A field that must be a string."""
    if not isinstance(value := record.get(key), str):
        raise ValueError(f"field `{key}` is {value!r}, not a string; fields are {list(record)}")
    return value


def hh_messages(dialogue: str) -> Messages:
    """An HH-RLHF dialogue as messages, content stripped of surrounding white space.

    A turn opens with "Human:" or "Assistant:" right after a blank line; anywhere else these words
    are text. A marker that repeats the role before it continues that turn, as a new paragraph,
    because chat templates want the roles to alternate. An empty turn gives empty content.

    Raises:
        ValueError: the dialogue does not begin with "Human:".
    """
    return _merged(_hh_turns(dialogue))


def hh_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Preference pairs of a local HH-RLHF file (.jsonl or .jsonl.gz, `chosen` and `rejected`).

    Rows that cannot teach a preference between two replies to one prompt are left out (ids keep the
    row number, so they show which): the dialogues differ before their last "Assistant:", the turn
    before it is not the user's, a reply is empty, or both replies are the same. Of rows 0 to 1799
    of the harmless-base test split that is 6: two with different prompts, four with an empty reply.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: a line that cannot be used (the message names file and line), or no pair left.
    """
    pairs = []
    for where, row, record in file_rows(Path(path)):
        with located(where):
            prompt, chosen = _hh_split(text_field(record, "chosen"))
            other, rejected = _hh_split(text_field(record, "rejected"))
        same_prompt = prompt == other and prompt[-1][0] == "user"
        if same_prompt and chosen and rejected and chosen != rejected:
            pairs.append(Pair(f"hh-{row}", tuple(_merged(prompt)), chosen, rejected))
    if not pairs:
        raise ValueError(f"{path} holds no usable pair; see hh_pairs for what is left out")
    return pairs


def _hh_turns(dialogue: str) -> list[tuple[str, str]]:
    """(role, content) for each marker, repeated roles not yet merged."""
    before, *parts = _MARKER.split(dialogue)
    if before.strip() or not parts or parts[0] != "Human":
        raise ValueError(
            f"the dialogue begins {dialogue[:40]!r}; it must begin with 'Human:' and separate its "
            r"turns with '\n\nHuman:' and '\n\nAssistant:'"
        )
    roles = ("user" if marker == "Human" else "assistant" for marker in parts[::2])
    return list(zip(roles, (content.strip() for content in parts[1::2]), strict=True))


def _merged(turns: Iterable[tuple[str, str]]) -> Messages:
    messages: Messages = []
    for role, content in turns:
        if messages and messages[-1]["role"] == role:
            content = f"{messages.pop()['content']}\n\n{content}".strip()
        messages.append({"role": role, "content": content})
    return messages


def _hh_split(dialogue: str) -> tuple[list[tuple[str, str]], str]:
    """The turns before the last "Assistant:" and the reply after it."""
    *turns, (role, reply) = _hh_turns(dialogue)
    if role != "assistant":
        raise ValueError("the dialogue ends with a human turn; it must end with a reply")
    return turns, reply


def hh_rows(rows: Iterable[Row]) -> Iterator[PromptRow]:
    """Prompts of HH-RLHF, one for each row: `chosen` up to its last "Assistant:"."""
    for where, row, record in rows:
        with located(where):
            turns, _ = _hh_split(text_field(record, "chosen"))
            while turns[-1][0] == "assistant":  # a repeated marker split the reply itself
                turns.pop()
        yield PromptRow(where, f"hh-{row}", _merged(turns))


def shp_rows(rows: Iterable[Row]) -> Iterator[PromptRow]:
    """Prompts of SHP, one for each post: the hub has one row for each pair of comments on it."""
    seen = set()
    for where, _, record in rows:
        with located(where):
            id, history = f"shp-{text_field(record, 'post_id')}", text_field(record, "history")
        if id not in seen:
            seen.add(id)
            yield PromptRow(where, id, [{"role": "user", "content": history}])


PROMPT_ROWS: dict[str, Callable[[Iterable[Row]], Iterator[PromptRow]]] = {
    "shp": shp_rows,
    "hh": hh_rows,
}
