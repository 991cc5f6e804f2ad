"""The policy: a frozen causal language model together with its tokenizer and prompt template.

A policy is model *and* template: the same weights under another template are another law over
responses. Nothing here is specific to one architecture; whatever `AutoModelForCausalLM` loads, on
one device or spread over several by `device_map`, is a policy.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aisp.prompts import as_messages

log = logging.getLogger(__name__)

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
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template = "chat"
    name: str = "custom"
    eos_ids: tuple[int, ...] = field(default=())

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
        if self.model.get_output_embeddings() is None:
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) exposes no output embeddings, so there "
                "is no pre-logit to perturb; use a causal language model"
            )
        self.model.eval().requires_grad_(False)
        if not self.eos_ids:
            object.__setattr__(self, "eos_ids", _eos_ids(self.model, self.tokenizer))

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the input embeddings."""
        return self.model.get_input_embeddings().weight.device

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
        if self.template == "chat":
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        elif self.template == "continuation":
            text = "".join(m["content"] + "\n\n" for m in messages)
            ids = self.tokenizer(text)["input_ids"]
        else:
            ids = self.tokenizer(self.template(messages))["input_ids"]
        if len(ids) + max_new_tokens > self.context_length:
            raise ValueError(
                f"prompt {messages[-1]['content'][:60]!r} takes {len(ids)} tokens and leaves "
                f"{self.context_length - len(ids)} of the {self.context_length} positions of "
                f"{self.name}, but max_new_tokens is {max_new_tokens}; shorten either"
            )
        return ids

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token sequences, special tokens left out."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)


@contextmanager
def prelogits_changed(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a function change what enters the model's own output embeddings, while this is active.

    So biases, logit scaling and soft-capping stay the model's business.

    Args:
        change: from pre-logits (rows, positions, d) to those that are used in their place.
    """

    def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def load_policy(
    name: str | Path = "embedded",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    template: Template | None = None,
    trust_remote_code: bool = False,
    device_map: str | dict | None = None,
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
        **from_pretrained: further arguments of `from_pretrained`, such as revision or token.
            Weights are read from safetensors only unless use_safetensors=False is among them.

    Raises:
        ValueError: a model that cannot be found or loaded, with what was tried.
    """
    from transformers import AutoModelForCausalLM

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = resolve_dtype(dtype, device)
    options = {"use_safetensors": True, **from_pretrained, "trust_remote_code": trust_remote_code}
    if device_map is not None:
        options["device_map"] = device_map
    model, tokenizer = load_pretrained(AutoModelForCausalLM, name, dtype=dtype, **options)
    if device_map is None:
        model = model.to(device)
    if template is None:
        template = "chat" if tokenizer.chat_template else "continuation"
    return Policy(model, tokenizer, template, str(name))


def load_pretrained(auto_class, name: str | Path, **options) -> tuple:
    """Model and tokenizer from the embedded assets, a local path or the hub, or a clear error.

    Args:
        auto_class: the transformers Auto class that builds the model.
        name: as in `load_policy`.
        **options: of the model's `from_pretrained`.
    """
    import transformers

    from aisp import assets

    source = assets.policy_dir() if str(name) == "embedded" else name
    shared = {k: v for k, v in options.items() if k in ("revision", "token", "trust_remote_code")}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        return (
            auto_class.from_pretrained(source, **options),
            transformers.AutoTokenizer.from_pretrained(source, **shared),
        )
    except (OSError, ValueError) as error:
        where = "as a local path" if Path(source).exists() else "as a local path and on the hub"
        raise ValueError(
            f"cannot load {str(name)!r} ({auto_class.__name__}); tried it {where}. Check the name; "
            "without network, or for gated models without a token, the Hugging Face hub is out of "
            f"reach: download the model first, or use 'embedded'. Cause: {error}"
        ) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, or the fastest sound one for the device."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        fast = device.type == "cuda" or any(
            cpu.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16")
        )
        chosen = torch.bfloat16 if fast else torch.float32
        log.info("dtype %s chosen for %s", chosen, device)
        return chosen
    known = {"bfloat16", "float16", "float32", "float64"}
    if dtype not in known:
        raise ValueError(f"dtype is {dtype!r}; known: {', '.join(sorted(known))}")
    return getattr(torch, dtype)


def _eos_ids(model, tokenizer) -> tuple[int, ...]:
    listed = getattr(model, "generation_config", None) and model.generation_config.eos_token_id
    ids = {listed} if isinstance(listed, int) else set(listed or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    ids.update(vocabulary[token] for token in END_OF_TURN if token in vocabulary)
    return tuple(sorted(ids))
