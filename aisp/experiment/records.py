"""Experiments: methods x prompts x seeds -> records on disk.

Each finished (method, prompt, seed) is appended to a JSON Lines file at once, flushed and synced,
so that a process killed at any moment loses no more than the prompts it was decoding; a run on an
existing file skips what is there. A prompt that fails is recorded with its error, does not stop the
others, and is tried again by the next run. A record says what it was made with; beside
`NAME.jsonl`, `NAME.runs.json` holds the provenance of every run that wrote into it.
`aisp.experiment.report.tables` makes tables of them:

    python -m aisp.experiment show NAME.jsonl --format markdown --against LABEL
"""

import hashlib
import json
import sys
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aisp.alignment import SearchConfig
from aisp.checks import whole
from aisp.display import printable
from aisp.experiment import identity
from aisp.experiment.batches import BatchSize, Task, computed
from aisp.experiment.identity.weights import weight_files
from aisp.experiment.spread import cluster
from aisp.experiment.store.reading import Key, load
from aisp.experiment.store.storage import RecordsFile, opened
from aisp.experiment.store.text import storable
from aisp.methods import available, configure
from aisp.policy import Policy
from aisp.prompts import Prompt
from aisp.provenance import environment, git_state
from aisp.recipe import Recipe
from aisp.rewards.base import Reward
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd


class Plan(NamedTuple):
    """What a run is asked for, checked."""

    methods: dict[str, dict[str, Any]]
    configs: dict[str, SearchConfig]
    prompts: Sequence[Prompt]
    policy: Policy
    reward: Any
    seeds: list[int]
    made: dict[str, dict[str, Any]]  # label -> what its records are made with


def run(
    path: str | Path,
    methods: dict[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    policy: Policy | Recipe,
    reward: Reward | Callable[[Any, str], float] | Recipe,
    *,
    seeds: Sequence[int] = (0,),
    batch: int = 8,
    progress: bool = True,
    command: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    shared_reward: float | None = None,
) -> "pd.DataFrame":
    """Run every method on every prompt and seed that the file does not hold yet.

    Args:
        path: the records, a .jsonl file; made where it does not exist.
        methods: label -> {"method": name, **its parameters}; the label names it in tables.
        prompts: with unique ids.
        policy: or a recipe of one.
        reward: as `align` takes it, or a recipe. A function is told from others by its content, and
            where that cannot be read, by a name: `CallableReward(function, name="polite-2")`.
        batch: prompts decoded together at most; halved, within a method, where the GPU's memory does
            not hold them, and where the run before was killed within a batch. Records say how many
            it were: in bfloat16 last bits depend on it and, through them, some texts.
        progress: a bar over (label, prompt, seed).
        command: how to run this again, kept with the provenance.
        workers: processes of Ray that compute; this one then writes. None: this one does it all.
        address, cpus_per_worker, gpus_per_worker, shared_reward: see `cluster.assembled`.

    Returns:
        `load(path)`. An interrupt writes and returns what there is; the interrupted prompts are run
        again next time. (It is raised before anything of a batch is scored, and with workers.) Where
        the file was removed or replaced, the records are in a new one beside it, named on stderr.

    Raises:
        ValueError: batch below 1; prompts that share an id, or that the reward cannot score; what
            records could not tell from others; records of one of these labels that are of something
            else, or do not say of what; a file with a broken line before its last; with workers,
            what cannot travel, or Ray missing.
        RuntimeError: another run is writing the file.
        OSError: the file cannot be written, and something is to be computed.
    """
    batch = whole("batch", batch, least=1, note=" (prompts decoded together)")
    plan = _plan(methods, prompts, policy, reward, seeds)
    place = {"address": address, "cpus_per_worker": cpus_per_worker}
    place |= {"gpus_per_worker": gpus_per_worker, "shared_reward": shared_reward}
    crew = _crew(plan, workers, place)
    with opened(Path(path)) as file:
        _fill(file, plan, crew, batch, progress, command)
    return load(file.path)


def _fill(
    file: RecordsFile,
    plan: Plan,
    crew: "cluster.Crew | None",
    batch: int,
    progress: bool,
    command: str | None,
) -> None:
    """Compute and record what the file does not hold yet."""
    done = _done(file, plan)
    file.unfinished = [note for note in file.unfinished if not _keys(note) <= done]
    tasks = _tasks(plan, done)
    total = sum(len(prompts) for _, prompts in tasks)
    if not total:
        return
    run_id, about = uuid.uuid4().hex[:12], _provenance(plan, batch, command)
    file.note_run({run_id: about})
    if crew is None:
        found = _here(file, plan, tasks, batch)
    else:  # whose workers may be killed without this process
        file.unfinished = [x for x in file.unfinished if x["label"] not in plan.methods]
        found = cluster.computed(
            crew, plan.made, tasks, batch, lambda told: file.note_run({run_id: about | told})
        )
    _tell(_write(file, found, total, run_id, progress), total)


def _plan(
    methods: dict[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    policy: Policy | Recipe,
    reward: Any,
    seeds: Sequence[int],
) -> Plan:
    """What is asked for, or the error that says what is wrong with it."""
    policy, reward = (x.make() if isinstance(x, Recipe) else x for x in (policy, reward))
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise TypeError(f"a prompt is {prompt!r}; pass `Prompt`s, as `aisp.load_prompts` gives")
    if isinstance(seeds, int):
        raise TypeError(f"seeds is {seeds!r}; pass a list of seeds, such as [{seeds!r}]")
    for label, parameters in methods.items():
        if "method" not in parameters:
            raise ValueError(f"{label!r} names no method; add 'method': one of {available()}")
    if len({storable(p.id) for p in prompts}) < len(prompts):
        raise ValueError("two prompts share an id; records tell prompts apart by their ids")
    for label in methods:
        if not isinstance(label, str) or label != storable(label):
            raise ValueError(f"a label is {label!r}; it must be text that can be written as UTF-8")
    configs = {label: configure(**parameters) for label, parameters in methods.items()}
    if isinstance(reward, str | Path):
        reward = load_reward(reward, policy=policy)
    if isinstance(reward, Reward):
        reward.check(prompts)
    made = identity.made_with(policy, reward, configs)
    distinct = list(dict.fromkeys(whole("a seed", seed) for seed in seeds))
    return Plan(methods, configs, prompts, policy, reward, distinct, made)


def _crew(plan: Plan, workers: int | None, options: dict[str, Any]) -> "cluster.Crew | None":
    if workers is not None:
        return cluster.assembled(workers, plan.policy, plan.reward, plan.methods, **options)
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{given[0]} is {options[given[0]]!r}, and workers is None; give both")
    return None


def _done(file: RecordsFile, plan: Plan) -> set[Key]:
    """Keys that need no computing; an error if a record was made with other settings."""
    done = set()
    by_id = {storable(prompt.id): prompt for prompt in plan.prompts}
    for key, one in file.records.items():
        label, prompt = key[0], by_id.get(key[1])
        # A failed record has no result, so nothing of another configuration can mix with it.
        if one["reward"] is None or label not in plan.configs:
            continue
        other = identity.differences(one, plan.configs[label], plan.made[label], file.runs)
        if other is None:
            raise ValueError(identity.unknown_maker(file.path.name, key, one))
        if prompt is not None:
            other |= identity.prompt_difference(one, prompt)
        if other:
            raise ValueError(identity.refusal(file.path.name, key, other, one))
        if not one.get("interrupted"):
            done.add(key)
    return done


def _keys(note: dict[str, Any]) -> set[Key]:
    """What a run was computing when it was killed."""
    return {(note["label"], prompt, note["seed"]) for prompt in note["prompts"]}


def _write(
    file: RecordsFile,
    found: Generator[list[dict[str, Any]], None, None],
    total: int,
    run_id: str,
    progress: bool,
) -> list[dict[str, Any]]:
    """Write records as they are found; those of what failed."""
    from tqdm import tqdm  # plain text also in notebooks, so that papermill shows it

    failed = []
    shown = tqdm(total=total, disable=not progress, unit="prompt", file=sys.stderr)
    with closing(found), shown as bar:
        for records in found:
            file.append([{"run": run_id} | one for one in records])
            failed += [one for one in records if one["reward"] is None]
            bar.set_description(printable(records[-1]["label"]))
            bar.update(len(records))
            if any(one["interrupted"] for one in records):
                bar.write("interrupted: kept what was found so far", file=sys.stderr)
                break
    return failed


def _tasks(plan: Plan, done: set[Key]) -> list[tuple[Task, list[Prompt]]]:
    """What is to be computed: for each label and seed its prompts, alike in length side by side."""
    order = sorted(plan.prompts, key=partial(_length, plan.policy))  # little padding
    tasks = []
    for label, parameters in plan.methods.items():
        about = {"method": parameters["method"], "config": plan.configs[label].describe()}
        for seed in plan.seeds:
            head = {"label": label, **about, "made_with": plan.made[label], "seed": seed}
            rest = [p for p in order if (label, storable(p.id), seed) not in done]
            if rest:
                tasks.append((Task(label, seed, parameters, head), rest))
    return tasks


def _here(
    file: RecordsFile, plan: Plan, tasks: list[tuple[Task, list[Prompt]]], batch: int
) -> Generator[list[dict[str, Any]], None, None]:
    """The records of all tasks, computed in this process, as they are finished."""
    killed = {note["label"]: len(note["prompts"]) for note in file.unfinished}
    labels = dict.fromkeys(task.label for task, _ in tasks)
    sizes = {label: BatchSize(batch, killed.get(label)) for label in labels}
    for task, prompts in tasks:
        about = {"label": task.label, "seed": task.seed}

        def begin(group, about=about):
            file.begin(about | {"prompts": [p.id for p in group]})

        yield from computed(task, prompts, plan.policy, plan.reward, sizes[task.label], begin)


def _length(policy: Policy, prompt: Prompt) -> float:
    try:
        return len(policy.prefix(prompt))
    except Exception:  # too long, or unfit for this template: fails alone when its turn comes
        return float("inf")


def _provenance(plan: Plan, batch: int, command: str | None) -> dict[str, Any]:
    """What NAME.runs.json says of a run."""
    prompts, common = plan.prompts, next(iter(plan.made.values()))
    texts = json.dumps(sorted(map(_texts, prompts)))
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **git_state(),
        **environment(plan.policy.device),
        **{name: common[name] for name in ("policy", "template", "dtype", "reward")},
        **({"engine": common["engine"]} if "engine" in common else {}),
        "weights": {"policy": weight_files(plan.policy), "reward": weight_files(plan.reward)},
        "batch": batch,
        "prompts": sorted({p.source for p in prompts}),
        "n_prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),  # of ids, texts and checks
    }


def _texts(prompt: Prompt) -> list[str]:
    """Id and texts of a prompt, and its checks, if it has some."""
    checks = [json.dumps(prompt.checks)] if prompt.checks else []
    return [prompt.id, *(m["content"] for m in prompt.messages), *checks]


def _tell(failed: list[dict[str, Any]], total: int) -> None:
    if failed:
        first = ", ".join(printable(failed[0][name]) for name in ("label", "prompt"))
        print(
            f"{len(failed)} of {total} failed; the next run tries them again. The first: {first}: "
            f"{printable(failed[0]['error'])}",
            file=sys.stderr,
        )
