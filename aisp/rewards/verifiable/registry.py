"""Instructions by their id, and the checks of their arguments.

A checker is a function of a text that says whether an instruction holds, with the instruction's
arguments as keywords. `instruction` enters it under the id that IFEval (arXiv:2311.07911) gives it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from aisp.checks import choice, whole

RELATIONS = ("less than", "at least")
Checker = Callable[[str], bool]
Check = Callable[[str, Any], Any]  # name and value of an argument -> the value, or a ValueError


class Instruction(NamedTuple):
    """One kind of instruction.

    Attributes:
        holds: (text, **arguments) -> whether the text follows it.
        arguments: name -> check. All are needed, and there are no others.
        ready: raises if what `holds` needs is not installed.
    """

    holds: Callable[..., bool]
    arguments: Mapping[str, Check]
    ready: Callable[[], object] | None = None


INSTRUCTIONS: dict[str, Instruction] = {}


def instruction(
    id: str, *, ready: Callable[[], object] | None = None, **arguments: Check
) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Enter a checker under an id."""

    def enter(holds: Callable[..., bool]) -> Callable[..., bool]:
        INSTRUCTIONS[id] = Instruction(holds, arguments, ready)
        return holds

    return enter


def checked_arguments(id: str, given: Any) -> dict[str, Any]:
    """The arguments of an instruction, checked; those that are None count as not given.

    Raises:
        ValueError: an unknown instruction; arguments that are missing, unknown or of no use.
    """
    choice("the instruction", id, sorted(INSTRUCTIONS))
    if not isinstance(given, Mapping):
        raise ValueError(f"the kwargs of {id} are {given!r}; they must be an object, such as {{}}")
    given = {name: value for name, value in given.items() if value is not None}
    known = INSTRUCTIONS[id].arguments
    if set(given) != set(known):
        wants = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"the kwargs of {id} are {given!r}; {wants}")
    return {name: known[name](f"{name} of {id}", value) for name, value in given.items()}


def checker(id: str, arguments: dict[str, Any]) -> Checker:
    """The function of a text that checks one instruction.

    Args:
        arguments: from `checked_arguments`.

    Raises:
        ImportError: it needs a package that is not installed.
    """
    kind = INSTRUCTIONS[id]
    if kind.ready:
        kind.ready()
    return partial(kind.holds, **arguments)


def compared(number: int, relation: str, bound: int) -> bool:
    """Whether a number is "less than" or "at least" a bound."""
    return number < bound if relation == "less than" else number >= bound


# -- checks of arguments --------------------------------------------------------------------------


def count(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    return whole(name, value, least=1)


def relation(name: str, value: Any) -> str:
    """One of RELATIONS."""
    return choice(name, value, RELATIONS)


def phrase(name: str, value: Any) -> str:
    """Text that is not blank, without the white space around it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}; it must be text that is not blank")
    return value.strip()


def word(name: str, value: Any) -> str:
    """A phrase without white space."""
    if len(phrase(name, value).split()) > 1:
        raise ValueError(f"{name} is {value!r}; it must be one word")
    return phrase(name, value)


def letter(name: str, value: Any) -> str:
    """One character that is not white space; IFEval's own file has "#" and "!" among its letters."""
    if not isinstance(value, str) or len(value) != 1 or value.isspace():
        raise ValueError(f"{name} is {value!r}; it must be one character")
    return value


def phrases(name: str, value: Any) -> list[str]:
    """A list of at least one phrase."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} is {value!r}; it must be a list of at least one text")
    return [phrase(f"{name}[{i}]", x) for i, x in enumerate(value)]
