"""The embedded judge: a second preference head, which checks what a search with the first one found.

reward(x, y) = (w . f(y) - center) / scale, where f is the mean of one layer of the embedded sentence
encoder over the tokens, scaled to unit length. The judge shares neither model nor data with the
embedded reward: its features come from another model than the one that writes and is scored, and w
is fitted to other human preference pairs (rows 1400 on; the embedded reward has the rows before). It
reads the response alone, not the prompt. A search that raises the reward but not the judge's score
has exploited the reward. `aisp.training.judge` trains the judge.
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
    """The embedded sentence encoder, cut off after this many layers."""
    encoder = load_encoder(EMBEDDED, device=device)
    stack = encoder.model.get_submodule("encoder")
    stack.layer = nn.ModuleList([*stack.get_submodule("layer").children()][:layers])
    return encoder
