"""Starting a file of records with what other notebooks have computed under the same settings."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aisp.experiment import identity
from aisp.experiment.profiles import file_name
from aisp.experiment.store.reading import Key, parse, provenance_of, read
from aisp.experiment.store.storage import opened
from aisp.methods import configure
from aisp.policy import Policy
from aisp.prompts import Prompt
from aisp.provenance import environment
from aisp.rewards.base import Reward


def take_over(
    path: Path,
    names: str | None,
    methods: dict[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    policy: Policy,
    reward: Reward,
    *,
    seed: int = 0,
) -> dict[str, int]:
    """Start a records file with what other notebooks have computed under the same settings.

    A record is taken over with the provenance of its run where label, configuration, seed, prompt
    (built-in, the same text), policy, template, dtype, device and reward agree; what does not agree
    is computed anew by `run`. A file that holds something already is left as it is. The file is
    locked meanwhile, as in `run`.

    Args:
        path: the file to begin.
        names: of records files in the same folder, separated by commas; None for none.

    Returns:
        label -> how many records were taken over.

    Raises:
        ValueError: a name that is no plain file name; a reward that cannot be told from others.
        RuntimeError: another run is writing the file.
    """
    given = [name.strip() for name in (names or "").split(",") if name.strip()]
    sources = [path.with_name(f"{file_name(name)}.jsonl") for name in given]
    if not sources or (path.exists() and path.stat().st_size):
        return {}
    configs = {label: configure(**parameters) for label, parameters in methods.items()}
    made = identity.made_with(policy, reward, configs)
    by_id = {p.id: p for p in prompts if p.source == "builtin"}
    device = environment(policy.device)["device"]
    taken: dict[Key, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    for source in (source for source in sources if source.exists()):
        records, _ = parse(source.name, read(source))
        known = provenance_of(source)
        for key, one in records.items():
            label, prompt, its_seed = key
            run = known.get(one.get("run", ""), {})
            if key in taken or its_seed != seed or label not in made or prompt not in by_id:
                continue
            if one.get("prompt_text") != by_id[prompt].text or run.get("device") != device:
                continue
            whole = one["reward"] is not None and not one.get("interrupted")
            if whole and identity.differences(one, configs[label], made[label], known) == {}:
                taken[key] = one
                runs[one["run"]] = run | {"taken_over_from": source.name}
    if taken:
        with opened(path) as file:
            if file.records:  # another run was faster
                return {}
            file.note_run(runs)
            file.append(list(taken.values()))
    return dict(Counter(label for label, *_ in taken))
