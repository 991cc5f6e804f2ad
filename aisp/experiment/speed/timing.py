"""The parts of benchmarks: a clock, the engine and `model.generate` on equal terms, the machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from aisp.checks import whole
from aisp.engine.decoding import Decoding
from aisp.engine.packed import products
from aisp.engine.rollout import rollout
from aisp.policy import Policy

if TYPE_CHECKING:
    import pandas as pd

PROMPT = "How do I learn to cook?"
TOP_P = Decoding(1.0, 0, 0.9)


def endless(policy: Policy) -> Policy:
    """The same policy with an end-of-turn token that no model emits."""
    return replace(policy, eos_ids=(-1,))


def prefix_of(policy: Policy, length: int) -> list[int]:
    """This many token ids: those of a prompt, repeated."""
    length = whole("prefix", length, least=1)
    ids = policy.prefix(PROMPT)
    return (ids * (length // len(ids) + 1))[:length]


def timed(
    functions: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True
) -> "pd.DataFrame":
    """Seconds of each function, run in turn, after one warm-up of each unless that is left out.

    Args:
        repeats: how often each function is timed, at least 1.

    Returns:
        One row per function: name, seconds (median), low, high (of the repeats).
    """
    import pandas as pd

    repeats = whole("repeats", repeats, least=1)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-int(warm_up), repeats):
        for name, function in functions.items():
            _synchronize()
            began = time.perf_counter()
            function()
            _synchronize()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    rows = [(name, pd.Series(s).median(), min(s), max(s)) for name, s in seconds.items()]
    return pd.DataFrame(rows, columns=["name", "seconds", "low", "high"])


@torch.inference_mode()
def generate(
    policy: Policy, ids: list[int], n: int, tokens: int, decoding: Decoding, **options: Any
) -> Tensor:
    """n responses by `model.generate`, (n, prefix + tokens) ids.

    Args:
        **options: of `model.generate`.
    """
    prompt = torch.tensor([ids], device=policy.device)
    if decoding.greedy:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    else:
        options |= {"do_sample": True, "temperature": decoding.temperature}
        options |= {"top_p": decoding.top_p, "top_k": decoding.top_k}
    model: Any = policy.model  # transformers declares `generate` in a class of its own
    return model.generate(
        prompt.expand(n, -1),
        attention_mask=torch.ones_like(prompt).expand(n, -1),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
        **options,
    )


def engine(
    policy: Policy,
    prefixes: list[list[int]],
    n: int,
    tokens: int,
    decoding: Decoding | None,
    **options: Any,
) -> None:
    """n responses to each prefix by our engine.

    Args:
        decoding: None is greedy decoding of perturbed pre-logits.
        **options: of `rollout`.
    """
    device = policy.head_device
    sources = [torch.Generator(device).manual_seed(i) for i in range(len(prefixes))]
    if decoding is None:
        shape = (n, tokens, policy.d)
        V = [0.5 * torch.randn(shape, generator=g, device=device) for g in sources]
        options |= {"V": torch.stack(V)}
    else:
        options |= {"decoding": decoding}
    rollout(policy, prefixes, n, tokens, generators=sources, **options)


def lower_bounds(policy: Policy, rows: int, length: int, repeats: int = 5) -> "pd.DataFrame":
    """Lower bounds of the time of one decoding step on this machine.

    Args:
        rows: responses decoded together.
        length: tokens in the cache of each.

    Returns:
        Two rows: "matrix products", a batch of rows times each of the model's weight matrices, laid
        out for this where the engine does so (`aisp.engine.packed`), and "cache", its keys and values read from memory once.
    """
    rows, length = whole("rows", rows, least=1), whole("length", length, least=1)
    config = policy.model.config.get_text_config()
    weights = [w for w in read_each_step(policy.model) if w.ndim == 2]
    fast = {layer.weight: product for layer, product in products(policy.model).items()}
    inputs = {
        w.shape[1]: torch.randn(rows, w.shape[1], dtype=w.dtype, device=w.device) for w in weights
    }
    size = (config.num_hidden_layers, 2, rows, length, key_width(config))
    cache = torch.zeros(size, dtype=policy.dtype, device=policy.device)

    @torch.inference_mode()
    def multiply() -> None:
        for w in weights:
            x = inputs[w.shape[1]]
            fast[w](x) if w in fast else torch.nn.functional.linear(x, w)

    return timed({"matrix products": multiply, "cache": lambda: cache.amax()}, repeats)


def read_each_step(model: PreTrainedModel) -> list[Tensor]:
    """The weights that a decoding step reads: all but input embeddings that are not the head too."""
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    return [w for w in model.parameters() if w is not embedding or w is head]


def key_width(config: PreTrainedConfig) -> int:
    """Numbers in all keys, and as many in all values, of one token in one layer."""
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads * width


def ratio(table: "pd.DataFrame", slow: str, fast: str) -> tuple[float, float, float]:
    """Seconds of one name over those of another, and the range that the repeats span.

    Args:
        table: columns name, seconds, low, high; each name once.
    """
    one, other = (table.set_index("name").loc[name] for name in (slow, fast))
    high = one["high"] / other["low"]
    return one["seconds"] / other["seconds"], one["low"] / other["high"], high


def against(table: "pd.DataFrame", rival: str) -> list[str]:
    """How many times as fast the engine is as a rival, in sentences.

    Args:
        table: from `aisp.experiment.speed.bench.engines`.
        rival: "generate", of whose settings the fastest one counts, or "vLLM".
    """
    sentences = []
    for (n, decoding), group in table.groupby(["responses", "decoding"], sort=False):
        others = group[group["name"].str.startswith(rival)]
        if others.empty:
            continue
        best = others.loc[others["seconds"].idxmin(), "name"]
        size, low, high = ratio(group, best, "engine")
        tried = ", the faster of its two settings" if len(others) > 1 else ""
        factor = f"{size:.2f} times [{low:.2f}, {high:.2f}] as fast as"
        sentences.append(f"{n} responses, {decoding}: the engine is {factor} {best}{tried}.")
    return sentences


def machine(policy: Policy) -> str:
    """The machine and its settings, in a line."""
    if policy.device.type == "cuda":
        device = torch.cuda.get_device_name(policy.device)
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    return f"{device}, {str(policy.dtype).removeprefix('torch.')}, torch {torch.__version__}"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
