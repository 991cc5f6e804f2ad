"""`python -m aisp.experiment show NAME.jsonl`: print the tables of a file of records."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aisp.display import printable
from aisp.experiment.report import answers, tables
from aisp.experiment.store import reading

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of a records file; exit with status 1 if it has failed records."""
    parser = argparse.ArgumentParser(prog="python -m aisp.experiment", description=main.__doc__)
    parser.add_argument("action", choices=["show"])
    parser.add_argument("records", type=Path)
    parser.add_argument("--format", choices=["text", "markdown", "latex"], default="text")
    parser.add_argument("--against", metavar="LABEL", help="add differences to this method")
    parser.add_argument("--answers", action="store_true", help="print every answer as well")
    args = parser.parse_args(argv)
    try:
        records = reading.load(args.records)
    except (OSError, ValueError) as error:
        parser.error(printable(str(error)))
    if records.empty:
        parser.error(f"{args.records} holds no records")
    if args.against not in {None, *records["label"]}:
        known = ", ".join(map(printable, records["label"].unique()))
        parser.error(f"no label {args.against!r}; there are: {known}")
    if args.answers:
        print(answers.as_text(records) + "\n")
    print(_shown(records, args.against, args.format))
    failed = records[records["error"].notna()]
    for one in failed.itertuples():
        label, prompt, why = (printable(str(x)) for x in (one.label, one.prompt, one.error))
        print(f"failed: {label}, {prompt}, seed {one.seed}: {why}", file=sys.stderr)
    return int(len(failed) > 0)


def _shown(records: "pd.DataFrame", against: str | None, style: str) -> str:
    """The tables as text. Whatever labels and prompts hold, a terminal can show it."""
    cells = tables.table(records, against)
    if style != "text":
        return {"markdown": tables.markdown, "latex": tables.latex}[style](cells)
    per_prompt = tables.comparison(records, records["label"].unique())
    if "prompt_text" in per_prompt:
        per_prompt["prompt"] = per_prompt.pop("prompt_text").str.slice(0, 48)
    per_prompt["prompt"] = per_prompt["prompt"].map(printable)
    per_prompt = per_prompt.round(2).rename(columns=printable)
    cells = cells.rename_axis(None).rename(index=printable, columns=printable)
    return per_prompt.to_string(index=False) + "\n\n" + cells.to_string()


if __name__ == "__main__":
    sys.exit(main())
