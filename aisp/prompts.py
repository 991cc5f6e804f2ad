r"""Prompt sets: the built-in one, SHP, HH-RLHF, and any JSONL file.

A prompt is a conversation that waits for the assistant: a list of {"role", "content"} messages
whose last one is the user's. Whatever the source, `load_prompts` returns `Prompt` objects with
stable ids, so that records can name a prompt without quoting it.

HH-RLHF stores a dialogue as one string, "\n\nHuman: ... \n\nAssistant: ...". RE-Control
(arXiv:2406.05954) prompts with everything up to the last "Assistant:"; `load_prompts` does the
same, as messages. `hh_pairs` also keeps the two replies, for training a reward head.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aisp.provenance import data_path

Messages = list[dict[str, str]]
_Row = tuple[str, int, dict[str, Any]]  # where it stands (for errors), row number from 0, record

ROLES = ("system", "user", "assistant")
_SOURCES = '"builtin", "shp", "hh", "shp:PATH", "hh:PATH", or the path of a JSONL file'
_HUB = {  # source -> (dataset, data_dir, the fields that are read, splits on the hub)
    "shp": ("stanfordnlp/SHP", None, ["post_id", "history"], ("train", "validation", "test")),
    "hh": ("Anthropic/hh-rlhf", "harmless-base", ["chosen"], ("train", "test")),
}
# Only a marker that opens a paragraph separates turns: replies do quote "Human:" within a line.
_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a set.

    Args:
        id: unique within its set: "helpful-001", "shp-<post_id>", "hh-<row>", "<file>-<row>".
        messages: anything that `as_messages` takes; stored as a tuple, not to be modified.
        source: "builtin", "shp", "hh", or the name of the file it came from.
        category: "helpful" or "harmless" in the built-in set; whatever a JSONL file says.
    """

    id: str
    messages: tuple[dict[str, str], ...] = field(hash=False)
    source: str
    category: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(as_messages(self.messages)))

    @property
    def text(self) -> str:
        """The last message, which is the user's."""
        return self.messages[-1]["content"]

    @property
    def label(self) -> str:
        """`text` on one line of at most 60 characters, for tables and figures."""
        line = " ".join(self.text.split())
        return line if len(line) <= 60 else line[:59].rstrip() + "…"


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, `chosen` preferred to `rejected`; id is "hh-<row>"."""

    id: str
    messages: tuple[dict[str, str], ...] = field(hash=False)
    chosen: str
    rejected: str


def as_messages(prompt: "str | Messages | tuple[dict[str, str], ...] | Prompt") -> Messages:
    """A prompt in any accepted form, as a new list of {"role", "content"} messages.

    Args:
        prompt: a string (one user message), a list or tuple of messages, or a `Prompt`.

    Raises:
        TypeError: not one of these forms, a message that is not a dict, content not a string.
        ValueError: no messages, wrong keys, an unknown role, a last message that is empty or not
            the user's.
    """
    if isinstance(prompt, Prompt):
        prompt = prompt.messages
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        allowed = 'pass a string, a list of {"role", "content"} messages, or a Prompt'
        raise TypeError(f"the prompt is {prompt!r}, a {type(prompt).__name__}; {allowed}")
    if not prompt:
        raise ValueError("the list of messages is empty; give it at least one user message")
    for i, message in enumerate(prompt):
        if not isinstance(message, dict):
            raise TypeError(
                f"message {i} is {message!r}, a {type(message).__name__}; it must be a dict "
                '{"role": ..., "content": ...}. For several prompts, call this once for each'
            )
        if set(message) != {"role", "content"}:
            keys = "they must be 'role' and 'content'. Rename or remove the others"
            raise ValueError(f"message {i} has keys {list(message)}; {keys}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            allowed = f"allowed are {', '.join(ROLES)}. A human turn is 'user'"
            raise ValueError(f"message {i} has role {role!r}; {allowed}")
        if not isinstance(content, str):
            raise TypeError(f"message {i} has content {content!r}; make it a string")
    if role != "user":
        raise ValueError(
            f"the last message has role {role!r}; it must be 'user', because the model answers "
            "it. Remove the reply, or add the user's next message"
        )
    if not content.strip():
        raise ValueError(f"the last message is {content!r}; it must contain text. Write a question")
    return [dict(message) for message in prompt]


def load_prompts(
    source: str | os.PathLike[str] = "builtin",
    *,
    split: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Prompt]:
    """Prompts of one source, in their stored order.

    Args:
        source: "builtin" (64 prompts of this project), "shp" or "hh" (from the Hugging Face hub;
            needs `datasets`), "shp:PATH" or "hh:PATH" (a local .jsonl or .jsonl.gz with their
            fields), or the path of any .jsonl or .jsonl.gz whose lines have `prompt` (a string) or
            `messages`, and optionally `id` (default "<file>-<row>"), `category` and `split`.
            SHP gives one prompt for each post_id; HH-RLHF one for each row, from `chosen`.
        split: builtin: "dev" (for tuning), "test" (for reporting), or None for both. On the hub: a
            split of the dataset, None for "test". A JSONL file: a value of its `split` field.
            A local SHP or HH file has no splits.
        limit: how many prompts, >= 1; None for all.
        offset: how many to pass over first, >= 0.

    Returns:
        Exactly `limit` prompts, or all from `offset` on; at least one.

    Raises:
        ValueError: unknown source or split, fewer prompts than asked for, or a line that cannot be
            used (the message names file and line).
        FileNotFoundError, ImportError, RuntimeError: no file at PATH; a hub source without
            `datasets`; the hub out of reach.
    """
    for name, value, least in (("limit", limit, 1), ("offset", offset, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} is {value!r}; it must be an integer >= {least}")
    name = os.fspath(source)
    kind, colon, file = name.partition(":")
    if name in _HUB:
        prompts = _PARSERS[name](_hub_rows(name, split))
    elif colon and kind in _HUB:
        if split is not None:
            raise ValueError(f"split is {split!r}, but a local {kind} file has no splits; omit it")
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"no file at {file}; give the path of a .jsonl or .jsonl.gz file, or {kind!r} alone "
                "for the data on the Hugging Face hub"
            )
        prompts = _PARSERS[kind](_file_rows(Path(file)))
    elif name == "builtin":
        prompts = _any_prompts(_file_rows(data_path("prompts.jsonl")), split, "builtin")
    elif (path := Path(source)).is_file():
        prompts = _any_prompts(_file_rows(path), split, path.name)
    else:
        raise ValueError(f"source is {name!r}: no such file, and no known source: {_SOURCES}")

    found = list(islice(prompts, None if limit is None else offset + limit))
    if len(found) < offset + (limit or 1):
        raise ValueError(
            f"{name!r} (split {split!r}) has {len(found)} prompts; asked for "
            f"{'all' if limit is None else limit} from offset {offset}. Lower limit or offset"
        )
    return found[offset:]


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
    for where, row, record in _file_rows(Path(path)):
        with _located(where):
            prompt, chosen = _hh_split(_text(record, "chosen"))
            other, rejected = _hh_split(_text(record, "rejected"))
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


def _hh_prompts(rows: Iterable[_Row]) -> Iterator[Prompt]:
    for where, row, record in rows:
        with _located(where):
            turns, _ = _hh_split(_text(record, "chosen"))
            while turns[-1][0] == "assistant":  # a repeated marker split the reply itself
                turns.pop()
            prompt = Prompt(f"hh-{row}", _merged(turns), "hh")
        yield prompt


def _shp_prompts(rows: Iterable[_Row]) -> Iterator[Prompt]:
    seen = set()  # the hub has one row for each pair of comments on a post
    for where, _, record in rows:
        with _located(where):
            prompt = Prompt(f"shp-{_text(record, 'post_id')}", _text(record, "history"), "shp")
        if prompt.id not in seen:
            seen.add(prompt.id)
            yield prompt


_PARSERS = {"shp": _shp_prompts, "hh": _hh_prompts}


def _any_prompts(rows: Iterable[_Row], split: str | None, source: str) -> Iterator[Prompt]:
    stem = source.removesuffix(".gz").removesuffix(".jsonl")
    ids: dict[str, str] = {}
    splits = set()
    for where, row, record in rows:
        with _located(where):
            if ("prompt" in record) == ("messages" in record):
                raise ValueError(f"fields are {list(record)}; give either `prompt` or `messages`")
            content = _text(record, "prompt") if "prompt" in record else record["messages"]
            id, category = str(record.get("id", f"{stem}-{row}")), str(record.get("category", ""))
            prompt = Prompt(id, content, source, category)
            if id in ids:  # records on disk are found by id
                raise ValueError(f"id {id!r} is already used at {ids[id]}; make ids unique")
            ids[id] = where
            if split is not None:
                splits.add(_text(record, "split"))
        if split is None or record["split"] == split:
            yield prompt
    if split is not None and split not in splits:
        raise ValueError(f"split is {split!r}; {source!r} has {sorted(splits)}, or None for all")


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Errors within say where the line stands."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(value := record.get(key), str):
        raise ValueError(f"field `{key}` is {value!r}, not a string; fields are {list(record)}")
    return value


def _file_rows(path: Path) -> Iterator[_Row]:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; give the path of a .jsonl or .jsonl.gz file")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for row, line in enumerate(lines):
                if not line.strip():
                    continue
                where = f"{path}, line {row + 1}"
                with _located(f"{where}: expected a JSON object"):
                    record = json.loads(line)  # a ValueError also where it is not UTF-8
                    if not isinstance(record, dict):
                        raise TypeError(f"found a {type(record).__name__}")
                yield where, row, record
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or not gzip ({error}). Fetch it again") from error


def _hub_rows(source: str, split: str | None) -> Iterator[_Row]:
    dataset, data_dir, fields, splits = _HUB[source]
    split = "test" if split is None else split
    if split not in splits:
        raise ValueError(f"split is {split!r}; {dataset} has {', '.join(splits)}")
    local = f'or use a local file: "{source}:PATH" with a .jsonl or .jsonl.gz'
    try:
        import datasets

        rows = datasets.load_dataset(dataset, data_dir=data_dir, split=split)
    except ImportError as error:
        raise ImportError(f"{dataset} needs `pip install datasets` ({error}), {local}") from error
    except Exception as error:  # offline, gated, moved: the hub raises many types
        raise RuntimeError(
            f"could not load {dataset} from the Hugging Face hub ({error}). Get online, {local}"
        ) from error
    for row, record in enumerate(rows.select_columns(fields)):
        yield f"{dataset}, {split} row {row}", row, record
