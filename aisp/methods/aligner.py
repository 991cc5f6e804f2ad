"""RAM's residual aligner: a second policy with the same vocabulary as the first.

Most often it is the policy itself with LoRA adapters. `load_aligner` finds one, `with_adapter` reads
adapters in peft's format, and `inject` puts new ones over a policy's own tensors, for
`aisp.training.ram` to train.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from aisp.assets import PARTS, is_embedded, trained_part
from aisp.checks import whole
from aisp.loading import load_tensors
from aisp.policy import Policy, require_same_vocabulary

UNTRAINED = "untrained"  # in the place of an aligner: the policy itself

PREFIX = "base_model.model."  # what peft puts before the names of an adapter's weights in a file


def load_aligner(source: Policy | str | Path, policy: Policy) -> Policy:
    """The aligner of a policy, see `RAMConfig`.

    Raises:
        ValueError: no adapter there, one that does not fit the policy, or another vocabulary.
    """
    if source == UNTRAINED:
        return policy
    if not isinstance(source, Policy):
        if is_embedded(source) and not policy.is_embedded:
            raise ValueError(
                f"the aligner 'embedded' belongs to the embedded policy, and this one is "
                f"{policy.name!r}; train one with `{PARTS['aligner'].command} --policy ...`, or pass "
                "a Policy"
            )
        source = with_adapter(policy, trained_part("aligner", source))
    require_same_vocabulary(
        source,
        policy,
        "an aligner's probabilities must weigh the policy's tokens: use one with the "
        "policy's tokenizer",
    )
    widths = [p.model.get_output_embeddings().weight.shape[0] for p in (source, policy)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"the aligner {source.name!r} has {widths[0]} logits and {policy.name!r} {widths[1]}; "
            "use an aligner with the policy's vocabulary, padded alike"
        )
    return source


def with_adapter(policy: Policy, folder: str | Path) -> Policy:
    """The policy with LoRA adapters: a second policy that shares every weight of the first.

    Args:
        folder: adapter_config.json and adapter_model.safetensors, as peft writes them.
    """
    import peft

    stored, _ = load_tensors(Path(folder) / "adapter_model.safetensors", "aligner")
    weights = {name.removeprefix(PREFIX): value for name, value in stored.items()}
    try:
        model = inject(policy, peft.LoraConfig.from_pretrained(str(folder)))
        found: Any = peft.set_peft_model_state_dict(model, weights)
        strange = found.unexpected_keys + [k for k in found.missing_keys if "lora_" in k]
    except (RuntimeError, ValueError) as error:  # other shapes, or no such modules
        strange = str(error)
    if strange:
        raise ValueError(
            f"the adapter at {folder} does not fit {policy.name} ({type(policy.model).__name__}); "
            f"use the policy that it was trained on. Cause: {strange}"
        )
    return Policy(model, policy.tokenizer, policy.template, Path(folder).name, policy.eos_ids)


def inject(policy: Policy, config: Any, seed: int = 0) -> PreTrainedModel:
    """A model with new adapters over the policy's own tensors; the policy's model stays as it is.

    Args:
        config: a `peft.LoraConfig`.
        seed: of the adapters' initial weights, >= 0.
    """
    import peft

    seed = whole("seed", seed, least=0)
    model = policy.model
    tensors = {id(x): x for x in (*model.parameters(), *model.buffers())}
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):  # peft initializes from the global state
        torch.manual_seed(seed)
        # The memo marks all tensors as copied: new modules that share the same weights.
        twin = copy.deepcopy(model, tensors)
        peft.inject_adapter_in_model(config, twin)  # into the twin itself
        return twin
