"""Rewards: what scores a response, and how to get one.

- `base`: what a reward is (`Reward`, `CallableReward`), and calling it safely (`score`);
- `load`: from a name, a path or a function to a reward (`load_reward`);
- `head`: the embedded preference head on the policy's own features;
- `ensemble`: bootstrap refits of that head, scored in the same pass (`EmbeddedEnsemble`);
- `hub`: reward models of the Hugging Face hub;
- `judge`: the embedded judge, a second preference head on the features of `encoder`;
- `encoder`: frozen sentence encoders;
- `verifiable`: what a program checks, such as instructions (`VerifiableReward`).
"""

from aisp.rewards.base import CallableReward, Reward, RewardError, score
from aisp.rewards.encoder import SentenceEncoder, load_encoder
from aisp.rewards.head import EmbeddedReward
from aisp.rewards.hub import SequenceClassifierReward
from aisp.rewards.judge import EmbeddedJudge
from aisp.rewards.load import load_reward
from aisp.rewards.verifiable import VerifiableReward

__all__ = [
    "CallableReward",
    "EmbeddedJudge",
    "EmbeddedReward",
    "Reward",
    "RewardError",
    "SentenceEncoder",
    "SequenceClassifierReward",
    "VerifiableReward",
    "load_encoder",
    "load_reward",
    "score",
]
