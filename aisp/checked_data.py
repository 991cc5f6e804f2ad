"""Rows of prompts whose responses a program can check, and the format of IFEval (arXiv:2311.07911).

What a program checks comes in columns beside the prompt. They are read here as they are, as plain
JSON: what they mean, and whether it makes sense, is for the reward to say (`Reward.check`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aisp.preference_data import PromptRow, Row, located, text_field

# The columns that tell a kind of checks, and the others that belong to it: IFEval; arithmetic; and
# HumanEval, MBPP and MBPP+.
COLUMNS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("instruction_id_list",), ("kwargs",)),
    (("answer",), ()),
    (("test", "test_list"), ("entry_point", "test_imports", "test_setup_code")),
)


def checks_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The checks among the columns of a row; empty where it has none.

    Names without a value are left out of `kwargs`: on the hub every row has every name. The prompt is
    among the checks of a row with an `entry_point`: HumanEval's begin the program.

    Raises:
        ValueError: more than one kind; instructions that are no list of names, or whose `kwargs` are
            no list of as many objects.
    """
    given = {name for name, value in record.items() if value is not None}
    kinds = [(tells, others) for tells, others in COLUMNS if given & set(tells)]
    if not kinds:
        return {}
    if len(kinds) > 1:
        told = ", ".join(sorted(given & {name for tells, _ in kinds for name in tells}))
        raise ValueError(f"columns are {told}; a prompt has one kind of checks. Keep one")
    columns = kinds[0][0] + kinds[0][1]
    if "entry_point" in given & set(columns):
        columns += ("prompt",)
    found = {name: record[name] for name in columns if name in given}
    if "instruction_id_list" in found:
        ids, kwargs = found["instruction_id_list"], found.get("kwargs")
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            raise ValueError(f"instruction_id_list is {ids!r}; it must be a list of names")
        if not isinstance(kwargs, list) or not all(isinstance(own, dict) for own in kwargs):
            raise ValueError(
                f"kwargs is {kwargs!r}; it must be a list with an object for each of {ids}"
            )
        if len(ids) != len(kwargs):
            raise ValueError(
                f"instruction_id_list has {len(ids)} names, and kwargs {len(kwargs)} objects; give "
                "each instruction its own, {} where it takes nothing"
            )
        found["kwargs"] = [{k: v for k, v in own.items() if v is not None} for own in kwargs]
    return found


def plain_json(checks: Any) -> dict[str, Any]:
    """Checks as a new object of plain JSON, with its names in order: equal ones have one text.

    Raises:
        TypeError, ValueError: no mapping from names, or values that JSON does not have.
    """
    if not isinstance(checks, Mapping) or not all(isinstance(name, str) for name in checks):
        raise TypeError(
            f"the prompt's checks are {checks!r}; make them a dict with text as its keys"
        )
    if not checks:
        return {}
    try:
        return json.loads(json.dumps(dict(checks), allow_nan=False, sort_keys=True))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the prompt's checks are {checks!r}, which is no JSON: {error}") from None


def ifeval_rows(rows: Iterable[Row]) -> Iterator[PromptRow]:
    """Prompts of IFEval: key, prompt, instruction_id_list, kwargs; the id is "ifeval-<key>"."""
    for where, _, record in rows:
        with located(where):
            missing = [
                x for x in ("key", "prompt", "instruction_id_list", "kwargs") if x not in record
            ]
            if missing:
                raise ValueError(
                    f"fields are {list(record)}; IFEval's also have {', '.join(missing)}"
                )
            messages = [{"role": "user", "content": text_field(record, "prompt")}]
            yield PromptRow(where, f"ifeval-{record['key']}", messages, checks_of(record))
