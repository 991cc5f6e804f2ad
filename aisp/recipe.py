"""How something was made, so that another process can make it anew: a function's name and arguments.

Weights do not travel between processes, recipes do. `load_policy` and `load_reward` leave one on what
they return; `Recipe("my_models:policy", size=3)` names a function of your own.
"""

import contextlib
import importlib
import types
from collections.abc import Callable
from typing import Any


class Recipe:
    """A function by its importable name, and what to call it with.

    Attributes:
        function: "module:name"; it is importable wherever the recipe is to be followed.
        arguments: its keyword arguments: plain values, paths, functions, policies, recipes.
    """

    def __init__(self, function: str, /, **arguments: Any) -> None:
        """
        Raises:
            ValueError: no "module:name", or nothing of that name.
        """
        self.function, self.arguments = function, arguments
        imported(function)

    def __repr__(self) -> str:  # without the arguments, which may hold a token of the hub
        return f"Recipe({self.function!r})"

    def make(self) -> Any:
        """What the function returns, with this recipe on it where it takes one."""
        return remembered(imported(self.function)(**self.arguments), self)


def remembered(made: Any, recipe: Recipe) -> Any:
    """The same thing, with the recipe that made it as its attribute `recipe`."""
    if isinstance(made, types.FunctionType):
        vars(made)["recipe"] = recipe
    else:
        with contextlib.suppress(AttributeError, TypeError):  # as of a number
            object.__setattr__(made, "recipe", recipe)  # a policy is frozen
    return made


def imported(name: str) -> Any:
    """What an importable name stands for.

    Raises:
        ValueError: no "module:name", or nothing of that name.
    """
    module, _, inside = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not module or not inside:
        raise ValueError(f"a recipe names {name!r}; write 'module:function'")
    try:
        found: Any = importlib.import_module(module)
        for part in inside.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"a recipe names {name!r}, which cannot be imported ({error}); put it at the top level "
            "of a module that every process finds: beside the notebook, or on PYTHONPATH"
        ) from error
    return found


def importable(function: Callable[..., Any], what: str) -> str:
    """The "module:name" by which another process finds a function or class.

    Args:
        what: how an error names it.

    Raises:
        ValueError: a lambda, a function within another one, one of a script or notebook.
    """
    module, inside = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    name = f"{module}:{inside}"
    if module and inside and module != "__main__" and "<" not in inside:
        try:
            if imported(name) is function:
                return name
        except ValueError:
            pass
    raise ValueError(
        f"{what} is {function!r}, which other processes cannot import by name: put it at the top "
        "level of a module (a file beside the notebook or script) and import it from there, or pass "
        "Recipe('module:function', ...), whose function returns it"
    )
