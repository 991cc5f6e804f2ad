"""The answers that records hold: side by side, on paper, and as examples chosen by a rule.

A rule, never an eye, chooses what is shown: every prompt in its order, the fewest words, the least
coherent with its prompt.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aisp import display
from aisp.display import printable
from aisp.experiment.report.findings import Contrast, gap
from aisp.experiment.report.tables import finished

if TYPE_CHECKING:
    import pandas as pd

# How an answer begins that apologizes or declines, after quotation marks and spaces.
REFUSAL = (
    r"^\W*(?:no\b|sorry\b|i['’]?m sorry\b|i am sorry\b|i['’]m afraid\b|i (?:can['’]?t|cannot)\b)"
)


def gallery(records: "pd.DataFrame", labels: Sequence[str] | None = None) -> Any:
    """Every prompt, by its name, with the answers of the labels and their rewards, as HTML.

    Args:
        records: of built-in prompts, whose texts records hold; of several seeds, the first is shown.
        labels: columns, in their order; None is all.
    """
    from IPython.display import HTML

    chosen = list(records["label"].unique()) if labels is None else list(labels)
    rows = []
    for prompt, answers in _by_prompt(records, chosen):
        cells = [answers.get(label) for label in chosen]
        rows.append((prompt, [("", float("nan")) if c is None else c for c in cells]))
    return HTML(display.side_by_side(chosen, rows))


def as_text(records: "pd.DataFrame") -> str:
    """The same for a terminal: each prompt, and beneath it one line per label."""
    blocks = []
    for prompt, answers in _by_prompt(records, list(records["label"].unique())):
        lines = [f"prompt: {printable(prompt)}"]
        lines += [f"  {printable(x)} ({r:.2f}): {printable(y)}" for x, (y, r) in answers.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _by_prompt(
    records: "pd.DataFrame", labels: Sequence[str]
) -> list[tuple[str, dict[str, tuple[str, float]]]]:
    """(text of the prompt, or its id, {label: (response, reward)}), of the first seed."""
    whole = finished(records)
    whole = whole[whole["label"].isin(labels)].drop_duplicates(["label", "prompt"])
    found = []
    for name, group in whole.groupby("prompt"):
        text = group["prompt_text"].iloc[0]
        rows = {one.label: (one.response, one.reward) for one in group.itertuples()}
        ordered = {label: rows[label] for label in labels if label in rows}
        found.append((text if isinstance(text, str) else str(name), ordered))
    return found


def examined(records: "pd.DataFrame") -> "pd.DataFrame":
    """Records with what can be said of an answer without a model.

    Returns:
        The finished records with `words` (their number), `place` (1 is the highest reward among the
        answers to the same prompt), `answers` (how many those are) and `refusal` (whether the
        answer begins by apologizing or declining, see REFUSAL).
    """
    whole = finished(records)
    rewards = whole.groupby("prompt")["reward"]
    return whole.assign(
        words=whole["response"].str.split().str.len(),
        place=rewards.rank(ascending=False, method="min").astype(int),
        answers=rewards.transform("size"),
        refusal=whole["response"].str.contains(REFUSAL, case=False, regex=True),
    )


def examples(answers: "pd.DataFrame", by: Sequence[str], rows: int = 6) -> "pd.DataFrame":
    """The first answers in an order, for a table.

    Args:
        answers: from `examined`, or with further columns such as coherence.
        by: columns; the lowest value of the first comes first, and of equal ones the highest reward.
    """
    ordered = answers.sort_values(
        [*by, "reward", "prompt", "label"], ascending=[*[True] * len(by), False, True, True]
    ).head(rows)
    place = [f"{p} of {k}" for p, k in zip(ordered["place"], ordered["answers"], strict=True)]
    text = ordered["prompt_text"].fillna(ordered["prompt"])
    shown = ordered.assign(**{"place of its reward": place, "prompt": text})
    columns = [*by, "reward", "place of its reward", "label", "prompt", "response"]
    return shown[columns].rename(columns={"label": "method"}).reset_index(drop=True)


def split_gap(answers: "pd.DataFrame", column: str, first: str, second: str) -> Contrast:
    """Mean reward of the answers for which a column is true minus that of the others, by prompt.

    Args:
        answers: from `examined`; prompts that have both kinds count.
        column: of booleans, such as "refusal".
        first, second: what the two kinds are called.
    """
    means = answers.groupby(["prompt", column])["reward"].mean().unstack()
    means = means.reindex(columns=[True, False])
    return gap(means[True] - means[False], first, second)


def marked(texts: Mapping[str, str], pattern: str) -> Any:
    """Texts with what a regular expression finds in them in bold, as HTML, so that it can be counted.

    Args:
        texts: what each one is called -> the text.
        pattern: matched as it is, upper and lower case alike.
    """
    from IPython.display import HTML

    shown = []
    for name, text in texts.items():
        parts, end = [], 0
        for match in re.finditer(pattern, text, re.IGNORECASE):
            parts += [html.escape(text[end : match.start()]), f"<b>{html.escape(match[0])}</b>"]
            end = match.end()
        parts.append(html.escape(text[end:]))
        shown.append(f"<p>{html.escape(name)}:<br>{''.join(parts)}</p>")
    return HTML("\n".join(shown))


def found_late(records: "pd.DataFrame", label: str) -> str:
    """In how many runs of a label the answer came from the second half of the iterations."""
    late = whole = 0
    for one in finished(records[records["label"] == label]).itertuples():
        best = one.history["reward_best"]
        late += best[-1] > best[(len(best) - 1) // 2]
        whole += 1
    return (
        f"{label}: {late} of {whole} answers were found in the second half of the iterations, the "
        "others before."
    )


def first_and_last(records: "pd.DataFrame", label: str, column: str = "reward_mean") -> Contrast:
    """The last iteration minus the first one, in a column of the history, over prompts.

    Args:
        label: whose runs.
        column: such as "reward_mean", the mean over the samples of an iteration.
    """
    own = finished(records[records["label"] == label])
    change = [h[column][-1] - h[column][0] for h in own["history"]]
    by_prompt = own.assign(change=change).groupby("prompt")["change"].mean()
    return gap(by_prompt, "the last iteration", "the first")
