"""Training of RAM's aligner: LoRA adapters on the frozen policy (Liu et al., arXiv:2505.19700).

    loss = -E_{(x, y) ~ S} log Q(y | x) + a E_{x ~ S, y ~ P_M} log Q(y | x)

S are preferred responses, P_M is the policy. The second term is an expectation under P_M itself, so
that its samples are drawn at temperature 1 from the whole vocabulary; truncation belongs to decoding.
They do not depend on what is trained, and are drawn once and kept on disk. log Q(y | x) sums over the
response's tokens and its end-of-turn token, given the prefix that decoding starts from.

`train` does it for any policy and any (prompt, response) pairs; `python -m aisp.training.ram PAIRS`
for the chosen responses of an HH-RLHF file, and writes data/ram/.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from aisp.checks import check_finite, check_real, check_whole
from aisp.methods.aligner import PREFIX, inject
from aisp.policy import Policy, load_policy
from aisp.preference_data import hh_pairs
from aisp.provenance import (
    data_path,
    environment,
    file_sha256,
    git_state,
    json_sha256,
    replacing,
)
from aisp.training.preference_head import row_of
from aisp.training.ram_data import Part, prepare, random_batches
from aisp.training.ram_loss import evaluate, log_likelihood, loss_weights


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How an aligner is trained.

    Attributes:
        a: weight of the policy's own samples in the loss, in [0, 1]; the paper reports that values
            from 1e-5 to 0.1 work equally well.
        rank: of the adapters; their output is scaled by 2 (lora_alpha = 2 rank).
        targets: names of the modules that get adapters; None is peft's choice for the architecture,
            the query and value projections of Llama-like models.
        layers: how many of the last layers get adapters; the backward pass goes no deeper. 0 is all.
        learning_rate: the highest, of AdamW; it rises linearly over the `warmup` fraction of all
            steps, then falls linearly to 0.
        warmup: in [0, 1).
        epochs: passes over all responses.
        batch_tokens: tokens of a step, padding counted; memory grows with it.
        max_length: preferred responses are left out where prefix and response have more tokens.
        proposal_tokens: tokens of a sample of the policy at most.
        clip: largest norm of the gradient of the loss in nats per preferred token.
        checkpoint_every: steps between checkpoints.
        seed: of the adapters' initial weights, the order of training, and the policy's samples.
    """

    a: float = 0.01
    rank: int = 8
    targets: tuple[str, ...] | None = None
    layers: int = 0
    learning_rate: float = 1e-3
    warmup: float = 0.1
    epochs: int = 1
    batch_tokens: int = 2048
    max_length: int = 240
    proposal_tokens: int = 48
    clip: float = 1.0
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("rank", "epochs", "batch_tokens", "max_length", "proposal_tokens")
        check_whole(self, *counts, "checkpoint_every")
        check_whole(self, "layers", "seed", least=0)
        check_finite(self, "learning_rate", "clip")
        check_real(self, "a", "warmup", least=0, most=1)
        if self.warmup == 1:
            raise ValueError(
                f"warmup is {self.warmup}; it must be < 1, so that some steps are left"
            )
        names = self.targets
        if names is not None:
            if not isinstance(names, list | tuple) or not all(isinstance(x, str) for x in names):
                raise ValueError(f"targets is {names!r}; it must be a tuple of names, or None")
            object.__setattr__(self, "targets", tuple(names))


def train(
    policy: Policy,
    fitted: Sequence[tuple[Any, str]],
    held_out: Sequence[tuple[Any, str]],
    config: TrainingConfig,
    *,
    out: str | Path,
    work: str | Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an aligner for a policy, which itself is not changed, and save it.

    Args:
        fitted: (prompt, preferred response) pairs to learn from.
        held_out: pairs to evaluate on, before training and after every epoch.
        out: folder for the adapter, in peft's format and bfloat16.
        work: folder for the policy's samples and the checkpoint. A call that was interrupted
            continues from them, and ends with the same weights as one that was not.
        progress: show progress bars.

    Returns:
        What happened, as plain JSON: config, seconds of the training in this call, steps, for
        "fitted" and "held_out" which pairs were used (indices) and how many were too long, and
        "evaluations" (see `evaluate`), the first of them before training.

    Raises:
        ValueError: no pair short enough, or a checkpoint of another training in `work`.
    """
    work = Path(work)
    parts = prepare(
        policy,
        {"fitted": fitted, "held_out": held_out},
        work,
        max_length=config.max_length,
        proposal_tokens=config.proposal_tokens,
        seed=config.seed,
        progress=progress,
    )
    model, lora_config = _trainable(policy, config)
    began = time.perf_counter()
    steps, evaluations = _fit(policy, model, parts, config, work / "checkpoint.pt", progress)
    save(model, lora_config, policy, Path(out))
    return {
        "config": asdict(config),
        "steps": steps,
        "seconds": time.perf_counter() - began,
        **{name: {"used": part.used, "too_long": part.too_long} for name, part in parts.items()},
        "evaluations": evaluations,
    }


def _fit(
    policy: Policy,
    model: PreTrainedModel,
    parts: dict[str, Part],
    config: TrainingConfig,
    checkpoint: Path,
    progress: bool,
) -> tuple[int, list[dict[str, float]]]:
    """Train the adapters of a model, from the checkpoint if there is one.

    Returns:
        The number of steps of the whole training, and its evaluations.
    """
    fitted, held_out = parts["fitted"], parts["held_out"]
    examples = fitted.preferred + fitted.samples
    weights = loss_weights(fitted.preferred, fitted.samples, config.a)
    epochs = [
        random_batches(examples, config.batch_tokens, config.seed, epoch)
        for epoch in range(config.epochs)
    ]
    steps = [(epoch, batch) for epoch, batches in enumerate(epochs) for batch in batches]
    run = _Run(model, config.learning_rate)
    key = json_sha256([asdict(config), str(policy.dtype), examples, held_out.preferred])
    if checkpoint.exists():
        run.load(checkpoint, key, policy.device)

    def evaluated() -> dict[str, float]:
        return evaluate(policy, model, held_out.preferred, held_out.samples, config.batch_tokens)

    run.evaluations = run.evaluations or [evaluated()]
    todo = range(run.done, len(steps))
    bar = tqdm(todo, "aligner", len(steps), initial=run.done, disable=not progress, unit="step")
    for step in bar:
        epoch, batch = steps[step]
        log_q = log_likelihood(policy, model, [examples[i] for i in batch])
        loss = len(epochs[epoch]) * (weights[batch].to(log_q.device) * log_q).sum()
        rate = config.learning_rate * _schedule(step, len(steps), config.warmup)
        run.descend(loss, rate, config.clip)
        last = step + 1 == len(steps) or steps[step + 1][0] != epoch
        if last:
            run.evaluations.append(evaluated())
            bar.set_postfix({k: f"{v:.3f}" for k, v in run.evaluations[-1].items()})
        if last or run.done % config.checkpoint_every == 0:
            run.write(checkpoint, key)
    return len(steps), run.evaluations


class _Run:
    """Where a training stands: adapters, optimizer, steps done and evaluations."""

    def __init__(self, model: PreTrainedModel, rate: float):
        self.lora = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.lora.values(), lr=rate, weight_decay=0.0)
        self.done = 0
        self.evaluations: list[dict[str, float]] = []

    def descend(self, loss: Tensor, rate: float, clip: float) -> None:
        """One step against the gradient of a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.lora.values(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1

    def write(self, path: Path, key: str) -> None:
        state = {
            "key": key,
            "step": self.done,
            "lora": {name: p.detach() for name, p in self.lora.items()},
            "optimizer": self.optimizer.state_dict(),
            "evaluations": self.evaluations,
        }
        with replacing(path) as new:
            torch.save(state, new)

    def load(self, path: Path, key: str, device: torch.device) -> None:
        state = torch.load(path, map_location=device, weights_only=True)
        if state["key"] != key:
            raise ValueError(
                f"{path} is of another training (other pairs, policy or settings); remove it, or "
                "use another work folder"
            )
        self.done, self.evaluations = state["step"], state["evaluations"]
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, value in state["lora"].items():
                self.lora[name].copy_(value)


def _trainable(policy: Policy, config: TrainingConfig) -> tuple[PreTrainedModel, Any]:
    """The policy's model with fresh adapters in float32, which alone take gradients."""
    import peft

    depth = policy.model.config.get_text_config().num_hidden_layers
    lora_config = peft.LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        target_modules=list(config.targets) if config.targets else None,
        layers_to_transform=list(range(depth))[-config.layers :] if config.layers else None,
        task_type="CAUSAL_LM",
    )
    model = inject(policy, lora_config, seed=config.seed)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
        if p.requires_grad:
            p.data = p.data.float()
    return model, lora_config


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The fraction of the highest learning rate: a linear rise, then a linear fall to 0."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def save(model: PreTrainedModel, lora_config: Any, policy: Policy, out: Path) -> None:
    """Write an adapter in peft's format: adapter_config.json, adapter_model.safetensors."""
    import peft
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    lora_config.inference_mode = True
    lora_config.base_model_name_or_path = policy.name
    lora_config.save_pretrained(out)
    weights = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {PREFIX + k: v.to("cpu", torch.bfloat16).contiguous() for k, v in weights.items()},
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train an aligner on the chosen responses of an HH-RLHF file, and report."""
    parser = argparse.ArgumentParser(prog="python -m aisp.training.ram", description=main.__doc__)
    parser.add_argument("pairs", type=Path, help="HH-RLHF style JSONL (.gz): chosen, rejected")
    parser.add_argument("--held-out-from", type=int, default=1400, help="first held-out row")
    parser.add_argument("--held-out-to", type=int, default=1600, help="first row not used")
    parser.add_argument("--policy", default="embedded", help="as in aisp.load_policy")
    parser.add_argument("--out", type=Path, default=data_path("ram"))
    parser.add_argument("--work", type=Path, default=Path("outputs/ram_training"))
    for field in fields(TrainingConfig):
        if field.name != "targets":
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, type=field.type, default=field.default)
    args = parser.parse_args(argv)
    chosen = {f.name: getattr(args, f.name) for f in fields(TrainingConfig) if f.name != "targets"}
    config = TrainingConfig(**chosen)

    policy = load_policy(args.policy)
    rows = {row_of(p): (p.messages, p.chosen) for p in hh_pairs(args.pairs)}
    fitted = [row for row in rows if row < args.held_out_from]
    held_out = [row for row in rows if args.held_out_from <= row < args.held_out_to]
    report = train(
        policy,
        [rows[row] for row in fitted],
        [rows[row] for row in held_out],
        config,
        out=args.out,
        work=args.work,
    )
    for name, known in (("fitted", fitted), ("held_out", held_out)):
        # Row numbers in one string: a list would take a thousand lines.
        used = report[name].pop("used")
        report[name] |= {"used": len(used), "rows": " ".join(str(known[i]) for i in used)}
    report |= {
        "data": args.pairs.name,
        "data_sha256": file_sha256(args.pairs),
        "policy": policy.name,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "peft": version("peft"),
        **git_state(),
        **environment(policy.device),
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for evaluation in report["evaluations"]:
        print({k: round(v, 4) for k, v in evaluation.items()})


if __name__ == "__main__":
    main()
