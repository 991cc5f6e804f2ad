"""What is measured of responses besides their reward: diversity, coherence, surprisal, length, a judge."""

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp import metrics
from aisp.experiment.report.tables import finished
from aisp.experiment.store.contents import UNPUBLISHED
from aisp.policy import Policy
from aisp.prompts import Prompt
from aisp.provenance import file_sha256, replacing
from aisp.rewards.base import Reward
from aisp.rewards.encoder import SentenceEncoder

if TYPE_CHECKING:
    import pandas as pd

MEASURES = {  # column -> heading, digits
    "diversity": ("diversity", 3),
    "coherence": ("coherence", 3),
    "surprisal": ("surprisal (nats)", 1),
    "length": ("length (tokens)", 1),
}


def measure(
    records: "pd.DataFrame",
    prompts: Sequence[Prompt],
    policy: Policy,
    *,
    encoder: SentenceEncoder | str = "embedded",
    judge: Reward | None = None,
) -> "pd.DataFrame":
    """Records with diversity, coherence, surprisal under the policy and length in its tokens.

    With a judge, also its score of each response, `judged`. See `aisp.metrics` for the formulas.
    What cannot be measured is NaN: records that failed or were interrupted; responses to prompts
    that may not be published, where a quotation of the prompt was replaced by an ellipsis; and
    single values that the judge or the policy cannot give, such as of a text too long for it, with
    a warning.

    Raises:
        Exception: whatever a measure raises on every response.
    """
    import pandas as pd

    by_id = {p.id: p for p in prompts}
    whole = finished(records)
    pairs = zip(whole["prompt"], whole["response"], strict=True)
    whole = whole[[by_id[x].source not in UNPUBLISHED or "…" not in y for x, y in pairs]]
    answered, texts = [by_id[x] for x in whole["prompt"]], list(whole["response"])
    surprisal = partial(metrics.surprisal, policy)
    values = {
        "diversity": metrics.diversity(texts),
        "coherence": metrics.coherence(answered, texts, encoder=encoder),
        "surprisal": measure_or_nan("surprisal", surprisal, answered, texts),
        "length": metrics.length(texts, policy.tokenizer),
    }
    if judge is not None:
        values["judged"] = measure_or_nan("judge", judge.score, answered, texts)
    return records.join(pd.DataFrame({k: v.numpy() for k, v in values.items()}, index=whole.index))


def at_length(
    records: "pd.DataFrame", base: str, prompts: Sequence[Prompt], judge: Reward
) -> "pd.DataFrame":
    """How far the judge prefers a response to that of `base`, both cut to the words of the shorter one.

    A judge that likes short responses, or long ones, prefers a row for nothing but its length. NaN
    where `measure` has none, and where either response has no word.

    Args:
        base: a label, whose response to the same prompt and seed is the other one.

    Returns:
        Columns label, prompt, seed, at_length; of base's own responses 0.
    """
    import pandas as pd

    whole = finished(records).drop_duplicates(["label", "prompt", "seed"])
    own = whole[whole["label"] == base].set_index(["prompt", "seed"])["response"]
    by_id = {p.id: p for p in prompts}
    kept, pairs = [], []
    for row in whole.itertuples(index=False):
        one, other = row.response, own.get((row.prompt, row.seed), "")
        hidden = by_id[row.prompt].source in UNPUBLISHED and "…" in one + other
        words = min(len(one.split()), len(other.split()))
        if words and not hidden:
            kept.append((row.label, row.prompt, row.seed))
            pairs.append([" ".join(text.split()[:words]) for text in (one, other)])
    answered = [by_id[prompt] for _, prompt, _ in kept]
    found = pd.DataFrame(kept, columns=["label", "prompt", "seed"])
    if not kept:
        return found.assign(at_length=[])
    first, second = (
        measure_or_nan("judge", judge.score, answered, list(texts))
        for texts in zip(*pairs, strict=True)
    )
    return found.assign(at_length=(first - second).numpy())


def measured(
    records: "pd.DataFrame",
    path: Path,
    prompts: Sequence[Prompt],
    policy: Policy,
    *,
    encoder: SentenceEncoder | str = "embedded",
    judge: Reward | None = None,
) -> "pd.DataFrame":
    """`measure`, kept in NAME.measures.csv beside the records, and read from there the next time.

    Args:
        records: of `path`, all or some of them.
        path: the records file.
        others: as in `measure`.
    """
    keys = ["label", "prompt", "seed"]

    def compute() -> "pd.DataFrame":
        found = measure(records, prompts, policy, encoder=encoder, judge=judge)
        return finished(found).filter([*keys, "reward", *MEASURES, "judged"])

    made = {
        "policy": policy.name,
        "encoder": str(getattr(encoder, "name", encoder)),
        "judge": None if judge is None else judge.name,
        "labels": list(records["label"].unique()),
        "prompts": records["prompt"].nunique(),
    }
    table = computed_once(path.with_suffix(".measures.csv"), [path], compute, **made)
    return records.merge(table.drop(columns="reward"), on=keys, how="left", validate="1:1")


def kept(records: "pd.DataFrame", path: Path) -> "pd.DataFrame | None":
    """Records with the measures that lie beside them, without a model; None where none do.

    Args:
        records: of `path`, all or some of them.
        path: the records file.
    """
    import pandas as pd

    beside = path.with_suffix(".measures.csv")
    if not beside.exists():
        return None
    table = pd.read_csv(beside).drop(columns="reward")
    return records.merge(table, on=["label", "prompt", "seed"], how="left", validate="1:1")


def computed_once(
    path: Path, sources: Sequence[Path], compute: Callable[[], "pd.DataFrame"], **settings: Any
) -> "pd.DataFrame":
    """A table that is computed once, and then read as long as it would be the same.

    Args:
        path: NAME.csv; beside it, NAME.csv.json says what it was computed from.
        sources: files that decide it, told by their SHA-256.
        settings: whatever else decides it, plain JSON.
    """
    import pandas as pd

    note = path.with_name(path.name + ".json")
    made = {"sources": {source.name: file_sha256(source) for source in sources}, **settings}
    if not (path.exists() and note.exists() and json.loads(note.read_text()) == made):
        with replacing(path) as new:
            compute().to_csv(new, index=False)
        with replacing(note) as new:
            new.write_text(json.dumps(made, indent=1) + "\n")
    return pd.read_csv(path)


def measure_or_nan(
    name: str,
    function: Callable[[Sequence[Prompt], Sequence[str]], Tensor],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
) -> Tensor:
    """function(prompts, texts), (N,); where that raises, pair by pair, NaN for those that raise.

    Args:
        name: of what is measured, for the warning about pairs without a value.

    Raises:
        Exception: the first pair's error, if no pair can be measured.
    """
    try:
        return function(prompts, texts)
    except Exception:  # one text that is too long shall not cost the table of a week's run
        pass
    values: list[float] = []
    failed: list[tuple[str, Exception]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        try:
            values.append(float(function([prompt], [text])[0]))
        except Exception as error:
            values.append(float("nan"))
            failed.append((prompt.id, error))
    if failed:
        first, cause = failed[0]
        if len(failed) == len(texts):
            raise cause
        warnings.warn(
            f"{name}: {len(failed)} of {len(texts)} responses have no value and enter no mean; the "
            f"first, to {first}: {type(cause).__name__}: {cause}",
            stacklevel=3,
        )
    return torch.tensor(values, dtype=torch.float64)
