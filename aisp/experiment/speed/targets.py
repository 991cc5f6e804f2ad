"""Targets for CUDA, and beside each what this machine measures.

The models have the shapes of known ones and random weights, made on the device: how long a step takes
depends on shapes alone, and nothing is downloaded. No response ends early, and the reward costs
nothing.
"""

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from aisp.checks import choice
from aisp.engine.attention import obstacle_to_sharing
from aisp.experiment.batches import out_of_memory
from aisp.experiment.speed.engines import engines
from aisp.experiment.speed.timing import key_width, read_each_step, timed
from aisp.experiment.speed.whole_runs import whole_runs
from aisp.policy import Policy
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
}
# As published, for `transformers.AutoConfig.for_model`.
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3-8B": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "Llama-3.2-1B": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "LFM2-1.2B": {
        "model_type": "lfm2",
        "vocab_size": 65536,
        "hidden_size": 2048,
        "intermediate_size": 12288,  # which the model itself reduces to 8192
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "layer_types": [
            "full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)
        ],
        "max_position_embeddings": 128000,
        "tie_word_embeddings": True,
    },
}
LARGE = "Llama-3-8B"  # the others are measured in long runs
# Bytes of the bandwidth's measurement; decoding at one prompt; whole runs in batches of n; long ones.
SIZES: dict[str, Any] = {
    "bytes": 1 << 30,
    "step": {"responses": 32, "tokens": 128, "prefix": 128, "repeats": 2},
    "runs": {"n": 32, "kappa": 4, "tokens": 128, "repeats": 2},
    "long": {"n": 16, "kappa": 16, "tokens": 512, "repeats": 1},
}
PUBLISHED = {"best-of-n": 24.4, "AISP": 43.3}  # seconds of such a long run on an H200


class Target(NamedTuple):
    name: str
    goal: str  # "at least" or "at most"
    target: float
    unit: str

    def row(self, shape: str, measured: float, note: str = "") -> dict[str, Any]:
        """A row of `table`."""
        reached = measured >= self.target if self.goal == "at least" else measured <= self.target
        what = {"shape": shape, "name": self.name, "measured": measured, **self._asdict()}
        return what | {"met": "yes" if reached else "no", "note": note}


SPEED = Target("speed of the engine over generate", "at least", 3.0, "times")
SHARE = Target("share of the bandwidth's bound", "at least", 0.6, "of 1")
RATIO = Target("time of AISP over best-of-n", "at most", 1.05, "times")
SECONDS = Target("time", "at most", 15.0, "s")


def table(
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    *,
    sizes: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> "pd.DataFrame":
    """Each target beside what is measured, with memory for one shape at a time.

    Args:
        tokenizer: one whose ids the shapes' vocabularies have, and with a chat template.
        sizes: as SIZES, which None takes.

    Returns:
        Columns shape, name, measured, goal ("at least" or "at most"), target, unit, met ("yes", "no"
        or "not measured") and note. A shape that cannot be measured has one row that says why.
    """
    import pandas as pd

    found = by_shape(tokenizer, device, sizes=sizes, dtype=dtype)
    return pd.DataFrame([row for rows in found for row in rows])


def by_shape(
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    *,
    sizes: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of `table`, shape by shape as they are measured; arguments as there."""
    sizes = SIZES if sizes is None else sizes
    if not _has(dtype, device):
        yield [not_measured(shape, f"this GPU has no {str(dtype)[6:]}") for shape in SHAPES]
        return
    speed = bandwidth(device, sizes["bytes"])
    for shape in SHAPES:
        yield _measured(shape, tokenizer, device, dtype, speed, sizes)
        _free(device)  # out here, where nothing holds the model any more


def notes(table: "pd.DataFrame") -> list[str]:
    """What stands behind each row of `table`, in a line each."""
    return [
        f"{', '.join(filter(None, (row.shape, row.name)))}: {row.note}"
        for row in table.itertuples(index=False)
    ]


def policy_of(
    shape: str,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> Policy:
    """A policy of one of SHAPES with random weights, made on the device; global draws stay as they were."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[choice("shape", shape, list(SHAPES))])
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Policy(model, tokenizer, name=shape)


def bandwidth(device: torch.device, size: int = SIZES["bytes"], repeats: int = 3) -> float:
    """Bytes per second between this device and its memory: the faster of copying and reading.

    Args:
        size: bytes of the tensor; many times what the caches hold.
    """
    times = 8  # in a row, so that neither the launch nor the clock counts
    source = torch.zeros(size // 4, device=device)
    copy = torch.empty_like(source)

    def copies() -> None:
        for _ in range(times):
            copy.copy_(source)

    def reads() -> None:
        for _ in range(times):
            source.amax()

    seconds = timed({"copy": copies, "read": reads}, repeats).set_index("name")["low"]
    return times * source.nbytes * max(2 / seconds["copy"], 1 / seconds["read"])


def step_bytes(policy: Policy, responses: int, prefix: int, tokens: int) -> float:
    """Bytes that a decoding step must read, in the mean over the steps.

    Every weight once; keys and values of the prefix, which the responses share, once; and those of
    each response, half of its tokens in the mean. The state of convolutions is left out.
    """
    config = policy.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    layers = kinds.count("full_attention")
    token = 2 * layers * key_width(config) * policy.dtype.itemsize
    weights = sum(w.nbytes for w in read_each_step(policy.model))
    return weights + token * (prefix + responses * tokens / 2)


def _measured(
    shape: str,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: torch.dtype,
    speed: float,
    sizes: dict[str, Any],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        policy = policy_of(shape, tokenizer, device, dtype)
        if shape == LARGE:
            rows += steps(policy, speed, **sizes["step"])
            rows.append(equal_batches(policy, **sizes["runs"]))
        else:
            rows += long_runs(policy, **sizes["long"])
    except Exception as error:
        if not out_of_memory(error):
            raise
        rows.append(not_measured(shape, "it does not fit this GPU's memory"))
    return rows


def steps(
    policy: Policy, speed: float, *, responses: int, tokens: int, prefix: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows: the engine against `generate` with its default cache, and against the bandwidth.

    Args:
        speed: bytes per second, from `bandwidth`.
    """
    size: dict[str, Any] = {"responses": [responses], "tokens": tokens, "prefix": prefix}
    size |= {"decodings": ["top-p 0.9", "AISP"], "repeats": repeats, "static": False}
    seconds = engines(policy, **size).set_index(["decoding", "name"])["seconds"]
    theirs, ours = (seconds["top-p 0.9", name] for name in ("generate", "engine"))
    note = f"top-p 0.9, {responses} responses of {tokens} tokens, a prefix of {prefix}"
    rows = [SPEED.row(policy.name, theirs / ours, note)]
    needed = step_bytes(policy, responses, prefix, tokens)
    for decoding in ("top-p 0.9", "AISP"):
        step = seconds[decoding, "engine"] / tokens
        note = f"a step takes {1e3 * step:.2f} ms, and must read {needed / 1e9:.2f} GB at "
        note += f"{speed / 1e12:.2f} TB/s"
        share = SHARE._replace(name=f"{SHARE.name}, {decoding}")
        rows.append(share.row(policy.name, needed / speed / step, note))
    return rows


def equal_batches(
    policy: Policy, *, n: int, kappa: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """Row: AISP against best-of-n that decodes one iteration at a time, as AISP must."""
    sides = ("AISP", "best-of-n", "best-of-n, by iteration")
    seconds = _seconds(policy, sides, n, kappa, tokens, repeats)
    note = (
        f"{kappa} batches of {n} responses of {tokens} tokens; best-of-n in as few batches as it "
    )
    note += f"can takes {seconds['best-of-n']:.1f} s, AISP {seconds['AISP']:.1f} s"
    ratio = seconds["AISP"] / seconds["best-of-n, by iteration"]
    return RATIO.row(policy.name, ratio, note)


def long_runs(
    policy: Policy, *, n: int, kappa: int, tokens: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows: seconds of best-of-n and of AISP, whose published times are in the notes."""
    seconds = _seconds(policy, tuple(PUBLISHED), n, kappa, tokens, repeats)
    obstacle = obstacle_to_sharing(policy.model)
    slow = f"; without shared prefixes and CUDA graphs: {obstacle}" if obstacle else ""
    rows = []
    for side, published in PUBLISHED.items():
        note = f"{n} x {kappa} x {tokens} tokens; published: {published} s on an H200{slow}"
        named = SECONDS._replace(name=f"{SECONDS.name} of {side}")
        rows.append(named.row(policy.name, seconds[side], note))
    return rows


def _seconds(
    policy: Policy, sides: tuple[str, ...], n: int, kappa: int, tokens: int, repeats: int
) -> "pd.Series":
    size = {"n": n, "kappa": kappa, "tokens": tokens, "repeats": repeats}
    return whole_runs(policy, load_reward(_length), **size, sides=sides).set_index("name")[
        "seconds"
    ]


def _length(prompt: Any, response: str) -> float:
    return float(len(response))


def not_measured(shape: str, why: str) -> dict[str, Any]:
    """The row of a shape that cannot be measured."""
    return {
        "shape": shape,
        "name": "",
        "measured": None,
        "goal": "",
        "target": None,
        "unit": "",
        "met": "not measured",
        "note": why,
    }


def _has(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type != "cuda" or dtype != torch.bfloat16:
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
