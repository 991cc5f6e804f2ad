"""Prompt sets: the built-in one, SHP, HH-RLHF, IFEval, and any JSONL file.

A prompt is a conversation that waits for the assistant: a list of {"role", "content"} messages
whose last one is the user's. Whatever the source, `load_prompts` returns `Prompt` objects with
stable ids, so that records can name a prompt without quoting it.

Prompts whose responses a program can check carry what it checks, for the reward "verifiable". A line
of a JSONL file then has, beside `prompt`, the columns of one kind:

- instructions (IFEval, arXiv:2311.07911): `instruction_id_list` and `kwargs`, two lists of one length,
  with the names and arguments of `aisp.rewards.verifiable`. IFEval's own file has a `key`, too:

      {"key": 7, "prompt": "Name some fruit, in small letters and with at least 3 words.",
       "instruction_id_list": ["change_case:english_lowercase", "length_constraints:number_words"],
       "kwargs": [{}, {"relation": "at least", "num_words": 3}]}

- arithmetic: `answer`;
- code: `test` and `entry_point` (HumanEval), or `test` or `test_list` (MBPP+, MBPP).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aisp.checked_data import checks_of, ifeval_rows, plain_json
from aisp.checks import whole
from aisp.display import printable
from aisp.preference_data import (
    HUB,
    PROMPT_ROWS,
    Messages,
    PromptRow,
    Row,
    file_rows,
    hub_rows,
    located,
    text_field,
)
from aisp.provenance import data_path

ROLES = ("system", "user", "assistant")
FORMATS = PROMPT_ROWS | {"ifeval": ifeval_rows}
_SOURCES = (
    '"builtin", "shp", "hh", "shp:PATH", "hh:PATH", "ifeval", "ifeval:PATH", or the path of a '
    "JSONL file"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a set.

    Args:
        id: unique within its set: "helpful-001", "shp-<post_id>", "hh-<row>", "ifeval-<key>",
            "<file>-<row>".
        messages: anything that `as_messages` takes; stored as a tuple, not to be modified.
        source: "builtin", "shp", "hh", "ifeval", or the name of the file it came from.
        category: "helpful" or "harmless" in the built-in set; whatever a JSONL file says.
        checks: what a program can check of a response, as plain JSON: `instruction_id_list` and
            `kwargs`, or `answer`, or `test` and `entry_point`; see `aisp.rewards.verifiable`. A copy
            is stored, not to be modified.
        where: it was read, for errors: "FILE, line 3".
    """

    id: str
    messages: tuple[dict[str, str], ...] = field(hash=False)
    source: str
    category: str = ""
    checks: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("id", "source", "category"):
            _check_text(f"the prompt's {name}", getattr(self, name))
        object.__setattr__(self, "messages", tuple(as_messages(self.messages)))
        object.__setattr__(self, "checks", plain_json(self.checks))

    @property
    def text(self) -> str:
        """The last message, which is the user's."""
        return self.messages[-1]["content"]

    @property
    def label(self) -> str:
        """`text` on one line of at most 60 characters without control characters, for tables."""
        line = printable(" ".join(self.text.split()))
        return line if len(line) <= 60 else line[:59].rstrip() + "…"


def as_messages(prompt: "str | Messages | tuple[dict[str, str], ...] | Prompt") -> Messages:
    """A prompt in any accepted form, as a new list of {"role", "content"} messages.

    Args:
        prompt: a string (one user message), a list or tuple of messages, or a `Prompt`.

    Raises:
        TypeError: not one of these forms, a message that is not a dict, content not a string.
        ValueError: no messages, wrong keys, an unknown role, content that is no Unicode text, a
            last message that is empty or not the user's.
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
        _check_text(f"the content of message {i}", content)
    if role != "user":
        raise ValueError(
            f"the last message has role {role!r}; it must be 'user', because the model answers "
            "it. Remove the reply, or add the user's next message"
        )
    if not content.strip():
        raise ValueError(f"the last message is {content!r}; it must contain text. Write a question")
    return [dict(message) for message in prompt]


def _check_text(name: str, text: object) -> None:
    """Refuse what is no string, and lone surrogates: no tokenizer and no UTF-8 file takes them."""
    if not isinstance(text, str):
        raise TypeError(f"{name} is {text!r}; make it a string")
    if not text.isascii() and (found := _SURROGATE.search(text)):
        around = text[max(0, found.start() - 20) : found.end() + 20]
        raise ValueError(
            f"{name} has the lone surrogate {found[0]!r} at character {found.start()}, in "
            f"{around!r}: half of a character, left by a text that was cut or decoded wrongly. "
            "Remove it, or decode the text again"
        )


def prompt_list(prompts: Any) -> tuple[list[Any], bool]:
    """The prompts as a list, and whether it was a single one.

    A prompt is a string, a list of {"role", "content"} messages or a `Prompt`; a list of those is
    several prompts.
    """
    if isinstance(prompts, str | Prompt):
        prompts, single = [prompts], True
    elif not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts is {prompts!r}; pass a string, a list of messages, a Prompt, or a list of "
            "these"
        )
    elif not prompts:
        raise ValueError("the list of prompts is empty; pass at least one prompt")
    else:
        single = all(isinstance(m, dict) for m in prompts)
        prompts = [prompts] if single else list(prompts)
    for prompt in prompts:
        as_messages(prompt)
    return prompts, single


def load_prompts(
    source: str | os.PathLike[str] = "builtin",
    *,
    split: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Prompt]:
    """Prompts of one source, in their stored order.

    Args:
        source: "builtin" (64 prompts of this project), "shp", "hh" or "ifeval" (from the Hugging
            Face hub; needs `datasets`), "shp:PATH", "hh:PATH" or "ifeval:PATH" (a local .jsonl or
            .jsonl.gz with their fields), or the path of any .jsonl or .jsonl.gz whose lines have
            `prompt` (a string) or `messages`, and optionally `id` (default "<file>-<row>"),
            `category` and `split`. SHP gives one prompt for each post_id; HH-RLHF one for each row,
            from `chosen`. What a line may have to be checked by says the module's docstring; with
            instructions and a `key`, the default id is "<file>-<key>".
        split: builtin: "dev" (for tuning), "test" (for reporting), or None for both. On the hub: a
            split of the dataset, None for "test" ("train" of IFEval, which has no other). A JSONL
            file: a value of its `split` field. A local SHP, HH or IFEval file has no splits.
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
    limit = None if limit is None else whole("limit", limit, least=1)
    offset = whole("offset", offset, least=0)
    name = os.fspath(source)
    prompts = _of_source(name, split)
    found = list(islice(prompts, None if limit is None else offset + limit))
    if len(found) < offset + (limit or 1):
        raise ValueError(
            f"{name!r} (split {split!r}) has {len(found)} prompts; asked for "
            f"{'all' if limit is None else limit} from offset {offset}. Lower limit or offset"
        )
    return found[offset:]


def _of_source(name: str, split: str | None) -> Iterator[Prompt]:
    """All prompts of a source, or the error that says why there are none."""
    kind, colon, file = name.partition(":")
    if name in HUB:
        return _prompts(FORMATS[name](hub_rows(name, split)), name)
    if colon and kind in HUB:
        if split is not None:
            raise ValueError(f"split is {split!r}, but a local {kind} file has no splits; omit it")
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"no file at {file}; give the path of a .jsonl or .jsonl.gz file, or {kind!r} alone "
                "for the data on the Hugging Face hub"
            )
        return _prompts(FORMATS[kind](file_rows(Path(file))), kind)
    if name == "builtin":
        return _any_prompts(file_rows(data_path("prompts.jsonl")), split, "builtin")
    if (path := Path(name)).is_file():
        return _any_prompts(file_rows(path), split, path.name)
    raise ValueError(f"source is {name!r}: no such file, and no known source: {_SOURCES}")


def _prompts(rows: Iterable[PromptRow], source: str) -> Iterator[Prompt]:
    for where, id, messages, checks in rows:
        with located(where):
            prompt = Prompt(id, tuple(messages), source, checks=checks, where=where)
        yield prompt


def _any_prompts(rows: Iterable[Row], split: str | None, source: str) -> Iterator[Prompt]:
    stem = source.removesuffix(".gz").removesuffix(".jsonl")
    ids: dict[str, str] = {}
    splits = set()
    for where, row, record in rows:
        with located(where):
            if ("prompt" in record) == ("messages" in record):
                raise ValueError(f"fields are {list(record)}; give either `prompt` or `messages`")
            content = text_field(record, "prompt") if "prompt" in record else record["messages"]
            checks, messages = checks_of(record), tuple(as_messages(content))
            number = record.get("key", row) if "instruction_id_list" in checks else row
            id, category = (
                str(record.get("id", f"{stem}-{number}")),
                str(record.get("category", "")),
            )
            prompt = Prompt(id, messages, source, category, checks, where)
            if id in ids:  # records on disk are found by id
                raise ValueError(f"id {id!r} is already used at {ids[id]}; make ids unique")
            ids[id] = where
            if split is not None:
                splits.add(text_field(record, "split"))
        if split is None or record["split"] == split:
            yield prompt
    if split is not None and split not in splits:
        raise ValueError(f"split is {split!r}; {source!r} has {sorted(splits)}, or None for all")
