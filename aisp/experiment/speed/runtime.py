"""What notebook 08 shows: every measurement of `bench` in one file, with its machine and date.

Ratios come with the range that the repeats span; a range that holds 1 supports no difference.

    python -m aisp.experiment.speed.runtime

measures the targets for CUDA alone, in minutes, into data/results/gpu/targets.json, which 08 shows.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from aisp import provenance
from aisp.checks import choice, whole
from aisp.experiment.profiles import records_path
from aisp.experiment.speed import bench, engines, targets, timing
from aisp.experiment.speed.whole_runs import whole_runs
from aisp.policy import load_policy
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd


class Stored(NamedTuple):
    about: dict[str, Any]  # machine, date, commit, command, versions, repeats, a note of exceptions
    tables: "dict[str, pd.DataFrame]"


def measure(
    path: Path,
    profile: str,
    *,
    repeats: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    command: str,
) -> None:
    """Measure this machine at the sizes of a profile, and write the file.

    On CUDA the file also has the table "targets", but for the toy profiles.

    Args:
        repeats: timed runs of each side; None leaves it to the profile.
        device, dtype: of the embedded policy.
        command: what to run for the same measurement, noted in the file.
    """
    import pandas as pd

    size = bench.SIZES[choice("profile", profile, list(bench.SIZES))]
    repeats = size["repeats"] if repeats is None else whole("repeats", repeats, least=1)
    policy = load_policy("embedded", device=device, dtype=dtype)
    reward = load_reward("embedded", policy=policy)
    n, tokens = size["responses"][-1], size["tokens"]
    few: dict[str, Any] = {"repeats": repeats}
    long: dict[str, Any] = {"responses": [n], "tokens": tokens, "prefix": size["long_prefix"]}
    long |= {"decodings": ["top-p 0.9"]}
    peaks = {name: bench.peak_memory(name, **size["whole"]) for name in ("best_of_n", "aisp")}
    tables = {
        "engines": engines.engines(
            policy, responses=size["responses"], tokens=tokens, vllm=size["vllm"], **few
        ),
        "engines, long prefix": engines.engines(policy, **long, **few),
        "steps": bench.engine_steps(policy, responses=n, tokens=tokens, **few),
        "whole runs": whole_runs(policy, reward, **size["whole"], **few),
        "whole runs, many": whole_runs(policy, reward, **size["many"], **few),
        "scaling": bench.scaling(policy, base=size["base"], axes=size["axes"], **few),
        "base": pd.DataFrame([size["base"]]),
        "memory": pd.DataFrame({"MiB": peaks}).rename_axis("name").reset_index(),
        "limit": timing.lower_bounds(policy, n, 40 + tokens // 2),
    }
    if size["targets"] and policy.device.type == "cuda":
        table = targets.table(policy.tokenizer, policy.device)
        tables["targets"] = table.astype(object).where(table.notna(), None)  # JSON has no NaN
    rows = {name: table.to_dict("records") for name, table in tables.items()}
    about = {"dtype": str(policy.dtype), "repeats": repeats, "note": ""}
    _write(path, command, policy.device, about, rows)


def measure_targets(
    path: Path, device: torch.device, command: str, sizes: dict[str, Any] | None = None
) -> None:
    """Measure `targets` alone, and write the file anew after each shape.

    Args:
        sizes: as `targets.SIZES`, which None takes.
    """
    sizes = targets.SIZES if sizes is None else sizes
    tokenizer = load_policy("embedded", device="cpu").tokenizer
    repeats = sizes["step"]["repeats"]
    about = {"dtype": "torch.bfloat16", "repeats": repeats, "note": "Long runs: a single run."}
    rows: list[dict[str, Any]] = []
    for found in targets.by_shape(tokenizer, device, sizes=sizes):
        rows += found
        _write(path, command, device, about, {"targets": rows})


def _write(
    path: Path,
    command: str,
    device: torch.device,
    about: dict[str, Any],
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    result = {
        "command": command,
        "date": date.today().isoformat(),
        **provenance.git_state(),
        **provenance.environment(device),
        **about,
        "tables": tables,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with provenance.replacing(path) as new:
        new.write_text(json.dumps(result, indent=1) + "\n")


def read(path: Path) -> Stored:
    """A file that `measure` wrote.

    Raises:
        FileNotFoundError: it is not there.
    """
    import pandas as pd

    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is not there: nothing was measured in this profile; run the notebook with "
            "measure = True, which measures this machine"
        )
    about = json.loads(path.read_text())
    tables = {name: pd.DataFrame(rows) for name, rows in about.pop("tables").items()}
    return Stored(about, tables)


def origin(path: Path, stored: Stored, *, now: bool = False) -> Any:
    """One paragraph, Markdown for Jupyter: which machine was measured, when, and by which code.

    Args:
        now: this execution measured it, instead of only reading the file.
    """
    from IPython.display import Markdown

    about = stored.about
    device = f"{about['device'].upper()}, {about['threads']} threads"
    made = f"{device}, {about['dtype'].removeprefix('torch.')}, torch {about['packages']['torch']}"
    inside = path.resolve().is_relative_to(provenance.checkout())
    place = path.resolve().relative_to(provenance.checkout()) if inside else path.name
    source = (
        f"Measured now, and written to {place}."
        if now
        else f"Read from {place}, not measured now: to measure this machine, set measure to True."
    )
    once = about["repeats"] == 1
    note = f" {about['note']}" if about.get("note") else ""
    caution = " **A single run tells nothing of the noise: no evidence.**" if once else ""
    return Markdown(
        f"*Embedded model on {made}; measured on {about['date']}, {about['repeats']} "
        f"run{'s' * (not once)} of each side, commit {str(about['commit'])[:7]}.{note} {source}*{caution}"
    )


def longer(table: "pd.DataFrame", first: str, second: str) -> str:
    """How much longer one name takes than another, in a sentence; see `timing.ratio`."""
    size, low, high = timing.ratio(table, first, second)
    found = f"{size:.2f} times [{low:.2f}, {high:.2f}] as long as"
    if low <= 1 <= high:
        return f"**{first}** takes {found} {second}: the repeats do not tell them apart."
    return f"**{first}** takes {found} {second}."


def against(tables: "dict[str, pd.DataFrame]", rival: str, name: str = "engines") -> list[str]:
    """How many times as fast the engine is as a rival; or that the rival was not measured."""
    sentences = timing.against(tables[name], rival)
    return sentences or [f"{rival} was not measured: its environment was not there."]


# Steps that do nothing in one of the two decodings: what they read is the noise of the table.
WITHOUT_EFFECT = {("perturbed greedy", "whole batch"), ("top-p 0.9", "plain argmax")}


def noise_of_steps(table: "pd.DataFrame") -> float:
    """The largest factor by which a variant without an effect differs from the engine as it is."""
    idle = [x in WITHOUT_EFFECT for x in zip(table["decoding"], table["name"], strict=True)]
    return float(np.exp(np.log(table["slower_by"][idle]).abs().max()))


def steps(table: "pd.DataFrame") -> list[str]:
    """What each step of the engine saves, measured against the noise of the same table."""
    noise = noise_of_steps(table)
    idle = [
        f"{row.slower_by:.2f} ({row.name}, {row.decoding})"
        for row in table.itertuples(index=False)
        if (row.decoding, row.name) in WITHOUT_EFFECT
    ]
    sentences = [
        f"**Noise.** Two variants change nothing in their decoding, and yet read {' and '.join(idle)}: "
        f"a factor below {noise:.2f} says nothing here."
    ]
    for row in table.itertuples(index=False):
        if row.name == "as it is" or (row.decoding, row.name) in WITHOUT_EFFECT:
            continue
        factor = f"**{row.name}**, {row.decoding}: {row.slower_by:.2f} times as long"
        beyond = max(row.slower_by, 1 / row.slower_by) > noise
        sentences.append(f"{factor}{'.' if beyond else ', within that noise.'}")
    return sentences


def base_case(tables: "dict[str, pd.DataFrame]") -> "pd.DataFrame":
    """The rows of "scaling" at which nothing is varied: the same case, timed anew for each axis."""
    base = tables["base"].iloc[0]
    scaling = tables["scaling"]
    same = [
        base[axis] == value for axis, value in zip(scaling["axis"], scaling["value"], strict=True)
    ]
    return scaling[same]


def scaling(tables: "dict[str, pd.DataFrame]") -> list[str]:
    """How speed changes along each axis, against how far timings of the same case lie apart."""
    speeds = base_case(tables)["tokens_per_second"]
    spread = speeds.max() / speeds.min()
    read = ", ".join(f"{x:.0f}" for x in speeds)
    sentences = [
        f"**Noise.** One and the same case, timed anew for each axis, reads {read} tokens/s: timings "
        f"some minutes apart differ by up to a factor of {spread:.2f}."
    ]
    for axis, group in tables["scaling"].groupby("axis", sort=False):
        first, last = group.iloc[0], group.iloc[-1]
        factor = last["tokens_per_second"] / first["tokens_per_second"]
        change = (
            f"**{axis}** from {first['value']} to {last['value']}: {factor:.2f} times the speed"
        )
        beyond = max(factor, 1 / factor) > spread
        sentences.append(f"{change}{'.' if beyond else ', within that noise.'}")
    return sentences


def shares(tables: "dict[str, pd.DataFrame]") -> list[str]:
    """What share of the machine's bound the engine reaches, by responses and decoding."""
    ours = tables["engines"][tables["engines"]["name"] == "engine"]
    sentences = []
    for decoding, group in ours.groupby("decoding", sort=False):
        reached = ", ".join(f"{row.share:.0%} at {row.responses}" for row in group.itertuples())
        sentences.append(f"**{decoding}**: {reached} responses of the machine's bound.")
    return sentences


def limit(tables: "dict[str, pd.DataFrame]", tokens: int) -> list[str]:
    """How long a decoding step takes, beside the machine's bound, at the largest batch.

    Args:
        tokens: of each response in the table "steps".
    """
    bound = tables["limit"]["seconds"].sum()
    whole_engine = tables["steps"][tables["steps"]["name"] == "as it is"]
    return [
        f"With {row.decoding} decoding a step takes {1e3 * row.seconds / tokens:.0f} ms; its matrix "
        f"products and one reading of the cache alone take {1e3 * bound:.0f} ms."
        for row in whole_engine.itertuples(index=False)
    ]


def of_targets(stored: Stored) -> list[str]:
    """Where the targets were measured, and what stands behind each row of their table.

    Args:
        stored: a file of `measure` or `measure_targets` that has the table "targets".
    """
    about, table = stored.about, stored.tables["targets"]
    made = f"{about['device']}, {about['dtype'].removeprefix('torch.')}, torch {about['packages']['torch']}"
    where = f"Random weights on {made}; measured on {about['date']} by `{about['command']}`, "
    where += f"commit {str(about['commit'])[:7]}. {about['note']}".rstrip()
    missing = [x for x in targets.SHAPES if x not in set(table["shape"])]
    left = [f"{', '.join(missing)}: not measured."] if missing else []
    return [where, *targets.notes(table), *left]


def targets_met(stored: Stored) -> str:
    """How many of the targets for CUDA are met, and which are not."""
    table = stored.tables["targets"]
    table = table[table["met"] != "not measured"]
    missed = table[table["met"] == "no"]
    names = "; ".join(
        f"{row.shape}, {row.name} ({row.measured:.2f} {row.unit}, {row.goal} {row.target:g} wanted)"
        for row in missed.itertuples(index=False)
    )
    said = f"Of {len(table)} targets for CUDA, {len(table) - len(missed)} are met on {stored.about['device']}"
    return f"{said}; missed: {names}." if names else f"{said}."


def memory(table: "pd.DataFrame") -> str:
    """The peaks of the two methods."""
    peak = table.set_index("name")["MiB"]
    share = peak["aisp"] / peak["best_of_n"]
    return (
        f"AISP peaks at {peak['aisp']:,.0f} MiB, best-of-n at {peak['best_of_n']:,.0f} MiB: "
        f"{share:.3f} times as much."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the targets for CUDA, and print them."""
    parser = argparse.ArgumentParser(
        "python -m aisp.experiment.speed.runtime", description=main.__doc__
    )
    parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error(f"the targets are for CUDA, and torch {torch.__version__} finds no GPU")
    path = records_path("targets", "gpu").with_suffix(".json")
    measure_targets(path, torch.device("cuda"), "python -m aisp.experiment.speed.runtime")
    table = read(path).tables["targets"]
    print(table.drop(columns="note").round(2).to_string(index=False, na_rep=""))
    print("\n".join(targets.notes(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
