"""Best of n: its candidates are the policy's own samples."""

import torch
from tiny import reward

import aisp
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.state import generator

SMALL = dict(n=4, kappa=3, max_new_tokens=6, progress=False)


def test_best_of_n_samples_the_policy(tiny):
    """Its candidates are the engine's samples at the stated decoding, nothing else."""
    out = aisp.align("Hi", tiny(), reward, method="best_of_n", seed=2, **SMALL)
    policy = tiny()
    for k in range(3):
        texts = rollout(
            policy,
            [policy.prefix("Hi")],
            4,
            6,
            decoding=Decoding(1.0, 0, 0.9),
            generators=[generator(2, "Hi", k, torch.device("cpu"))],
        ).texts[0]
        assert out.candidates[out.candidates["iteration"] == k]["response"].tolist() == texts
    assert out.candidates["log_weight"].isna().all() and out.history["ess"].isna().all()
