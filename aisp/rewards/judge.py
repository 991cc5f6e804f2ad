"""The embedded judge: a second preference head, to look at what the first one was searched for.

reward(x, y) = (w . f(y) - center) / scale, where f is the mean over the tokens of a layer of the
embedded sentence encoder, at unit length: another model than the one that writes and is scored, and
w is fitted on other human preference pairs (rows 1400 on) than the embedded reward (rows up to
1399). It reads the response alone, not the prompt. Where a search raises the one and not the other,
it has exploited the one. `aisp.training.judge` trains it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aisp.assets import EMBEDDED, trained_part
from aisp.rewards.base import Reward
from aisp.rewards.encoder import SentenceEncoder, load_encoder
from aisp.rewards.head import Head


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
        path = trained_part("judge")
        head = Head.load(path)
        judge = cls(first_layers(head.layer, device), head)
        judge.files = (path,)
        return judge

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        f = self.encoder.embed(responses)
        return (f.double() @ self.head.w.double() - self.head.center) / self.head.scale


def first_layers(layers: int, device: str | torch.device = "cpu") -> SentenceEncoder:
    """The embedded sentence encoder without its layers past so many."""
    encoder = load_encoder(EMBEDDED, device=device)
    stack = encoder.model.get_submodule("encoder")
    stack.layer = nn.ModuleList([*stack.get_submodule("layer").children()][:layers])
    return encoder
