"""Training of RE-Control's value function (Kong et al., arXiv:2406.05954).

V is trained on the policy's own responses, labeled by the reward, with the Bellman target: V(h_t)
towards stop_gradient(V(h_{t+1})), and V at a response's last valid position towards its reward.
`collect` draws and labels the responses, `train` fits V, and `python -m aisp.training.value` does
both and writes data/value/.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods.value import ValueFunction
from aisp.policy import Policy, load_policy
from aisp.prompts import Prompt, load_prompts
from aisp.provenance import data_path, environment, file_sha256, git_state
from aisp.rewards.base import Reward, score
from aisp.rewards.load import load_reward
from aisp.state import generator

if TYPE_CHECKING:
    import pandas as pd

SAMPLED = Decoding(1.0)


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
    starts = range(0, len(prompts), batch)
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
        number = torch.arange(start, start + len(group)).repeat_interleave(n)
        part = {
            "prelogits": out.prelogits.flatten(0, 1).cpu(),
            "lengths": out.lengths.flatten().cpu(),
            "rewards": score(reward, group, out.texts).flatten(),
            "prompt": number,
        }
        if path is not None:
            work.mkdir(parents=True, exist_ok=True)
            save_file(part, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        parts.append(part)
    return Trajectories(**{k: torch.cat([part[k] for part in parts]) for k in parts[0]})


def bellman(
    value: Callable[[Tensor], Tensor], data: Trajectories, rows: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Predictions V(h_t) and their targets, at (rows, steps) of the data, each (k,).

    The target is V(h_{t+1}) without its gradient, and at the last valid position the reward.
    """
    last = steps == data.lengths[rows] - 1
    following = data.prelogits[rows, torch.where(last, steps, steps + 1)]
    with torch.no_grad():
        target = torch.where(last, data.rewards[rows].float(), value(following))
    return value(data.prelogits[rows, steps]), target


def train(
    data: Trajectories,
    *,
    width: int | None = None,
    epochs: int = 100,
    patience: int = 10,
    batch_size: int = 512,
    rate: float = 3e-4,
    validation: float = 0.2,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> tuple[ValueFunction, dict[str, Any]]:
    """Fit a value function with Adam; the epoch of least validation loss is kept.

    The validation loss is the mean squared difference between V(h_t) and the reward that the
    response really ended with, over all positions of responses to held-out prompts. Its expectation
    is that of (V - the true value)^2 plus a constant, which the Bellman loss, small for any constant
    V, is not.

    Args:
        data: from `collect`.
        width: of the hidden layers; None is d.
        epochs, patience: at most so many; stop after so many without improvement.
        batch_size: positions per step.
        validation: share of the prompts that is held out.
        checkpoint: a file, written after every epoch; a re-run continues from it exactly.

    Returns:
        The value function, and a report: responses and positions of both parts, validation loss per
        epoch, the loss of predicting the mean reward, and R^2 at the kept epoch.

    Raises:
        ValueError: fewer than two prompts, of which none could be held out.
    """
    numbers = data.prompt.unique()
    if len(numbers) < 2:
        raise ValueError(f"data has {len(numbers)} prompt; training needs one more to hold out")
    g = torch.Generator().manual_seed(seed)
    held_count = min(len(numbers) - 1, max(1, round(validation * len(numbers))))
    held = torch.isin(data.prompt, numbers[torch.randperm(len(numbers), generator=g)[:held_count]])
    fitted, validated = _positions(data, ~held), _positions(data, held)
    value = ValueFunction(data.prelogits.shape[-1], width, g)
    h = data.prelogits[fitted[0], fitted[1]].float()
    value.mean.copy_(h.mean(0))
    value.scale.copy_(h.std(0).clamp(min=1e-6))
    optimizer = torch.optim.Adam(value.parameters(), lr=rate)
    losses: list[float] = []
    best = {k: v.clone() for k, v in value.state_dict().items()}
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        value.load_state_dict(state["value"])
        optimizer.load_state_dict(state["optimizer"])
        g.set_state(state["generator"])
        losses, best = state["losses"], state["best"]

    @torch.no_grad()
    def error(predict) -> float:
        rows, steps = validated
        parts = zip(rows.split(8192), steps.split(8192), strict=True)
        squares = [(predict(data.prelogits[i, t]) - data.rewards[i]).square() for i, t in parts]
        return torch.cat(squares).mean().item()

    bar = tqdm(total=epochs, initial=len(losses), desc="value", disable=not progress, unit="epoch")
    while len(losses) < epochs and len(losses) - _argmin(losses) < patience:
        for picked in torch.randperm(len(fitted[0]), generator=g).split(batch_size):
            prediction, target = bellman(value, data, fitted[0][picked], fitted[1][picked])
            optimizer.zero_grad()
            (prediction - target).square().mean().backward()
            optimizer.step()
        losses.append(error(value))
        if _argmin(losses) == len(losses):
            best = {k: v.clone() for k, v in value.state_dict().items()}
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {"value": value.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"generator": g.get_state(), "losses": losses, "best": best}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        bar.update()
        bar.set_postfix(validation=f"{losses[-1]:.4f}")
    bar.close()
    value.load_state_dict(best)
    mean = data.rewards[fitted[0]].mean()
    constant = error(lambda h: mean.expand(len(h)))
    report = {
        "responses_fitted": int((~held).sum()),
        "responses_held_out": int(held.sum()),
        "positions_fitted": len(fitted[0]),
        "positions_held_out": len(validated[0]),
        "validation_loss": losses,
        "epoch": _argmin(losses),
        "loss_of_the_mean": constant,
        "r2": 1 - min(losses) / constant,
    }
    return value.eval().requires_grad_(False), report


def within_prompt_correlation(value: ValueFunction, data: Trajectories) -> "pd.DataFrame":
    """How V(h_t) goes with the final reward among responses to the same prompt, by step.

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


def _file_and_hash(source: str) -> tuple[str, str | None]:
    path = Path(source.partition(":")[2])
    return (path.name, file_sha256(path)) if path.is_file() else (source, None)


def _positions(data: Trajectories, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and steps of all valid positions of the chosen responses."""
    valid = torch.arange(data.prelogits.shape[1]) < data.lengths[:, None]
    return torch.nonzero(valid & rows[:, None]).unbind(-1)


def _argmin(losses: Sequence[float]) -> int:
    """Number of the best epoch, from 1; 0 before the first."""
    return losses.index(min(losses)) + 1 if losses else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Train a value function for the embedded policy and reward, and write it with its report."""
    parser = argparse.ArgumentParser(prog="python -m aisp.training.value", description=main.__doc__)
    parser.add_argument(
        "prompts",
        nargs="*",
        help="such as hh:FILE or shp:FILE, whatever load_prompts reads; the built-in "
        "development prompts are always among them",
    )
    parser.add_argument("--limit", type=int, default=200, help="prompts of each of them")
    parser.add_argument("--n", type=int, default=8, help="responses per prompt")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/value"))
    parser.add_argument("--out", type=Path, default=data_path("value"))
    args = parser.parse_args(argv)

    wanted = {k: v for k, v in vars(args).items() if k not in ("work", "out")}
    settings = args.work / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != wanted:
        parser.error(
            f"{args.work} was begun with {settings.read_text()}; this call has {json.dumps(wanted)}. "
            "Repeat those settings to continue, or name another --work"
        )
    args.work.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(wanted))
    policy = load_policy("embedded")
    reward = load_reward("embedded", policy=policy)
    prompts = load_prompts("builtin", split="dev")
    for name in args.prompts:
        prompts += load_prompts(name, limit=args.limit)
    data = collect(
        policy,
        reward,
        prompts,
        n=args.n,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        work=args.work,
    )
    checkpoint = args.work / "training.pt"
    value, report = train(data, epochs=args.epochs, seed=args.seed, checkpoint=checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    value.save(args.out / "value.safetensors")
    report = {
        "prompts": len(prompts),
        "sources": {"builtin (dev)": None} | dict(map(_file_and_hash, args.prompts)),
        "responses": len(data.rewards),
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
        **report,
        **git_state(),
        **environment(),
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "validation_loss"}, indent=1))


if __name__ == "__main__":
    main()
