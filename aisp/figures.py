"""Figures for print: one style, and one way to save with provenance.

Every figure is a function from a table to a matplotlib figure; no model is imported here. `save`
writes PDF and PNG, and beside them a JSON that says from which data, code and parameters the
figure was made.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisp.provenance import checkout, file_sha256, git_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.4  # inches: one column of a two-column page
PAGE = 7.0  # inches: its whole width

# One color per method wherever it appears; seaborn's "colorblind" palette.
METHOD_ORDER = ("AISP", "noise only", "best-of-n (top-p 0.9)", "best-of-n (T = 1)")


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
        The three paths written.
    """
    folder = Path(folder) if folder else checkout() / "figures"
    if profile == "smoke":
        folder = folder / "smoke"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png", "json")]
    # No creation date inside: the same data gives the same file.
    fig.savefig(paths[0], metadata={"CreationDate": None, "ModDate": None})
    fig.savefig(paths[1], metadata={"Software": None})
    record = {"figure": name, "profile": profile, **git_state(), "parameters": parameters}
    if source is not None:
        path = Path(source).resolve()
        inside = path.is_relative_to(checkout())
        record["source"] = str(path.relative_to(checkout())) if inside else path.name
        record["source_sha256"] = file_sha256(path)
    paths[2].write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return paths
