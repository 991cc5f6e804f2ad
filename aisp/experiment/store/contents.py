"""What one record holds: a result, or the text of an error, as plain JSON."""

import math
from functools import partial
from typing import Any

from aisp.alignment import Alignment
from aisp.experiment.store.quotations import unquoted
from aisp.prompts import Prompt
from aisp.provenance import json_sha256

# Sets whose texts may not be published, and so are stored in no record.
UNPUBLISHED = ("shp", "hh")
QUOTED_AT_LENGTH = 40  # characters: fewer, a response may share with its prompt


def contents(prompt: Prompt, out: Alignment | str) -> dict[str, Any]:
    """The fields of a record that say which prompt it is of, and what became of that.

    The prompt's text is kept for built-in prompts only. Records are made to be published, and the
    texts of SHP and HH-RLHF are not: what a response quotes of them at length becomes an ellipsis.

    Args:
        out: what a method returned, or the text of the error that it ended with.
    """
    builtin = prompt.source == "builtin"
    hidden = prompt.source in UNPUBLISHED
    quoted = partial(unquoted, prompt=prompt, least=QUOTED_AT_LENGTH) if hidden else str
    about = {"prompt": prompt.id, "prompt_text": prompt.text if builtin else None}
    about["prompt_sha256"] = prompt_sha256(prompt)
    if prompt.checks:
        about["checks_sha256"] = json_sha256(prompt.checks)
    if isinstance(out, str):
        empty: dict[str, Any] = {"reward": None, "response": None}
        empty |= {"samples": 0, "reward_calls": 0, "tokens": 0}
        empty |= {"seconds": 0.0, "history": {}, "improvements": [], "interrupted": False}
        return about | empty | {"error": out if builtin else unquoted(out, prompt)}
    calls = out.history.get("reward_calls")
    return about | {
        "reward": out.reward,
        "response": quoted(out.response),
        "samples": len(out.candidates),
        "reward_calls": len(out.candidates) if calls is None else int(calls.sum()),
        "tokens": int(out.history["tokens"].sum()),
        "seconds": float(out.history["seconds"].sum()),
        # JSON has neither NaN, the ess of a method without weights, nor -inf, a rejected response.
        "history": {
            name: [value if math.isfinite(value) else None for value in column]
            for name, column in out.history.to_dict("list").items()
        },
        "improvements": [x | {"response": quoted(x["response"])} for x in _improvements(out)],
        "interrupted": out.interrupted,
    }


def prompt_sha256(prompt: Prompt) -> str:
    """SHA-256 of a prompt's messages: identifies texts that may not be stored."""
    messages = [[m["role"], m["content"]] for m in prompt.messages]
    return json_sha256(messages)


def _improvements(out: Alignment) -> list[dict[str, Any]]:
    """The best responses so far, by iteration: what smaller budgets would have returned."""
    candidates = out.candidates
    best = candidates.loc[candidates.groupby("iteration")["reward"].idxmax()]
    best = best[best["reward"] > best["reward"].cummax().shift(fill_value=-math.inf)]
    return best[["iteration", "reward", "response"]].to_dict("records")
