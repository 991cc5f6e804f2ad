"""The kinds of checks that a prompt may carry, and what each makes of a prompt's own.

To add a kind: a function from `Prompt.checks` to its parts, and an entry in KINDS under the field
that tells it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

# `formats` and `instructions` enter the checkers: nothing else of them is read here.
from aisp.rewards.verifiable import answers, formats, instructions, sandbox  # noqa: F401
from aisp.rewards.verifiable.contradictions import check_together
from aisp.rewards.verifiable.registry import INSTRUCTIONS, checked_arguments, checker

if TYPE_CHECKING:
    import pandas as pd


class Part(NamedTuple):
    """One thing that is checked of a response.

    Attributes:
        name: of what is checked.
        holds: (response) -> whether it holds, or the share of it that does, in [0, 1].
    """

    name: str
    holds: Callable[[str], float]


class Kind(NamedTuple):
    """A kind of checks.

    Attributes:
        parts: (a prompt's checks) -> its parts, at least one. It raises a ValueError where they
            cannot be used, and an ImportError where they need a package that is not installed.
        variants: (response) -> texts of which one has to pass for a part to hold loosely; None
            where there is no loose reading.
        at_once: responses that are checked at a time, each by a thread of its own.
    """

    parts: Callable[[Mapping[str, Any]], Sequence[Part]]
    variants: Callable[[str], Sequence[str]] | None = None
    at_once: int = 1


def instruction_parts(checks: Mapping[str, Any]) -> list[Part]:
    """IFEval's instructions: `instruction_id_list` and `kwargs`, of the same length."""
    ids, kwargs = checks["instruction_id_list"], checks.get("kwargs")
    if not isinstance(ids, list | tuple) or not ids:
        raise ValueError(f"instruction_id_list is {ids!r}; it must be a list of at least one id")
    if not isinstance(kwargs, list | tuple) or len(kwargs) != len(ids):
        raise ValueError(
            f"kwargs is {kwargs!r}; it must be a list with one object for each of the {len(ids)} "
            "instructions"
        )
    unknown = sorted(set(checks) - {"instruction_id_list", "kwargs"})
    if unknown:
        raise ValueError(f"beside instruction_id_list and kwargs there is {', '.join(unknown)}")
    given = [(id, checked_arguments(id, own)) for id, own in zip(ids, kwargs, strict=True)]
    check_together(given)
    return [Part(id, checker(id, arguments)) for id, arguments in given]


def loose_variants(response: str) -> list[str]:
    """IFEval's eight texts, without repetitions: the response as it is; without its first line, its
    last, or both, and then white space around the rest; and each of these four without asterisks.
    """
    lines = response.split("\n")
    cut = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    whole = [response, *cut]
    return list(dict.fromkeys(whole + [text.replace("*", "") for text in whole]))


def graded(
    name: str,
    share: Callable[[Mapping[str, Any], str], float],
    ready: Callable[[Mapping[str, Any]], object],
    at_once: int = 1,
) -> Kind:
    """A kind of one part, without a loose reading.

    Args:
        share: (a prompt's checks, response) -> the share that holds, in [0, 1].
        ready: (a prompt's checks); raises a ValueError where they cannot be used.
    """

    def parts(checks: Mapping[str, Any]) -> list[Part]:
        ready(checks)
        return [Part(name, partial(share, checks))]

    return Kind(parts, at_once=at_once)


_CODE = graded(
    "tests", sandbox.share, lambda checks: sandbox.programs(checks, ""), os.cpu_count() or 1
)
KINDS: dict[str, Kind] = {
    "instruction_id_list": Kind(instruction_parts, loose_variants),
    "answer": graded("answer", answers.share, answers.truth),
    "test": _CODE,
    "test_list": _CODE,
}


def rules() -> "pd.DataFrame":
    """All instructions: index id; columns arguments, and the rule, as the checker's docstring has it."""
    import pandas as pd

    rows = {
        id: {
            "arguments": ", ".join(of.arguments),
            "rule": " ".join((of.holds.__doc__ or "").partition("\n\n")[0].split()),
        }
        for id, of in sorted(INSTRUCTIONS.items())
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def compiled(checks: Mapping[str, Any]) -> tuple[Kind, Sequence[Part]]:
    """The kind of a prompt's checks, and its parts.

    Raises:
        ValueError, ImportError: what cannot be used, and why.
    """
    found = {KINDS[field] for field in KINDS if field in checks}
    if len(found) != 1:
        has = f"has {', '.join(checks)}" if checks else "has none"
        raise ValueError(f"it {has}; give it checks of one kind: {' or '.join(KINDS)}")
    (kind,) = found
    return kind, kind.parts(checks)
