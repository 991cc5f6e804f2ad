"""Which figure is made from which records: all of them can be drawn again without a model."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aisp import figures
from aisp.experiment import load, summary
from aisp.experiment.report import comparisons
from aisp.experiment.speed import scaling
from aisp.experiment.studies import (
    ablations,
    contenders,
    dials,
    drift,
    main_results,
    passing,
    prefix_share,
    verified,
)
from aisp.provenance import checkout, file_sha256

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Recipe(NamedTuple):
    """How a figure is made from files of data/results/<profile>/ alone."""

    notebook: str  # that computes the files, and draws the figure too
    # .jsonl of records, .csv of a table, .json of notebook 08; the last one is named as source.
    files: tuple[str, ...]
    make: Callable[..., "Figure"]  # from the files' tables, in their order


def _deferral_without_windows(records: "pd.DataFrame") -> "Figure":
    """Of notebook 05: the records that choose token by token."""
    return figures.deferral(records[~records["label"].str.contains("window")])


def _sweep(records: "pd.DataFrame") -> "Figure":
    """Of notebook 02: every lam at sigma 0.5, and noise only."""
    return figures.histories(
        records[records["label"].str.endswith("sigma=0.5")],
        {
            "reward_mean": "mean reward of the samples",
            "reward_best": "best reward so far",
            "ess": "effective sample size",
            "kl": "KL of the proposal (nats)",
        },
    )


def _guided(
    args: "pd.DataFrame", value_function: "pd.DataFrame", re_control: "pd.DataFrame"
) -> "Figure":
    """Of notebook 03: mean and best reward of RE-Control's samples, from its records."""
    best = re_control.groupby("label", sort=False)["reward"].mean()
    single = re_control.assign(reward=[h["reward_mean"][0] for h in re_control["history"]])
    table = summary(single).rename(columns={"reward": "mean"}).assign(best=best)
    return figures.reward_guided(summary(args), value_function, table)


def _main(figure: Callable[..., "Figure"], records: "pd.DataFrame", **options: Any) -> "Figure":
    """Of notebook 06."""
    return figure(main_results.in_order(records), **options)


def _ablation(name: str, records: "pd.DataFrame") -> "Figure":
    """Of notebook 07: one dial."""
    records, questions = _questions(records, (name,))
    return figures.ablation(ablations.answers(records, questions[name]), questions[name].axis)


def _dials(records: "pd.DataFrame") -> "Figure":
    """Of notebook 07: all dials."""
    return figures.dials(dials.effects(*_questions(records, dials.DIALS)))


def _drift(records: "pd.DataFrame") -> "Figure":
    """Of notebook 10: the long runs of AISP, and the two ends of alpha."""
    _, questions = _questions(records, ("drift", "alpha"))
    labels = drift.labels_of(questions)
    return figures.drift(drift.predictions(records[records["label"].isin(labels)]))


def _costs(second: "pd.DataFrame", third: "pd.DataFrame", first: "pd.DataFrame") -> "Figure":
    """Of notebook 11: the rows that its figures show, in the seeds that are whole."""
    import pandas as pd

    records = pd.concat([first, second, third], ignore_index=True)
    return figures.cost_curves(comparisons.whole_seeds(records, contenders.SHOWN))


def _solved(records: "pd.DataFrame") -> "Figure":
    """Of notebook 12: in the seeds that are whole."""
    whole = verified.whole(records)
    measured = passing.measured(whole, verified.prompts_of("test"))
    return figures.solved_curves(measured, passing.pass_at_k(measured))


def _prefix_share(table: "pd.DataFrame") -> "Figure":
    """Of notebook 10: where in time the signal is."""
    return figures.prefix_share(prefix_share.explained(table), table["prompt"].nunique())


def _workers(*records: "pd.DataFrame") -> "Figure":
    """Of notebook 08: how an experiment scales, simulated from the main tables."""
    return figures.workers(scaling.simulations(*records))


def _questions(
    records: "pd.DataFrame", names: Sequence[str]
) -> tuple["pd.DataFrame", dict[str, ablations.Question]]:
    """Records with the first parts of the long runs, and the questions, whose runs must be there."""
    questions, kappa = ablations.questions_of(records)
    records = ablations.with_first_parts(records, questions, kappa)
    there = set(records["label"])
    absent = [label for name in names for label in questions[name].labels if label not in there]
    if absent:
        raise ValueError(f"no records of {', '.join(absent)}; notebook 07 was not run to its end")
    return records, questions


def _recipes() -> dict[str, Recipe]:
    guided = ("reward_guided_args.jsonl", "reward_guided_value.csv")
    recipes = {
        "sampler_lam": Recipe("02_sampler", ("sampler_sweep.jsonl",), _sweep),
        "sampler_comparison": Recipe(
            "02_sampler", ("sampler_comparison.jsonl",), figures.reward_curves
        ),
        "reward_guided": Recipe(
            "03_reward_guided", (*guided, "reward_guided_re_control.jsonl"), _guided
        ),
        "residual_alignment": Recipe(
            "04_residual_alignment", ("residual_alignment.jsonl",), figures.residual_alignment
        ),
        "proxy_deferral": Recipe(
            "05_proxy_deferral", ("proxy_deferral.jsonl",), _deferral_without_windows
        ),
    }
    recipes["ablation_dials"] = Recipe("07_ablations", ("ablations.jsonl",), _dials)
    for name in ("sigma", "lam", "split", "decoding", "alpha", "tau", "drift"):
        make = partial(_ablation, name)
        recipes[f"ablation_{name}"] = Recipe("07_ablations", ("ablations.jsonl",), make)
    budget = ("ablations_budget.csv",)
    recipes["ablation_budget"] = Recipe("07_ablations", budget, figures.over_optimization)
    recipes["drift"] = Recipe("10_drift", ("ablations.jsonl",), _drift)
    along = {"beyond": "beyond_builtin_128"}
    along |= {x: x for x in ("beyond_builtin_512", "beyond_builtin_1024")}
    for name, file in along.items():
        files = (f"{file}_budget.csv",)
        recipes[name] = Recipe("11_beyond", files, figures.over_optimization)
    costs = tuple(f"beyond_builtin_128{x}.jsonl" for x in ("_second", "_third", ""))
    recipes["beyond_costs"] = Recipe("11_beyond", costs, _costs)
    recipes["beyond_leads"] = Recipe("11_beyond", ("beyond_leads.csv",), figures.leads)
    recipes["drift_prefixes"] = Recipe("10_drift", ("drift_prefixes.csv",), _prefix_share)
    rules = ["best-of-n", "soft best-of-n, lam = 0.3", "pessimism, beta = 0.03", "ensemble, k = 2"]
    make = partial(figures.selection, rules=rules)
    pool = ("beyond_pool_builtin_128.curves.csv",)
    recipes["beyond_selection"] = Recipe("11_beyond", pool, make)
    recipes["verifiable"] = Recipe("12_verifiable", ("verified_test.jsonl",), _solved)
    paired = partial(_main, figures.paired_differences, first="AISP")
    for name in ("main_results", "main_results_shp", "main_results_hh"):
        files = (f"{name}.jsonl",)
        curves = partial(_main, figures.main_results)
        recipes[name] = Recipe("06_main_results", files, curves)
        recipes[f"{name}_paired"] = Recipe("06_main_results", files, paired)
    recipes["runtime"] = Recipe("08_runtime", ("runtime.json",), figures.runtime)
    recipes["runtime_share"] = Recipe("08_runtime", ("runtime.json",), figures.runtime_share)
    recipes["runtime_scaling"] = Recipe("08_runtime", ("runtime.json",), figures.runtime_scaling)
    recipes["workers"] = Recipe("08_runtime", scaling.FILES, _workers)
    return recipes


RECIPES = _recipes()


def make_figure(name: str, results: str | Path) -> "Figure":
    """One figure of RECIPES from the files in a folder of results; no model is loaded.

    Raises:
        ValueError: no such figure, or records that do not have all that it shows.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no figure {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name].make(*(_read(Path(results) / file) for file in RECIPES[name].files))


def _read(path: Path) -> Any:
    import pandas as pd

    if path.suffix == ".json":
        tables = json.loads(path.read_text())["tables"]
        return {name: pd.DataFrame(rows) for name, rows in tables.items()}
    return pd.read_csv(path) if path.suffix == ".csv" else load(path)


def missing_files(name: str, results: str | Path) -> list[str]:
    """The files that a figure of RECIPES needs and that are not in the folder."""
    return [file for file in RECIPES[name].files if not (Path(results) / file).exists()]


def stored_state(name: str, source: Path, folder: Path) -> str:
    """Whether the figure stored in a folder was drawn from the source file as it is now.

    Returns:
        "of these records", "of other records" or "no stored figure".
    """
    note = folder / f"{name}.json"
    if not note.exists():
        return "no stored figure"
    same = json.loads(note.read_text()).get("source_sha256") == file_sha256(source)
    return "of these records" if same else "of other records"


def captions(readme: Path | None = None) -> dict[str, str]:
    """The caption of each figure, as Markdown, from figures/README.md, the one place for them.

    Args:
        readme: where instead; a section "## NAME" has an image, the caption, and an indented command.
    """
    readme = readme or checkout() / "figures" / "README.md"
    found = {}
    for section in readme.read_text(encoding="utf-8").split("\n## ")[1:]:
        name, _, body = section.partition("\n")
        body = body.split("\n# ")[0]  # the next chapter
        lines = [x for x in body.splitlines() if not x.startswith(("![", "    "))]
        found[name.strip()] = " ".join(" ".join(lines).split())
    return found
