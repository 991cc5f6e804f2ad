"""Which commit of a model or data set is loaded from the Hugging Face hub: data/hub.json.

An id that has a commit there is loaded at it, wherever it is loaded, unless the caller gives another
revision; any other id is loaded as it is newest. `python -m aisp.experiment.hub pin` fills in what is
missing, and `make test-hub` checks what is there.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aisp.provenance import data_path

KINDS = ("model", "dataset")  # as the hub calls them
Pins = dict[str, dict[str, dict[str, str | None]]]


def pins_path() -> Path:
    """The file of the pins."""
    return data_path("hub.json")


@cache
def pins() -> Pins:
    """Kind -> id -> "revision" (a commit, or None where none is known yet) and "found" (where)."""
    return json.loads(pins_path().read_text(encoding="utf-8"))


def revision_of(name: str | Path, kind: str = "model") -> str | None:
    """The commit that an id is pinned to; None for any other name.

    Args:
        kind: one of KINDS.
    """
    return pins()[kind].get(str(name), {}).get("revision")


def with_revision(name: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model's `from_pretrained`, with its pin where they name no revision."""
    pin = None if options.get("revision") else revision_of(name)
    return {**options, **({} if pin is None else {"revision": pin})}
