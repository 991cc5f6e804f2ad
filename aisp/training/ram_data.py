"""What an aligner is trained on: preferred responses, samples of the policy, and batches of both."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.policy import END_OF_TURN, Policy
from aisp.provenance import json_sha256, replacing
from aisp.rewards.base import length_batches
from aisp.state import generator


class Example(NamedTuple):
    """A response in its context: the tokens of both, and where the response starts."""

    ids: list[int]
    start: int


class Part(NamedTuple):
    """Pairs that are trained or evaluated on."""

    used: list[int]  # which of the pairs that were given
    too_long: int  # how many were left out
    preferred: list[Example]
    samples: list[Example]  # of the policy, one for each prompt


def prepare(
    policy: Policy,
    pairs: dict[str, Sequence[tuple[Any, str]]],
    work: Path,
    *,
    max_length: int,
    proposal_tokens: int,
    seed: int,
    progress: bool = True,
) -> dict[str, Part]:
    """Of each set of pairs those that are short enough, with the policy's samples on their prompts.

    Raises:
        ValueError: none of a set has at most `max_length` tokens.
    """
    preferred, used = {}, {}
    for name, given in pairs.items():
        examples = [encode(policy, prompt, response) for prompt, response in given]
        used[name] = [i for i, e in enumerate(examples) if len(e.ids) <= max_length]
        preferred[name] = [examples[i] for i in used[name]]
        if not used[name]:
            raise ValueError(
                f"none of the {len(given)} {name} pairs has at most {max_length} tokens; "
                "raise max_length"
            )
    prompts = [pairs[name][i][0] for name, kept in used.items() for i in kept]
    work.mkdir(parents=True, exist_ok=True)
    drawn = proposals(policy, prompts, work, tokens=proposal_tokens, seed=seed, progress=progress)
    samples = iter(drawn)
    return {
        name: Part(
            kept, len(pairs[name]) - len(kept), preferred[name], [next(samples) for _ in kept]
        )
        for name, kept in used.items()
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
    policy: Policy,
    prompts: Sequence[Any],
    work: Path,
    *,
    tokens: int,
    seed: int,
    progress: bool = True,
) -> list[Example]:
    """One sample of the policy for each prompt, drawn once and kept in work/proposals.json.

    Args:
        tokens: of a sample at most. One that reaches it has no end-of-turn token: log Q is then
            that of the beginning of a response.
    """
    prefixes = [policy.prefix(p) for p in prompts]
    path = work / "proposals.json"
    key = json_sha256([policy.name, str(policy.dtype), tokens, seed, prefixes])
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"key": None}
    if stored["key"] != key:
        stored = {"key": key, "tokens": _sampled(policy, prompts, prefixes, tokens, seed, progress)}
        with replacing(path) as new:
            new.write_text(json.dumps(stored))
    return [Example(p + y, len(p)) for p, y in zip(prefixes, stored["tokens"], strict=True)]


def _sampled(policy, prompts, prefixes, tokens, seed, progress) -> list[list[int]]:
    replies: list[list[int]] = [[] for _ in prompts]
    batches = length_batches([len(p) for p in prefixes], 32)
    for batch in tqdm(batches, desc="samples of the policy", disable=not progress, unit="batch"):
        out = rollout(
            policy,
            [prefixes[i] for i in batch],
            1,
            tokens,
            decoding=Decoding(temperature=1.0),
            generators=[generator(seed, prompts[i], 0, policy.head_device) for i in batch],
        )
        for row, i in enumerate(batch):
            replies[i] = out.tokens[row, 0, : out.lengths[row, 0]].tolist()
    return replies


def random_batches(
    examples: Sequence[Example], tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """All examples in random order, in batches of similar lengths, as `batches_of` cuts them."""
    g = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(len(examples), generator=g).tolist()
    batches = batches_of(examples, order, tokens)
    return [batches[i] for i in torch.randperm(len(batches), generator=g).tolist()]


def batches_of(examples: Sequence[Example], order: Sequence[int], tokens: int) -> list[list[int]]:
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
