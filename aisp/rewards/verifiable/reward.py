"""A reward that is a program: the share of a prompt's checks that a response passes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp.prompts import Prompt, as_messages
from aisp.rewards.base import Reward
from aisp.rewards.verifiable.kinds import Kind, Part, compiled

if TYPE_CHECKING:
    import pandas as pd

_Each = tuple[
    Kind, Sequence[Part], str
]  # of a pair: the kind and parts of its checks, the response


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
        held = _all_held(list(_each(prompts, responses)), self.loose)
        return torch.tensor([sum(x) / len(x) for x in held], dtype=torch.float64)

    def parts(self, prompts: Sequence[Any], responses: Sequence[str]) -> "pd.DataFrame":
        """What held, one row per pair.

        Args:
            prompts, responses: N of each, as `score` takes them.

        Returns:
            `strict` and `loose`: whether all parts hold, either way; and for the i-th part of each
            prompt, from 1, `part_<i>`, its name such as "punctuation:no_comma", `strict_<i>` and
            `loose_<i>`. Missing where a prompt has fewer parts. What has no loose reading is the
            same both ways.
        """
        import pandas as pd

        rows, each = [], list(_each(prompts, responses))
        ways = [_all_held(each, way) for way in (False, True)]
        for (_, parts, _), strict, loose in zip(each, *ways, strict=True):
            row: dict[str, Any] = {"strict": all(strict), "loose": all(loose)}
            for i, part in enumerate(parts):
                own = {"part": part.name, "strict": strict[i], "loose": loose[i]}
                row |= {f"{name}_{i + 1}": value for name, value in own.items()}
            rows.append(row)
        table = pd.DataFrame(rows)
        verdicts = [name for name in table if not name.startswith("part_")]
        return table.astype(dict.fromkeys(verdicts, "boolean"))


def _each(prompts: Sequence[Any], responses: Sequence[str]) -> Iterator[_Each]:
    """Each response with the kind and parts of its prompt; equal ones in a row are made once."""
    before: Any = None
    for prompt, text in zip(prompts, responses, strict=True):
        checks = getattr(prompt, "checks", None)
        if before is None or checks != before:
            kind, parts = _parts(prompt)
            before = checks
        yield kind, parts, text


def _all_held(each: Sequence[_Each], loose: bool) -> list[list[bool]]:
    """`_held` of each; where checks are processes, as many at a time as there are processors."""
    if not any(kind.waits for kind, *_ in each):
        return [_held(*one, loose) for one in each]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda one: _held(*one, loose), each))


def _held(kind: Kind, parts: Sequence[Part], text: str, loose: bool) -> list[bool]:
    """Which parts hold for a response; none for a blank one."""
    texts = kind.variants(text) if loose and kind.variants else [text]
    texts = [x for x in texts if x.strip()]
    return [any(map(part.holds, texts)) for part in parts]


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
