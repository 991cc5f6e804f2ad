"""The embedded preference head: a Bradley-Terry reward on frozen features of the embedded model.

reward(x, y) = (w . f(x, y) - center) / scale, where f averages the hidden states of one layer over
the response's tokens, and w is a logistic regression on the differences f(chosen) - f(rejected) of
human preference pairs (Bradley and Terry, 1952: P(y1 preferred to y2) is the logistic function of
the difference of their rewards). `EmbeddedReward` scores with it, and `aisp.training.preference_head`
fits it.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache

from aisp.assets import EMBEDDED, trained_part
from aisp.checks import whole
from aisp.loading import load_tensors
from aisp.policy import Policy, chat_text
from aisp.prompts import as_messages
from aisp.rewards.base import Reward, RewardError, length_batches

POOLINGS = ("mean", "last")

# Sharing a beginning takes one more pass, which costs about as much as this many tokens in a batch.
PASS_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Head:
    """Weights of the embedded reward.

    Attributes:
        w: (d,) float32.
        center, scale: the reward is (w . f - center) / scale.
        layer: features are the output of this many layers; 0 would be the embeddings.
        pooling: "mean" over the response's tokens and its end-of-turn token, or that "last" token.
    """

    w: Tensor
    center: float
    scale: float
    layer: int
    pooling: str

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        fields = {k: getattr(self, k) for k in ("center", "scale", "layer", "pooling")}
        save_file({"w": self.w.contiguous()}, path, metadata={"head": json.dumps(fields)})

    @staticmethod
    def load(path: Path) -> "Head":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that cannot be read, or holds something else.
        """
        tensors, metadata = load_tensors(path, "preference head")
        try:
            return Head(tensors["w"], **json.loads(metadata["head"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no preference head: {error!r}") from error

    def rewards(self, f: Tensor) -> Tensor:
        """(N,) float64, from features (N, d)."""
        return (f.double() @ self.w.double() - self.center) / self.scale


class EmbeddedReward(Reward):
    """The preference head on the features of a policy's frozen model.

    Its scale: over responses of the embedded policy to one prompt the reward has a standard
    deviation of about 1 (root mean square over the built-in development prompts).
    """

    name = EMBEDDED

    def __init__(self, policy: Policy, head: Head, batch_tokens: int = 4096):
        self.policy, self.head = policy, head
        self.batch_tokens = whole("batch_tokens", batch_tokens, least=1)

    @classmethod
    def load(cls, policy: Policy) -> "EmbeddedReward":
        """The head shipped with the package, on the embedded policy."""
        path = trained_part("preference head")
        reward = cls(policy, Head.load(path))
        reward.files = (path,)
        return reward

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        return self.head.rewards(self.features(prompts, responses))

    def features(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        """What the head reads of N pairs, (N, d)."""
        return features(
            self.policy,
            prompts,
            responses,
            layers=[self.head.layer],
            poolings=[self.head.pooling],
            batch_tokens=self.batch_tokens,
        )[:, 0, 0]


@torch.inference_mode()
def features(
    policy: Policy,
    prompts: Sequence[Any],
    responses: Sequence[str],
    *,
    layers: Sequence[int],
    poolings: Sequence[str] = POOLINGS,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> Tensor:
    """Pooled hidden states of responses in their conversations.

    Args:
        policy: its model and chat template; the template must put the reply right after what it
            renders as the generation prompt.
        prompts, responses: N of each.
        layers: which layers' outputs, 1 to the number of layers (before any final norm).
        poolings: see `Head`.
        batch_tokens: padded tokens per forward pass, for memory.
        progress: show a progress bar.

    Returns:
        (N, len(layers), len(poolings), d) float32 on the CPU.
    """
    encoded = [_encode(policy, p, r) for p, r in zip(prompts, responses, strict=True)]
    backbone = _first_layers(policy.model, max(layers))
    out = torch.empty(len(encoded), len(layers), len(poolings), policy.d)
    shared, alone = _groups(prompts, encoded)
    longest = max((len(encoded[i][0]) for i in alone), default=1)
    batches = length_batches([len(encoded[i][0]) for i in alone], max(1, batch_tokens // longest))
    todo: list[tuple[list[int], list[tuple[int, int]]]]
    todo = [([alone[i] for i in batch], []) for batch in batches]
    todo += _together(shared, [len(tokens) for tokens, _ in encoded], batch_tokens)
    for rows, sizes in tqdm(todo, desc="features", disable=not progress, unit="batch"):
        out[rows] = _pooled(policy, backbone, [encoded[i] for i in rows], sizes, layers, poolings)
    return out


def _groups(prompts, encoded) -> tuple[list[tuple[list[int], int]], list[int]]:
    """Responses that begin alike, with the length of what they share; and all others.

    Running the shared text once is worth it if that saves more than the extra pass costs: for a
    dozen responses to one prompt, or the many extensions of one text that a token-level search scores.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(json.dumps(as_messages(prompt)), []).append(i)
    shared, alone = [], []
    for group in by_prompt.values():
        texts = [encoded[i][0] for i in group]
        first, last = min(texts), max(texts)  # what these two share, all between them share
        same = (j for j, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
        length = min(next(same, len(first)), min(map(len, texts)) - 1)
        if length * (len(group) - 1) > PASS_TOKENS:
            shared.append((group, length))
        else:
            alone += group
    return shared, sorted(alone)


def _together(
    shared: list[tuple[list[int], int]], lengths: list[int], batch_tokens: int
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Batches of responses that begin alike: their rows, and for each run of them (rows, shared).

    A batch has at most `batch_tokens` padded tokens of its own, and 16 times as many in the cache,
    which holds a copy of what is shared for every row.
    """
    batches: list[tuple[list[int], list[tuple[int, int]]]] = []
    widest = deepest = 0
    for group, length in shared:
        begun = False  # whether the last run of the last batch is this group's
        for row in sorted(group, key=lengths.__getitem__):
            own = lengths[row] - length
            widest, deepest = max(widest, own), max(deepest, length)
            count = len(batches[-1][0]) + 1 if batches else 0
            if not count or count * max(widest, deepest / 16) > batch_tokens:
                batches.append(([], []))
                begun, widest, deepest = False, own, length
            rows, runs = batches[-1]
            rows.append(row)
            if begun:
                runs[-1] = (runs[-1][0] + 1, length)
            else:
                runs.append((1, length))
                begun = True
    return batches


def _pooled(policy, backbone, encoded, sizes, layers, poolings) -> Tensor:
    """Features of some responses in one batch.

    Args:
        sizes: for each run of responses that begin alike, how many and with how many tokens; these
            run through the model once. Empty where nothing is shared.

    Returns:
        (N, len(layers), len(poolings), d) float32 on the CPU.
    """
    lengths = [length for count, length in sizes for _ in range(count)] or [0] * len(encoded)
    starts: list[list[int]] = []
    past = max(lengths)
    for count, length in sizes:
        first = encoded[len(starts)][0]
        starts += [first[:length]] * count
    cache, heads = None, [torch.zeros(())] * len(layers)
    ids, mask = _right_padded([t[k:] for (t, _), k in zip(encoded, lengths, strict=True)], policy)
    width = ids.shape[1]
    reply = torch.zeros(len(encoded), past + width)  # what each position counts in the mean
    for row, ((tokens, start), k) in enumerate(zip(encoded, lengths, strict=True)):
        share = 1 / (len(tokens) - start)
        reply[row, start:k] = share
        reply[row, past + max(0, start - k) : past + len(tokens) - k] = share
    reply = reply.to(ids.device)
    if past:
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor([n for n, _ in sizes]))
        owner = owner.to(ids.device)
        firsts = [starts[i] for i in (torch.tensor([n for n, _ in sizes]).cumsum(0) - 1).tolist()]
        cache = DynamicCache(config=backbone.config)
        states = _layer_outputs(backbone, layers, *_right_padded(firsts, policy), cache)
        heads = [torch.einsum("bt,btd->bd", reply[:, :past], h[owner]) for h in states]
        cache.batch_select_indices(owner)
        mask = torch.cat([_right_padded(starts, policy)[1], mask], 1)
    states = _layer_outputs(backbone, layers, ids, mask, cache)
    last = mask[:, past:].sum(-1) - 1
    rows = torch.arange(len(encoded), device=ids.device)
    out = torch.empty(len(encoded), len(layers), len(poolings), policy.d)
    for column, (h, head) in enumerate(zip(states, heads, strict=True)):  # (N, width, d)
        for k, pooling in enumerate(poolings):
            if pooling == "mean":
                pooled = head + torch.einsum("bt,btd->bd", reply[:, past:], h)
            else:
                pooled = h[rows, last]
            out[:, column, k] = pooled.cpu()
    return out


def _right_padded(sequences, policy) -> tuple[Tensor, Tensor]:
    """Ids and mask, (N, longest)."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    return ids.to(policy.device), mask.to(policy.device)


def _encode(policy: Policy, prompt: Any, response: str) -> tuple[list[int], int]:
    """Token ids of the conversation up to the reply's end-of-turn token, and where the reply starts."""
    messages = as_messages(prompt)
    before = chat_text(policy.tokenizer, messages, opens_reply=True)
    reply = {"role": "assistant", "content": response}
    conversation = chat_text(policy.tokenizer, [*messages, reply])
    tokenize = policy.tokenizer
    start = len(tokenize(before, add_special_tokens=False)["input_ids"])
    ids = tokenize(conversation.rstrip("\n"), add_special_tokens=False)["input_ids"]
    if len(ids) > policy.context_length:
        raise RewardError(
            f"prompt {messages[-1]['content'][:60]!r} with its response takes {len(ids)} tokens; "
            f"{policy.name} reads {policy.context_length}. Nothing is truncated silently"
        )
    return ids, start


def _first_layers(model, count: int):
    """The decoder without its layers past `count`, sharing every weight.

    Features of a middle layer need no later layer, so the later ones are skipped.
    """
    decoder = model.get_decoder()
    view = copy.copy(decoder)
    view._modules = {**decoder._modules, "layers": decoder.layers[:count]}
    view.config = copy.copy(decoder.config)
    view.config.num_hidden_layers = count
    return view


def _layer_outputs(
    decoder, layers: Sequence[int], ids: Tensor, mask: Tensor, cache: DynamicCache | None = None
) -> list[Tensor]:
    """Outputs of the given layers at `ids`, each (batch, width, d) float32.

    `mask` also covers what the cache holds already, and tells the positions.
    """
    outputs = {}

    def keep(layer):
        def hook(module, args, output):
            outputs[layer] = (output if isinstance(output, Tensor) else output[0]).float()

        return hook

    handles = [decoder.layers[i - 1].register_forward_hook(keep(i)) for i in set(layers)]
    try:
        decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=cache is not None,
        )
    finally:
        for handle in handles:
            handle.remove()
    return [outputs[layer] for layer in layers]
