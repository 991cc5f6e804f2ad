"""Training of the embedded judge: `python -m aisp.training.judge PAIRS` writes data/judge/.

The same regression as the embedded reward's (`aisp.training.preference_head`), on the features of a
sentence encoder and on other pairs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from aisp.policy import load_policy
from aisp.preference_data import hh_pairs
from aisp.prompts import load_prompts
from aisp.provenance import data_path
from aisp.rewards.head import Head
from aisp.rewards.judge import first_layers
from aisp.training.preference_head import calibrate, row_of, select, write


def main(argv: Sequence[str] | None = None) -> None:
    """Choose a layer by cross-validation, fit, test on all earlier pairs, scale, write, report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pairs", help="HH-RLHF style JSONL (.gz): chosen, rejected")
    parser.add_argument("--fitted-from", type=int, default=1400, help="first row to fit on")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--out", type=Path, default=data_path("judge"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pairs = hh_pairs(args.pairs)
    texts = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    f = torch.stack([first_layers(layer).embed(texts) for layer in args.layers], 1)
    fitted = torch.tensor([row_of(p) >= args.fitted_from for p in pairs])
    names = [(layer,) for layer in args.layers]
    k, w, report = select(f.unflatten(0, (2, len(pairs))), fitted, names, seed=args.seed)
    encoder = first_layers(args.layers[k])

    def values(prompts, responses):
        return encoder.embed(responses).double() @ w.double()

    dev = load_prompts("builtin", split="dev")
    center, scale = calibrate(load_policy("embedded"), values, dev, args.seed)
    report["seed"] = args.seed
    write(args.out, Head(w, center, scale, args.layers[k], encoder.pooling), report)


if __name__ == "__main__":
    main()
