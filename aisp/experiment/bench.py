"""`make bench`: the engine against `model.generate`, and whole runs of AISP against best-of-n.

Ratios are measured within one process, the sides in turn, medians of repeated runs: absolute speeds
differ between machines, ratios much less. notebooks/08_runtime.ipynb explains the same measurements
with figures. No response may end early, so that all sides decode exactly the same number of tokens.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods import align
from aisp.policy import Policy, load_policy
from aisp.rewards.base import Reward, score
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd

PROMPT = "How do I learn to cook?"
TOP_P = Decoding(1.0, 0, 0.9)

# What notebooks/08_runtime.ipynb measures in each profile; "whole" and "many" are `whole_runs` of one
# prompt and of several, "axes" those of `scaling`.
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "repeats": 1,
        "responses": (2, 4),
        "tokens": 4,
        "long_prefix": 64,
        "whole": {"n": 2, "kappa": 2, "tokens": 4},
        "many": {"n": 2, "kappa": 1, "tokens": 4, "prompts": 2},
        "base": {"prompts": 1, "responses": 4, "tokens": 4, "prefix": 40},
        "axes": {"prompts": (1, 2), "responses": (2, 4), "tokens": (2, 4), "prefix": (32, 64)},
    },
    "cpu": {
        "repeats": 2,
        "responses": (16, 64, 128),
        "tokens": 48,
        "long_prefix": 256,
        "whole": {"n": 16, "kappa": 8, "tokens": 64},
        "many": {"n": 16, "kappa": 1, "tokens": 64, "prompts": 8},
        "base": {"prompts": 1, "responses": 64, "tokens": 32, "prefix": 40},
        "axes": {
            "prompts": (1, 2, 4, 8),
            "responses": (4, 16, 64, 256),
            "tokens": (16, 32, 64, 128),
            "prefix": (32, 256, 1024),
        },
    },
}
SIZES["gpu"] = SIZES["cpu"] | {
    "repeats": 3,
    "responses": (16, 64, 256, 1024),
    "whole": {"n": 16, "kappa": 16, "tokens": 512},
}


def endless(policy: Policy) -> Policy:
    """The same policy with an end-of-turn token that no model emits."""
    return Policy(policy.model, policy.tokenizer, policy.template, name=policy.name, eos_ids=(-1,))


def timed(
    functions: dict[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True
) -> "pd.DataFrame":
    """Seconds of each function, run in turn, after one warm-up of each unless that is left out.

    Returns:
        One row per function: name, seconds (median), low, high (of the repeats).
    """
    import pandas as pd

    seconds = {name: [] for name in functions}
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


def against_generate(
    policy: Policy,
    *,
    responses: Sequence[int] = (16, 64, 128),
    tokens: int = 48,
    prefix: int = 40,
    repeats: int = 3,
    decoding: Decoding = TOP_P,
    static: bool = True,
) -> "pd.DataFrame":
    """The engine against `model.generate` with its dynamic and its static cache.

    Args:
        prefix: tokens of the prompt.
        static: also time generate's static cache, which it compiles where it can, at the last n.

    Returns:
        One row per (responses, name), with tokens_per_second, and ratio, the speed relative to the
        best of generate's settings.
    """
    import pandas as pd

    policy = endless(policy)
    ids = prefix_of(policy, prefix)
    tables = []
    for n in responses:
        sides = {
            "generate": lambda t, n=n: generate(policy, ids, n, t, decoding),
            "engine": lambda t, n=n: engine(policy, [ids], n, t, decoding),
        }
        if static and n == responses[-1]:
            sides["generate, static cache"] = lambda t, n=n: generate(
                policy, ids, n, t, decoding, cache_implementation="static"
            )
        for side in sides.values():  # a short warm-up: whole ones would take minutes
            side(2)
        table = timed(
            {name: lambda side=side: side(tokens) for name, side in sides.items()},
            repeats,
            warm_up=False,
        )
        table.insert(0, "responses", n)
        table["tokens_per_second"] = n * tokens / table["seconds"]
        best = table.loc[table["name"] != "engine", "seconds"].min()
        table["ratio"] = best / table["seconds"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def whole_runs(
    policy: Policy,
    reward: Reward,
    *,
    n: int = 16,
    kappa: int = 8,
    tokens: int = 48,
    repeats: int = 3,
    prompts: int = 1,
) -> "pd.DataFrame":
    """AISP, our best-of-n, and best-of-n by `generate`, at equal samples, rewards included.

    Args:
        prompts: decoded as one batch by ours, and one after the other by `generate`, which has no n
            responses to each of several prompts without copying them all.

    Returns:
        One row per name, with ratio, the seconds relative to our best-of-n.
    """
    policy = endless(policy)
    many = [f"{PROMPT} Answer number {i}." for i in range(prompts)]
    size = {"n": n, "kappa": kappa, "max_new_tokens": tokens, "progress": False}

    def ours(method):
        for out in align(many, policy, reward, method=method, **size):
            assert out.history["tokens"].sum() == n * kappa * tokens

    def by_generate():
        for prompt in many:
            for _ in range(kappa):
                out = generate(policy, policy.prefix(prompt), n, tokens, TOP_P)
                texts = policy.decode(out[:, -tokens:].tolist())
                score(reward, [prompt], [texts])

    table = timed(
        {
            "AISP": lambda: ours("aisp"),
            "best-of-n": lambda: ours("best_of_n"),
            "best-of-n by generate": by_generate,
        },
        repeats,
        warm_up=False,  # long enough that the first steps do not count
    )
    table["ratio"] = table["seconds"] / table.set_index("name").loc["best-of-n", "seconds"]
    return table


def scaling(
    policy: Policy,
    *,
    base: dict[str, int],
    axes: dict[str, Sequence[int]],
    repeats: int = 3,
) -> "pd.DataFrame":
    """Speed of perturbed greedy decoding as one size at a time changes.

    Args:
        base: prompts, responses, tokens and prefix.
        axes: values of each, tried while the others are as in base.

    Returns:
        One row per (axis, value), with tokens_per_second and its low and high.
    """
    import pandas as pd

    policy = endless(policy)
    rows = []
    for axis, values in axes.items():
        for value in values:
            size = base | {axis: value}
            ids = [prefix_of(policy, size["prefix"])] * size["prompts"]
            run = timed(
                {"": lambda s=size, i=ids: engine(policy, i, s["responses"], s["tokens"], None)},
                repeats,
            ).iloc[0]
            count = size["prompts"] * size["responses"] * size["tokens"]
            speeds = {
                "tokens_per_second": count / run.seconds,
                "low": count / run.high,
                "high": count / run.low,
            }
            rows.append({"axis": axis, "value": value} | speeds)
    return pd.DataFrame(rows)


def limit(policy: Policy, rows: int, length: int, repeats: int = 5) -> "pd.DataFrame":
    """What one decoding step cannot be faster than on this machine.

    Args:
        rows: responses decoded together.
        length: tokens in the cache of each.

    Returns:
        Two rows: "matrix products", all of the model's own weight matrices times a batch of rows,
        weights read from memory once, and "cache", its keys and values read once.
    """
    config = policy.model.config.get_text_config()
    weights = [p for p in policy.model.parameters() if p.ndim == 2]
    head = policy.model.get_output_embeddings().weight
    embedding = policy.model.get_input_embeddings().weight
    weights = [w for w in weights if w is not embedding or w is head]
    inputs = {
        w.shape[1]: torch.randn(rows, w.shape[1], dtype=w.dtype, device=w.device) for w in weights
    }
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = (config.num_hidden_layers, 2, rows, length, heads * width)
    cache = torch.zeros(size, dtype=policy.dtype, device=policy.device)

    @torch.inference_mode()
    def products():
        for w in weights:
            torch.nn.functional.linear(inputs[w.shape[1]], w)

    return timed({"matrix products": products, "cache": lambda: cache.amax()}, repeats)


def peak_memory(method: str, **size: int) -> float:
    """Peak memory of one run in a process of its own, in MiB: of the GPU if there is one, else RSS."""
    arguments = [f"--{name}={value}" for name, value in size.items()]
    command = [sys.executable, "-m", "aisp.experiment.bench", "--peak", method, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


@torch.inference_mode()
def generate(policy: Policy, ids: list[int], n: int, tokens: int, decoding: Decoding, **options):
    """n responses by `model.generate`, (n, prefix + tokens) ids."""
    prompt = torch.tensor([ids], device=policy.device)
    sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if not decoding.greedy:
        sampling = {"do_sample": True, "temperature": decoding.temperature}
        sampling |= {"top_p": decoding.top_p, "top_k": decoding.top_k}
    return policy.model.generate(
        prompt.expand(n, -1),
        attention_mask=torch.ones_like(prompt).expand(n, -1),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
        **sampling,
        **options,
    )


def engine(
    policy: Policy, prefixes: list[list[int]], n: int, tokens: int, decoding: Decoding | None
) -> None:
    """n responses to each prefix by our engine; decoding None is greedy on perturbed pre-logits."""
    device = policy.head_device
    sources = [torch.Generator(device).manual_seed(i) for i in range(len(prefixes))]
    V = None
    if decoding is None:
        shape = (n, tokens, policy.d)
        V = torch.stack([0.5 * torch.randn(shape, generator=g, device=device) for g in sources])
    rollout(policy, prefixes, n, tokens, V=V, decoding=decoding or Decoding(), generators=sources)


def prefix_of(policy: Policy, length: int) -> list[int]:
    """So many token ids: those of a prompt, over and over."""
    ids = policy.prefix(PROMPT)
    return (ids * (length // len(ids) + 1))[:length]


def where(policy: Policy) -> str:
    """The machine and its settings, in a line."""
    if policy.device.type == "cuda":
        machine = torch.cuda.get_device_name(policy.device)
    else:
        machine = f"CPU, {torch.get_num_threads()} threads"
    return f"{machine}, {str(policy.dtype).removeprefix('torch.')}, torch {torch.__version__}"


def main() -> None:
    """Print the tables with their targets."""
    parser = argparse.ArgumentParser(prog="python -m aisp.experiment.bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--responses", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--kappa", type=int, default=8)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--peak", metavar="METHOD", help="print the peak memory of one run, in MiB")
    args = parser.parse_args()
    policy = load_policy("embedded", device=args.device, dtype=args.dtype)
    reward = load_reward("embedded", policy=policy)
    size = {"n": args.n, "kappa": args.kappa, "tokens": args.tokens}
    if args.peak:
        size["max_new_tokens"] = size.pop("tokens")
        align(PROMPT, endless(policy), reward, method=args.peak, progress=False, **size)
        print(f"{_peak(policy):.0f}")
        return
    print(f"{where(policy)}, {args.tokens} new tokens, medians of {args.repeats} runs", flush=True)
    for prefix, target in ((40, 3), (256, 4)):
        print(f"\nengine against model.generate, top-p 0.9, prefix of {prefix} tokens")
        table = against_generate(
            policy,
            responses=args.responses if prefix == 40 else args.responses[-1:],
            tokens=args.tokens,
            prefix=prefix,
            repeats=args.repeats,
            static=prefix == 40,
        )
        print(_text(table, ["tokens_per_second", "ratio"]))
        print(f"target: ratio >= {target} at 128 responses", flush=True)
    print(f"\nwhole runs, n = {args.n}, kappa = {args.kappa}, rewards included")
    print(_text(whole_runs(policy, reward, **size, repeats=args.repeats), ["ratio"]))
    print("\nthe same with 8 prompts at once, one iteration")
    many = whole_runs(policy, reward, **size | {"kappa": 1}, repeats=args.repeats, prompts=8)
    print(_text(many, ["ratio"]))
    print("targets: AISP <= 1.05 of best-of-n, and a third of best-of-n by generate or less")
    peaks = {name: peak_memory(name, **size) for name in ("best_of_n", "aisp")}
    ratio = peaks["aisp"] / peaks["best_of_n"]
    print(f"\npeak memory: best-of-n {peaks['best_of_n']:.0f} MiB, AISP {peaks['aisp']:.0f} MiB")
    print(f"ratio {ratio:.3f} (target <= 1.15)")


def _text(table: "pd.DataFrame", columns: list[str]) -> str:
    names = [c for c in ("responses", "name", "seconds", "low", "high") if c in table]
    return table[names + columns].round(2).to_string(index=False)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak(policy: Policy) -> float:
    if policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated(policy.device) / 2**20
    if sys.platform == "linux":
        # Not getrusage: there its maximum is inherited from the process that started this one.
        with open("/proc/self/status") as status:
            return next(int(x.split()[1]) for x in status if x.startswith("VmHWM")) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


if __name__ == "__main__":
    main()
