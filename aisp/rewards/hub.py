"""Hugging Face reward models: a backbone that reads a conversation, and a head with one output.

Most are sequence classifiers as transformers knows them (Skywork-Reward and many others). The two
of the AISP paper are not: openbmb/UltraRM-13b (Cui et al., arXiv:2310.01377) and
openbmb/Eurus-RM-7b (Yuan et al., arXiv:2404.02078) keep a stock Llama or Mistral backbone under
`model.` and one row of weights under `regression_head.`, and bring Python code that puts them
together. That code is not run: the row is loaded as the `score` of transformers' own classifier for
the backbone, which computes the same thing, reward = regression_head . h with h the last layer's
output at the last token. `architectures` in a checkpoint's config says which format it reads.

Not checked here, because the hub is out of reach: the real checkpoints. Names, formats and head are
those of their model cards and of public code that uses them; the tests save small random models
with these names, and `make test-hub` compares names and format with those on the hub. If a score of
a real checkpoint disagrees with its card, check first: the blank line before "Assistant:" (the card of UltraRM defines its template so, and has a single
line break in its examples), and whether the tokenizer puts the beginning-of-text token first.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from aisp.checks import whole
from aisp.loading import load_pretrained
from aisp.policy import chat_text
from aisp.prompts import Messages, as_messages
from aisp.rewards.base import Reward, RewardError, described, length_batches

Format = Callable[[Messages], str]


def ultrarm_format(messages: Messages) -> str:
    """ "Human: … Assistant: …", the turns separated by a blank line, as the card of UltraRM-13b.

    Several turns follow each other as in HH-RLHF, on which UltraRM was trained too; a system
    message stands before them without a name (ours: the card shows one turn and no system).
    """
    names = {"system": "", "user": "Human: ", "assistant": "Assistant: "}
    return "\n\n".join(names[m["role"]] + m["content"] for m in messages)


def eurus_format(messages: Messages) -> str:
    """ "[INST] … [/INST] …", as the card of Eurus-RM-7b, which names Mistral-Instruct-v0.2.

    As there, "</s> " closes the replies before the last one. A system message opens the user turn
    that follows it (ours: the format has no place for one).
    """
    text = system = ""
    for message in messages:
        if message["role"] == "system":
            system += message["content"] + "\n\n"
        elif message["role"] == "user":
            text += f"[INST] {system}{message['content']} [/INST]"
            system = ""
        else:
            text += f" {message['content']}</s> "
    return text.removesuffix("</s> ")


REGRESSION_HEADS: dict[str, Format] = {  # the checkpoint's `architectures` -> what it reads
    "LlamaRewardModel": ultrarm_format,
    "EurusRewardModel": eurus_format,
}


class SequenceClassifierReward(Reward):
    """A Hugging Face reward model with one output, as `load_reward` makes it.

    A decoder's head reads the last token. Which one that is after padding follows the checkpoint:
    where its config names a padding token, the last token that is not this one, as in transformers;
    where it names none, the last one of the text, whatever it is.

    Attributes:
        format: from the messages, the response as the last of them, to the text that is read, which
            then gets the tokenizer's special tokens; None is the tokenizer's chat template, or
            where it has none, prompt and response as a text pair.
        batch_size: pairs per forward pass; they are batched by length.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "classifier",
        batch_size: int = 16,
        format: Format | None = None,
    ):
        if model.config.num_labels != 1:
            raise ValueError(
                f"reward model {name!r} has {model.config.num_labels} outputs; a reward model has 1"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        config = model.config.get_text_config()
        self.reads_last = config.pad_token_id is None and hasattr(model, "score")
        if config.pad_token_id is None and not self.reads_last:
            config.pad_token_id = tokenizer.pad_token_id
        self.limit = getattr(config, "max_position_embeddings", 1 << 30)
        self.pad = tokenizer.pad_token_id if self.reads_last else config.pad_token_id
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name
        self.batch_size = whole("batch_size", batch_size, least=1)
        self.format = format

    @torch.inference_mode()
    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        encoded = [self._encode(p, r) for p, r in zip(prompts, responses, strict=True)]
        values = torch.empty(len(encoded), dtype=torch.float64)
        for batch in length_batches([len(e["input_ids"]) for e in encoded], self.batch_size):
            values[batch] = self._forward([encoded[i] for i in batch]).double().cpu()
        return values

    def _forward(self, encoded: list[BatchEncoding]) -> Tensor:
        """(rows,) rewards of tokenized texts."""
        padded = self.tokenizer.pad(encoded, padding_side="right", return_tensors="pt")
        mask = padded["attention_mask"]
        # The model looks for its own padding token, which need not be the tokenizer's.
        padded["input_ids"].masked_fill_(mask == 0, self.pad)
        padded = padded.to(self.model.get_input_embeddings().weight.device)
        if not self.reads_last:
            return self.model(**padded).logits[:, 0]
        hidden = self.model.base_model(**padded).last_hidden_state
        last = (mask.sum(-1) - 1).to(hidden.device)
        rows = torch.arange(len(last), device=hidden.device)
        return self.model.score(hidden[rows, last])[:, 0]

    def _encode(self, prompt: Any, response: str) -> BatchEncoding:
        messages = as_messages(prompt)
        conversation = [*messages, {"role": "assistant", "content": response}]
        if self.format is not None:
            encoded = self.tokenizer(self.format(conversation))
        elif self.tokenizer.chat_template:
            text = chat_text(self.tokenizer, conversation)
            encoded = self.tokenizer(text, add_special_tokens=False)
        else:
            encoded = self.tokenizer("\n\n".join(m["content"] for m in messages), response)
        if len(encoded["input_ids"]) > self.limit:
            raise RewardError(
                f"{described(prompt, response)} takes {len(encoded['input_ids'])} tokens; reward "
                f"model {self.name!r} reads {self.limit}. Use shorter prompts or responses: "
                "nothing is truncated silently"
            )
        return encoded


def load_reward_model(
    source: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    format: Format | None = None,
    **from_pretrained: Any,
) -> SequenceClassifierReward:
    """Load a Hugging Face reward model; `aisp.load_reward` is the front door.

    Args:
        source: id or path.
        device: not used where device_map is given.
        format: see `SequenceClassifierReward`; None is the checkpoint's own.
        **from_pretrained: as in `load_policy`. UltraRM and Eurus-RM are also read from .bin files,
            because not all copies of them have safetensors (torch loads tensors only, no code).

    Raises:
        ValueError: a checkpoint that cannot be loaded, has not one output, or lacks weights.
    """
    options = {"dtype": dtype, **from_pretrained}
    model, tokenizer = load_pretrained(RewardModel, source, device=device, **options)
    for architecture in model.config.architectures or ():
        format = format or REGRESSION_HEADS.get(architecture)
    return SequenceClassifierReward(model, tokenizer, str(source), format=format)


class RewardModel:
    """Takes the place of a transformers Auto class in `load_pretrained`."""

    @staticmethod
    def from_pretrained(source: str | Path, **options: Any) -> tuple[PreTrainedModel, dict]:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        shared = {k: options[k] for k in ("revision", "token", "trust_remote_code") if k in options}
        config = AutoConfig.from_pretrained(source, **shared)
        regression_head = bool(REGRESSION_HEADS.keys() & set(config.architectures or ()))
        if regression_head:
            options["trust_remote_code"] = False
            options |= {"num_labels": 1, "key_mapping": {"^regression_head": "score"}}
        else:
            options.setdefault("use_safetensors", True)
        model, info = AutoModelForSequenceClassification.from_pretrained(source, **options)
        if regression_head:
            model.config.pad_token_id = None  # these read the last token, whatever it is
        return model, info
