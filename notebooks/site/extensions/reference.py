"""The pages of the API: `.. reference:: NAME ...` documents modules and packages with all they hold."""

import importlib
import inspect
import pkgutil
import re
import sys
from types import ModuleType
from typing import ClassVar, TypeVar

from docstrings import as_rest
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


def modules_below(name: str) -> list[str]:
    """The modules of a package, those of its packages among them; none for a plain module."""
    package = importlib.import_module(name)
    found = pkgutil.walk_packages(getattr(package, "__path__", []), name + ".")
    return sorted(m.name for m in found if not m.name.endswith(".__main__"))


def exported(name: str) -> dict[str, str]:
    """What a package exports: public name -> where it is defined."""
    package = importlib.import_module(name)
    if not hasattr(package, "__path__"):
        return {}
    return {public: defined(package, public) for public in getattr(package, "__all__", [])}


def defined(package: ModuleType, public: str) -> str:
    """The full name under which something is documented: that of its definition."""
    thing = getattr(package, public)
    if inspect.ismodule(thing):
        return thing.__name__
    if inspect.isclass(thing) or inspect.isfunction(thing):
        return f"{thing.__module__}.{thing.__qualname__}"
    for name in modules_below("aisp"):
        found = vars(importlib.import_module(name)).get(public)
        if found is thing and comment(name, public) is not None:
            return f"{name}.{public}"
    raise LookupError(f"{package.__name__}.{public} is defined nowhere in aisp")


def comment(module: str, constant: str) -> str | None:
    """The lines of comment above a constant; None where the module does not define it."""
    source = inspect.getsource(importlib.import_module(module))
    found = re.search(rf"((?:^#.*\n)*)^{constant}\b[^=\n(]*=", source, flags=re.MULTILINE)
    return found and " ".join(found[1].replace("#", " ").split())


def said(full_name: str) -> str:
    """The first sentence of a docstring, or of the comment above a constant."""
    module, _, name = full_name.rpartition(".")
    thing = _thing(full_name)
    if _has_docstring(thing):
        text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    else:
        text = comment(module, name) or ""
    return re.split(r"(?<=[.:])\s", text)[0].rstrip(":")


class Reference(SphinxDirective):
    """A section for each module. With the option `names`, only the table of what is exported."""

    has_content = False
    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = {"names": directives.flag}

    def run(self):
        names = self.arguments[0].split()
        lines = []
        for name in names:
            below = modules_below(name)
            if "names" in self.options:
                lines += self.table(name)
                continue
            if len(names) > 1:
                lines += _title(name, "-")
            lines += self.module(name) + self.table(name)
            for one in below:
                lines += _title(one, "~" if len(names) > 1 else "-")
                lines += self.module(one) + self.table(one)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def module(self, name):
        if hasattr(importlib.import_module(name), "__path__"):
            return [f".. automodule:: {name}", ""]
        lines = [f".. automodule:: {name}", "   :members:", "   :undoc-members:", ""]
        for full in constants():
            module, _, constant = full.rpartition(".")
            if module == name:
                text = as_rest(comment(name, constant) or "")
                lines += [f".. py:data:: {constant}", "", f"   {text}", ""]
        return lines

    def table(self, name):
        rows = exported(name)
        if not rows:
            return []
        lines = [".. list-table::", "   :class: names", ""]
        for public, full in rows.items():
            role = "mod" if full in sys.modules else "obj"
            lines.append(f"   * - :py:{role}:`{name}.{public} <{full}>`")
            lines.append(f"     - {as_rest(said(full))}")
        return [*lines, ""]


def _title(name: str, line: str) -> list[str]:
    return [f"``{name}``", line * (len(name) + 4), ""]


def constants() -> set[str]:
    """What packages export beside functions, classes and modules, by where it is defined."""
    exports = [
        full for name in ["aisp", *modules_below("aisp")] for full in exported(name).values()
    ]
    return {f for f in exports if not _has_docstring(_thing(f))}


def _thing(full_name: str) -> object:
    module, _, name = full_name.rpartition(".")
    return sys.modules.get(full_name) or getattr(importlib.import_module(module), name)


def _has_docstring(thing: object) -> bool:
    """Any other object shows the docstring of its class."""
    return inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isfunction(thing)


def skip_member(app, what, name, thing, skip, options):
    """Fields stand in the docstring of their class, and need no entry of their own."""
    described = callable(thing) or isinstance(thing, property | classmethod | staticmethod)
    return None if skip or described else True


def resolve_public_name(app, env, node, content):
    """A link to `aisp.align`, or to what a module imports, leads to where that is defined."""
    if node.get("refdomain") != "py":
        return None
    prefixes = ["", f"{node.get('py:module')}."]
    for name in (prefix + node["reftarget"] for prefix in prefixes):
        package, _, public = name.rpartition(".")
        module = sys.modules.get(package)
        if not package.startswith("aisp") or not hasattr(module, public):
            continue
        if isinstance(getattr(module, public), TypeVar):
            return content  # has no page
        full = exported(package).get(public) or f"{_home(getattr(module, public))}.{public}"
        if full.startswith("aisp") and full != name:
            role, python = node["reftype"], env.get_domain("py")
            return python.resolve_xref(env, node["refdoc"], app.builder, role, full, node, content)
    return None


def _home(thing: object) -> str:
    return thing.__module__ if inspect.isclass(thing) or inspect.isfunction(thing) else ""


def setup(app):
    app.add_directive("reference", Reference)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", resolve_public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
