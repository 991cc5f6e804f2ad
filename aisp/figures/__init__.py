"""Figures for print: a table in, a matplotlib figure out; no model is loaded here.

- `base`: the style, and `save`, which writes PDF and PNG and, beside them, a JSON that says from
  which data, code and parameters the figure was made;
- `curves`: reward against samples used, and columns of the history, by iteration;
- `means`: means with intervals over prompts, by label, by setting and prompt by prompt;
- `ablations`, `speed`, `drift`, `selection`, `theory`: figures of notebooks 07, 08, 10, 11 and 01;
- `gallery`: which figure is made from which records (not imported here: `aisp.figures.gallery`).

    from aisp import figures
    figures.style()
    figures.save(figures.reward_curves(records), "mine", profile="cpu", source=path)
"""

from aisp.figures.ablations import ablation, dials, over_optimization
from aisp.figures.base import COLUMN, METHODS, PAGE, looks, save, style
from aisp.figures.curves import cost_curves, histories, main_results, reward_curves, solved_curves
from aisp.figures.drift import drift, prefix_share
from aisp.figures.means import (
    deferral,
    leads,
    paired_differences,
    residual_alignment,
    reward_guided,
)
from aisp.figures.selection import selection
from aisp.figures.speed import runtime, runtime_scaling, runtime_share, workers
from aisp.figures.theory import (
    theory_alpha,
    theory_flow,
    theory_free_energy,
    theory_gaussianity,
    theory_iteration,
    theory_kl,
    theory_n_vs_kappa,
    theory_noise_temperature,
    theory_snis_bias,
)

__all__ = [
    "COLUMN",
    "METHODS",
    "PAGE",
    "ablation",
    "cost_curves",
    "deferral",
    "dials",
    "drift",
    "histories",
    "leads",
    "looks",
    "main_results",
    "over_optimization",
    "paired_differences",
    "prefix_share",
    "residual_alignment",
    "reward_curves",
    "reward_guided",
    "runtime",
    "runtime_scaling",
    "runtime_share",
    "save",
    "selection",
    "solved_curves",
    "style",
    "theory_alpha",
    "theory_flow",
    "theory_free_energy",
    "theory_gaussianity",
    "theory_iteration",
    "theory_kl",
    "theory_n_vs_kappa",
    "theory_noise_temperature",
    "theory_snis_bias",
    "workers",
]
