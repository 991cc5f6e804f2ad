"""Notebook 12: rewards that a program checks, where no judge is needed. The protocol.

First written down before any prompt of the test half was decoded, and changed twice, as said below,
before any record of the comparison was looked at. (Of two test prompts that are not in it, checks of
the notebook at toy size had decoded a few samples.)

- Question: where the reward is a program's verdict, which method finds a response that passes in the
  fewest samples? And does what it finds do more than pass?
- Prompts: data/verifiable.jsonl, whose test half has a sibling for each prompt of its dev half. Of the
  dev half it is counted how many of 32 samples of the policy pass. Trials use 8 of the dev prompts of
  which 1 to 4 did, the comparison 24 siblings of such ones (`SIZES`, evenly spaced in the file): where
  many pass, every method has one at once, and where none does, nothing is learned.
  (First it was to be 48 prompts whatever their rate. The trials, on dev prompts, showed that all
  rows then pass within the first 16 samples; this was changed before any record of a test prompt was
  looked at; a few that had been begun were deleted.)
- Reward: the share of a prompt's checks that hold, strictly (`aisp.rewards.verifiable`).
- Rows: best-of-n, noise only, AISP as published but for lam, and the two rows that notebook 11 found
  highest: AISP by exact scores, and the control variate at the first steps. The policy itself, at
  temperature 1, is shown beside them, and makes the curve of pass@k.
- Trials: three for each row's dial, at seed 0, by the mean of `soon`, the first of equals. Noise only
  has its sigma, which AISP and the control variate take; best-of-n its temperature, which the exact
  scores take. Their own dial is lam: this reward's spread is far below the 1 for which the
  published lam was chosen.
- Budget: 128 samples (16 x 8) of at most 64 tokens; seeds 0, 1, 2, each computed as a whole.
- Measures, by prompt and seed: `soon`, the share of the iterations after which a response was at hand
  that passes all checks strictly; `strict`, whether the best response does in the end; `loose`, the
  same by IFEval's loose reading; `passing`, the share of all samples of the run that pass strictly
  (added after the trials, while the first records of the comparison were computed and before any was
  looked at: what adaptation makes of the samples shows here also where the first iteration has found
  one).
- Primary contrast, one: `PRIMARY` by `soon`, on all prompts of the comparison. Its 95% interval
  (bootstrap over prompts, then seeds within a prompt) above 0 confirms it, and so on as in notebook 11.
- Secondary contrasts: `SECONDARY` by all four, and the primary pair by the other three;
  p-values adjusted by Holm together.
- A further row, MISVO without regularization, declared after all of the above was computed and before it
  decoded any of these prompts, because it stood highest in notebook 11 by then. Its dial is step_size,
  with as many trials; its contrasts are `FURTHER`, by all four, a family of their own.

    python -m aisp.experiment.studies.verified rates
    python -m aisp.experiment.studies.verified tune
    python -m aisp.experiment.studies.verified run --seeds 0,1,2

compute the records in data/results/<profile>/verified_*.jsonl; what is there is not computed again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisp.checks import choice
from aisp.experiment import records as experiment
from aisp.experiment.profiles import PROFILES, TOYS, file_name, records_path
from aisp.experiment.report import tables
from aisp.experiment.report.comparisons import whole_seeds
from aisp.experiment.store.reading import load
from aisp.experiment.studies import contenders
from aisp.experiment.studies.beyond import add_options, opened
from aisp.experiment.studies.contenders import (
    AISP,
    BEST,
    MISVO_FREE,
    NOISE,
    SCORES,
    STEERED,
    Contender,
)
from aisp.policy import Policy
from aisp.prompts import Prompt, load_prompts
from aisp.provenance import data_path
from aisp.rewards.base import Reward
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd

POLICY = "the policy"
ITSELF = {"method": "best_of_n", "top_p": 1.0, "temperature": 1.0}
_LAM = ("lam", (0.05, 0.15, 0.5))
_SIGMA = contenders.CONTENDERS[NOISE].tried
ROWS: contenders.Rows = {
    BEST: contenders.CONTENDERS[BEST],
    NOISE: contenders.CONTENDERS[NOISE],
    AISP: Contender({"method": "aisp"}, *_LAM, also={"sigma": NOISE}),
    STEERED: Contender(
        contenders.CONTENDERS[STEERED].method, *_LAM, steered=True, also={"sigma": NOISE}
    ),
    MISVO_FREE: Contender(contenders.CONTENDERS[MISVO_FREE].method, "step_size", (5.0, 15.0, 50.0)),
    SCORES: Contender({"method": "aisp_scores"}, *_LAM, also={"temperature": BEST}),
}
LABELS = [POLICY, *ROWS]
PRIMARY = (SCORES, BEST)
SECONDARY = (
    (STEERED, BEST),
    (AISP, BEST),
    (NOISE, BEST),
    (SCORES, STEERED),
    (SCORES, AISP),
    (AISP, NOISE),
)
FURTHER = ((MISVO_FREE, BEST), (MISVO_FREE, SCORES))
MEASURES = ("soon", "strict", "loose", "passing")
CATEGORIES = ("instructions", "arithmetic")
SIZES = {"dev": (5, 3), "test": (16, 8)}  # prompts of each category
SAMPLES, FEW = 32, (1, 4)  # samples of each dev prompt, and of how many of them are to pass
BUDGET = {"n": 16, "kappa": 8, "max_new_tokens": 64}


def size(profile: str = "cpu") -> dict[str, int]:
    """n, kappa and max_new_tokens; under a toy profile its own."""
    return {name: (PROFILES[profile] if profile in TOYS else BUDGET)[name] for name in BUDGET}


def half(split: str, profile: str = "cpu") -> list[Prompt]:
    """All prompts of the "dev" or the "test" half."""
    prompts = load_prompts(data_path("verifiable.jsonl"), split=choice("split", split, list(SIZES)))
    if profile in TOYS:
        firsts = [next(p for p in prompts if p.category == category) for category in CATEGORIES]
        return firsts
    return prompts


def prompts_of(split: str, profile: str = "cpu", folder: Path | None = None) -> list[Prompt]:
    """The prompts of the trials ("dev") or of the comparison ("test").

    Raises:
        FileNotFoundError: the rates of the dev half are not there, which decide.
    """
    prompts = half(split, profile)
    if profile in TOYS:
        return prompts
    solved = counts(load(path_of("rates", profile, folder)))
    few = {x.replace("-dev-", f"-{split}-") for x, n in solved.items() if FEW[0] <= n <= FEW[1]}
    chosen = []
    for category, limit in zip(CATEGORIES, SIZES[split], strict=True):
        of = [p for p in prompts if p.category == category and p.id in few]
        chosen += [of[i * len(of) // limit] for i in range(limit)]
    return chosen


def counts(rates: "pd.DataFrame") -> dict[str, int]:
    """Id of a dev prompt -> how many of its samples pass all checks, from `rates`."""
    return {p: sum(h["solved"]) for p, h in zip(rates["prompt"], rates["history"], strict=True)}


def asked(
    source: str | None, limit: int | None = None, profile: str = "cpu"
) -> tuple[str, list[Prompt]]:
    """What notebook 12 compares on: the name of its records, and the prompts.

    Args:
        source: as `load_prompts` takes it; None is the comparison of the protocol, which has no limit.
    """
    if source is None:
        if limit is not None:
            raise ValueError(f"limit is {limit!r} without prompts; name a source, or leave it out")
        return "test", prompts_of("test", profile)
    limit = PROFILES[profile]["n_prompts"] if profile in TOYS else limit
    kind = Path(source.rpartition(":")[2]).name
    return file_name(kind.split(".")[0]), load_prompts(source, limit=limit)


def path_of(part: str, profile: str = "cpu", folder: Path | None = None) -> Path:
    """Where the records of "tune" or of "test" lie."""
    return records_path(f"verified_{part}", profile, folder)


def rates(
    policy: Policy,
    reward: Reward,
    profile: str = "cpu",
    folder: Path | None = None,
    **options: Any,
) -> "pd.DataFrame":
    """Compute the missing records of the policy's own samples for the dev half, and return all.

    Args:
        **options: of `experiment.run`.
    """
    n = PROFILES[profile]["n"] if profile in TOYS else SAMPLES
    sampling = ITSELF | size(profile) | {"n": n, "kappa": 1}
    path, prompts = path_of("rates", profile, folder), half("dev", profile)
    return experiment.run(path, {POLICY: sampling}, prompts, policy, reward, **options)


def tune(
    policy: Policy,
    reward: Reward,
    profile: str = "cpu",
    folder: Path | None = None,
    **options: Any,
) -> dict[str, float]:
    """Compute the trials that are missing, and choose.

    Args:
        **options: of `experiment.run`.
    """
    path, budget = path_of("tune", profile, folder), size(profile)
    prompts = prompts_of("dev", profile, folder)
    values: dict[str, float] = {}
    for label in ROWS:  # in order: a row that takes a value of another one comes after it
        asked = contenders.trials(budget, [label], values, ROWS)
        found = experiment.run(path, asked, prompts, policy, reward, **options)
        values |= contenders.tuned(by_soon(found), [label], ROWS)
    return values


def by_soon(records: "pd.DataFrame") -> "pd.DataFrame":
    """Records with `soon` in the place of their reward."""
    return records.assign(reward=[soon(h) for h in records["history"]])


def run(
    policy: Policy,
    reward: Reward,
    *,
    prompts: Sequence[Prompt] | None = None,
    name: str = "test",
    seeds: Sequence[int] = (0,),
    profile: str = "cpu",
    folder: Path | None = None,
    **options: Any,
) -> "pd.DataFrame":
    """Compute the records of the comparison that are missing, seed by seed, and return all of them.

    Args:
        prompts: others than those of the protocol, and the name of their records.
        **options: of `experiment.run`.

    Raises:
        ValueError: trials that are not complete.
        FileNotFoundError: no trials.
    """
    prompts = prompts_of("test", profile, folder) if prompts is None else prompts
    trials = by_soon(load(path_of("tune", profile, folder)))
    chosen = contenders.tuned(trials, ROWS, ROWS)
    methods = {POLICY: ITSELF | size(profile)}
    methods |= contenders.rows(size(profile), chosen, ROWS, ROWS)
    path = path_of(name, profile, folder)
    for seed in seeds:
        found = experiment.run(path, methods, prompts, policy, reward, seeds=[seed], **options)
    return found


def whole(records: "pd.DataFrame") -> "pd.DataFrame":
    """The seeds in which all rows of the protocol are whole, and a row declared later if it is in these."""
    later = {first for first, _ in FURTHER}
    first = whole_seeds(records, [x for x in LABELS if x not in later])
    both = whole_seeds(records, LABELS)
    return both if set(both["seed"]) == set(first["seed"]) else first


def soon(history: dict[str, list[float]]) -> float:
    """Share of the iterations after which a response that passes all checks was at hand."""
    best = history["reward_best"]
    return sum(x == 1 for x in best) / len(best)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the records of notebook 12."""
    parser = argparse.ArgumentParser(
        "python -m aisp.experiment.studies.verified", description=main.__doc__
    )
    parser.add_argument("action", choices=["rates", "tune", "run"])
    add_options(parser)
    given = parser.parse_args(argv)
    try:
        seeds, policy = opened(given)
        reward = load_reward("verifiable")
        command = f"python -m aisp.experiment.studies.verified {given.action}"
        options = {"batch": given.batch, "command": command}
        if given.action == "tune":
            print(tune(policy, reward, **options))
            return 0
        if given.action == "rates":
            records = rates(policy, reward, **options)
        else:
            options["command"] += f" --seeds {given.seeds}"
            records = run(policy, reward, seeds=seeds, **options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(tables.markdown(tables.table(records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
