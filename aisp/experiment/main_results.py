"""The main comparison of notebook 06: what runs on which policy, and what is measured besides.

Every method gets n * kappa responses per prompt, but for ARGS: it draws one response and pays in
reward calls, as `samples` and `reward_calls` of its records say. A method that needs a trained part
runs where that part exists: for the embedded policy and reward, or where its path is given.

    python -m aisp.experiment.main_results notebooks/params/cpu.yaml

prints the path of the records that the notebook writes with these parameters.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp import metrics
from aisp.experiment import records as experiment
from aisp.experiment import tables
from aisp.experiment.contents import UNPUBLISHED
from aisp.experiment.profiles import records_path
from aisp.intervals import bootstrap, verdict
from aisp.methods import configure
from aisp.policy import Policy, Template
from aisp.prompts import Messages, Prompt
from aisp.rewards.base import Reward
from aisp.rewards.encoder import SentenceEncoder

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
BASELINE = "best-of-n (top-p 0.9)"
# What KAD does with nothing deferred: its control, as best-of-n at T = 1 is with all deferred.
BARE = "best-of-n (no template)"
MEASURES = {  # column -> heading, digits
    "diversity": ("diversity", 3),
    "coherence": ("coherence", 3),
    "surprisal": ("surprisal (nats)", 1),
    "length": ("length (tokens)", 1),
}


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
    return text


def plan(
    names: str | None,
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
        names: of METHODS, separated by commas; None for all that the policy allows.
        budget: n, kappa and max_new_tokens, the same for all.
        w, step_size, kl_limit: of ARGS, RE-Control and RAM.
        value, aligner: paths of RE-Control's value function and RAM's aligner for this policy.

    Raises:
        ValueError: an unknown name, or a method asked for by name that cannot run.
    """
    asked = METHODS if names is None else [x.strip() for x in names.split(",") if x.strip()]
    unknown = [x for x in asked if x not in METHODS]
    if unknown or not asked:
        raise ValueError(f"methods are {names!r}; known: {', '.join(METHODS)}")
    embedded = policy.name == "embedded"
    if value is None and embedded and reward.name == "embedded":
        value = "embedded"
    if aligner is None and embedded:
        aligner = "embedded"
    missing = {}
    if value is None:
        missing["re_control"] = "there is no value function for this policy and reward; set value"
    if aligner is None:
        missing["ram"] = "there is no aligner for this policy; set aligner"
    if policy.template != "chat":
        why = "the policy has no chat template that its own weights could be without"
        missing |= {"best_of_n_bare": why, "kad": why}
    refused = [x for x in asked if names is not None and x in missing]
    if refused:
        raise ValueError(f"{refused[0]} cannot run: {missing[refused[0]]}")
    one = {**budget, "n": 1, "kappa": 1}
    every = {
        "aisp": ("AISP", {"sigma": sigma, "lam": lam, "alpha": alpha, **budget}),
        "noise_only": ("noise only", {"sigma": sigma, "adapt": False, **budget}),
        "best_of_n": (BASELINE, budget),
        "best_of_n_t1": ("best-of-n (T = 1)", {"top_p": 1.0, **budget}),
        "best_of_n_bare": (BARE, {"top_p": 1.0, **budget}),
        "args": (f"ARGS, w = {w:g}", {"w": w, **one}),
        "re_control": ("RE-Control", {"value": value, "step_size": step_size, **budget}),
        "ram": ("RAM", {"aligner": aligner, "kl_limit": kl_limit, **budget}),
        "kad": ("KAD", budget),
    }
    called = {"noise_only": "aisp", "best_of_n_t1": "best_of_n", "best_of_n_bare": "best_of_n"}
    methods = {
        every[x][0]: {"method": called.get(x, x), **every[x][1]} for x in asked if x not in missing
    }
    for parameters in methods.values():
        configure(**parameters)
    return methods, {x: missing[x] for x in asked if x in missing}


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
    """`experiment.run`, and of what the file holds the records of these methods, prompts and seed.

    KAD takes the policy without its chat template as the large, unaligned model, and the policy as
    the aligned one; best-of-n without a template samples from the first of the two.
    """
    bare = {x: m for x, m in methods.items() if m["method"] == "kad" or x == BARE}
    others = {x: m for x, m in methods.items() if x not in bare}
    plain = replace(policy, template="continuation") if bare else policy
    for some, model in ((others, policy), (bare, plain)):
        if some:
            found = experiment.run(path, some, prompts, model, reward, seeds=[seed], **options)
            if (found["label"].isin(list(some)) & found["interrupted"]).any():
                break
    ids = {p.id for p in prompts}
    mine = found["label"].isin(list(methods)) & found["prompt"].isin(ids) & (found["seed"] == seed)
    return in_order(found[mine])


def in_order(records: "pd.DataFrame") -> "pd.DataFrame":
    """Records in the order of METHODS, not of their writing: one color and place per method.

    Methods that METHODS does not know come last, as they were written.
    """
    about = zip(records["label"], records["method"], records["config"], strict=True)
    order = dict(zip(METHODS, range(len(METHODS)), strict=True))
    place = [order.get(_name(*of), len(order)) for of in about]
    return records.iloc[sorted(range(len(records)), key=place.__getitem__)].reset_index(drop=True)


def _name(label: str, method: str, config: dict[str, Any]) -> str:
    if label == BARE:
        return "best_of_n_bare"
    if method == "aisp":
        return "aisp" if config["adapt"] else "noise_only"
    if method == "best_of_n":
        return "best_of_n" if config["top_p"] < 1 else "best_of_n_t1"
    return method


def measure(
    records: "pd.DataFrame",
    prompts: Sequence[Prompt],
    policy: Policy,
    *,
    encoder: SentenceEncoder | str = "embedded",
    judge: Reward | None = None,
) -> "pd.DataFrame":
    """Records with diversity, coherence, surprisal under the policy and length in its tokens.

    With a judge, also what it scores each response, `judged`. See `aisp.metrics` for the formulas.
    What cannot be measured is NaN: records that failed or were interrupted, responses whose
    quotations of their prompt may not be stored (an ellipsis stands for them), and single values
    that the judge or the policy cannot give, such as of a text too long for it, with a warning.

    Raises:
        Exception: whatever a measure raises on every response.
    """
    import pandas as pd

    by_id = {p.id: p for p in prompts}
    whole = tables.finished(records)
    pairs = zip(whole["prompt"], whole["response"], strict=True)
    whole = whole[[by_id[x].source not in UNPUBLISHED or "…" not in y for x, y in pairs]]
    asked, texts = [by_id[x] for x in whole["prompt"]], list(whole["response"])
    values = {
        "diversity": metrics.diversity(texts),
        "coherence": metrics.coherence(asked, texts, encoder=encoder),
        "surprisal": each("surprisal", partial(metrics.surprisal, policy), asked, texts),
        "length": metrics.length(texts, policy.tokenizer),
    }
    if judge is not None:
        values["judged"] = each("judge", judge.score, asked, texts)
    return records.join(pd.DataFrame({k: v.numpy() for k, v in values.items()}, index=whole.index))


def each(
    name: str,
    measure: Callable[[Sequence[Prompt], Sequence[str]], Tensor],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
) -> Tensor:
    """measure(prompts, texts), (N,); where that raises, pair by pair, with NaN for those that do.

    Raises:
        Exception: the first of them, where no pair can be measured.
    """
    try:
        return measure(prompts, texts)
    except Exception:  # one text that is too long shall not cost the table of a week's run
        values, failed = [], []
    for prompt, text in zip(prompts, texts, strict=True):
        try:
            values.append(float(measure([prompt], [text])[0]))
        except Exception as error:
            values.append(float("nan"))
            failed.append((prompt.id, error))
    if failed:
        first, error = failed[0]
        if len(failed) == len(texts):
            raise error
        warnings.warn(
            f"{name}: {len(failed)} of {len(texts)} responses have no value and enter no mean; the "
            f"first, to {first}: {type(error).__name__}: {error}",
            stacklevel=3,
        )
    return torch.tensor(values, dtype=torch.float64)


def results(measured: "pd.DataFrame", against: str, judge: str | None = None) -> "pd.DataFrame":
    """The main table: one row per label, strings; intervals are bootstrap 95% over prompts.

    Args:
        measured: from `measure`.
        against: the label that win rates are against.
        judge: name of the judge that made `judged`; None counts wins by the optimized reward, and
            the heading says so.
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
    """`tables.paired` of one label minus each other one, with what its interval supports."""
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
    """Where notebook 06 writes its records with a file of parameters."""
    import yaml

    given = yaml.safe_load(Path(params).read_text(encoding="utf-8")) or {}
    stored = {"name": "main_results", "profile": "smoke"}
    return records_path(**{k: given.get(k, v) for k, v in stored.items()})


if __name__ == "__main__":
    print(records_of(sys.argv[1]))
