"""What notebooks/params needs of the Hugging Face hub: the ids, and the commits they are pinned to.

    python -m aisp.experiment.hub pin [ID ...]

writes into data/hub.json the newest commit of every id that has none yet, or of the ids that are named.
`make test-hub` asks the hub for every id that is used (`aisp.experiment.hub_checks`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from aisp import provenance
from aisp.assets import EMBEDDED
from aisp.experiment import parameters
from aisp.pins import KINDS, pins, pins_path, revision_of
from aisp.preference_data import HUB
from aisp.rewards.judge import EmbeddedJudge

OURS = (EMBEDDED, EmbeddedJudge.name, "verifiable", "verifiable-loose")


class PolicyUse(NamedTuple):
    """How files of parameters use a policy."""

    id: str
    template: str | None
    use_safetensors: bool
    engine: str


def uses(folder: Path | None = None) -> tuple[list[PolicyUse], list[str]]:
    """Policies, and rewards with judges, that the files of parameters take from the hub.

    Args:
        folder: of the files; default notebooks/params.
    """
    notebooks = provenance.checkout() / "notebooks"
    notebook = notebooks / "06_main_results.ipynb"
    paths = sorted((folder or notebooks / "params").glob("*.yaml"))
    given = [parameters.read(path, notebook) for path in paths]
    policies = {
        PolicyUse(x["policy"], x["template"], x["use_safetensors"], x["engine"])
        for x in given
        if _of_the_hub(x["policy"])
    }
    rewards = {x[role] for x in given for role in ("reward", "judge") if _of_the_hub(x[role])}
    return sorted(policies, key=str), sorted(rewards)


def ids(folder: Path | None = None) -> list[tuple[str, str]]:
    """(kind, id) of all that is used, and of every data set that `aisp.prompts` knows."""
    policies, rewards = uses(folder)
    models = {use.id for use in policies} | set(rewards)
    datasets = {dataset for dataset, *_ in HUB.values()}
    return [("model", x) for x in sorted(models)] + [("dataset", x) for x in sorted(datasets)]


def _of_the_hub(name: str | None) -> bool:
    return name is not None and name not in OURS and not Path(name).exists()


def newest(kind: str, id: str, revision: str | None = None) -> str:
    """The commit that a revision stands for on the hub; None is the newest.

    Args:
        kind: one of `aisp.pins.KINDS`.
    """
    from huggingface_hub import HfApi

    return str(HfApi().repo_info(id, repo_type=kind, revision=revision, timeout=30).sha)


def unreachable() -> str | None:
    """Why the hub cannot be asked; None where it answers."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        newest(*ids()[0])
    except RepositoryNotFoundError:
        pass  # it answered
    except Exception as error:  # switched off, no network, no such host, ...: many types
        return " ".join(str(error).split()).rstrip(".")
    return None


def closed(kind: str, id: str) -> str | None:
    """Why whoever asks may not read the files of an id: it is gated. None where they may."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    try:
        HfApi().auth_check(id, repo_type=kind)
    except GatedRepoError:
        return (
            f"{id} is gated: accept its license on its page of the hub, and set HF_TOKEN to a token "
            "of the account that did"
        )
    return None


def check_pin(kind: str, id: str) -> None:
    """Refuse an id without a commit in data/hub.json, or with one that the hub does not have.

    Raises:
        ValueError: it says what to do.
    """
    pinned, command = revision_of(id, kind), f"`python -m aisp.experiment.hub pin {id}`"
    if pinned is None:
        raise ValueError(f"{id} is not pinned: newest is {newest(kind, id)}; {command} pins it")
    try:
        found = newest(kind, id, pinned)
    except Exception as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{id} cannot be had at its pin {pinned} ({why}); {command}") from error
    if found != pinned:
        raise ValueError(f"the pin of {id} is {pinned}, no full commit: it is {found}; {command}")


def pin(names: Sequence[str] = ()) -> list[str]:
    """Write commits into data/hub.json.

    Args:
        names: ids to move to their newest commit; without names, all that have none yet.

    Returns:
        One line for each id that was written.

    Raises:
        ValueError: an id that nothing here uses.
    """
    content = json.loads(pins_path().read_text(encoding="utf-8"))
    known = dict.fromkeys([*ids(), *((kind, id) for kind in KINDS for id in content[kind])])
    unknown = sorted(set(names) - {id for _, id in known})
    if unknown:
        raise ValueError(
            f"{unknown[0]} is used by no file in notebooks/params; known are "
            f"{', '.join(id for _, id in known)}"
        )
    told = []
    for kind, id in known:
        old = content[kind].get(id, {}).get("revision")
        if id in names or (not names and old is None):
            new = newest(kind, id)
            content[kind][id] = {"revision": new, "found": f"the hub, {date.today()}"}
            told.append(f"{id}: {old or 'not pinned'} -> {new}")
    content = {kind: dict(sorted(content[kind].items())) for kind in KINDS}
    with provenance.replacing(pins_path()) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    pins.cache_clear()
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m aisp.experiment.hub", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("pin", help="write the newest commits into data/hub.json")
    add.add_argument(
        "id", nargs="*", help="such as openbmb/UltraRM-13b; none: all without a commit"
    )
    asked = parser.parse_args(arguments)
    if why := unreachable():
        sys.exit(f"error: the Hugging Face hub is out of reach: {why}")
    try:
        print("\n".join(pin(asked.id)) or "every id has its commit; name those to move")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
