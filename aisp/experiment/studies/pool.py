"""Every candidate of a run in numbers, for selection without further decoding (notebook 11).

Records hold the best response of each run. A pool holds, of every candidate and without its text, its
reward and that of each bootstrap refit (`aisp.rewards.ensemble`), the judge's score, its iteration,
characters and tokens: what `aisp.experiment.studies.selection` needs to say what another rule would have
returned from the same candidates.

    python -m aisp.experiment.studies.pool --set builtin --budget 512 --seeds 0

decodes the rows of `aisp.experiment.studies.beyond` again, with their parameters and prompts, and writes
data/results/<profile>/beyond_pool_<set>_<budget>.npz, and NAME.npz.json beside it, which says what it
was made with. Each batch of prompts is written when it is finished; what is there is not computed again.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aisp import metrics
from aisp.checks import whole
from aisp.experiment import identity
from aisp.experiment.report.measures import measure_or_nan
from aisp.experiment.store.contents import prompt_sha256
from aisp.experiment.store.reading import load
from aisp.experiment.studies import beyond, contenders
from aisp.methods import align, configure
from aisp.policy import Policy, load_policy
from aisp.prompts import Prompt
from aisp.provenance import environment, file_sha256, git_state, replacing
from aisp.rewards.base import Reward
from aisp.rewards.ensemble import EmbeddedEnsemble
from aisp.rewards.judge import EmbeddedJudge
from aisp.state import IndependentConfig, SearchConfig

LABELS = (contenders.BEST, contenders.STEERED)
# What is stored of each candidate. Half precision for the refits: their spread is what counts.
COLUMNS = {
    "iteration": np.int16,
    "reward": np.float32,
    "judged": np.float32,
    "tokens": np.int16,
    "characters": np.int16,
    "members": np.float16,
}


@dataclass(frozen=True, eq=False)
class Candidates:
    """All S candidates of one run, in the order in which they were drawn.

    Attributes:
        label, prompt, seed: which run.
        iteration: (S,) from 0.
        reward, judged: (S,) the reward that the run optimized, and the judge's score; NaN where the
            judge has none.
        tokens, characters: (S,) of the response's text, an end-of-turn token not counted.
        members: (S, K) the reward by each refit.
    """

    label: str
    prompt: str
    seed: int
    iteration: np.ndarray
    reward: np.ndarray
    judged: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray
    members: np.ndarray

    @property
    def key(self) -> tuple[str, str, int]:
        return self.label, self.prompt, self.seed


def read(path: Path) -> list[Candidates]:
    """The runs of a pool, in the order in which they were computed.

    Raises:
        FileNotFoundError: there is none; names the command.
        ValueError: a file that is no pool.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no pool at {path}; compute it: python -m aisp.experiment.studies.pool"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            ends = stored["samples"].cumsum()[:-1]
            parts = {name: np.split(stored[name], ends) for name in COLUMNS}
            keys = zip(stored["label"], stored["prompt"], stored["seed"], strict=True)
            return [
                Candidates(str(x), str(p), int(s), **{name: of[i] for name, of in parts.items()})
                for i, (x, p, s) in enumerate(keys)
            ]
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} holds no pool: {error}") from error


def write(path: Path, runs: Sequence[Candidates]) -> None:
    """Write a pool; the same runs give the same bytes."""
    keys: dict[str, Any] = {
        "label": np.array([run.label for run in runs]),
        "prompt": np.array([run.prompt for run in runs]),
        "seed": np.array([run.seed for run in runs], dtype=np.int64),
        "samples": np.array([len(run.reward) for run in runs], dtype=np.int64),
    }
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(run, name) for run in runs]).astype(dtype)
        for name, dtype in COLUMNS.items()
    }
    with replacing(path) as new, open(new, "wb") as file:
        np.savez_compressed(file, **keys, **columns)


def exchangeable(config: SearchConfig) -> bool:
    """Whether a run's candidates are as if drawn in any order: none depends on an earlier one."""
    return isinstance(config, IndependentConfig) and not getattr(config, "adapt", False)


def run(
    path: Path,
    methods: dict[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    scorer: EmbeddedEnsemble,
    judge: Reward,
    *,
    seeds: Sequence[int] = (0,),
    batch: int = 8,
    progress: bool = True,
    command: str | None = None,
) -> list[Candidates]:
    """Compute the candidates of every method, prompt and seed that the file does not hold yet.

    Args:
        path: a .npz file; made where it does not exist.
        methods: label -> {"method": name, **its parameters}, as `experiment.run` takes them.
        scorer: whose policy decodes, and whose reward is optimized.
        batch: prompts decoded together.

    Returns:
        `read(path)`.

    Raises:
        ValueError: candidates under one of these labels that were made otherwise.
        KeyboardInterrupt: what was finished before is kept.
    """
    batch = whole("batch", batch, least=1, note=" (prompts decoded together)")
    made = _made(methods, scorer, judge)
    note = _note(path, made, {p.id: prompt_sha256(p) for p in prompts})
    found = read(path) if path.exists() else []
    done = {one.key for one in found}
    todo = [
        (label, seed, [p for p in prompts if (label, p.id, seed) not in done])
        for seed in seeds
        for label in methods
    ]
    total = sum(len(rest) for *_, rest in todo)
    if total:
        note["runs"].append(_provenance(scorer.policy, batch, command))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path.with_name(path.name + ".json")) as new:
            new.write_text(json.dumps(note, indent=1) + "\n")
    with tqdm(total=total, disable=not progress, unit="prompt", file=sys.stderr) as bar:
        for label, seed, rest in todo:
            rest = sorted(rest, key=lambda p: len(scorer.policy.prefix(p)))  # little padding
            for i in range(0, len(rest), batch):
                group = rest[i : i + batch]
                found += _candidates(label, methods[label], group, seed, scorer, judge)
                write(path, found)
                bar.update(len(group))
    return read(path)


class _Kept(Reward):
    """The reward of an ensemble's head, which remembers what the refits said of each response."""

    name = "embedded"

    def __init__(self, scorer: EmbeddedEnsemble):
        self.scorer = scorer
        self.members: dict[tuple[str, str], Tensor] = {}

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        found = self.scorer.score(prompts, responses)
        keys = zip((p.id for p in prompts), responses, strict=True)
        self.members |= dict(zip(keys, found[:, 1:], strict=True))
        return found[:, 0]


def _candidates(
    label: str,
    parameters: dict[str, Any],
    prompts: Sequence[Prompt],
    seed: int,
    scorer: EmbeddedEnsemble,
    judge: Reward,
) -> Iterator[Candidates]:
    """Run a method on prompts that are decoded together, and say what became of each candidate."""
    reward = _Kept(scorer)
    outs = align(list(prompts), scorer.policy, reward, seed=seed, progress=False, **parameters)
    if any(out.interrupted for out in outs):
        raise KeyboardInterrupt  # a part of a run is no run: the next one computes it anew
    for prompt, out in zip(prompts, outs, strict=True):
        texts = out.candidates["response"].tolist()
        same = [prompt] * len(texts)
        yield Candidates(
            label,
            prompt.id,
            seed,
            iteration=out.candidates["iteration"].to_numpy(),
            reward=out.candidates["reward"].to_numpy(),
            judged=measure_or_nan("judge", judge.score, same, texts).numpy(),
            tokens=metrics.length(texts, scorer.policy.tokenizer).numpy(),
            characters=np.array([len(text) for text in texts]),
            members=torch.stack([reward.members[prompt.id, text] for text in texts]).numpy(),
        )


def _made(
    methods: dict[str, dict[str, Any]], scorer: EmbeddedEnsemble, judge: Reward
) -> dict[str, dict[str, Any]]:
    """What the candidates of each label are made with, as the note has it."""
    configs = {label: configure(**parameters) for label, parameters in methods.items()}
    made = identity.made_with(scorer.policy, scorer.reward, configs)
    files = {f"{file.parent.name}/{file.name}": file for file in (*scorer.files, *judge.files)}
    common = {"judge": judge.name, "files": {name: file_sha256(f) for name, f in files.items()}}
    return {
        label: {
            "method": methods[label]["method"],
            "config": config.describe(),
            "exchangeable": exchangeable(config),
            **common,
            **made[label],
        }
        for label, config in configs.items()
    }


def _note(path: Path, made: dict[str, dict[str, Any]], prompts: dict[str, str]) -> dict[str, Any]:
    """What lies beside a pool, with labels and prompts of a new run; refuses to mix what differs."""
    beside = path.with_name(path.name + ".json")
    if not path.exists():
        return {"labels": made, "prompts": prompts, "runs": []}
    if not beside.exists():
        raise ValueError(
            f"nothing says what {path.name} was made with: {beside.name} is missing. Move the file "
            "away to compute it anew"
        )
    note = json.loads(beside.read_text())
    new = {**made, "the prompts": prompts}
    stored = {**note["labels"], "the prompts": note["prompts"]}
    for what, asked in new.items():
        old = stored.get(what, {})
        differ = [x for x in asked if x in old and old[x] != asked[x]]
        if differ:
            raise ValueError(
                f"{path.name} has candidates of {what} made with another {', '.join(differ)}: "
                f"{[old[x] for x in differ]}, not {[asked[x] for x in differ]}. Move the file away "
                "to compute it anew"
            )
    return {
        "labels": note["labels"] | made,
        "prompts": note["prompts"] | prompts,
        "runs": note["runs"],
    }


def _provenance(policy: Policy, batch: int, command: str | None) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "batch": batch,
        **git_state(),
        **environment(policy.device),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the pools of notebook 11."""
    parser = argparse.ArgumentParser(
        "python -m aisp.experiment.studies.pool", description=main.__doc__
    )
    sets = [*beyond.SETS, "development"]
    parser.add_argument("--set", default="builtin", choices=sets)
    parser.add_argument("--budget", type=int, default=512, choices=list(beyond.BUDGETS))
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--rows", default=";".join(LABELS), help="labels, separated by semicolons")
    parser.add_argument("--limit", type=int, help="the first so many prompts")
    parser.add_argument("--batch", type=int, default=8, help="prompts decoded together")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where instead of data/results/cpu")
    given = parser.parse_args(argv)
    try:
        labels = [x.strip() for x in given.rows.split(";")]
        seeds = beyond.seed_list(given.seeds)
        limit = None if given.limit is None else whole("limit", given.limit, least=1)
        development = given.set == "development"
        prompts = beyond.development() if development else beyond.prompts_of(given.set)
        tuned = contenders.tuned(load(beyond.path_of("tune")), labels)
        methods = contenders.rows(beyond.size(given.budget), tuned, labels)
        policy = load_policy("embedded", device=given.device, dtype=given.dtype)
        scorer, judge = EmbeddedEnsemble.load(policy), EmbeddedJudge.load(given.device)
        name = f"pool_{given.set}_{given.budget}"
        path = beyond.path_of(name, folder=given.folder).with_suffix(".npz")
        command = " ".join(
            ["python -m aisp.experiment.studies.pool", *(sys.argv[1:] if argv is None else argv)]
        )
        options = {"seeds": seeds, "batch": given.batch, "command": command}
        found = run(path, methods, prompts[:limit], scorer, judge, **options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{path.name}: {len(found)} runs, {sum(len(x.reward) for x in found)} candidates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
