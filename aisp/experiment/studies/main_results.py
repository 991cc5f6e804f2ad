"""The main comparison of notebook 06: which methods run on which policy, and the tables of it.

Every method but ARGS gets n * kappa responses per prompt. ARGS draws one response and calls the
reward for every candidate token; `samples` and `reward_calls` of the records say how many of each.
A method that needs a trained part runs where that part exists: for the embedded policy and reward,
or where its path is given.

    python -m aisp.experiment.studies.main_results notebooks/params/cpu.yaml

prints the path of the records that the notebook writes with these parameters.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisp import provenance
from aisp.assets import EMBEDDED, is_embedded
from aisp.checks import real
from aisp.experiment import records as experiment
from aisp.experiment.parameters import read as read_parameters
from aisp.experiment.profiles import records_path
from aisp.experiment.report import tables
from aisp.experiment.report.measures import MEASURES
from aisp.experiment.studies.contenders import SCORES, STEERED
from aisp.intervals import bootstrap, verdict
from aisp.methods import configure
from aisp.policy import Policy, Template
from aisp.prompts import Messages, Prompt
from aisp.recipe import Recipe, remembered
from aisp.rewards.base import Reward

if TYPE_CHECKING:
    import pandas as pd

METHODS = (
    "aisp",
    "noise_only",
    "best_of_n",
    "best_of_n_t1",
    "best_of_n_bare",
    "args",
    "re_control",
    "ram",
    "kad",
)
NAMED = ("aisp_cv", "aisp_scores", "misvo")  # run where they are named; notebook 11 compares them
BASELINE = "best-of-n (top-p 0.9)"
# What KAD does when it defers nothing, and so its control. When it defers everything, it does what
# best-of-n at T = 1 does.
BARE = "best-of-n (no template)"


def template(name: str | None) -> Template | None:
    """A prompt template from a plain parameter of a notebook.

    Args:
        name: None (chat where the tokenizer has such a template), "chat", "continuation", or the
            word that opens the user's turns, such as "User" or "Human": the format of RE-Control's
            public code (arXiv:2406.05954), which ends with "Assistant:".
    """
    if name in (None, "chat", "continuation"):
        return name
    if not name.isidentifier() or not name[0].isupper() or name.lower() in ("chat", "continuation"):
        raise ValueError(
            f"template is {name!r}; use 'chat', 'continuation', or the capitalized word that opens "
            "the user's turns, such as 'User'"
        )
    return _turns(name)


def _turns(user: str) -> Callable[[Messages], str]:
    names = {"system": "", "user": f"{user}: ", "assistant": "Assistant: "}

    def text(messages: Messages) -> str:
        return "\n\n".join([*(names[m["role"]] + m["content"] for m in messages), "Assistant:"])

    text.__name__ = user  # what records call it
    return remembered(text, Recipe(f"{__name__}:template", name=user))


def plan(
    names: str | Sequence[str] | None,
    policy: Policy,
    reward: Reward,
    budget: dict[str, int],
    *,
    sigma: float = 0.5,
    lam: float = 1.0,
    alpha: float = 0.99,
    w: float = 1.0,
    step_size: float = 1.0,
    kl_limit: float | None = 0.1,
    value: str | None = None,
    aligner: str | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The methods as `experiment.run` takes them, and which were left out, with the reason.

    Args:
        names: of METHODS and NAMED, a list or a text that separates them by commas; None for all
            of METHODS that the policy allows.
        budget: n, kappa and max_new_tokens, the same for all.
        w, step_size, kl_limit: of ARGS, RE-Control and RAM.
        value, aligner: paths of RE-Control's value function and RAM's aligner for this policy.

    Raises:
        ValueError: names of another type, an unknown name, a method that is named and cannot run,
            or a parameter that its method refuses.
    """
    chosen = METHODS if names is None else _method_names(names)
    embedded = is_embedded(policy.name)
    if value is None and embedded and is_embedded(reward.name):
        value = EMBEDDED
    if aligner is None and embedded:
        aligner = EMBEDDED
    obstacles = _obstacles(policy, value, aligner)
    refused = [name for name in chosen if names is not None and name in obstacles]
    if refused:
        raise ValueError(f"{refused[0]} cannot run: {obstacles[refused[0]]}")
    w = real("w", w)  # stands in a label
    one = {**budget, "n": 1, "kappa": 1}
    labels_and_parameters: dict[str, tuple[str, dict[str, Any]]] = {
        "aisp": ("AISP", {"method": "aisp", "sigma": sigma, "lam": lam, "alpha": alpha, **budget}),
        "noise_only": ("noise only", {"method": "aisp", "sigma": sigma, "adapt": False, **budget}),
        "best_of_n": (BASELINE, {"method": "best_of_n", **budget}),
        "best_of_n_t1": ("best-of-n (T = 1)", {"method": "best_of_n", "top_p": 1.0, **budget}),
        "best_of_n_bare": (BARE, {"method": "best_of_n", "top_p": 1.0, **budget}),
        "args": (f"ARGS, w = {w:g}", {"method": "args", "w": w, **one}),
        "re_control": (
            "RE-Control",
            {"method": "re_control", "value": value, "step_size": step_size, **budget},
        ),
        "ram": ("RAM", {"method": "ram", "aligner": aligner, "kl_limit": kl_limit, **budget}),
        "kad": ("KAD", {"method": "kad", **budget}),
        "aisp_cv": (STEERED, {"method": "aisp_cv", "sigma": sigma, "lam": lam, **budget}),
        "aisp_scores": (SCORES, {"method": "aisp_scores", "lam": lam, **budget}),
        "misvo": ("MISVO", {"method": "misvo", **budget}),
    }
    methods = dict(labels_and_parameters[name] for name in chosen if name not in obstacles)
    for parameters in methods.values():
        configure(**parameters)
    return methods, {name: obstacles[name] for name in chosen if name in obstacles}


def _method_names(names: str | Sequence[str]) -> list[str]:
    """Names of METHODS and NAMED from a list or a text that separates them by commas."""
    how = "a list of names, or a text that separates them by commas"
    if not isinstance(names, str | list | tuple):
        raise ValueError(f"methods is {names!r}; it must be {how}, or None for all")
    parts = names.split(",") if isinstance(names, str) else names
    wrong = [part for part in parts if not isinstance(part, str)]
    if wrong:
        raise ValueError(f"methods has {wrong[0]!r}, which is no name; it must be {how}")
    chosen = [part.strip() for part in parts if part.strip()]
    known = (*METHODS, *NAMED)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        said = f"has {unknown[0]!r}" if unknown else "is empty"
        raise ValueError(f"methods {said}; known: {', '.join(known)}")
    return chosen


def _obstacles(policy: Policy, value: str | None, aligner: str | None) -> dict[str, str]:
    """Methods that cannot run, with the reason."""
    found: dict[str, str] = {}
    if policy.engine != "aisp":
        why = f"it needs the model in this process, and not in those of {policy.engine}"
        found |= dict.fromkeys(("args", "re_control", "ram", "kad", "misvo"), why)
    if value is None:
        found["re_control"] = "there is no value function for this policy and reward; set value"
    if aligner is None:
        found["ram"] = "there is no aligner for this policy; set aligner"
    if policy.template != "chat":
        why = "it leaves out the policy's chat template, and this policy has none"
        found |= {"best_of_n_bare": why, "kad": why}
    return found


def run(
    path: Path,
    methods: dict[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    policy: Policy,
    reward: Reward,
    *,
    seed: int = 0,
    **options: Any,
) -> "pd.DataFrame":
    """Run the methods, and return the file's records of these methods, prompts and seed.

    KAD mixes two models: the policy without its chat template is the large, unaligned one, and the
    policy with it the aligned one. Best-of-n without a template samples from the first of the two.

    Args:
        methods: from `plan`.
        **options: of `experiment.run`.
    """
    bare = {x: m for x, m in methods.items() if m["method"] == "kad" or x == BARE}
    others = {x: m for x, m in methods.items() if x not in bare}
    plain = replace(policy, template="continuation") if bare else policy
    for group, model in ((others, policy), (bare, plain)):
        if group:
            found = experiment.run(path, group, prompts, model, reward, seeds=[seed], **options)
            if (found["label"].isin(list(group)) & found["interrupted"]).any():
                break
    ids = {p.id for p in prompts}
    mine = found["label"].isin(list(methods)) & found["prompt"].isin(ids) & (found["seed"] == seed)
    return in_order(found[mine])


def in_order(records: "pd.DataFrame") -> "pd.DataFrame":
    """Records in the order of METHODS, whatever they were written in: one color per method.

    Methods that METHODS does not know come last, as they were written.
    """
    described = zip(records["label"], records["method"], records["config"], strict=True)
    order = dict(zip(METHODS, range(len(METHODS)), strict=True))
    place = [order.get(_name(*one), len(order)) for one in described]
    return records.iloc[sorted(range(len(records)), key=place.__getitem__)].reset_index(drop=True)


def _name(label: str, method: str, config: dict[str, Any]) -> str:
    if label == BARE:
        return "best_of_n_bare"
    if method == "aisp":
        return "aisp" if config["adapt"] else "noise_only"
    if method == "best_of_n":
        return "best_of_n" if config["top_p"] < 1 else "best_of_n_t1"
    return method


def results(measured: "pd.DataFrame", against: str, judge: str | None = None) -> "pd.DataFrame":
    """The main table: one row per label, strings; intervals are bootstrap 95% over prompts.

    Args:
        measured: from `measures.measure`.
        against: the label that win rates are against.
        judge: name of the judge that gave the scores `judged`; None counts wins by the optimized
            reward. The heading says which.
    """
    cells = tables.table(measured)
    place = list(cells).index("samples")
    for column, (heading, digits) in MEASURES.items():
        cells.insert(
            place,
            f"{heading} [95%]",
            [
                _interval(measured[measured["label"] == label], column, digits)
                for label in cells.index
            ],
        )
        place += 1
    decided = measured if judge is None else measured.assign(reward=measured["judged"])
    wins = [
        None if label == against else tables.paired(decided, label, against)
        for label in cells.index
    ]
    by = "the optimized reward" if judge is None else judge
    cells.insert(
        place,
        f"wins against {against}, by {by} [95%]",
        [
            "" if p is None else f"{p['wins']:.0%} [{p['wins_low']:.0%}, {p['wins_high']:.0%}]"
            for p in wins
        ],
    )
    return cells.replace(r"^nan.*", "", regex=True)


def differences(records: "pd.DataFrame", first: str) -> "pd.DataFrame":
    """`tables.paired` of one label minus each other one, with the verdict of its interval."""
    import pandas as pd

    rows = {}
    for label in records["label"].unique():
        if label != first:
            p = tables.paired(records, first, label)
            rows[f"{first} minus {label}"] = {**p, "verdict": verdict(p["low"], p["high"])}
    return pd.DataFrame(rows).T.infer_objects()


def _interval(records: "pd.DataFrame", column: str, digits: int) -> str:
    values = records.groupby("prompt")[column].mean().dropna().sort_index().to_numpy()
    low, high = bootstrap(values)
    mean = values.mean() if len(values) else float("nan")
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def records_of(params: str | Path) -> Path:
    """Where notebook 06 writes its records with a file of parameters.

    Raises:
        ValueError: the notebook would refuse the file.
    """
    notebook = provenance.checkout() / "notebooks" / "06_main_results.ipynb"
    values = read_parameters(params, notebook)
    if values["methods"] is not None:
        _method_names(values["methods"])
    return records_path(values["name"], values["profile"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m aisp.experiment.studies.main_results PARAMETERS.yaml")
    try:
        print(records_of(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
