"""Which commit of a model or data set is loaded from the Hugging Face hub: data/hub.json.

An id that has a commit there is loaded at it, wherever it is loaded, unless the caller gives another
revision; any other id is loaded as it is newest. `python -m aisp.experiment.hub pin` fills in what is
missing, and `make test-hub` checks what is there.
"""

import json
import re
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


def note_commit(config: Any, name: str | Path, options: Mapping[str, Any]) -> None:
    """Keep the commit that an id was loaded at as `_commit_hash` of its configuration.

    transformers once did, and no longer does. The cache of the hub, from which it was loaded, knows it.

    Args:
        config: of the model, as transformers loaded it.
        options: of its `from_pretrained`.
    """
    if Path(name).exists():
        return
    from huggingface_hub import try_to_load_from_cache

    place = {key: options.get(key) for key in ("cache_dir", "revision")}
    path = try_to_load_from_cache(str(name), "config.json", **place)
    found = re.search(r"snapshots/([0-9a-f]{40})/", Path(path).as_posix()) if path else None
    if found:
        config._commit_hash = found[1]
