"""Experiments: methods x prompts x seeds -> records on disk -> tables.

- `profiles`: what notebooks run at, and where their records lie; `parameters`: what a notebook or a
  file of parameters may set, and errors for the rest;
- `records`: `run`, which writes one record per (method, prompt, seed) and resumes; `batches`: how
  many prompts it decodes at once; `spread`: the same on Ray;
- `identity`: what tells records apart; `store`: their file, locked and never lost, and reading it;
- `reuse`: starting a file with what other notebooks computed under the same settings;
- `report`: records to measures, tables, sentences and examples;
- `studies`: the experiments of the notebooks;
- `recommend`: which method at which budget; `readme`: this and other results that stand in README.md;
- `speed`: how fast engine and methods are;
- `hub`, `hub_checks`: the models and data sets of notebooks/params, on the Hugging Face hub.

    python -m aisp.experiment show NAME.jsonl --format markdown --against LABEL
"""

from aisp.experiment.profiles import PROFILES, TOYS, records_path, settings
from aisp.experiment.records import run
from aisp.experiment.report.tables import (
    comparison,
    paired,
    paired_by_iteration,
    summary,
    table,
    with_histories,
)
from aisp.experiment.reuse import take_over
from aisp.experiment.store.reading import load, stored_dtype
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
