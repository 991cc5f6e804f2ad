"""The policy: a frozen causal language model together with its tokenizer and prompt template.

A policy is model *and* template: the same weights under another template give another law over
responses. Nothing here is specific to one architecture; whatever `AutoModelForCausalLM` loads, on
one device or spread over several by `device_map`, is a policy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aisp.assets import EMBEDDED, is_embedded
from aisp.checks import choice, flag, whole
from aisp.loading import load_pretrained, resolve_device, resolve_dtype
from aisp.prompts import Messages, as_messages
from aisp.recipe import Recipe
from aisp.remote import ElsewhereError, RemoteModel, elsewhere
from aisp.remote import load as load_remote

Template = str | Callable[[list[dict[str, str]]], str]

# Tokens that end an assistant's turn in common chat formats; used where the vocabulary has them,
# because many checkpoints list only the end-of-text token in their generation config.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


@dataclass(frozen=True, eq=False)
class Policy:
    """A frozen causal LM. Build one with `load_policy`, or from objects you already have.

    Attributes:
        model: a Hugging Face causal LM with output embeddings; put in eval mode, gradients off.
        tokenizer: its tokenizer.
        template: "chat" (the tokenizer's chat template), "continuation" (the bare text of the
            messages, which the model continues), or a function from messages to the prefix text.
        name: what it was loaded from.
        eos_ids: token ids that end a response; found from the model and tokenizer if not given.
        recipe: how another process makes it anew; `load_policy` and `Recipe.make` set it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template = "chat"
    name: str = "custom"
    eos_ids: tuple[int, ...] = field(default=())
    recipe: Recipe | None = field(default=None, repr=False)

    def __post_init__(self):
        if not callable(self.template) and self.template not in ("chat", "continuation"):
            raise ValueError(
                f"template is {self.template!r}; use 'chat', 'continuation' or a function from "
                "messages to text"
            )
        if self.template == "chat" and not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {self.name} has no chat template; pass template='continuation' "
                "or a function from messages to text"
            )
        self._freeze()
        given = tuple(whole("a token id of eos_ids", i) for i in self.eos_ids)
        object.__setattr__(self, "eos_ids", given or _eos_ids(self.model, self.tokenizer))

    def _freeze(self) -> None:
        if self.model.get_output_embeddings() is None:
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) exposes no output embeddings, so there "
                "is no pre-logit to perturb; use a causal language model"
            )
        self.model.eval().requires_grad_(False)

    @property
    def engine(self) -> str:
        """What decodes: "aisp", or the name and version of another engine."""
        return "aisp"

    def require_here(self, what: str) -> None:
        """Refuse, as ValueError, where the model is in the processes of another engine.

        Args:
            what: what is to be done with the model; begins the error.
        """

    @property
    def is_embedded(self) -> bool:
        """Whether this is the embedded model, which the trained parts in data/ belong to."""
        return is_embedded(self.name)

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the input embeddings."""
        return next(self.model.get_input_embeddings().parameters()).device

    @property
    def head_device(self) -> torch.device:
        """Where pre-logits and logits live; differs from `device` only under a device_map."""
        return self.model.get_output_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_output_embeddings().weight.dtype

    @property
    def d(self) -> int:
        """Width of the pre-logit."""
        return self.model.get_output_embeddings().weight.shape[1]

    @property
    def context_length(self) -> int:
        """Positions the model was built for; a very large number where the config names none."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30)

    def prefix(self, prompt, max_new_tokens: int = 0) -> list[int]:
        """Token ids that a response to `prompt` continues.

        Args:
            prompt: a string, a list of {"role", "content"} messages, or a `Prompt`.
            max_new_tokens: room that the context must leave after the prefix.

        Raises:
            ValueError: an empty or malformed prompt, or one too long for the context.
        """
        messages = as_messages(prompt)
        room = whole("max_new_tokens", max_new_tokens, least=0)
        if callable(self.template):
            ids = self.tokenizer(self.template(messages))["input_ids"]
        elif self.template == "chat":
            text = chat_text(self.tokenizer, messages, opens_reply=True)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            text = "".join(m["content"] + "\n\n" for m in messages)
            ids = self.tokenizer(text)["input_ids"]
        if len(ids) + room > self.context_length:
            raise ValueError(
                f"prompt {messages[-1]['content'][:60]!r} takes {len(ids)} tokens and leaves "
                f"{self.context_length - len(ids)} of the {self.context_length} positions of "
                f"{self.name}, but max_new_tokens is {room}; shorten either"
            )
        return ids

    @torch.inference_mode()
    def response_logits(
        self, prompt: Any, tokens: Sequence[int], U: Tensor | None = None
    ) -> Tensor:
        """Logits of the steps that decode a given response, in one forward pass.

        Args:
            prompt: as in `prefix`.
            tokens: T token ids of the response.
            U: (tau, d), added to the pre-logits of the first tau steps, as `aisp.engine.rollout`
                adds it: in float32, then rounded to the model's dtype.

        Returns:
            (T, |V|) on the head's device.
        """
        if not len(tokens):
            size = self.model.get_output_embeddings().weight.shape[0]
            return torch.empty(0, size, device=self.head_device)
        prefix = self.prefix(prompt, len(tokens))
        ids = torch.tensor([[*prefix, *tokens[:-1]]], device=self.device)
        moved = nullcontext() if U is None else prelogits_changed(self.model, partial(_moved, U))
        with moved:
            return self.model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens)).logits[0]

    def log_probs(self, prompt: Any, tokens: Sequence[int]) -> Tensor:
        """log p(token | prompt, tokens before it) for a given response, (T,) float64."""
        log_p = torch.log_softmax(self.response_logits(prompt, tokens).double(), -1)
        index = torch.tensor(tokens, dtype=torch.long, device=log_p.device)[:, None]
        return log_p.gather(-1, index).squeeze(-1)

    def decode(self, tokens: list[list[int]]) -> list[str]:
        """Texts of token sequences, special tokens left out."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)


@dataclass(frozen=True, eq=False)
class RemotePolicy(Policy):
    """A policy that another engine decodes in its own processes, see `aisp.remote`."""

    model: RemoteModel  # type: ignore[assignment]  # stands in the place of a model, see above

    def _freeze(self) -> None:
        pass

    @property
    def engine(self) -> str:
        return self.model.engine

    def require_here(self, what: str) -> None:
        raise ElsewhereError(elsewhere(self.name, what))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head_device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def d(self) -> int:
        return self.model.d

    @property
    def context_length(self) -> int:
        return self.model.context_length

    def response_logits(
        self, prompt: Any, tokens: Sequence[int], U: Tensor | None = None
    ) -> Tensor:
        raise ElsewhereError(elsewhere(self.name, "all logits of a response"))

    def log_probs(self, prompt: Any, tokens: Sequence[int]) -> Tensor:
        if not len(tokens):
            return torch.empty(0, dtype=torch.float64)
        return self.model.log_probs(self.prefix(prompt, len(tokens) + 1), tokens)


def load_policy(
    name: str | Path = EMBEDDED,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    template: Template | None = None,
    trust_remote_code: bool = False,
    device_map: str | dict | None = None,
    engine: str = "aisp",
    **from_pretrained,
) -> Policy:
    """Load a frozen causal language model as a policy.

    Args:
        name: "embedded" (SmolLM2-135M-Instruct, see `aisp.assets`), a Hugging Face id, or a path.
        device: such as "cpu" or "cuda:0"; default the GPU if there is one.
        dtype: such as "bfloat16"; default bfloat16 on a GPU and on processors that compute in it,
            else float32. The choice is logged.
        template: see `Policy`; default "chat" where the tokenizer has a chat template, else
            "continuation".
        trust_remote_code: run Python code shipped with the checkpoint; off unless you trust it.
        device_map: spread a model over several devices (accelerate); then `device` is not used.
        engine: "aisp", or "vllm", which must be installed (see `aisp.remote`) and runs the model in
            processes of its own: AISP and its variants and best-of-n, on one or many GPUs.
        **from_pretrained: further arguments of `from_pretrained`, such as revision (default: see
            `aisp.pins`) or token; with engine="vllm" those of `vllm.LLM`, such as
            gpu_memory_utilization=0.5 or max_model_len=2048. Weights are read from safetensors only
            unless use_safetensors=False is among them.

    Raises:
        ValueError: a model that cannot be found or loaded, with what was tried; one of another kind,
            whose output embeddings would stay random; weights that are NaN or infinite.
        EngineError: vLLM is not installed, of a version that is not supported, or does not start.
    """
    options: dict[str, Any] = {"dtype": dtype, "device_map": device_map, **from_pretrained}
    options["trust_remote_code"] = flag("trust_remote_code", trust_remote_code)
    if choice("engine", engine, ("aisp", "vllm")) == "vllm":
        remote, tokenizer = load_remote(name, device=device, **options)
        return RemotePolicy(remote, tokenizer, _template(template, tokenizer), str(name))
    from transformers import AutoModelForCausalLM

    place = resolve_device(device)  # another process may have another one, and so another default
    options = {"use_safetensors": True, **options, "dtype": resolve_dtype(dtype, place)}
    model, tokenizer = load_pretrained(AutoModelForCausalLM, name, device=place, **options)
    recipe = Recipe("aisp.policy:load_policy", name=str(name), device=device, **options)
    return Policy(model, tokenizer, _template(template, tokenizer), str(name), recipe=recipe)


def _template(given: Template | None, tokenizer: PreTrainedTokenizerBase) -> Template:
    default = "chat" if tokenizer.chat_template else "continuation"
    return default if given is None else given


def _moved(U: Tensor, z: Tensor) -> Tensor:
    u = U[: z.shape[1]].to(z.device, torch.float32)
    exact = z.float()
    return torch.cat([exact[:, : len(u)] + u, exact[:, len(u) :]], 1).to(z.dtype)


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, opens_reply: bool = False
) -> str:
    """A conversation in the tokenizer's chat template, and the opening of the reply to it."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=opens_reply
    )
    assert isinstance(text, str)  # of one conversation that is not tokenized
    return text


def require_same_vocabulary(first: Policy, second: Policy, why: str) -> None:
    """Refuse two policies whose token ids stand for different tokens.

    The same vocabulary may still be padded to different numbers of logits.

    Args:
        why: what needs this and what to do; ends the error.

    Raises:
        ValueError: names both policies and counts their tokens.
    """
    if first.tokenizer is second.tokenizer:
        return
    ours, theirs = first.tokenizer.get_vocab(), second.tokenizer.get_vocab()
    if ours != theirs:
        raise ValueError(
            f"{first.name} and {second.name} have different vocabularies ({len(ours)} and "
            f"{len(theirs)} tokens, {len(ours.items() & theirs.items())} the same); {why}"
        )


@contextmanager
def prelogits_changed(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the model's output embeddings read `change(z)` in the place of z.

    A forward pre-hook, so that biases, scaling and soft-capping of the logits stay the model's
    business and no model code is copied.

    Args:
        change: from the pre-logits of a forward pass, (batch, steps, d), to what replaces them;
            any number of rows and steps.
    """

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(inputs[0]), *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _eos_ids(
    model: PreTrainedModel | RemoteModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {listed} if isinstance(listed, int) else set(listed or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    ids.update(vocabulary[token] for token in END_OF_TURN if token in vocabulary)
    return tuple(sorted(ids))
