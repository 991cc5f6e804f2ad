"""What Python code reads, and whose it is."""

import dis
import sys
import types
from collections.abc import Iterator
from pathlib import Path


def is_installed(module: str | None) -> bool:
    """Whether code is of Python, of an installed package or of this one, and so known by its name."""
    top = (module or "").partition(".")[0]
    # transformers keeps the code that comes with a checkpoint under a name of its own.
    if top in sys.stdlib_module_names or top in ("aisp", "transformers_modules"):
        return True
    if top == "__main__":  # a notebook or script, whatever tool runs it
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def globals_read(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """The globals that code reads, each with the attributes that it asks of it at once."""
    chain: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain += (step.argval,)
            continue
        if chain:
            yield chain
        chain = (step.argval,) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
    if chain:
        yield chain
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from globals_read(part)
