"""The embedded judge: a second preference head, to look at what the first one was searched for.

reward(x, y) = (w . f(y) - center) / scale, where f is the mean over the tokens of a layer of the
embedded sentence encoder, at unit length: another model than the one that writes and is scored, and
w is fitted on other human preference pairs (rows 1400 on) than the embedded reward (rows up to
1399). It reads the response alone, not the prompt. Where a search raises the one and not the other,
it has exploited the one. `python -m aisp.judge PAIRS` trains it and writes data/judge/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aisp.encoder import SentenceEncoder, load_encoder
from aisp.provenance import data_path
from aisp.reward_head import Head
from aisp.rewards import Reward


class EmbeddedJudge(Reward):
    """A preference head on a sentence encoder; `load_reward("embedded-judge")` gives the stored one.

    Over responses of the embedded policy to one prompt its scores have a standard deviation of about
    1 (root mean square over the built-in development prompts), as those of the embedded reward.
    """

    name = "embedded-judge"

    def __init__(self, encoder: SentenceEncoder, head: Head):
        self.encoder, self.head = encoder, head

    @classmethod
    def load(cls, device: str | torch.device = "cpu") -> "EmbeddedJudge":
        """The head shipped with the package, on the embedded sentence encoder."""
        path = data_path("judge/head.safetensors")
        head = Head.load(path)
        judge = cls(_encoder(head.layer, device), head)
        judge.files = (path,)
        return judge

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        f = self.encoder.embed(responses)
        return (f.double() @ self.head.w.double() - self.head.center) / self.head.scale


def _encoder(layers: int, device: str | torch.device = "cpu") -> SentenceEncoder:
    encoder = load_encoder("embedded", device=device)
    encoder.model.encoder.layer = encoder.model.encoder.layer[:layers]
    return encoder


def main(argv: Sequence[str] | None = None) -> None:
    """Choose a layer by cross-validation, fit, test on all earlier pairs, scale, write, report."""
    from aisp.policy import load_policy
    from aisp.prompts import hh_pairs, load_prompts
    from aisp.reward_head_training import calibrate, row, select, write

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pairs", help="HH-RLHF style JSONL (.gz): chosen, rejected")
    parser.add_argument("--fitted-from", type=int, default=1400, help="first row to fit on")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--out", type=Path, default=data_path("judge"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pairs = hh_pairs(args.pairs)
    texts = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    f = torch.stack([_encoder(layer).embed(texts) for layer in args.layers], 1)
    fitted = torch.tensor([row(p) >= args.fitted_from for p in pairs])
    names = [(layer,) for layer in args.layers]
    k, w, report = select(f.unflatten(0, (2, len(pairs))), fitted, names, seed=args.seed)
    encoder = _encoder(args.layers[k])

    def values(prompts, responses):
        return encoder.embed(responses).double() @ w.double()

    dev = load_prompts("builtin", split="dev")
    center, scale = calibrate(load_policy("embedded"), values, dev, args.seed)
    report["seed"] = args.seed
    write(args.out, Head(w, center, scale, args.layers[k], encoder.pooling), report)


if __name__ == "__main__":
    main()
