"""Experiments: methods x prompts x seeds -> records on disk -> tables.

- `profiles`: what notebooks run at, and where their records lie;
- `records`: `run`, which writes one record per (method, prompt, seed) and resumes; `batches`: how
  many prompts it decodes at once; `cluster`: its workers on Ray, `workers` what lives in their
  processes, `travel` what reaches them, `scaling` how much faster it gets;
- `identity`: what tells records apart; `store`: their file, locked and never lost, and reading it;
- `reuse`: starting a file with what other notebooks computed under the same settings;
- `tables`: records to means with intervals, differences and printed tables;
- `answers`: the answers themselves, side by side and as examples chosen by a rule;
- `measures`: diversity, coherence and more of the responses in records;
- `main_results`, `ablations`: what notebooks 06 and 07 run, and their tables; `comparisons` and
  `dials` are more of these, `prompt_sets` the main comparison on all sets of prompts;
- `drift`, `beyond`: why the mean of AISP drifts (notebook 10), and the protocol and rows of the
  comparison at equal budgets (notebook 11); `prefix_share`, `steering`: where in time the signal is,
  and how far AISP and MISVO steer (notebook 10);
- `contenders`: the rows that notebook 11 compares; `declared`: contrasts that were declared before
  they were computed; `recommend`: which method at which budget, as README says it;
- `verified`, `passing`: the comparison under rewards that a program checks, and its tables (notebook 12);
- `pool`, `selection`: every candidate of a run in numbers, and what other rules would have returned;
- `findings`: results in words, decided by intervals; `readme`: those that stand in README.md;
- `parameters`: what a notebook or a file of parameters may set, and errors for the rest;
- `prelogits`: real pre-logits, measured once for notebook 01;
- `bench`: how fast methods are (`make bench`), with the clock of `timing`; `engines`: our engine beside
  generate and vLLM (`bench_vllm`); `whole_runs`: AISP beside best-of-n; `targets`: those for CUDA;
  `runtime`: all measurements in one file, and in sentences (notebook 08).

    python -m aisp.experiment show NAME.jsonl --format markdown --against LABEL
"""

from aisp.experiment.profiles import PROFILES, TOYS, records_path, settings
from aisp.experiment.records import run
from aisp.experiment.reuse import take_over
from aisp.experiment.store.reading import load, stored_dtype
from aisp.experiment.tables import (
    comparison,
    paired,
    paired_by_iteration,
    summary,
    table,
    with_histories,
)
from aisp.intervals import bootstrap

__all__ = [
    "PROFILES",
    "TOYS",
    "bootstrap",
    "comparison",
    "load",
    "paired",
    "paired_by_iteration",
    "records_path",
    "run",
    "settings",
    "stored_dtype",
    "summary",
    "table",
    "take_over",
    "with_histories",
]
