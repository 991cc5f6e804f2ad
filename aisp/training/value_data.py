"""What a value function is trained on, labeled responses of the policy, and how well it ranks them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from aisp.checks import whole
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods.value import ValueFunction
from aisp.policy import Policy
from aisp.prompts import Prompt
from aisp.provenance import replacing
from aisp.rewards.base import Reward, score
from aisp.state import generator

if TYPE_CHECKING:
    import pandas as pd

SAMPLED = Decoding(1.0)
Positions = tuple[Tensor, Tensor]  # rows and steps, (k,) each


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Labeled responses of the policy.

    Attributes:
        prelogits: (N, T, d), zero after a response's end.
        lengths: (N,) tokens decoded, the end-of-turn token counted.
        rewards: (N,) float64.
        prompt: (N,) which prompt each response answers; training and validation share none.
    """

    prelogits: Tensor
    lengths: Tensor
    rewards: Tensor
    prompt: Tensor


def collect(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    *,
    n: int,
    max_new_tokens: int,
    decoding: Decoding = SAMPLED,
    batch: int = 8,
    seed: int = 0,
    work: Path | None = None,
    progress: bool = True,
) -> Trajectories:
    """Draw n responses to each prompt from the policy, keep their pre-logits, and score them.

    Args:
        decoding: temperature 1 and nothing cut off is the policy itself, whose value V is.
        batch: prompts decoded together.
        work: a folder; each batch is kept there as it is finished, and found there by a re-run.
    """
    from safetensors.torch import load_file, save_file

    parts = []
    starts = range(0, len(prompts), whole("batch", batch, least=1))
    for start in tqdm(starts, desc="responses", disable=not progress, unit="batch"):
        group = prompts[start : start + batch]
        path = None if work is None else work / f"responses-{start:05d}.safetensors"
        if path is not None and path.exists():
            parts.append(load_file(path))
            continue
        sources = [generator(seed, p, 0, policy.head_device) for p in group]
        out = rollout(
            policy,
            [policy.prefix(p, max_new_tokens) for p in group],
            n,
            max_new_tokens,
            decoding=decoding,
            generators=sources,
            keep_prelogits=True,
        )
        assert out.prelogits is not None  # asked for
        number = torch.arange(start, start + len(group)).repeat_interleave(n)
        part = {
            "prelogits": out.prelogits.flatten(0, 1).cpu(),
            "lengths": out.lengths.flatten().cpu(),
            "rewards": score(reward, group, out.texts).flatten(),
            "prompt": number,
        }
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                save_file(part, new)
        parts.append(part)
    return Trajectories(**{k: torch.cat([part[k] for part in parts]) for k in parts[0]})


def positions(data: Trajectories, rows: Tensor) -> Positions:
    """All valid positions of the chosen responses."""
    valid = torch.arange(data.prelogits.shape[1]) < data.lengths[:, None]
    row, step = torch.nonzero(valid & rows[:, None]).unbind(-1)
    return row, step


def within_prompt_correlation(value: ValueFunction, data: Trajectories) -> "pd.DataFrame":
    """Correlation of V(h_t) with the final reward among responses to the same prompt, by step.

    Args:
        data: from `collect`, several responses to each prompt.

    Returns:
        One row per step: correlation, the Pearson correlation after both were centered within
        their prompt (NaN where V does not vary, as at the first step), and responses, how many
        were still being written.
    """
    import pandas as pd

    rows = []
    for t in range(data.prelogits.shape[1]):
        alive = data.lengths > t
        with torch.no_grad():
            v = value(data.prelogits[alive, t].to(value.mean.device)).double().cpu()
        pair = torch.stack([v, data.rewards[alive]])
        for p in data.prompt[alive].unique():
            own = data.prompt[alive] == p
            pair[:, own] -= pair[:, own].mean(1, keepdim=True)
        varies = pair[0].std() > 1e-4 * data.rewards.std()
        correlation = torch.corrcoef(pair)[0, 1].item() if varies else float("nan")
        rows.append({"step": t, "correlation": correlation, "responses": int(alive.sum())})
    return pd.DataFrame(rows)
