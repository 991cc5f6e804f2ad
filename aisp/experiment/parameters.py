"""The parameters of notebooks: only declared names, with values of their types, get through.

Papermill passes on every name it is given: a misspelled one costs a line of warning, and the
notebook runs with its stored value. So the parameters cell of a notebook declares one parameter on
each line, with its type and a comment,

    n_prompts: int or None = None  # None leaves it to the profile

(`or`, because papermill's parser does not know `|`), and the cell after it calls `check()`. `read`
does the same for a YAML file before anything is started.
"""

import ast
import difflib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# type -> what a value of it is called. `_fits` says what belongs to each.
TYPES = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "True or False",
    "str": "text",
    "list": "a list of texts",
    "None": "None (null in YAML)",
}
RULE = (
    "each line of the parameters cell must be `name: type = value`, where type is one or more of "
    f"{', '.join(TYPES)}, joined by `or`"
)
INJECTED = "# Parameters"  # papermill opens the cell that it adds with this comment


class Parameter(NamedTuple):
    types: tuple[str, ...]  # of TYPES
    stored: Any  # the value in the parameters cell


class _Expression(str):
    """Source of a value that is no literal, such as float('nan')."""

    def __repr__(self) -> str:
        return str(self)


def check() -> None:
    """Refuse what this notebook was given and does not declare. Call it after the parameters cell.

    It reads the source of the executed cells, and so gives the same answer when its cell is run
    again after later cells have bound more names. Where no history of cells is kept (a plain
    script, nbval), nothing was injected and nothing is checked.

    Raises:
        ValueError: an unknown name, with the nearest known one; a value of another type.
    """
    if "IPython" in sys.modules:
        from IPython import get_ipython

        shell = get_ipython()
        if shell is not None:
            check_cells(shell.user_ns.get("In", []))


def check_cells(executed: Sequence[str]) -> None:
    """`check`, of the sources of executed cells in their order.

    Raises:
        ValueError: as `check`; or no cell declares the parameters.
    """
    known: dict[str, Parameter] | None = None
    given: dict[str, Any] = {}
    for source in executed:
        declared = declarations(source)
        if declared is not None:
            known, given = declared, {}
        elif source.lstrip().startswith(INJECTED):
            given = _assignments(source)
    if known is not None:
        refuse({name: p.stored for name, p in known.items()} | given, known, "this notebook")
    elif any(source.strip() for source in executed):
        raise ValueError(f"no executed cell declares the parameters; run that cell first: {RULE}")


def read(path: str | Path, notebook: Path) -> dict[str, Any]:
    """The values that a notebook runs with under a YAML file: those stored in it, then the file's.

    Raises:
        ValueError: no YAML, no mapping, an unknown name, or a value of another type.
    """
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if given is None:  # only comments
        given = {}
    if not isinstance(given, dict):
        raise ValueError(
            f"{path} holds a {type(given).__name__}; a file of parameters has lines `name: value`"
        )
    known = of_notebook(notebook)
    try:
        refuse(given, known, notebook.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {name: p.stored for name, p in known.items()} | given


def of_notebook(path: Path) -> dict[str, Parameter]:
    """What the parameters cell of a stored notebook declares.

    Raises:
        ValueError: there is no such cell, or it has lines of another form.
    """
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            declared = declarations("".join(cell["source"]))
            if declared is not None:
                return declared
    raise ValueError(f"{path} has no cell tagged `parameters` that declares them; {RULE}")


def declarations(source: str) -> dict[str, Parameter] | None:
    """name -> parameter, if every statement is `name: type = literal`; else None."""
    known = {}
    for statement in _statements(source):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            return None
        types = tuple(ast.unparse(statement.annotation).split(" or "))
        try:
            stored = ast.literal_eval(statement.value) if statement.value else ...
        except ValueError:
            return None
        if stored is ... or not set(types) <= set(TYPES):
            return None
        known[statement.target.id] = Parameter(types, stored)
    return known or None


def pairs(name: str, given: str | Sequence[str] | None) -> dict[str, Any]:
    """Keyword arguments from one parameter.

    Args:
        name: of the parameter, for the error.
        given: "name=value" as a list, or as a text that separates them by commas. Values are
            Python's literals; what is none is text.

    Raises:
        ValueError: a part that is no pair.
    """
    parts = given.split(",") if isinstance(given, str) else given or []
    found = {}
    for part in filter(None, map(str.strip, parts)):
        key, equals, value = (x.strip() for x in part.partition("="))
        if not (key.isidentifier() and equals and value):
            raise ValueError(f"{name} has {part!r}; write name=value, such as max_model_len=2048")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def refuse(given: Mapping[Any, Any], known: Mapping[str, Parameter], owner: str) -> None:
    """Raise one error about all that is wrong in `given`.

    Args:
        owner: what has the parameters, for the error.

    Raises:
        ValueError: unknown names, each with the nearest known one; values of other types.
    """
    wrong, unknown = [], [name for name in given if name not in known]
    for name in unknown:
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]}?" if near else ""
        wrong.append(f"{name} (given {given[name]!r}) is no parameter of {owner}{meant}")
    for name, parameter in known.items():
        if name in given and not any(_fits(given[name], kind) for kind in parameter.types):
            allowed = " or ".join(TYPES[kind] for kind in parameter.types)
            hint = _hint(given[name], parameter.types)
            wrong.append(f"{name} is {given[name]!r}; it must be {allowed}{hint}")
    if unknown:
        wrong.append(f"The parameters are {', '.join(known)}.")
    if wrong:
        raise ValueError("\n".join(wrong))


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of Python's or YAML's literals is one of TYPES; True is no number."""
    if kind == "None":
        return value is None
    if kind == "float":
        return type(value) in (int, float) and math.isfinite(value)
    if kind == "list":
        return type(value) is list and all(type(item) is str for item in value)
    return type(value).__name__ == kind


def _hint(value: Any, types: Sequence[str]) -> str:
    """What to write instead of a number in quotes, 1e-3 (text to YAML 1.1), or a bare 5 as text."""
    if type(value) is str and {"int", "float"} & set(types):
        try:
            number = float(value)
        except ValueError:
            return ""
        whole = number.is_integer() and "int" in types
        written = str(int(number)) if whole else repr(number)
        if "e" in written and "." not in written:
            written = written.replace("e", ".0e")
        return f". It is text, as 1e-3 is in YAML; write {written} without quotes"
    if type(value) in (int, float, bool) and "str" in types:
        return ". Put it in quotes (with papermill's -p use -r in its place)"
    return ""


def _assignments(source: str) -> dict[str, Any]:
    """name -> value of the plain assignments in a cell."""
    values: dict[str, Any] = {}
    for statement in _statements(source):
        if isinstance(statement, ast.Assign):
            try:
                value = ast.literal_eval(statement.value)
            except ValueError:
                value = _Expression(ast.unparse(statement.value))
            values |= {ast.unparse(target): value for target in statement.targets}
    return values


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # such as of a cell that failed for it
        return []
