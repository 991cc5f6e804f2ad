"""What a reward is, and the rewards that come with the package.

A reward maps (prompts, responses) to one float64 number per pair, higher is better. `load_reward`
makes one from a Python callable, from a Hugging Face reward model, or from the embedded preference
head; to write your own batched reward, derive from `Reward`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp.policy import Policy, load_pretrained, resolve_dtype
from aisp.prompts import as_messages

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class RewardError(ValueError):
    """A reward failed, or returned what no weight can be computed from.

    Attributes:
        candidates: DataFrame of everything decoded before and at the failure (prompt, iteration,
            sample, response, reward, log_weight; NaN where not scored), when raised by a method.
    """

    candidates: "pd.DataFrame | None" = None

    def __init__(self, message: str, index: int | None = None):
        super().__init__(message)
        self.index = index  # which pair of the batch, where it is known


class Reward(ABC):
    """Scores responses; derive from it for a reward of your own that works on batches."""

    name: str = "reward"

    @abstractmethod
    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        """Rewards of N (prompt, response) pairs.

        Args:
            prompts: N prompts as the caller gave them: strings, message lists or `Prompt`s.
            responses: N texts.

        Returns:
            (N,) float64 on the CPU; -inf rejects a response.
        """


class CallableReward(Reward):
    """A plain Python function (prompt, response) -> float."""

    def __init__(self, function: Callable[[Any, str], float]):
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        values = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                value = self.function(prompt, response)
            except Exception as error:
                raise RewardError(
                    f"reward {self.name!r} raised {type(error).__name__}: {error}, on "
                    f"{_pair(prompt, response)}",
                    index=i,
                ) from error
            number = _number(value)
            if number is None:
                raise RewardError(
                    f"reward {self.name!r} returned {value!r} ({type(value).__name__}) on "
                    f"{_pair(prompt, response)}; a reward is one number",
                    index=i,
                )
            values.append(number)
        return torch.tensor(values, dtype=torch.float64)


class SequenceClassifierReward(Reward):
    """A Hugging Face reward model with one output: AutoModelForSequenceClassification.

    The conversation goes through the tokenizer's chat template where it has one, else prompt and
    response are a text pair. Pairs are scored in batches of similar length.
    """

    def __init__(self, model, tokenizer, name: str = "classifier", batch_size: int = 16):
        if model.config.num_labels != 1:
            raise ValueError(
                f"reward model {name!r} has {model.config.num_labels} outputs; a reward model has 1"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name, self.batch_size = tokenizer, name, batch_size

    @torch.inference_mode()
    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        encoded = [self._encode(p, r) for p, r in zip(prompts, responses, strict=True)]
        device = self.model.get_input_embeddings().weight.device
        values = torch.empty(len(encoded), dtype=torch.float64)
        for batch in length_batches([len(e["input_ids"]) for e in encoded], self.batch_size):
            padded = self.tokenizer.pad([encoded[i] for i in batch], return_tensors="pt")
            values[batch] = self.model(**padded.to(device)).logits[:, 0].double().cpu()
        return values

    def _encode(self, prompt, response) -> dict:
        messages = as_messages(prompt)
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [*messages, {"role": "assistant", "content": response}], tokenize=False
            )
            encoded = self.tokenizer(text, add_special_tokens=False)
        else:
            encoded = self.tokenizer("\n\n".join(m["content"] for m in messages), response)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30)
        if len(encoded["input_ids"]) > limit:
            raise RewardError(
                f"{_pair(prompt, response)} takes {len(encoded['input_ids'])} tokens; reward model "
                f"{self.name!r} reads {limit}. Use shorter prompts or responses: nothing is "
                "truncated silently"
            )
        return encoded


def load_reward(
    source: str | Path | Callable[[Any, str], float] | Reward = "embedded",
    *,
    policy: Policy | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **from_pretrained: Any,
) -> Reward:
    """Make a reward.

    Args:
        source: "embedded" (the preference head of data/reward_head on frozen SmolLM2 features), the
            Hugging Face id or path of a sequence-classification reward model, a callable
            (prompt, response) -> float, or a Reward, which is returned as it is.
        policy: its weights are shared with the embedded head where it is the embedded model, and
            its device is the default device.
        device, dtype: for models; as in `load_policy`.
        **from_pretrained: as in `load_policy`; trust_remote_code stays off unless given.

    Raises:
        ValueError: a source that cannot be loaded, with what was tried.
    """
    if isinstance(source, Reward):
        return source
    if callable(source):
        return CallableReward(source)
    device = torch.device(
        device or (policy.device if policy else "cuda" if torch.cuda.is_available() else "cpu")
    )
    if str(source) == "embedded":
        from aisp.policy import load_policy
        from aisp.reward_head import EmbeddedReward

        if policy is None or policy.name != "embedded" or policy.device != device:
            policy = load_policy("embedded", device=device, dtype=dtype)
        return EmbeddedReward.load(policy)
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = load_pretrained(
        AutoModelForSequenceClassification,
        source,
        dtype=resolve_dtype(dtype, device),
        **{"use_safetensors": True, **from_pretrained},
    )
    return SequenceClassifierReward(model.to(device), tokenizer, str(source))


def score(reward: Reward, prompts: Sequence[Any], texts: Sequence[Sequence[str]]) -> Tensor:
    """Rewards of P prompts with n responses each, checked.

    Args:
        prompts: P prompts.
        texts: P lists of n responses.

    Returns:
        (P, n) float64 on the CPU.

    Raises:
        RewardError: the reward raised, returned the wrong number of values, a non-number, NaN or
            +inf, or rejected (-inf) all n responses of a prompt; it names prompt and candidate.
    """
    n = len(texts[0])
    pairs = [(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    try:
        values = reward.score([p for p, _ in pairs], [t for _, t in pairs])
    except RewardError as error:
        if error.index is not None:
            error.args = (f"candidate {error.index % n}: {error}",)
        raise
    except Exception as error:
        raise RewardError(
            f"reward {reward.name!r} raised {type(error).__name__}: {error}, on a batch of "
            f"{len(pairs)} responses, the first of them {_pair(*pairs[0])}"
        ) from error
    if not isinstance(values, Tensor) or values.shape != (len(pairs),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise RewardError(
            f"reward {reward.name!r} returned {got} for {len(pairs)} responses; return a tensor of "
            f"shape ({len(pairs)},)"
        )
    values = values.detach().to("cpu", torch.float64)
    for i in torch.nonzero(values.isnan() | (values == torch.inf)).flatten().tolist():
        raise RewardError(
            f"reward {reward.name!r} is {values[i].item()} for candidate {i % n} of "
            f"{_pair(*pairs[i])}; a reward is a number, or -inf to reject a response"
        )
    for p in torch.nonzero((values.view(-1, n) == -torch.inf).all(-1)).flatten().tolist():
        raise RewardError(
            f"reward {reward.name!r} rejected (-inf) all {n} candidates of prompt "
            f"{_short(prompts[p])}, the first of them {texts[p][0][:60]!r}: no sample can carry "
            "weight. Raise n, or return a low finite reward"
        )
    return values.view(-1, n)


def length_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of at most `size`, longest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


def _number(value: Any) -> float | None:
    """The value as a float, or None where it is not one number."""
    if isinstance(value, str | bytes | bool | None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _short(prompt: Any) -> str:
    return repr(as_messages(prompt)[-1]["content"][:60])


def _pair(prompt: Any, response: str) -> str:
    return f"prompt {_short(prompt)}, response {response[:60]!r}"
