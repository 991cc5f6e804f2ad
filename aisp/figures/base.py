"""One style for print, and one way to save a figure with where it came from."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

from aisp.experiment.profiles import TOYS
from aisp.provenance import checkout, file_sha256, git_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.4  # inches: one column of a two-column page
PAGE = 7.0  # inches: its whole width

P = ParamSpec("P")


class Look(NamedTuple):
    """How a label is drawn: three signs, so that none has to be told by its color alone."""

    color: str
    marker: str
    line: str | tuple  # a line style of matplotlib

    @property
    def signs(self) -> dict[str, Any]:
        """All three, as matplotlib's `plot` and `errorbar` take them."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.line}

    @property
    def point(self) -> dict[str, Any]:
        """Color and marker, without a line."""
        return self.signs | {"linestyle": "none"}


# The order and the look of the methods in every figure. The colors are told apart by color-blind
# readers (from seaborn's and Paul Tol's sets), and those that share a panel by the other signs in gray.
METHODS = {
    "AISP": Look("#0173b2", "o", "-"),
    "noise only": Look("#de8f05", "s", "--"),
    "best-of-n": Look("#029e73", "^", "-."),
    "best-of-n (top-p 0.9)": Look("#029e73", "^", "-."),
    "best-of-n (T = 1)": Look("#d55e00", "v", ":"),
    "best-of-n (no template)": Look("#cc78bc", "P", (0, (5, 1, 1, 1, 1, 1))),
    "ARGS": Look("#8c5a2b", "X", "--"),
    "RE-Control": Look("#882255", "D", "-."),
    "RAM": Look("#808080", "s", ":"),
    "KAD": Look("#56b4e9", "v", "--"),
}
FURTHER = ("#332288", "#999933", "#aa4499", "#117733", "#cc6677", "#44aa99", "#661100", "#6699cc")


def labeled(draw: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """Label the figure with the function that drew it, as this package exports it, for `save`."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        fig = draw(*args, **kwargs)
        fig.set_label(f"{__package__}.{draw.__name__}")
        return fig

    return drawn


def style() -> None:
    """Set the house style: seaborn, color-blind-safe, print sizes, embedded fonts."""
    import seaborn as sns

    sns.set_theme(
        context="paper",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.figsize": (COLUMN, 0.72 * COLUMN),
            "figure.constrained_layout.use": True,
            "figure.dpi": 130,
            "savefig.dpi": 300,
            "pdf.fonttype": 42,  # TrueType, which journals take; matplotlib's default is Type 3
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.title_fontsize": 7,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )


def save(
    fig: "Figure",
    name: str,
    *,
    profile: str,
    source: str | Path | None = None,
    folder: str | Path | None = None,
    redrawn: bool = False,
    **parameters: Any,
) -> list[Path]:
    """Write a figure as PDF and PNG with a JSON of provenance.

    Args:
        fig: the figure.
        name: file name without ending, such as "theory_free_energy".
        profile: what the numbers were made with. Figures of a toy profile (TOYS) go to a folder of its
            own, such as figures/smoke/, which git ignores: a test run never replaces a real figure.
        source: the records file that the figure shows, if there is one; its hash is noted.
        folder: where instead of the checkout's figures/.
        redrawn: from its records alone, outside of its notebook: then stored files that hold this very
            picture of this source are left as they are whatever parameters they name.
        **parameters: whatever else made the figure, such as seed and command.

    Returns:
        The three paths. Where they hold this very picture, made by the same function from the same
        source and parameters, they are left as they are: their commit is that of the first drawing.
    """
    folder = Path(folder) if folder else checkout() / "figures"
    if profile in TOYS:
        folder = folder / profile
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png", "json")]
    record: dict[str, Any] = {"figure": name, "profile": profile, "parameters": parameters}
    if fig.get_label():
        record["function"] = fig.get_label()
    if source is not None:
        path = Path(source).resolve()
        inside = path.is_relative_to(checkout())
        record["source"] = str(path.relative_to(checkout())) if inside else path.name
        record["source_sha256"] = file_sha256(path)
    # No creation date inside: the same data gives the same file.
    image = io.BytesIO()
    fig.savefig(image, format="png", metadata={"Software": None})
    png = image.getvalue()
    told = {k: v for k, v in record.items() if k != "parameters" or not redrawn}
    if all(path.exists() for path in paths) and _drawn(paths, png, told):
        return paths
    fig.savefig(paths[0], metadata={"CreationDate": None, "ModDate": None})
    paths[1].write_bytes(png)
    paths[2].write_text(json.dumps(record | git_state(), indent=1, sort_keys=True) + "\n")
    return paths


def _drawn(paths: Sequence[Path], png: bytes, record: dict[str, Any]) -> bool:
    """Whether the stored files show this picture and say this of it."""
    stored = json.loads(paths[2].read_text())
    same = all(stored.get(k) == v for k, v in json.loads(json.dumps(record)).items())
    return same and paths[1].read_bytes() == png


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label: methods have the same one, and the same order, in every figure.

    A label that starts with a method's name, such as "noise only, sigma=0.5", looks like the method,
    unless another label of the figure does so already. All others take one of FURTHER.

    Returns:
        Methods in the order of METHODS, then the other labels in theirs.
    """
    given = list(dict.fromkeys(labels))
    named = sorted(filter(_method, given), key=lambda x: x not in METHODS)  # plain names first
    looking: dict[Look, str] = {}
    for label in named:
        looking.setdefault(METHODS[_method(label)], label)
    known = sorted(looking.values(), key=lambda x: list(METHODS).index(_method(x)))
    others = [x for x in given if x not in known]
    colors: Sequence[str] = FURTHER
    if len(others) > len(FURTHER):
        import seaborn as sns

        colors = sns.husl_palette(len(others), l=0.5).as_hex()
    marks, lines = "osDP^v", ("-", "--", "-.")
    further = {
        x: Look(color, marks[i % len(marks)], lines[i % len(lines)])
        for i, (x, color) in enumerate(zip(others, colors, strict=False))
    }
    return {x: METHODS[_method(x)] for x in known} | further


def _method(label: str) -> str:
    """The name of METHODS that a label is or starts with, the longest one; "" if there is none."""
    names = [x for x in METHODS if label == x or label.startswith((f"{x},", f"{x} ("))]
    return max(names, key=len, default="")
