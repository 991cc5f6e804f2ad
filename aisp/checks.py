"""Checks of what users pass in: the value as plain Python, or an error that says what is allowed.

Numbers of other types compare, store and print differently. So numpy's numbers, tensors of one
element and fractions become `int` or `float` on entry. Booleans, text and fractional values are never
converted silently.
"""

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any


def whole(
    name: str, value: Any, least: int | None = None, most: int | None = None, note: str = ""
) -> int:
    """A whole number in [least, most], as an int.

    Args:
        name: of the parameter, for the error.
        value: an int, or what Python takes as one (numpy's integers, a tensor of one integer).
        note: ends the error, such as " (0: all)".

    Raises:
        ValueError: anything else; 3.0, True and "3" among it.
    """
    try:
        if isinstance(value, bool) or _dtype(value) in ("bool", "torch.bool"):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not _within(number, least, most):
        raise ValueError(
            f"{name} is {value!r}; it must be a whole number{_range(least, most)}{note}"
        )
    return number


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    note: str = "",
) -> float:
    """A finite number, > above, >= least, <= most.

    Args:
        value: a float, or what is one number (numpy's, a tensor of one element, a Fraction).

    Raises:
        ValueError: anything else; True, "1e-3", NaN and infinities among it.
    """
    number = as_float(value)
    fits = number is not None and math.isfinite(number) and _within(number, least, most)
    if number is None or not fits or (above is not None and not number > above):
        allowed = _interval(above, least, most)
        raise ValueError(f"{name} is {value!r}; it must {allowed}{note}{_quotes(value)}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False, and not 0, 1, "false" or NaN.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be True or False{_quotes(value)}")
    return value


def choice(name: str, value: Any, known: Sequence[str]) -> str:
    """One of the known words.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; known: {', '.join(known)}")
    return value


def check_whole(
    config: Any, *names: str, least: int = 1, most: int | None = None, note: str = ""
) -> None:
    """`whole` for fields of a frozen dataclass, which then hold plain ints."""
    for name in names:
        object.__setattr__(config, name, whole(name, getattr(config, name), least, most, note))


def check_real(config: Any, *names: str, **bounds: Any) -> None:
    """`real` for fields of a frozen dataclass, which then hold plain floats."""
    for name in names:
        object.__setattr__(config, name, real(name, getattr(config, name), **bounds))


def check_finite(config: Any, *names: str, zero: bool = False) -> None:
    """Fields that must be finite and > 0, or >= 0 where zero is allowed."""
    check_real(config, *names, **({"least": 0} if zero else {"above": 0}))


def as_float(value: Any) -> float | None:
    """The value as a float where it is one real number, NaN and infinities among them, else None."""
    if isinstance(value, bool | str | bytes | complex) or _dtype(value).split(".")[-1] == "bool":
        return None
    if "complex" in _dtype(value):
        return None
    if not isinstance(value, Real) and not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # such as of several elements
        return None


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", ""))


def _within(number: float, least: float | None, most: float | None) -> bool:
    return (least is None or number >= least) and (most is None or number <= most)


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    return f" >= {least:g}" if least is not None else f" <= {most:g}" if most is not None else ""


def _interval(above: float | None, least: float | None, most: float | None) -> str:
    low = above if least is None else least
    if low is None:
        return "be a finite number" if most is None else f"be <= {most:g} and finite"
    if most is not None:
        return f"lie in {'(' if least is None else '['}{low:g}, {most:g}]"
    return f"be {'>' if least is None else '>='} {low:g} and finite"


def _quotes(value: Any) -> str:
    """What to do about a number or truth value that arrived as text, as YAML 1.1 gives 1e-3."""
    if not isinstance(value, str):
        return ""
    try:
        return f". It is text; write the number without quotes: {float(value)!r}"
    except ValueError:
        return ". It is text"
