"""The embedded reward and bootstrap refits of it: how far the data decide a response's reward.

Each refit is the regression of the preference head (`aisp.rewards.head`) on a bootstrap sample of the
same pairs. Where the refits disagree, the pairs say little, and a search finds such responses: the
mean of an ensemble minus a multiple of its spread is a pessimistic reward (Coste et al.,
arXiv:2310.02743; `aisp.metrics.selection.pessimistic` computes it). `aisp.training.reward_ensemble`
fits the refits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aisp.assets import trained_part
from aisp.loading import load_tensors
from aisp.policy import Policy
from aisp.rewards.head import EmbeddedReward


@dataclass(frozen=True, eq=False)
class Ensemble:
    """K refits of a `Head`, on the same features and in its units.

    Attributes:
        w: (K, d) float32.
        centers: (K,) float64: a Bradley-Terry reward has no zero of its own, so each refit has mean 0
            over the responses that the head has.
        scale, layer, pooling: those of the head.
    """

    w: Tensor
    centers: Tensor
    scale: float
    layer: int
    pooling: str

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        fields = {k: getattr(self, k) for k in ("scale", "layer", "pooling")}
        tensors = {"w": self.w.contiguous(), "centers": self.centers.contiguous()}
        save_file(tensors, path, metadata={"ensemble": json.dumps(fields)})

    @staticmethod
    def load(path: Path) -> "Ensemble":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that cannot be read, or holds something else.
        """
        tensors, metadata = load_tensors(path, "reward ensemble")
        try:
            fields = json.loads(metadata["ensemble"])
            return Ensemble(tensors["w"], tensors["centers"], **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no reward ensemble: {error!r}") from error

    def rewards(self, f: Tensor) -> Tensor:
        """(N, K) float64, from features (N, d)."""
        return (f.double() @ self.w.double().T - self.centers) / self.scale


class EmbeddedEnsemble:
    """The embedded reward with its refits, all from one pass of the model over the responses.

    Attributes:
        reward: the reward itself; its policy is the one whose features are read.
        ensemble: the refits.
        files: the weights of both.
    """

    def __init__(self, reward: EmbeddedReward, ensemble: Ensemble, files: tuple[Path, ...] = ()):
        """
        Raises:
            ValueError: an ensemble of other features than the reward's.
        """
        head = reward.head
        if (head.layer, head.pooling) != (ensemble.layer, ensemble.pooling):
            raise ValueError(
                f"the head reads layer {head.layer} ({head.pooling}) and the ensemble layer "
                f"{ensemble.layer} ({ensemble.pooling}); fit the ensemble to this head again"
            )
        self.reward, self.ensemble, self.files = reward, ensemble, files

    @classmethod
    def load(cls, policy: Policy) -> "EmbeddedEnsemble":
        """Those shipped with the package, on the embedded policy."""
        reward, path = EmbeddedReward.load(policy), trained_part("reward ensemble")
        return cls(reward, Ensemble.load(path), (*reward.files, path))

    @property
    def policy(self) -> Policy:
        return self.reward.policy

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        """The reward of N pairs, and then that of each refit: (N, 1 + K) float64 on the CPU."""
        f = self.reward.features(prompts, responses)
        return torch.cat([self.reward.head.rewards(f)[:, None], self.ensemble.rewards(f)], 1)
