"""Training of RE-Control's value function (Kong et al., arXiv:2406.05954).

V is trained on the policy's own responses, labeled by the reward, with the Bellman target: V(h_t)
towards stop_gradient(V(h_{t+1})), and V at a response's last valid position towards its reward.
`value_data.collect` draws and labels the responses, `train` fits V, and
`python -m aisp.training.value` does both and writes data/value/.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from aisp.checks import real, whole
from aisp.methods.value import ValueFunction
from aisp.policy import load_policy
from aisp.prompts import load_prompts
from aisp.provenance import data_path, environment, file_sha256, git_state, replacing
from aisp.rewards.load import load_reward
from aisp.training.value_data import Positions, Trajectories, collect, positions


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
    is that of (V - the true value)^2 plus a constant. The Bellman loss is no such measure: it is
    small for any constant V.

    Args:
        data: from `value_data.collect`.
        width: of the hidden layers; None is d.
        epochs: the most that are run.
        patience: training stops after this many epochs without a lower validation loss.
        batch_size: positions per step.
        validation: share of the prompts that is held out.
        checkpoint: a file, written after every epoch; a re-run continues from it exactly.

    Returns:
        The value function, and a report: responses and positions of both parts, validation loss per
        epoch, the loss of predicting the mean reward, and R^2 at the kept epoch.

    Raises:
        ValueError: fewer than two prompts, of which none could be held out; a parameter out of its
            range.
    """
    epochs, patience = whole("epochs", epochs, least=1), whole("patience", patience, least=1)
    batch_size = whole("batch_size", batch_size, least=1)
    g = torch.Generator().manual_seed(whole("seed", seed, least=0))
    held = _held_out(data.prompt, real("validation", validation, least=0, most=1), g)
    fitted, validated = positions(data, ~held), positions(data, held)
    value = _standardizing(data, fitted, width, g)
    run = _Run(value, real("rate", rate, above=0), g)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    bar = tqdm(
        total=epochs, initial=len(run.losses), desc="value", disable=not progress, unit="epoch"
    )
    while len(run.losses) < epochs and len(run.losses) - run.best_epoch < patience:
        run.epoch(data, fitted, validated, batch_size)
        if checkpoint is not None:
            run.write(checkpoint)
        bar.update()
        bar.set_postfix(validation=f"{run.losses[-1]:.4f}")
    bar.close()
    value.load_state_dict(run.best)
    report = _report(run, data, fitted, validated)
    counts = {"responses_fitted": int((~held).sum()), "responses_held_out": int(held.sum())}
    return value.eval().requires_grad_(False), counts | report


class _Run:
    """Where a training stands: weights, optimizer, source of randomness and losses so far."""

    def __init__(self, value: ValueFunction, rate: float, generator: torch.Generator):
        self.value, self.generator = value, generator
        self.optimizer = torch.optim.Adam(value.parameters(), lr=rate)
        self.losses: list[float] = []  # of validation, one per epoch
        self.best = self._weights()  # of the epoch of least validation loss

    @property
    def best_epoch(self) -> int:
        """From 1; 0 before the first."""
        return self.losses.index(min(self.losses)) + 1 if self.losses else 0

    def epoch(
        self, data: Trajectories, fitted: Positions, validated: Positions, batch_size: int
    ) -> None:
        """Go over the fitted positions once, in random order, and note the validation loss."""
        order = torch.randperm(len(fitted[0]), generator=self.generator)
        for picked in order.split(batch_size):
            prediction, target = bellman(self.value, data, fitted[0][picked], fitted[1][picked])
            self.optimizer.zero_grad()
            (prediction - target).square().mean().backward()
            self.optimizer.step()
        self.losses.append(_squared_error(self.value, data, validated))
        if self.best_epoch == len(self.losses):
            self.best = self._weights()

    def write(self, path: Path) -> None:
        state = {
            "value": self.value.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            "best": self.best,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            torch.save(state, new)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.value.load_state_dict(state["value"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.losses, self.best = state["losses"], state["best"]

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.value.state_dict().items()}


def _report(
    run: _Run, data: Trajectories, fitted: Positions, validated: Positions
) -> dict[str, Any]:
    mean = data.rewards[fitted[0]].mean()
    constant = _squared_error(lambda h: mean.expand(len(h)), data, validated)
    return {
        "positions_fitted": len(fitted[0]),
        "positions_held_out": len(validated[0]),
        "validation_loss": run.losses,
        "epoch": run.best_epoch,
        "loss_of_the_mean": constant,
        "r2": 1 - min(run.losses) / constant,
    }


def _held_out(prompt: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which responses are held out, (N,) bool: those to a random share of the prompts."""
    numbers = prompt.unique()
    if len(numbers) < 2:
        raise ValueError(f"data has {len(numbers)} prompt; training needs one more to hold out")
    count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
    return torch.isin(prompt, numbers[torch.randperm(len(numbers), generator=generator)[:count]])


def _standardizing(
    data: Trajectories, at: Positions, width: int | None, generator: torch.Generator
) -> ValueFunction:
    """An untrained value function that standardizes pre-logits as they are at some positions."""
    width = None if width is None else whole("width", width, least=1)
    value = ValueFunction(data.prelogits.shape[-1], width, generator)
    h = data.prelogits[at].float()
    value.mean.copy_(h.mean(0))
    value.scale.copy_(h.std(0).clamp(min=1e-6))
    return value


@torch.no_grad()
def _squared_error(predict: Callable[[Tensor], Tensor], data: Trajectories, at: Positions) -> float:
    """Mean squared difference between predictions from pre-logits and the final reward."""
    parts = zip(at[0].split(8192), at[1].split(8192), strict=True)
    squares = [(predict(data.prelogits[i, t]) - data.rewards[i]).square() for i, t in parts]
    return torch.cat(squares).mean().item()


def _file_and_hash(source: str) -> tuple[str, str | None]:
    """The file's name and SHA-256 of a source such as "hh:FILE"; of others the source and None."""
    path = Path(source.partition(":")[2])
    return (path.name, file_sha256(path)) if path.is_file() else (source, None)


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
