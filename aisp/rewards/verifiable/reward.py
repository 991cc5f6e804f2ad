"""A reward that is a program: the share of a prompt's checks that a response passes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aisp.prompts import Prompt, as_messages
from aisp.rewards.base import Reward
from aisp.rewards.verifiable.kinds import Kind, Part, compiled

if TYPE_CHECKING:
    import pandas as pd


class VerifiableReward(Reward):
    """The share of a prompt's checks that hold, in [0, 1]: IFEval's instructions and what else
    `kinds.KINDS` has.

    It is deterministic, has no state, and may be called from many threads. A blank response passes
    nothing.

    Args:
        loose: whether an instruction holds if one of `kinds.loose_variants` follows it.
    """

    maximum = 1.0
    scores_prefixes = False  # an answer that is not finished breaks rules that the whole keeps

    def __init__(self, *, loose: bool = False) -> None:
        self.loose = loose
        self.name = "verifiable-loose" if loose else "verifiable"

    def check(self, prompts: Sequence[Any]) -> None:
        """Refuse prompts without checks, and with checks that cannot be used.

        Raises:
            ValueError, ImportError: it names the prompt, where it stands, and the value.
        """
        for prompt in prompts:
            _parts(prompt)

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        held = _held(list(_each(prompts, responses)), self.loose)
        return torch.tensor([sum(x) / len(x) for x in held], dtype=torch.float64)

    def parts(self, prompts: Sequence[Any], responses: Sequence[str]) -> "pd.DataFrame":
        """What held, one row per pair.

        Args:
            prompts, responses: N of each, as `score` takes them.

        Returns:
            `strict` and `loose`: whether all parts hold, either way; and for the i-th part of each
            prompt, from 1, `part_<i>`, its name such as "punctuation:no_comma", `strict_<i>` and
            `loose_<i>`, whether it holds in full. Missing where a prompt has fewer parts. What has no
            loose reading is the same both ways.
        """
        import pandas as pd

        jobs, rows = list(_each(prompts, responses)), []
        held, read = (
            _held(jobs, loose=False),
            [i for i, job in enumerate(jobs) if job.kind.variants],
        )
        loosely = dict(zip(read, _held([jobs[i] for i in read], loose=True), strict=True))
        for i, job in enumerate(jobs):
            strict, loose = ([x == 1 for x in y] for y in (held[i], loosely.get(i, held[i])))
            row: dict[str, Any] = {"strict": all(strict), "loose": all(loose)}
            for k, part in enumerate(job.parts):
                own = {"part": part.name, "strict": strict[k], "loose": loose[k]}
                row |= {f"{name}_{k + 1}": value for name, value in own.items()}
            rows.append(row)
        table = pd.DataFrame(rows)
        ways = [name for name in table if not name.startswith("part_")]
        return table.astype(dict.fromkeys(ways, "boolean"))


class _Job(NamedTuple):
    """A response, and what it is checked for."""

    kind: Kind
    parts: Sequence[Part]
    text: str


def _each(prompts: Sequence[Any], responses: Sequence[str]) -> Iterator[_Job]:
    """Each response with the parts of its prompt; those of equal prompts in a row are made once."""
    before: Any = None
    for prompt, text in zip(prompts, responses, strict=True):
        checks = getattr(prompt, "checks", None)
        if before is None or checks != before:
            kind, parts = _parts(prompt)
            before = checks
        yield _Job(kind, parts, text)


def _held(jobs: Sequence[_Job], loose: bool) -> list[list[float]]:
    """The share that holds of each part of each response."""
    at_once = max((job.kind.at_once for job in jobs), default=1)
    if at_once == 1:
        return [_shares(job, loose) for job in jobs]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(partial(_shares, loose=loose), jobs))


def _shares(job: _Job, loose: bool) -> list[float]:
    """Of each part, the share that holds for a response; nothing does for a blank one."""
    texts = job.kind.variants(job.text) if loose and job.kind.variants else [job.text]
    texts = [x for x in texts if x.strip()]
    return [_best(part, texts) for part in job.parts]


def _best(part: Part, texts: Sequence[str]) -> float:
    best = 0.0
    for text in texts:
        best = max(best, float(part.holds(text)))
        if best == 1:
            break
    return best


def _parts(prompt: Any) -> tuple[Kind, Sequence[Part]]:
    """What a prompt is checked for, or the error that names it."""
    if not isinstance(prompt, Prompt):
        text = as_messages(prompt)[-1]["content"]
        raise ValueError(
            f"the prompt {text[:60]!r} has no checks; this reward scores `Prompt`s with `checks`, "
            "as `aisp.load_prompts` reads them from a file with `instruction_id_list` and `kwargs`"
        )
    try:
        return compiled(prompt.checks)
    except (ImportError, ValueError) as error:
        where = f" ({prompt.where})" if prompt.where else ""
        raise type(error)(f"the checks of prompt {prompt.id!r}{where}: {error}") from None
