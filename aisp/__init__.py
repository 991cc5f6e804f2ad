"""Adaptive importance sampling on pre-logits: align a frozen language model at test time.

policy = aisp.load_policy("embedded")
reward = aisp.load_reward("embedded", policy=policy)
out = aisp.align("How do I learn to cook?", policy, reward)
"""

from aisp import control, methods, sampler
from aisp.alignment import Alignment
from aisp.methods import align
from aisp.policy import Policy, load_policy
from aisp.prompts import load_prompts
from aisp.recipe import Recipe
from aisp.rewards import Reward, RewardError, load_reward

__version__ = "0.2.0"
__all__ = [
    "Alignment",
    "Policy",
    "Recipe",
    "Reward",
    "RewardError",
    "align",
    "control",
    "load_policy",
    "load_prompts",
    "load_reward",
    "methods",
    "sampler",
]
