"""The results in README.md: blocks between markers, written from the committed records.

    python -m aisp.experiment.readme

rewrites what stands between `<!-- results: NAME -->` and `<!-- end -->`, in a line or over several.
A test compares the blocks with the records, so that no number there is typed.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aisp.experiment import recommend
from aisp.experiment.report import tables
from aisp.experiment.report.findings import (
    Contrast,
    across,
    confirmed,
    contrast,
    contrasts,
    grouped,
    leader,
)
from aisp.experiment.speed import runtime
from aisp.experiment.store.reading import load
from aisp.experiment.studies import ablations, dials, places
from aisp.experiment.studies.main_results import BARE, BASELINE
from aisp.experiment.studies.prompt_sets import TOGETHER, by_set, stored_sets
from aisp.provenance import checkout, replacing

if TYPE_CHECKING:
    import pandas as pd

BLOCK = re.compile(
    r"(?P<start><!-- results: (?P<name>\w+) -->)(?P<body>.*?)(?P<end><!-- end -->)", re.S
)
Sets = dict[str, "pd.DataFrame"]


def blocks(folder: Path) -> dict[str, str]:
    """Name of a block -> its text, from the records in data/results/<profile>/."""
    found = stored_sets(folder)
    made: dict[str, Callable[[Sets], str]] = {
        "budget": _budget,
        "rewards": _rewards,
        "together": _together,
        "findings": _findings,
        "gain": lambda of: _with_prompts(by_set(of, "AISP", BASELINE)[TOGETHER]),
        "gain_state": lambda of: _reproduced(by_set(of, "AISP", BASELINE)),
        "re_control": _re_control,
        "re_control_state": lambda of: _reproduced(by_set(of, "AISP", "RE-Control")),
    }
    compared, checked = places.stored(folder), recommend.checked(folder)
    declared = {
        "outcome": recommend.outcome(compared),
        "published": recommend.published(compared),
        "parts": recommend.parts(compared),
        "tuned": recommend.tuned_gain(compared),
        "advice": _bullets(recommend.advice(compared, checked)),
        "answer": recommend.answer(compared, checked),
        "targets": runtime.targets_met(runtime.read(folder.parent / "gpu" / "targets.json")),
    }
    records, questions = _ablations(folder / "ablations.jsonl")
    longer = _bullets(_longer(records, questions["drift"]))
    sigma = dials.sentences(records, questions["sigma"])[0]
    written = {name: make(found) for name, make in made.items()}
    return declared | written | {"longer": longer, "sigma": sigma}


def render(text: str, made: dict[str, str]) -> str:
    """A text with its blocks filled.

    Raises:
        ValueError: a block that nothing makes, one that has no place in the text, or a marker
            without the other one.
    """
    names = [match["name"] for match in BLOCK.finditer(text)]
    if unknown := sorted(set(names) - set(made)):
        raise ValueError(f"no block {unknown}; known: {', '.join(made)}")
    if absent := [name for name in made if name not in names]:
        raise ValueError(f"the text has no place for {absent}; put <!-- results: NAME --> there")
    if not len(names) == text.count("<!-- results:") == text.count("<!-- end -->"):
        raise ValueError("a marker is alone: every <!-- results: NAME --> needs an <!-- end -->")

    def filled(match: re.Match[str]) -> str:
        body = made[match["name"]]
        body = f"\n{body}\n" if "\n" in body or body.startswith("- ") else body
        return match["start"] + body + match["end"]

    return BLOCK.sub(filled, text)


def typed(text: str) -> list[str]:
    """Numbers outside the blocks that look like results: intervals, signed or two-digit decimals.

    Code (indented lines) and versions of Python are none.
    """
    plain = re.sub(r"^    .*$|Python \d\.\d+", "", BLOCK.sub("", text), flags=re.MULTILINE)
    patterns = (
        r"\[[+-]?\d[\d.]*, [+-]?\d[\d.]*\]",
        r"(?<![\w.])[+-]\d+\.\d+",
        r"(?<![\w.+-])\d+\.\d\d\b",
    )
    found: list[str] = []
    for pattern in patterns:
        found += re.findall(pattern, plain)
        plain = re.sub(pattern, "", plain)
    return found


def _ablations(path: Path) -> tuple["pd.DataFrame", dict[str, ablations.Question]]:
    records = load(path)
    questions, kappa = ablations.questions_of(records)
    return ablations.with_first_parts(records, questions, kappa), questions


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _budget(found: Sets) -> str:
    """What the records are of, in half a sentence."""
    together = found[TOGETHER]
    ours = together[together["label"] == "AISP"]
    configs = {(c["n"], c["kappa"], c["max_new_tokens"]) for c in ours["config"]}
    ((n, kappa, tokens),) = configs
    sizes = sorted({of["prompt"].nunique() for name, of in found.items() if name != TOGETHER})
    seeds = ", ".join(map(str, sorted(ours["seed"].unique())))
    return (
        f"the best reward after {n * kappa} samples of at most {tokens} tokens (n = {n}, kappa = "
        f"{kappa}, seed {seeds}), a mean over {' to '.join(map(str, sizes))} prompts of each set"
    )


def _rewards(found: Sets) -> str:
    """Rewards by method and set, and AISP's lead over the two controls."""
    sets = [name for name in found if name != TOGETHER]
    totals = {name: tables.summary(found[name]) for name in sets}
    remarks = {
        "noise only": "`adapt=False`",
        BARE: "KAD's control",
        "RE-Control": "trained value function",
        "RAM": "trained aligner, without its safeguard",
        "KAD": "mixed with itself without its chat template",
    }
    lines = ["| | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for label in found[TOGETHER]["label"].unique():
        rows = [totals[name].loc[label] for name in sets]
        calls = sorted(round(row["reward_calls"]) for row in rows)
        single = f"one response, {calls[0]} to {calls[-1]} reward calls"
        remark = single if rows[0]["samples"] == 1 else remarks.get(label, "")
        bold = "**" * (label == "AISP")
        cells = [
            f"{bold}{row['reward']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{bold}" for row in rows
        ]
        name = f"{bold}{label}{bold}" + f" ({remark})" * bool(remark)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("| |" + " |" * len(sets))
    for other in (BASELINE, "noise only"):
        compared = by_set(found, "AISP", other)
        cells = [compared[name].signed for name in sets]
        lines.append(f"| AISP minus {other}, prompt by prompt | {' | '.join(cells)} |")
    return "\n".join(lines)


def _findings(found: Sets) -> str:
    """What the intervals support: set by set, and which gains the judge confirms."""
    together = found[TOGETHER]
    ours, ours_judged = (contrasts(together, "AISP", by) for by in ("reward", "judged"))
    over, over_judged = (_over_baseline(together, by) for by in ("reward", "judged"))
    return _bullets(
        [
            across(by_set(found, "AISP", BASELINE)),
            across(by_set(found, "noise only", BASELINE)),
            across(by_set(found, "AISP", "noise only")),
            across(by_set(found, "AISP", "KAD")),
            confirmed("**AISP minus another method**", ours, ours_judged),
            confirmed(f"**Another method minus {BASELINE}**", over, over_judged),
            leader(together),
            leader(together, "judged"),
        ]
    )


def _together(found: Sets) -> str:
    """Differences over the prompts of all sets, by the reward and by the judge."""
    together = found[TOGETHER]
    kinds = {
        "AISP minus it": [contrasts(together, "AISP", by) for by in ("reward", "judged")],
        "it minus best-of-n": [_over_baseline(together, by) for by in ("reward", "judged")],
    }
    heads = [f"{kind}, {by}" for kind in kinds for by in ("reward", "judge")]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for label in together["label"].unique():
        pairs = [of.get(label) for both in kinds.values() for of in both]
        lines.append(f"| {label} | {' | '.join(map(_cell, pairs))} |")
    return "\n".join(lines)


def _cell(found: Contrast | None) -> str:
    """Bold where the interval excludes 0."""
    bold = "**" * (found is not None and found.verdict != "undecided")
    return f"{bold}{found.signed}{bold}" if found else ""


def _over_baseline(records: "pd.DataFrame", measure: str) -> dict[str, Contrast]:
    others = [x for x in records["label"].unique() if x != BASELINE]
    return {x: contrast(records, x, BASELINE, measure) for x in others}


def _reproduced(of: dict[str, Contrast]) -> str:
    """Whether a claim that AISP is higher holds over all sets, and on how many of them alone."""
    *sets, together = of.values()
    alone = sum(c.verdict == "higher" for c in sets)
    if together.verdict != "higher":
        return "not reproduced here"
    return f"reproduced, at small scale (on {alone} of {len(sets)} sets taken alone)"


def _re_control(found: Sets) -> str:
    reward, judge = (
        by_set(found, "AISP", "RE-Control", measure)[TOGETHER] for measure in ("reward", "judged")
    )
    return f"{_with_prompts(reward)}; by the judge {_with_prompts(judge)}"


def _with_prompts(found: Contrast) -> str:
    return f"{found.signed} ({found.prompts} prompts)"


def _longer(records: "pd.DataFrame", drift: ablations.Question) -> list[str]:
    """What larger budgets buy, and how they are best spent."""
    long = drift.settings[drift.standard or ""]
    first = {x: f"{label}{ablations.FIRST}" for x, label in long.items()}
    sizes = [
        int(records.loc[records["label"] == of[ablations.AISP], "samples"].max())
        for of in (first, long)
    ]
    lines = []
    for size, of in zip(sizes, (first, long), strict=True):
        ours = records[records["label"].isin(of.values())]
        named = ours.assign(label=ours["label"].map({label: x for x, label in of.items()}))
        lines.append(
            grouped(f"**AISP at {size} samples minus** a control", contrasts(named, ablations.AISP))
        )
    return [*lines, dials.sentences(records, drift)[0]]


def main() -> None:
    path = checkout() / "README.md"
    text = path.read_text(encoding="utf-8")
    with replacing(path) as new:
        new.write_text(render(text, blocks(checkout() / "data" / "results" / "cpu")), "utf-8")


if __name__ == "__main__":
    main()
