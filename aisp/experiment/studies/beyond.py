"""Notebook 11: with a budget of N samples, which method finds the best response? The protocol.

The protocol, written down before any prompt of a test set was decoded by it:

- Question: does the mean of the perturbation buy anything, once the noise of its update is taken
  out, over sampling at a well-chosen temperature with the same number of samples?
- Rows: see `aisp.experiment.studies.contenders`. The first group: best-of-n at its tuned temperature; noise only; AISP as published (alpha 0.99,
  lam 1); alpha 1 with the control variate; the same with U moving at the first third of the steps.
- Prompts: the built-in test set (32), then SHP and HH-RLHF (32 each), as in notebook 06. Trials use
  the first 8 built-in development prompts and nothing else (12 were planned; the time that the
  first trial took, and no result, made them 8).
- Trials: three for each of best-of-n (temperature), noise only, AISP, and the variant (sigma), at
  seed 0 and the main budget; the value with the highest mean reward is taken, the first of equals.
  The variant without the restriction to the first steps has the variant's sigma: it is its ablation.
- Budgets: 128 samples (main, 16 x 8), 512 (16 x 32) and 1,024 (32 x 32), of at most 48 tokens.
- Seeds: 0, 1, 2 at 128 samples, computed in this order; fewer at the larger budgets. All rows have
  the same seeds and prompts before anything is compared.
- Stopping: a (set, budget, seed) is computed as a whole, in the order 128 samples of the built-in
  set, 512 samples of it, then the other sets. No result decides what is computed next. What a limit
  of time cut off is left out of the comparison and computed later, under the same settings.
- Charged: samples, tokens decoded, reward calls and seconds; trials are counted beside them.
- Primary contrast, one: `contenders.PRIMARY`, the variant minus best-of-n at its tuned temperature, by the
  reward, at 128 samples of the built-in test set. Its 95% interval (bootstrap over prompts, then
  seeds within a prompt) above 0 confirms it; one that contains 0 leaves it undecided, and one below
  0 refutes it.
- Secondary contrasts: `contenders.SECONDARY`, by reward and by judge, and the primary pair by the judge; their
  p-values are adjusted by Holm within one group, set and budget. A gain that the judge does not
  share is called a gain in the reward only.
- All three sets together: the same contrasts once more, as a group of their own, over the seeds that every
  set has. (Declared when SHP and HH-RLHF were started, before any of their records was looked at; so
  was the answer of the README at 128 samples, which is taken from them as soon as they are stored, and
  that AISP by exact scores is computed for every set and budget beside the first group.)
- The second group was declared while records of the first were computed, before any of them was
  looked at, and before any of its own rows decoded a test prompt: RAM beside RAM with an untrained
  aligner, and MISVO with its two ablations. Its trials are as many, on the same prompts; it has no
  primary contrast. (The steps that MISVO's trials have were chosen after notebook 10 had tried some
  on other development prompts.) A row that takes another row's value is said to in
  `contenders.CONTENDERS`.
- The third group was declared after seed 0 of the first one had been looked at, and before any of its
  own rows decoded a test prompt: samplers of the exact target that AISP replaces by a
  Gaussian, AISP by exact scores of the tokens (MISVO with AISP's weights), and speculative rejection.
  Their base law is the tuned one of best-of-n or of noise only, and each has one dial of its own. As
  many trials, no primary contrast. (What is tried was chosen after tempered SMC at lam = 0.2 and
  QAlign at lam = 0.5 had been run once on the prompts of the trials.)
- The fourth group is a control for the first, declared after all of the above was computed but the rest of the
  second and third groups, and before it decoded a test prompt: alpha = 1 without the control variate, with
  the variant's sigma. Two contrasts, by reward and by judge: it minus AISP, which also contains their sigmas, and
  the control variate minus it.
- When the second and third groups were whole on the built-in set, MISVO without regularization stood highest
  there of the rows that need no training. So it is to be computed for SHP and HH-RLHF, and at the larger
  budgets, as AISP by exact scores was: this was declared before it decoded any of their prompts.
- The 1,024 samples are computed on a GPU, all rows of a (set, budget, seed) on the same one, for which the
  first group, AISP by exact scores, MISVO without regularization and alpha = 1 are declared: seeds 0, 1, 2 of
  the built-in set, then the other two sets seed by seed, as far as the time with the GPU goes. On a CPU 16
  prompts of a set had been planned; with the GPU it is all 32. (Declared before anything was decoded with
  1,024 samples.) The trials' values stay those found with 128 samples on a CPU. A GPU draws other random numbers,
  so that its records are compared with each other only.
- RAM is the one row that needs training for the reward (its aligner). Where it stands highest, the README
  names the highest of the others beside it, and its advice is of the others alone. (Declared before RAM
  decoded any of these test prompts at its tuned temperature; that it led by the reward at another
  temperature was known from notebook 06.)
- Not declared, and added after all of the above was computed: an independent review found that the responses of
  MISVO without regularization are no texts, and that the judge prefers short ones. So the judge is also asked at
  equal length (`measures.at_length`), and a row whose responses have more than twice best-of-n's surprisal per
  token under the policy is not advised (`standing.astray`). The declared contrasts stay as they were.

    python -m aisp.experiment.studies.beyond tune
    python -m aisp.experiment.studies.beyond run --set builtin --budget 128 --seeds 0,1,2

(with `--groups second,third` for the other groups) compute the records in data/results/<profile>/beyond_*.jsonl, one file for each set, budget and group; what
is there is not computed again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aisp.checks import choice, whole
from aisp.experiment import records as experiment
from aisp.experiment.profiles import PROFILES, TOYS, records_path
from aisp.experiment.report import measures, tables
from aisp.experiment.store.reading import load
from aisp.experiment.studies import ablations
from aisp.experiment.studies.contenders import (
    BEST,
    GROUPS,
    of_groups,
    rows,
    trials,
    tried,
    tuned,
)
from aisp.policy import Policy, load_policy
from aisp.prompts import Prompt, load_prompts
from aisp.rewards.base import Reward
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd

FIRST = GROUPS["first"]
DEVELOPMENT = 8  # prompts that the trials use

# Sets of prompts: source, split, offset, as in notebooks/params/cpu*.yaml.
SETS: dict[str, tuple[str, str | None, int]] = {
    "builtin": ("builtin", "test", 0),
    "shp": ("shp:../shared/data/shp_test_prompts_0-599.jsonl.gz", None, 0),
    "hh": ("hh:../shared/data/hh_rlhf_harmless_base_test_0-1799.jsonl.gz", None, 1600),
}
BUDGETS = {128: (16, 8), 512: (16, 32), 1024: (32, 32)}  # samples: n, kappa
N_PROMPTS = 32


def size(samples: int, profile: str = "cpu") -> dict[str, int]:
    """n, kappa and max_new_tokens of a budget; under a toy profile its own."""
    if profile in TOYS:
        return {name: PROFILES[profile][name] for name in ("n", "kappa", "max_new_tokens")}
    if samples not in BUDGETS:
        raise ValueError(f"budget is {samples!r}; known: {', '.join(map(str, BUDGETS))} samples")
    n, kappa = BUDGETS[samples]
    return {"n": n, "kappa": kappa, "max_new_tokens": 48}


def development(profile: str = "cpu") -> list[Prompt]:
    """The prompts that the trials use."""
    return load_prompts("builtin", split="dev", limit=_few(DEVELOPMENT, profile))


def prompts_of(which: str, profile: str = "cpu") -> list[Prompt]:
    """The prompts of one of SETS: its first N_PROMPTS from its offset on."""
    source, split, offset = SETS[choice("set", which, list(SETS))]
    limit = _few(N_PROMPTS, profile)
    return load_prompts(source, split=split, limit=limit, offset=offset)


def seed_list(given: str) -> list[int]:
    """Seeds from a text that separates them by commas, such as "0,1,2".

    Raises:
        ValueError: anything else, or a seed twice.
    """
    parts = given.split(",") if isinstance(given, str) else []
    found = [int(x) for x in parts if x.strip().isdecimal()]
    if not found or len(found) < len(parts) or len(set(found)) < len(found):
        raise ValueError(
            f"seeds is {given!r}; it must be different whole numbers >= 0 as a text that separates "
            "them by commas, such as '0,1,2'"
        )
    return found


def _few(number: int, profile: str) -> int:
    return PROFILES[profile]["n_prompts"] if profile in TOYS else number


def path_of(part: str, profile: str = "cpu", folder: Path | None = None) -> Path:
    """Where the records of "tune" or of SET_BUDGET lie, those of its first group."""
    return records_path(f"beyond_{part}", profile, folder)


def paths(
    which: str, samples: int, profile: str = "cpu", folder: Path | None = None
) -> dict[str, Path]:
    """Group of rows -> where its records of a set and budget lie, or will."""
    part = f"{which}_{samples}"
    names = {group: part if group == "first" else f"{part}_{group}" for group in GROUPS}
    return {group: path_of(name, profile, folder) for group, name in names.items()}


def tune(
    policy: Policy,
    reward: Reward,
    profile: str = "cpu",
    folder: Path | None = None,
    labels: Sequence[str] = FIRST,
    **options: Any,
) -> dict[str, float]:
    """Compute the trials of these rows that are missing, and choose.

    Args:
        labels: of CONTENDERS.
        **options: of `experiment.run`.
    """
    path = path_of("tune", profile, folder)
    prompts, budget = development(profile), size(128, profile)
    values: dict[str, float] = {}
    for label in tried(labels):  # in order: a row that takes a value of another one comes after it
        asked = trials(budget, [label], values)
        found = experiment.run(path, asked, prompts, policy, reward, **options)
        values |= tuned(found, [label])
    return values


def run(
    which: str,
    samples: int,
    policy: Policy,
    reward: Reward,
    *,
    seeds: Sequence[int] = (0,),
    labels: Sequence[str] = FIRST,
    profile: str = "cpu",
    folder: Path | None = None,
    **options: Any,
) -> "pd.DataFrame":
    """Compute the records of a set and budget that are missing, seed by seed, each group's in a file.

    Args:
        which: one of SETS.
        samples: one of BUDGETS.
        labels: of CONTENDERS.
        **options: of `experiment.run`.

    Returns:
        All records of the files that have these rows.

    Raises:
        ValueError: an unknown set, budget or row; trials that are not complete.
        FileNotFoundError: no trials, or no file of the set's prompts.
    """
    import pandas as pd

    prompts = prompts_of(which, profile)
    chosen = tuned(load(path_of("tune", profile, folder)), labels)
    methods = rows(size(samples, profile), chosen, labels)
    found = {}
    for seed in seeds:
        for group, path in paths(which, samples, profile, folder).items():
            own = {x: methods[x] for x in GROUPS[group] if x in methods}
            if own:
                options["seeds"] = [seed]
                found[path] = experiment.run(path, own, prompts, policy, reward, **options)
    return pd.concat(found.values(), ignore_index=True)


def along(
    which: str,
    samples: int,
    shown: "pd.DataFrame",
    policy: Policy,
    judge: Reward,
    profile: str = "cpu",
    folder: Path | None = None,
) -> tuple["pd.DataFrame", Path]:
    """What rows had found after 1, 2, 4, ... iterations, from `ablations.by_budget`, and its file.

    The table is kept beside the records, and read from there as long as they are the same.

    Args:
        shown: records of one of SETS and BUDGETS.
        judge: scores every response.
    """
    files = paths(which, samples, profile, folder)
    labels, seeds = list(shown["label"].unique()), sorted(shown["seed"].unique().tolist())

    def compute() -> "pd.DataFrame":
        series = ablations.Question("samples", {"all": {x: x for x in labels}})
        prompts = prompts_of(which, profile)
        return ablations.by_budget(shown, series, prompts, policy, judge).round(5)

    sources = [x for group, x in files.items() if set(GROUPS[group]) & set(labels)]
    about = {"policy": policy.name, "judge": judge.name, "seeds": seeds, "labels": labels}
    path = files["first"].with_name(f"{files['first'].stem}_budget.csv")
    return measures.computed_once(path, sources, compute, **about), path


def at_length(
    which: str,
    samples: int,
    records: "pd.DataFrame",
    judge: Reward,
    profile: str = "cpu",
    folder: Path | None = None,
) -> "pd.DataFrame":
    """`measures.at_length` against best-of-n, kept beside the records; see `along`.

    Args:
        records: all of one of SETS and BUDGETS.
    """
    files = paths(which, samples, profile, folder)

    def compute() -> "pd.DataFrame":
        return measures.at_length(records, BEST, prompts_of(which, profile), judge).round(5)

    path = length_path(files["first"])
    sources = [x for x in files.values() if x.exists()]
    return measures.computed_once(path, sources, compute, judge=judge.name, base=BEST)


def length_path(first: Path) -> Path:
    """Where `at_length` lies beside the records of the first group."""
    return first.with_name(f"{first.stem}.at_length.csv")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a command that computes records is told of seeds and the machine; see `opened`."""
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--batch", type=int, default=8, help="prompts decoded together")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; None leaves it")


def opened(given: argparse.Namespace) -> tuple[list[int], Policy]:
    """The seeds and the embedded policy, as `add_options` was answered.

    Raises:
        ValueError: what is no list of seeds or no number of threads.
    """
    seeds = seed_list(given.seeds)
    if given.threads is not None:
        torch.set_num_threads(whole("threads", given.threads, least=1))
    return seeds, load_policy("embedded", device=given.device, dtype=given.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the records of notebook 11."""
    parser = argparse.ArgumentParser(
        "python -m aisp.experiment.studies.beyond", description=main.__doc__
    )
    parser.add_argument("action", choices=["tune", "run"])
    parser.add_argument("--set", default="builtin", choices=list(SETS))
    parser.add_argument("--budget", type=int, default=128, choices=list(BUDGETS))
    parser.add_argument("--groups", default="first", help=f"of {', '.join(GROUPS)}; first,second")
    parser.add_argument("--rows", help="labels in place of groups, separated by semicolons")
    add_options(parser)
    given = parser.parse_args(argv)
    try:
        seeds, policy = opened(given)
        labels = (
            [x.strip() for x in given.rows.split(";")] if given.rows else of_groups(given.groups)
        )
        reward = load_reward("embedded", policy=policy)
        command = f"python -m aisp.experiment.studies.beyond {given.action}"
        command += f" --rows '{given.rows}'" if given.rows else f" --groups {given.groups}"
        if given.action == "tune":
            print(tune(policy, reward, labels=labels, batch=given.batch, command=command))
            return 0
        command += f" --set {given.set} --budget {given.budget} --seeds {given.seeds}"
        command += (
            "" if given.device == "cpu" else f" --device {given.device} --batch {given.batch}"
        )
        options = {"batch": given.batch, "command": command}
        records = run(
            given.set, given.budget, policy, reward, seeds=seeds, labels=labels, **options
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(tables.markdown(tables.table(records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
