"""Whether checkpoints and data sets of the Hugging Face hub are as the code reads them.

The checks download no weights: configuration, tokenizer, the names of the weights, the first rows of
data sets, at the revision of `aisp.pins`. Models are built on torch's device "meta", which computes
shapes only. A check also takes a local folder; so the quick tests run them on small models, and
`make test-hub` on the hub.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from aisp.engine.attention import obstacle_to_sharing
from aisp.engine.stepper import Stepper
from aisp.experiment.studies.main_results import template as template_of
from aisp.pins import revision_of
from aisp.policy import Policy, chat_text
from aisp.preference_data import HUB, hub_rows
from aisp.prompts import FORMATS, as_messages
from aisp.rewards.hub import REGRESSION_HEADS, Format, SequenceClassifierReward

ROWS = 20  # of each split of a data set that are read
DIALOGUE = [  # as HH-RLHF has them
    {"role": "user", "content": "Is tea hot?"},
    {"role": "assistant", "content": "Usually."},
    {"role": "user", "content": "And coffee?"},
]
REPLY = {"role": "assistant", "content": "Yes."}
# use_safetensors -> where transformers looks for weights; an index lists several files.
FORMS = {True: "model.safetensors", False: "pytorch_model.bin"}
INDEX = ".index.json"


def check_policy(
    source: str | Path,
    *,
    template: str | None = None,
    use_safetensors: bool = True,
    engine: str = "aisp",
) -> dict[str, Any]:
    """Check that `load_policy` and the engine can work with a checkpoint, without its weights.

    Args:
        source: id or folder.
        template, use_safetensors, engine: as in the files of parameters.

    Returns:
        What was found: class, d, file of the weights, and why prefixes are decoded without being
        shared (None where they are shared).

    Raises:
        ValueError: names the checkpoint and what is wrong with it.
    """
    from transformers import AutoModelForCausalLM

    name = str(source)
    config, tokenizer = _config_and_tokenizer(source)
    model = _built(AutoModelForCausalLM, config, name)
    given = template_of(template) or ("chat" if tokenizer.chat_template else "continuation")
    policy = Policy(model, tokenizer, given, name)
    with _saying(f"{name}: its template {template!r} does not take a dialogue of several turns"):
        policy.prefix(DIALOGUE, 1)
    text_config = config.get_text_config()
    if engine == "vllm" and getattr(text_config, "final_logit_softcapping", None):
        raise ValueError(f"{name} caps its logits, which engine 'vllm' cannot perturb; use 'aisp'")
    obstacle = obstacle_to_sharing(model)
    with _saying(f"{name} ({type(model).__name__}) cannot be decoded by aisp.engine"):
        _decode(policy, obstacle is None)
    file, names = _weights(source, use_safetensors)
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    untied = names is not None and not getattr(text_config, "tie_word_embeddings", False)
    if names is not None and untied and not any(n.endswith(f"{head}.weight") for n in names):
        raise ValueError(
            f"{name} has no weights for its output embeddings ({head}.weight) in {file}"
        )
    told = {"class": type(model).__name__, "d": policy.d, "file": file}
    return told | {"obstacle to sharing": obstacle}


def check_reward(source: str | Path) -> dict[str, Any]:
    """Check that `load_reward` can work with a checkpoint, without its weights.

    Args:
        source: id or folder.

    Returns:
        What was found: class, what is read ("ultrarm_format", "chat template", "text pair"), file of
        the weights.

    Raises:
        ValueError: names the checkpoint and what is wrong: not one output, weights that are missing
            by name (the head among them), a format that is not the one of its card.
    """
    from transformers import AutoModelForSequenceClassification

    name = str(source)
    config, tokenizer = _config_and_tokenizer(source)
    known = [REGRESSION_HEADS[a] for a in config.architectures or () if a in REGRESSION_HEADS]
    format = known[0] if known else None
    if format is not None:
        config.num_labels = 1
    model = _built(AutoModelForSequenceClassification, config, name)
    SequenceClassifierReward(model, tokenizer, name)  # refuses other than one output
    file, names = _weights(source, None if format else True)
    head = "regression_head" if format else "score"
    needed = {re.sub(r"^score\.", f"{head}.", key) for key in model.state_dict()}
    if names is not None and not needed <= names:
        missing = sorted(needed - names, key=lambda key: (not key.startswith(head), key))
        raise ValueError(
            f"{name} has no weights for {', '.join(missing[:3])} in {file}: it is no reward model of "
            "this format, or its files are incomplete"
        )
    reads = "text pair"
    if format is not None:
        _check_format(source, tokenizer, format)
        reads = format.__name__
    elif tokenizer.chat_template:
        with _saying(f"{name}: its chat template does not take a dialogue of several turns"):
            chat_text(tokenizer, [*DIALOGUE, REPLY])
        reads = "chat template"
    return {"class": type(model).__name__, "reads": reads, "file": file}


def check_prompts(source: str) -> dict[str, int]:
    """Check that the first rows of a data set on the hub are read, in each of its splits.

    Args:
        source: a key of `aisp.preference_data.HUB`.

    Returns:
        Split -> prompts in its first rows.

    Raises:
        ValueError: names the data set, the split and what is wrong with it.
    """
    dataset, _, fields, splits = HUB[source]
    found = {}
    for split in splits:
        with _saying(f"{dataset} ({split}): its fields {', '.join(fields)} cannot be read"):
            rows = list(islice(hub_rows(source, split, streaming=True), ROWS))
        with _saying(f"{dataset} ({split}): its rows are not as they are read"):
            found[split] = len([as_messages(row.messages) for row in FORMATS[source](rows)])
        if not found[split]:
            raise ValueError(f"{dataset} ({split}) has no rows")
    return found


def _config_and_tokenizer(source: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoTokenizer

    revision = revision_of(source)
    with _saying(f"{source}: its configuration cannot be read"):
        config = AutoConfig.from_pretrained(source, revision=revision)
    with _saying(f"{source}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of no files
        raise ValueError(f"{source} has no tokenizer: no vocabulary was found")
    return config, tokenizer


def _built(auto_class: Any, config: Any, name: str) -> Any:
    """A model without weights, by the code of transformers and no other."""
    with _saying(f"{name}: no {auto_class.__name__} can be built"), torch.device("meta"):
        return auto_class.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)


def _decode(policy: Policy, share: bool) -> None:
    """Two steps of the engine on two prompts with two responses each: shapes, and what is kept."""
    tokens, add = torch.zeros(4, dtype=torch.long), torch.zeros(4, policy.d, device=policy.device)
    steps = Stepper(policy, [[1, 2, 3], [4, 5, 6]], 2, 3, share_prefixes=share, pack_weights=False)
    policy.model.config.pad_token_id = None  # else some models search the ids for it
    with torch.inference_mode():
        shapes = {tuple(x.shape) for x in (steps.start(add), steps.step(tokens, add))}
    size = policy.model.get_output_embeddings().weight.shape[0]
    if shapes != {(4, size)}:
        raise ValueError(f"the logits of 4 rows over {size} tokens have shapes {sorted(shapes)}")
    if (kept := steps.cache.get_seq_length()) != 4:
        raise ValueError(f"its cache holds {kept} of 4 tokens: the model does not use it")


def _weights(source: str | Path, use_safetensors: bool | None) -> tuple[str, set[str] | None]:
    """The file that weights are loaded from, or its index, and their names where these can be told.

    Args:
        use_safetensors: None takes either.
    """
    files = _files(source)
    forms = FORMS.values() if use_safetensors is None else [FORMS[use_safetensors]]
    for file in (form + end for form in forms for end in ("", INDEX)):
        if file in files:
            return file, _names(source, file)
    has = sorted(f for f in files if f.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf")))
    raise ValueError(
        f"{source} has no {' or '.join(forms)}, in one file or several, as use_safetensors="
        f"{use_safetensors} asks for; its weights are in {', '.join(has[:3]) or 'no file'}"
    )


def _names(source: str | Path, file: str) -> set[str] | None:
    if file.endswith(INDEX):
        return set(json.loads(_local(source, file).read_text(encoding="utf-8"))["weight_map"])
    if not file.endswith(".safetensors"):
        return None  # what a pickle holds is known only by loading it
    if Path(source).is_dir():
        with safe_open(Path(source) / file, framework="pt") as tensors:
            return set(tensors.keys())
    from huggingface_hub import get_safetensors_metadata  # reads the beginning of the file

    return set(get_safetensors_metadata(str(source), revision=revision_of(source)).weight_map)


def _check_format(source: str | Path, tokenizer: PreTrainedTokenizerBase, format: Format) -> None:
    """Compare what is read with the card, and the first token with what such models begin with."""
    first = tokenizer(format([*DIALOGUE, REPLY]))["input_ids"][0]
    if tokenizer.bos_token_id is None or first != tokenizer.bos_token_id:
        raise ValueError(
            f"{source}: its tokenizer does not put the beginning-of-text token first, as the code on "
            "its card does: scores would be others"
        )
    if "README.md" not in _files(source):
        return
    card = _local(source, "README.md").read_text(encoding="utf-8")
    shown = format([{"role": "user", "content": "{}"}, {"role": "assistant", "content": "{}"}])
    for part in filter(None, shown.split("{}")):
        if part not in card:
            raise ValueError(
                f"{source}: its card does not show {part!r}, which {format.__name__} of "
                "aisp.rewards.hub writes; compare the two"
            )


def _files(source: str | Path) -> set[str]:
    if Path(source).is_dir():
        return {path.name for path in Path(source).iterdir()}
    from huggingface_hub import HfApi

    return set(HfApi().list_repo_files(str(source), revision=revision_of(source)))


def _local(source: str | Path, file: str) -> Path:
    if Path(source).is_dir():
        return Path(source) / file
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(source), file, revision=revision_of(source)))


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Whatever fails within is said to be this, as one ValueError."""
    try:
        yield
    except Exception as error:  # libraries of templates, tokenizers and files raise many types
        raise ValueError(f"{what}: {' '.join(str(error).split())}") from error
