"""From a name, a path or a function to a reward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aisp.assets import EMBEDDED, is_embedded
from aisp.loading import resolve_device, resolve_dtype
from aisp.policy import Policy, load_policy
from aisp.prompts import Messages
from aisp.recipe import Recipe, remembered
from aisp.rewards.base import CallableReward, Reward
from aisp.rewards.head import EmbeddedReward
from aisp.rewards.hub import load_reward_model
from aisp.rewards.judge import EmbeddedJudge
from aisp.rewards.verifiable import VerifiableReward


def load_reward(
    source: str | Path | Callable[[Any, str], float] | Reward = EMBEDDED,
    *,
    policy: Policy | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    format: Callable[[Messages], str] | None = None,
    **from_pretrained: Any,
) -> Reward:
    """Make a reward.

    Args:
        source: "embedded" (the preference head of data/reward_head on frozen SmolLM2 features),
            "embedded-judge" (another one, on other features and pairs; see `aisp.rewards.judge`),
            "verifiable" or "verifiable-loose" (no model: the share of a prompt's own checks that a
            program finds kept, see `aisp.rewards.verifiable`; for prompts that have some), the
            Hugging Face id or path of a reward model (any sequence classifier with one output,
            openbmb/UltraRM-13b, openbmb/Eurus-RM-7b; see `aisp.rewards.hub`), a callable
            (prompt, response) -> float, or a Reward, which is returned as it is.
        policy: its weights are shared with the embedded head where it is the embedded model (and
            not in another engine's processes), and its device is the default device.
        device, dtype: for models; as in `load_policy`.
        format: for Hugging Face reward models, from the messages, the response as the last of them,
            to the text that is read, if that is to be another than the checkpoint's own.
        **from_pretrained: as in `load_policy`, device_map among them; trust_remote_code stays off
            unless given, and is never needed for the models named above.

    Raises:
        ValueError: a source that cannot be loaded, with what was tried.
    """
    if isinstance(source, Reward):
        return source
    if callable(source):
        return CallableReward(source)
    if str(source) in ("verifiable", "verifiable-loose"):
        checker = VerifiableReward(loose=str(source) == "verifiable-loose")
        return remembered(checker, Recipe("aisp.rewards.load:load_reward", source=str(source)))
    options: dict[str, Any] = {"dtype": dtype, "format": format, **from_pretrained}
    here = resolve_device(policy.device if policy and device is None else device)
    reward: Reward
    if is_embedded(source):
        reward = EmbeddedReward.load(_embedded_policy(policy, here, dtype))
        options["policy"] = reward.policy
    elif str(source) == EmbeddedJudge.name:
        reward = EmbeddedJudge.load(here)
    else:
        options["dtype"] = resolve_dtype(dtype, here)
        reward = load_reward_model(source, device=here, **options)
    # Another process may have another device, and so another default.
    recipe = Recipe("aisp.rewards.load:load_reward", source=str(source), device=device, **options)
    return remembered(reward, recipe)


def _embedded_policy(
    policy: Policy | None, device: torch.device, dtype: str | torch.dtype | None
) -> Policy:
    """The embedded model: the policy's own, if it is one that is here, else loaded."""
    if policy is not None and policy.engine != "aisp":
        dtype = dtype or policy.dtype
        policy = None
    if policy is None or not policy.is_embedded or policy.device != device:
        policy = load_policy(EMBEDDED, device=device, dtype=dtype)
    return policy
