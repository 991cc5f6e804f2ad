"""Training of RAM's aligner: LoRA adapters on the frozen policy (Liu et al., arXiv:2505.19700).

    loss = -E_{(x, y) ~ S} log Q(y | x) + a E_{x ~ S, y ~ P_M} log Q(y | x)

S are preferred responses, P_M is the policy. Its samples do not depend on what is trained: they are
drawn once, kept on disk, and drawn as P_M gives them (temperature 1, the whole vocabulary), because
the second term is an expectation under P_M itself; truncation belongs to decoding. log Q(y | x) sums
over the response's tokens and its end-of-turn token, given the prefix that decoding starts from.

`train` does it for any policy and any (prompt, response) pairs; `python -m aisp.training.ram PAIRS`
for the chosen responses of an HH-RLHF file, and writes data/ram/.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from aisp.checks import check_finite, check_whole
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods.aligner import PREFIX, inject
from aisp.policy import END_OF_TURN, Policy, load_policy
from aisp.prompts import hh_pairs
from aisp.provenance import data_path, environment, file_sha256, git_state
from aisp.rewards.base import length_batches
from aisp.state import generator


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How an aligner is trained.

    Attributes:
        a: weight of the policy's own samples in the loss, in [0, 1]; the paper reports 1e-5 to 0.1
            to work alike.
        rank: of the adapters; their output is scaled by 2 (lora_alpha = 2 rank).
        targets: names of the modules that get adapters; None is peft's choice for the architecture,
            the query and value projections of Llama-like models.
        layers: adapters on the last so many layers only, and no backward pass below; 0 is all.
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

    def __post_init__(self):
        counts = ("rank", "epochs", "batch_tokens", "max_length", "proposal_tokens")
        check_whole(self, *counts, "checkpoint_every")
        check_finite(self, "learning_rate", "clip")
        check_whole(self, "layers", least=0, note=" (0: all)")
        if not 0 <= self.a <= 1:
            raise ValueError(f"a is {self.a!r}; it must lie in [0, 1]")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup!r}; it must lie in [0, 1)")


class Example(NamedTuple):
    """A response in its context: the tokens of both, and where the response starts."""

    ids: list[int]
    start: int


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
    sets = {"fitted": fitted, "held_out": held_out}
    encoded = {k: [encode(policy, p, y) for p, y in pairs] for k, pairs in sets.items()}
    used = {
        k: [i for i, e in enumerate(examples) if len(e.ids) <= config.max_length]
        for k, examples in encoded.items()
    }
    for name, kept in used.items():
        if not kept:
            raise ValueError(
                f"none of the {len(sets[name])} {name} pairs has at most {config.max_length} "
                "tokens; raise max_length"
            )
    preferred = {k: [encoded[k][i] for i in used[k]] for k in sets}
    prompts = {k: [sets[k][i][0] for i in used[k]] for k in sets}
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    everyone = proposals(policy, prompts["fitted"] + prompts["held_out"], config, work, progress)
    samples = {
        "fitted": everyone[: len(used["fitted"])],
        "held_out": everyone[len(used["fitted"]) :],
    }

    model, lora_config = _trainable(policy, config)
    lora = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(lora.values(), lr=config.learning_rate, weight_decay=0.0)
    examples = preferred["fitted"] + samples["fitted"]
    weights = _weights(preferred["fitted"], samples["fitted"], config.a)
    epochs = [_batches(examples, config, epoch) for epoch in range(config.epochs)]
    steps = [(epoch, batch) for epoch, batches in enumerate(epochs) for batch in batches]

    checkpoint = work / "checkpoint.pt"
    key = _digest([asdict(config), str(policy.dtype), examples, preferred["held_out"]])
    done, evaluations = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=policy.device, weights_only=True)
        if state["key"] != key:
            raise ValueError(
                f"{checkpoint} is of another training (other pairs, policy or settings); remove it, "
                "or use another work folder"
            )
        done, evaluations = state["step"], state["evaluations"]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, value in state["lora"].items():
                lora[name].copy_(value)

    def held() -> dict[str, float]:
        return evaluate(policy, model, preferred["held_out"], samples["held_out"], config)

    began = time.perf_counter()
    evaluations = evaluations or [held()]
    bar = tqdm(total=len(steps), initial=done, desc="aligner", disable=not progress, unit="step")
    for step in range(done, len(steps)):
        epoch, batch = steps[step]
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, len(steps), config.warmup)
        log_q = log_likelihood(policy, model, [examples[i] for i in batch])
        loss = len(epochs[epoch]) * (weights[batch].to(log_q.device) * log_q).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.values(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        bar.update()
        last = step + 1 == len(steps) or steps[step + 1][0] != epoch
        if last:
            evaluations.append(held())
            bar.set_postfix({k: f"{v:.3f}" for k, v in evaluations[-1].items()})
        if last or (step + 1) % config.checkpoint_every == 0:
            state = {
                "key": key,
                "step": step + 1,
                "lora": {name: p.detach() for name, p in lora.items()},
                "optimizer": optimizer.state_dict(),
                "evaluations": evaluations,
            }
            torch.save(state, work / "checkpoint.tmp")
            (work / "checkpoint.tmp").replace(checkpoint)
    bar.close()
    save(model, lora_config, policy, Path(out))
    return {
        "config": asdict(config),
        "steps": len(steps),
        "seconds": time.perf_counter() - began,
        **{k: {"used": used[k], "too_long": len(sets[k]) - len(used[k])} for k in sets},
        "evaluations": evaluations,
    }


def encode(policy: Policy, prompt: Any, response: str) -> Example:
    """The tokens of a response and its end of turn after the prefix that decoding starts from."""
    prefix = policy.prefix(prompt)
    reply = policy.tokenizer(response, add_special_tokens=False)["input_ids"]
    vocabulary = policy.tokenizer.get_vocab()
    ends = [vocabulary[t] for t in END_OF_TURN if t in vocabulary] * (policy.template == "chat")
    end = ends[0] if ends else policy.tokenizer.eos_token_id
    return Example([*prefix, *reply, end], len(prefix))


def proposals(
    policy: Policy, prompts: Sequence[Any], config: TrainingConfig, work: Path, progress: bool
) -> list[Example]:
    """One sample of the policy for each prompt, drawn once and kept in work/proposals.json.

    A sample that reaches `proposal_tokens` has no end-of-turn token: log Q is then that of what it
    is, the beginning of a response.
    """
    prefixes = [policy.prefix(p) for p in prompts]
    path = work / "proposals.json"
    settings = [config.proposal_tokens, config.seed]
    key = _digest([policy.name, str(policy.dtype), *settings, prefixes])
    stored = json.loads(path.read_text()) if path.exists() else {"key": None}
    if stored["key"] != key:
        stored = {"key": key, "tokens": _sampled(policy, prompts, prefixes, config, progress)}
        path.with_suffix(".tmp").write_text(json.dumps(stored))
        path.with_suffix(".tmp").replace(path)
    return [Example(p + y, len(p)) for p, y in zip(prefixes, stored["tokens"], strict=True)]


def _sampled(policy, prompts, prefixes, config, progress) -> list[list[int]]:
    replies: list[list[int]] = [[] for _ in prompts]
    batches = length_batches([len(p) for p in prefixes], 32)
    for batch in tqdm(batches, desc="samples of the policy", disable=not progress, unit="batch"):
        out = rollout(
            policy,
            [prefixes[i] for i in batch],
            1,
            config.proposal_tokens,
            decoding=Decoding(temperature=1.0),
            generators=[generator(config.seed, prompts[i], 0, policy.head_device) for i in batch],
        )
        for row, i in enumerate(batch):
            replies[i] = out.tokens[row, 0, : out.lengths[row, 0]].tolist()
    return replies


def log_likelihood(policy: Policy, model: torch.nn.Module, examples: Sequence[Example]) -> Tensor:
    """log Q(y | x) of responses under a model, in nats, (B,) float32.

    Padding follows the tokens, where causal attention does not see it, so that no mask is needed.
    Logits are computed where a response's tokens are predicted and nowhere else: a hook hands only
    those positions to the output embeddings.
    """
    width = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    for row, (tokens, start) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        predicts[row, start - 1 : len(tokens) - 1] = True
    row, column = torch.nonzero(predicts, as_tuple=True)
    targets = ids[row, column + 1].to(policy.head_device)

    def positions(module, args):
        return (args[0][row.to(args[0].device), column.to(args[0].device)][None], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(positions)
    try:
        logits = model(input_ids=ids.to(policy.device), use_cache=False).logits[0]
    finally:
        hook.remove()
    log_q = -F.cross_entropy(logits.float(), targets, reduction="none")
    return log_q.new_zeros(len(examples)).index_add(0, row.to(log_q.device), log_q)


@torch.no_grad()
def evaluate(
    policy: Policy,
    model: torch.nn.Module,
    preferred: Sequence[Example],
    samples: Sequence[Example],
    config: TrainingConfig,
) -> dict[str, float]:
    """Mean log Q per token, in nats, of preferred responses and of the policy's samples."""
    result = {}
    for name, examples in (("preferred", preferred), ("samples", samples)):
        sums = [
            log_likelihood(policy, model, [examples[i] for i in batch]).sum().item()
            for batch in _cut(examples, range(len(examples)), config.batch_tokens)
        ]
        result[name] = sum(sums) / sum(len(e.ids) - e.start for e in examples)
    return result


def save(model: torch.nn.Module, lora_config: Any, policy: Policy, out: Path) -> None:
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
    rows = {int(p.id.rsplit("-", 1)[1]): (p.messages, p.chosen) for p in hh_pairs(args.pairs)}
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


def _trainable(policy: Policy, config: TrainingConfig) -> tuple[torch.nn.Module, Any]:
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


def _weights(preferred: Sequence[Example], samples: Sequence[Example], a: float) -> Tensor:
    """What each response's log Q counts in the loss, in nats per preferred token."""
    tokens = sum(len(e.ids) - e.start for e in preferred)
    each = [-1 / tokens] * len(preferred)
    return torch.tensor(each + [a * len(preferred) / len(samples) / tokens] * len(samples))


def _batches(examples: Sequence[Example], config: TrainingConfig, epoch: int) -> list[list[int]]:
    """All examples in random batches of like length."""
    g = torch.Generator().manual_seed(1000 * config.seed + epoch)
    order = torch.randperm(len(examples), generator=g).tolist()
    batches = _cut(examples, order, config.batch_tokens)
    return [batches[i] for i in torch.randperm(len(batches), generator=g).tolist()]


def _cut(examples: Sequence[Example], order: Sequence[int], tokens: int) -> list[list[int]]:
    """Batches of at most so many padded tokens (or one example), in classes of 16 tokens."""
    batches: list[list[int]] = [[]]
    width = 0
    for i in sorted(order, key=lambda i: len(examples[i].ids) // 16):
        width = max(width, len(examples[i].ids))
        if batches[-1] and width * (len(batches[-1]) + 1) > tokens:
            batches.append([])
            width = len(examples[i].ids)
        batches[-1].append(i)
    return batches


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The fraction of the highest learning rate: a linear rise, then a linear fall to 0."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


if __name__ == "__main__":
    main()
