"""One style for print, and one way to save a figure with where it came from."""

import io
import json
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from aisp.provenance import checkout, file_sha256, git_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.4  # inches: one column of a two-column page
PAGE = 7.0  # inches: its whole width

P = ParamSpec("P")


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
    **parameters: Any,
) -> list[Path]:
    """Write a figure as PDF and PNG with a JSON of provenance.

    Args:
        fig: the figure.
        name: file name without ending, such as "theory_free_energy".
        profile: what the numbers were made with. Figures of the profile "smoke" go to
            figures/smoke/, which git ignores, so that a test run never replaces a real figure.
        source: the records file that the figure shows, if there is one; its hash is noted.
        folder: where instead of the checkout's figures/.
        **parameters: whatever else made the figure, such as seed and command.

    Returns:
        The three paths. Where they hold this very picture, made by the same function from the same
        source and parameters, they are left as they are: their commit is that of the first drawing.
    """
    folder = Path(folder) if folder else checkout() / "figures"
    if profile == "smoke":
        folder = folder / "smoke"
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
    png = io.BytesIO()
    fig.savefig(png, format="png", metadata={"Software": None})
    if all(path.exists() for path in paths) and _drawn(paths, png.getvalue(), record):
        return paths
    fig.savefig(paths[0], metadata={"CreationDate": None, "ModDate": None})
    paths[1].write_bytes(png.getvalue())
    paths[2].write_text(json.dumps(record | git_state(), indent=1, sort_keys=True) + "\n")
    return paths


def _drawn(paths: Sequence[Path], png: bytes, record: dict[str, Any]) -> bool:
    """Whether the stored files show this picture and say this of it."""
    stored = json.loads(paths[2].read_text())
    same = all(stored.get(k) == v for k, v in json.loads(json.dumps(record)).items())
    return same and paths[1].read_bytes() == png


def label_colors(labels: Sequence[str]) -> dict[str, Any]:
    """A color for each label: the color-blind-safe ones, as long as they last."""
    import seaborn as sns

    palette = sns.color_palette("colorblind")
    del palette[8]  # a yellow that is too light for lines
    if len(labels) > len(palette):
        palette = sns.color_palette("husl", len(labels))
    return dict(zip(labels, palette, strict=False))
