"""`make bench`: the engine against `model.generate` and vLLM; whole runs of AISP against best-of-n.

Within one process all sides run in turn, several times, and medians are reported. Absolute speeds
differ between machines; ratios differ much less. No response may end early, so that all sides decode
exactly the same number of tokens. notebooks/08_runtime.ipynb shows the same measurements with
figures.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp.checks import choice, whole
from aisp.engine.decoding import Decoding, take_token
from aisp.experiment.speed import targets
from aisp.experiment.speed.engines import engines
from aisp.experiment.speed.timing import (
    PROMPT,
    TOP_P,
    against,
    endless,
    engine,
    machine,
    prefix_of,
    timed,
)
from aisp.experiment.speed.whole_runs import whole_runs
from aisp.methods import align
from aisp.policy import Policy, load_policy
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd

# What notebooks/08_runtime.ipynb measures in each profile; "whole" and "many" are `whole_runs` of one
# prompt and of several, "axes" those of `scaling`; "targets": those of CUDA too, where there is one.
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "repeats": 1,
        "responses": (2, 4),
        "tokens": 4,
        "vllm": False,
        "long_prefix": 64,
        "whole": {"n": 2, "kappa": 2, "tokens": 4},
        "many": {"n": 2, "kappa": 1, "tokens": 4, "prompts": 2},
        "base": {"prompts": 1, "responses": 4, "tokens": 4, "prefix": 40},
        "axes": {"prompts": (1, 2), "responses": (2, 4), "tokens": (2, 4), "prefix": (32, 64)},
        "targets": False,
    },
    "gpu-smoke": {
        "repeats": 1,
        "responses": (16, 32),
        "tokens": 12,
        "vllm": False,
        "long_prefix": 128,
        "whole": {"n": 16, "kappa": 2, "tokens": 16},
        "many": {"n": 16, "kappa": 1, "tokens": 16, "prompts": 2},
        "base": {"prompts": 1, "responses": 16, "tokens": 12, "prefix": 40},
        "axes": {"prompts": (1, 2), "responses": (16, 32), "tokens": (12, 24), "prefix": (32, 128)},
        "targets": False,
    },
    "cpu": {
        "repeats": 2,
        "responses": (16, 64, 128),
        "tokens": 48,
        "vllm": True,
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
        "targets": True,
    },
}
SIZES["gpu"] = SIZES["cpu"] | {
    "repeats": 3,
    "responses": (16, 64, 256, 1024),
    "whole": {"n": 16, "kappa": 16, "tokens": 512},
}
KEYS = ["responses", "decoding", "name"]
AXES = ("prompts", "responses", "tokens", "prefix")  # sizes that `scaling` varies


def engine_steps(
    policy: Policy, *, responses: int = 128, tokens: int = 48, prefix: int = 40, repeats: int = 3
) -> "pd.DataFrame":
    """How much each optimization of the engine saves: each one is taken away alone.

    "copied prefixes" keeps and attends the prefix once per response. "plain argmax" calls `argmax`
    on the model's logits instead of `max(-1).indices`. "whole batch" turns all logits into
    probabilities at once instead of eight rows at a time. "plain products" leaves the weights as
    `torch.nn.Linear` keeps them.

    Returns:
        One row per (decoding, name), for perturbed greedy and top-p decoding, with
        tokens_per_second, and slower_by, the seconds relative to the engine as it is.
    """
    import pandas as pd

    policy, tokens = endless(policy), whole("tokens", tokens, least=1)
    responses = whole("responses", responses, least=1)
    ids = [prefix_of(policy, prefix)]
    without: dict[str, dict[str, Any]] = {
        "as it is": {},
        "copied prefixes": {"share_prefixes": False},
        "plain products": {"pack_weights": False},
        "plain argmax": {"take_token": _plain_argmax},
        "whole batch": {"take_token": partial(take_token, rows_at_once=responses)},
    }
    tables = []
    for name, decoding in {"perturbed greedy": None, "top-p 0.9": TOP_P}.items():
        run = partial(engine, policy, ids, responses, tokens, decoding)
        table = timed({k: partial(run, **options) for k, options in without.items()}, repeats)
        table.insert(0, "decoding", name)
        table["tokens_per_second"] = responses * tokens / table["seconds"]
        table["slower_by"] = table["seconds"] / table["seconds"].iloc[0]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _plain_argmax(logits: Tensor, decoding: Decoding, uniforms: Tensor | None) -> Tensor:
    return logits.argmax(-1) if decoding.greedy else take_token(logits, decoding, uniforms)


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
        axes: values of some of these four, tried while the others are as in base.

    Returns:
        One row per (axis, value), with tokens_per_second and its low and high.

    Raises:
        ValueError: an axis that is none of the four, or a size below 1.
    """
    import pandas as pd

    policy = endless(policy)
    rows: list[dict[str, Any]] = []
    for axis, values in axes.items():
        for value in values:
            given = base | {choice("axis", axis, AXES): value}
            size = {name: whole(name, given[name], least=1) for name in AXES}
            one = prefix_of(policy, size["prefix"])  # turned: equal prefixes would be merged
            ids = [one[i % len(one) :] + one[: i % len(one)] for i in range(size["prompts"])]
            decode = partial(engine, policy, ids, size["responses"], size["tokens"], None)
            run = timed({"": decode}, repeats).iloc[0]
            count = size["prompts"] * size["responses"] * size["tokens"]
            speeds = {
                "tokens_per_second": count / run.seconds,
                "low": count / run.high,
                "high": count / run.low,
            }
            rows.append({"axis": axis, "value": value} | speeds)
    return pd.DataFrame(rows)


def peak_memory(method: str, **size: int) -> float:
    """Peak memory of one run in a process of its own, in MiB: of the GPU if there is one, else RSS."""
    arguments = [f"--{name}={value}" for name, value in size.items()]
    command = [sys.executable, "-m", "aisp.experiment.speed.bench", "--peak", method, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run for its peak memory failed: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the tables with their targets."""
    parser = argparse.ArgumentParser(
        prog="python -m aisp.experiment.speed.bench", description=__doc__
    )
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
    print(
        f"{machine(policy)}, {args.tokens} new tokens, medians of {args.repeats} runs", flush=True
    )
    print("\nengines, one prompt of 49 tokens; share: of the bound that this machine sets")
    size_of_engines = {"responses": args.responses, "tokens": args.tokens, "repeats": args.repeats}
    table = engines(policy, **size_of_engines, vllm=True)
    print(table[[*KEYS, "tokens_per_second", "share"]].round(2).to_string(index=False))
    for sentence in [*against(table, "generate"), *against(table, "vLLM")]:
        print(sentence)
    print("targets at T = 1: of vLLM 1.0 at 16 responses, 1.1 at 64 and 128", flush=True)
    print(f"\nwhole runs, n = {args.n}, kappa = {args.kappa}, rewards included")
    print(_text(whole_runs(policy, reward, **size, repeats=args.repeats), ["ratio"]))
    print("targets: best-of-n by generate at least 4 of best-of-n, and 3 of AISP")
    print("\nthe same with 8 prompts at once, one iteration")
    many = whole_runs(policy, reward, **size | {"kappa": 1}, repeats=args.repeats, prompts=8)
    print(_text(many, ["ratio"]))
    print("target: AISP at most 1.05 of best-of-n")
    peaks = {name: peak_memory(name, **size) for name in ("best_of_n", "aisp")}
    ratio = peaks["aisp"] / peaks["best_of_n"]
    print(f"\npeak memory: best-of-n {peaks['best_of_n']:.0f} MiB, AISP {peaks['aisp']:.0f} MiB")
    print(f"ratio {ratio:.3f} (target <= 1.15)", flush=True)
    if policy.device.type == "cuda":
        print("\ntargets for CUDA; shapes of known models with random weights, in bfloat16")
        table = targets.table(policy.tokenizer, policy.device)
        print(table.drop(columns="note").round(2).to_string(index=False, na_rep=""))
        print("\n".join(targets.notes(table)))
    else:
        print(f"\nfurther targets are for CUDA, and are not measured on {policy.device.type}")


def _text(table: "pd.DataFrame", columns: list[str]) -> str:
    return table[["name", "seconds", "low", "high", *columns]].round(2).to_string(index=False)


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
