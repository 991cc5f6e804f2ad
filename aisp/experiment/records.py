"""Experiments: methods x prompts x seeds -> records on disk.

Each finished (method, prompt, seed) is appended to a JSON Lines file at once, flushed and synced,
so that a process killed at any moment loses no more than the prompts it was decoding; a run on an
existing file skips what is there. A prompt that fails is recorded with its error, does not stop the
others, and is tried again by the next run. Beside `NAME.jsonl`, `NAME.runs.json` holds the
provenance of every run that wrote into it. `aisp.experiment.tables` reads the records:

    python -m aisp.experiment show NAME.jsonl --format markdown --against LABEL
"""

import hashlib
import json
import math
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from aisp.alignment import Alignment
from aisp.experiment.tables import Key, load, parse
from aisp.methods import align, configure
from aisp.policy import Policy
from aisp.prompts import Prompt
from aisp.provenance import checkout, environment, git_state, weights
from aisp.rewards.base import Reward

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    import pandas as pd

# What an experiment notebook runs at where its parameters do not say otherwise.
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"n_prompts": 2, "n": 4, "kappa": 2, "max_new_tokens": 12},
    "cpu": {"n_prompts": 24, "n": 16, "kappa": 8, "max_new_tokens": 48},
    "gpu": {"n_prompts": 40, "n": 32, "kappa": 32, "max_new_tokens": 128},
    "paper": {"n_prompts": 1000, "n": 32, "kappa": 32, "max_new_tokens": 128},
}

# Sets whose texts may not be published, and so stand in no record.
UNPUBLISHED = ("shp", "hh")


def settings(profile: str, **overrides: Any) -> dict[str, Any]:
    """The settings of a profile; what is given and not None replaces the profile's value."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    unknown = overrides.keys() - PROFILES[profile].keys()
    if unknown:
        raise ValueError(f"no setting {sorted(unknown)}; known: {', '.join(PROFILES[profile])}")
    return PROFILES[profile] | {k: v for k, v in overrides.items() if v is not None}


def records_path(name: str, profile: str) -> Path:
    """Where an experiment's records lie: data/results/<profile>/<name>.jsonl in the checkout."""
    settings(profile)
    return checkout() / "data" / "results" / profile / f"{name}.jsonl"


def run(
    path: str | Path,
    methods: dict[str, dict[str, Any]],
    prompts: Sequence[Prompt],
    policy: Policy,
    reward: Reward | Callable[[Any, str], float],
    *,
    seeds: Sequence[int] = (0,),
    batch: int = 8,
    progress: bool = True,
    command: str | None = None,
) -> "pd.DataFrame":
    """Run every method on every prompt and seed that the file does not hold yet.

    Args:
        path: the records, a .jsonl file; made where it does not exist.
        methods: label -> {"method": name, **its parameters}; the label names it in tables.
        prompts: with unique ids.
        batch: prompts decoded together, at least 1; halved, within a method and seed, where the
            GPU's memory does not hold them. Each record has the number that it was decoded with:
            in float32 it changes no result, in bfloat16 last bits and, through them, some texts.
        progress: a bar over (label, prompt, seed).
        command: how to run this again, kept with the provenance.

    Returns:
        `load(path)`. An interrupt writes and returns what there is; the interrupted prompts are
        run anew the next time. (One that comes before anything of a batch is scored is raised.)

    Raises:
        ValueError: batch below 1; prompts that share an id; records under one of these labels that
            have another configuration, policy, template, dtype, reward or text of a prompt; a file
            with a broken line before its last.
        RuntimeError: another run is writing the file.
    """
    from tqdm import tqdm  # plain text also in notebooks, so that papermill shows it

    if batch < 1:
        raise ValueError(
            f"batch is {batch}; it is how many prompts are decoded together, 1 or more"
        )
    if len({p.id for p in prompts}) < len(prompts):
        raise ValueError("two prompts share an id; records tell prompts apart by their ids")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    configs = {label: configure(**parameters) for label, parameters in methods.items()}
    failed = []
    with open(path, "a+b") as file:
        _lock(file)
        done = _done(path, _mend(file), configs, prompts, made_with(policy, reward))
        todo = [
            (label, seed, [p for p in prompts if (label, p.id, seed) not in done])
            for label in methods
            for seed in seeds
        ]
        total = sum(len(rest) for *_, rest in todo)
        run_id = uuid.uuid4().hex[:12]
        if total:
            _note_run(path, run_id, policy, reward, prompts, batch, command)
        with tqdm(total=total, disable=not progress, unit="prompt", file=sys.stderr) as bar:
            for records in _batches(todo, methods, configs, policy, reward, batch):
                lines = [json.dumps({"run": run_id} | one) + "\n" for one in records]
                _append(file, "".join(lines).encode())
                failed += [one for one in records if one["reward"] is None]
                bar.set_description(records[-1]["label"])
                bar.update(len(records))
                if any(one["interrupted"] for one in records):
                    bar.write("interrupted: kept what was found so far", file=sys.stderr)
                    break
    if failed:
        print(
            f"{len(failed)} of {total} failed; the next run tries them again. The first: "
            f"{failed[0]['label']}, {failed[0]['prompt']}: {failed[0]['error']}",
            file=sys.stderr,
        )
    return load(path)


def _batches(todo, methods, configs, policy, reward, batch) -> Iterator[list[dict[str, Any]]]:
    """The records of all that is to do, as they are finished."""
    for label, seed, prompts in todo:
        compute = partial(
            align, policy=policy, reward=reward, seed=seed, progress=False, **methods[label]
        )
        prompts = sorted(prompts, key=partial(_length, policy))  # alike in length: little padding
        head = {
            "label": label,
            "method": methods[label]["method"],
            "config": configs[label].describe(),
            "seed": seed,
        }
        for group, outs in _attempts(compute, prompts, batch):
            head["batch"] = len(group)
            yield [head | _record(p, out) for p, out in zip(group, outs, strict=True)]


def _length(policy: Policy, prompt: Prompt) -> float:
    try:
        return len(policy.prefix(prompt))
    except Exception:  # too long, or not for this template: fails on its own when its turn comes
        return float("inf")


def _attempts(
    compute: Callable[[list[Prompt]], list[Alignment]], prompts: list[Prompt], size: int
) -> Iterator[tuple[list[Prompt], list[Alignment | str]]]:
    """Batches of prompts with their results; for a prompt that fails alone, the error's text.

    Where the GPU's memory does not hold a batch, this and all later ones are half as large. Where a
    batch fails otherwise, its prompts are tried one by one.
    """
    alone = 0  # how many of the next prompts are tried one by one
    while prompts:
        group = prompts[: 1 if alone else size]
        try:
            outs = compute(group)
        except Exception as error:  # an overnight run shall not end at whatever one prompt meets
            outs = [f"{type(error).__name__}: {error}"] if len(group) == 1 else None
            out_of_memory = _out_of_memory(error)
        if outs is None and out_of_memory:
            torch.cuda.empty_cache()  # out here, where the error no longer holds tensors alive
            size = len(group) // 2
            print(
                f"out of GPU memory with {len(group)} prompts in a batch: going on with {size}",
                file=sys.stderr,
            )
        elif outs is None:
            alone = len(group)
        else:
            yield group, outs
            prompts, alone = prompts[len(group) :], max(0, alone - 1)


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether the GPU's memory was exhausted, be it within a reward, whose errors are wrapped."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__
    return error is not None


def _record(prompt: Prompt, out: Alignment | str) -> dict[str, Any]:
    """One result, or the text of an error, as plain JSON.

    The prompt's text is kept for built-in prompts only. Records are made to be published, and the
    texts of SHP and HH-RLHF are not: what a response quotes of them at length becomes an ellipsis.
    """
    builtin = prompt.source == "builtin"
    quoted = partial(_unquoted, prompt=prompt, least=40) if prompt.source in UNPUBLISHED else str
    about = {"prompt": prompt.id, "prompt_text": prompt.text if builtin else None}
    about["prompt_sha256"] = _digest(prompt)
    if isinstance(out, str):
        empty = {"reward": None, "response": None, "samples": 0, "reward_calls": 0, "tokens": 0}
        empty |= {"seconds": 0.0, "history": {}, "improvements": [], "interrupted": False}
        return about | empty | {"error": out if builtin else _unquoted(out, prompt)}
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


def _improvements(out: Alignment) -> list[dict[str, Any]]:
    """The best responses so far, by iteration: what smaller budgets would have returned."""
    candidates = out.candidates
    best = candidates.loc[candidates.groupby("iteration")["reward"].idxmax()]
    best = best[best["reward"] > best["reward"].cummax().shift(fill_value=-math.inf)]
    return best[["iteration", "reward", "response"]].to_dict("records")


def _unquoted(text: str, prompt: Prompt, least: int = 12) -> str:
    """The text without what it quotes of the prompt, be it as such or as a Python literal.

    Args:
        least: characters that make a quotation.
    """
    for message in prompt.messages:
        for source in (message["content"], repr(message["content"])[1:-1]):
            while (
                m := SequenceMatcher(None, text, source, False).find_longest_match()
            ).size >= least:
                text = text[: m.a] + "…" + text[m.a + m.size :]
    return text


def _lock(file: BinaryIO) -> None:
    """Take the file for this process until it is closed, or the process gone however it ends."""
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RuntimeError(
            f"{file.name} is being written by another run; wait for its end, stop it, or use "
            "another file"
        ) from error
    except OSError as error:  # some network file systems have none either
        warnings.warn(
            f"{file.name} cannot be locked ({error}): see to it that no other run writes it",
            stacklevel=3,
        )


def _mend(file: BinaryIO) -> dict[Key, dict[str, Any]]:
    """The file's records; a torn last line, left by a killed run, is moved to NAME.torn."""
    path = Path(file.name)
    content = path.read_bytes()
    records, torn = parse(path.name, content)
    if torn:
        aside = path.with_suffix(".torn")
        with open(aside, "ab") as kept:
            _append(kept, torn.rstrip(b"\n") + b"\n")
        file.truncate(len(content) - len(torn))
        warnings.warn(
            f"{path.name}: the last line was torn, by a run that was killed; moved to {aside.name}",
            stacklevel=3,
        )
    elif content and not content.endswith(b"\n"):
        _append(file, b"\n")
    return records


def _append(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def made_with(policy: Policy, reward: Any) -> dict[str, Any]:
    """What all records of one label have in common, besides their configuration."""
    template = policy.template
    if not isinstance(template, str):
        template = getattr(template, "__name__", "custom")
    return {
        "policy": policy.name,
        "template": template,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "reward": getattr(reward, "name", getattr(reward, "__name__", "custom")),
    }


def _done(
    path: Path,
    records: dict[Key, dict[str, Any]],
    configs: dict[str, Any],
    prompts: Sequence[Prompt],
    wanted: dict[str, Any],
) -> set[Key]:
    """What need not be computed; an error where a record is of something else than asked for."""
    runs, done = provenance_of(path), set()
    by_id = {prompt.id: prompt for prompt in prompts}
    for key, one in records.items():
        label, prompt = key[0], by_id.get(key[1])
        # A failed record is no result that those of another configuration would mix with.
        if one["reward"] is None or label not in configs:
            continue
        run = runs.get(one["run"], {})
        stored = one["config"] | {k: run[k] for k in wanted if k in run}
        asked = configs[label].describe() | {k: wanted[k] for k in wanted if k in run}
        if prompt is not None and "prompt_sha256" in one:
            stored["prompt_sha256"], asked["prompt_sha256"] = one["prompt_sha256"], _digest(prompt)
        elif prompt is not None and one["prompt_text"] is not None:  # a record of before the hashes
            stored["prompt_text"], asked["prompt_text"] = one["prompt_text"], prompt.text
        other = [k for k in {**stored, **asked} if stored.get(k) != asked.get(k)]
        if other:
            differ = "; ".join(
                f"{k} is {stored.get(k)!r} there and {asked.get(k)!r} here" for k in other
            )
            raise ValueError(
                f"{path.name} holds {label!r} under other settings (prompt {key[1]!r}): {differ}. Use "
                "another label or file (in notebooks, the parameter name), or delete the old records"
            )
        if not one["interrupted"]:
            done.add(key)
    return done


def _digest(prompt: Prompt) -> str:
    """SHA-256 of a prompt's messages, which tells texts apart that may not be stored."""
    messages = [[m["role"], m["content"]] for m in prompt.messages]
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


def provenance_of(path: Path) -> dict[str, dict[str, Any]]:
    """The runs that wrote a file of records, by id: its NAME.runs.json; none where there is none.

    Raises:
        ValueError: a file that is no JSON.
    """
    sidecar = path.with_suffix(".runs.json")
    try:
        return json.loads(sidecar.read_text()) if sidecar.exists() else {}
    except ValueError as error:
        raise ValueError(
            f"{sidecar} is no JSON ({error}); restore it, or move it away: the records stay "
            "readable without it, their provenance is lost"
        ) from error


def _note_run(path, run_id, policy, reward, prompts, batch, command) -> None:
    sidecar, runs = path.with_suffix(".runs.json"), provenance_of(path)
    texts = json.dumps(sorted([p.id, *(m["content"] for m in p.messages)] for p in prompts))
    runs[run_id] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **git_state(),
        **environment(policy.device),
        **made_with(policy, reward),
        "weights": {"policy": weights(policy), "reward": weights(reward)},
        "batch": batch,
        "prompts": sorted({p.source for p in prompts}),
        "n_prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),  # of ids and texts
    }
    new = sidecar.with_suffix(".tmp")
    with open(new, "wb") as file:
        _append(file, (json.dumps(runs, indent=1) + "\n").encode())
    new.replace(sidecar)
