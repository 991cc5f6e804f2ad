"""Starting a file of records with what other notebooks have computed under the same settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aisp.experiment.records import made_with, provenance_of
from aisp.experiment.tables import parse
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
    is computed anew by `run`. A file that is there already is left as it is.

    Args:
        path: the file to begin.
        names: of records files in the same folder, separated by commas; None for none.

    Returns:
        label -> how many records were taken over.
    """
    if path.exists() or not names:
        return {}
    configs = {label: configure(**m).describe() for label, m in methods.items()}
    texts = {p.id: p.text for p in prompts if p.source == "builtin"}
    wanted = made_with(policy, reward)
    wanted["device"] = environment(policy.device)["device"]
    lines, runs, counts = [], {}, {}
    for source in (path.with_name(f"{name.strip()}.jsonl") for name in names.split(",")):
        if not source.exists():
            continue
        records, _ = parse(source.name, source.read_bytes())
        known = provenance_of(source)
        for (label, prompt, its_seed), one in records.items():
            of = known.get(one["run"], {})
            same = its_seed == seed and one["config"] == configs.get(label)
            same = (
                same and one["prompt_text"] is not None and one["prompt_text"] == texts.get(prompt)
            )
            whole = one["reward"] is not None and not one["interrupted"]
            if same and whole and all(of.get(k) == v for k, v in wanted.items()):
                lines.append(json.dumps(one) + "\n")
                runs[one["run"]] = of | {"taken_over_from": source.name}
                counts[label] = counts.get(label, 0) + 1
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".runs.json").write_text(json.dumps(runs, indent=1) + "\n")
        new = path.with_suffix(".tmp")
        new.write_text("".join(lines))
        new.replace(path)
    return counts
