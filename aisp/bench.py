"""`make bench`: the engine against `model.generate`, and AISP against our own best-of-n.

Ratios are measured within one process, the two sides in turn, medians of repeated runs: absolute
speeds differ between machines, ratios much less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from aisp.methods import align
from aisp.policy import Policy, load_policy
from aisp.rewards import load_reward
from aisp.rollout import Decoding, rollout

PROMPT = "How do I learn to cook?"


def main() -> None:
    """Print both tables with their targets."""
    parser = argparse.ArgumentParser(prog="python -m aisp.bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--responses", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    args = parser.parse_args()
    policy = load_policy("embedded", device=args.device, dtype=args.dtype)
    # No response may end early: both sides then decode exactly the same number of tokens.
    endless = Policy(policy.model, policy.tokenizer, name="embedded", eos_ids=(-1,))
    where = "cpu" if policy.device.type == "cpu" else torch.cuda.get_device_name(policy.device)
    print(
        f"{where}, {torch.get_num_threads()} threads, {policy.dtype}, {args.tokens} new tokens, "
        f"prefix of {len(policy.prefix(PROMPT))} tokens, medians of {args.repeats} runs\n"
    )
    print("engine against model.generate, both with top-p 0.9 (tokens/s)")
    print(f"{'responses':>9} {'generate':>9} {'engine':>9} {'ratio':>6}  target")
    for n in args.responses:
        generate, engine = _medians(
            [
                lambda n=n: _generate(policy, n, args.tokens),
                lambda n=n: _engine(endless, n, args.tokens),
            ],
            args.repeats,
        )
        rate = n * args.tokens
        print(
            f"{n:>9} {rate / generate:>9.0f} {rate / engine:>9.0f} {generate / engine:>6.2f}"
            f"  {'>= 2' if n == 128 else '':6}",
            flush=True,
        )
    reward = load_reward("embedded", policy=policy)

    def whole(method):
        size = dict(n=16, kappa=8, max_new_tokens=args.tokens, progress=False)
        out = align(PROMPT, endless, reward, method=method, **size)
        assert out.history["tokens"].sum() == 128 * args.tokens

    best_of_n, aisp = _medians([lambda: whole("best_of_n"), lambda: whole("aisp")], args.repeats)
    print("\nwhole run, n = 16, kappa = 8, rewards included (seconds)")
    print(f"best-of-n {best_of_n:.1f}, AISP {aisp:.1f}, ratio {aisp / best_of_n:.2f}  (<= 1.10)")


def _medians(functions: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each, run in turn after one warm-up of each."""
    seconds = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, times in zip(functions, seconds, strict=True):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in seconds]


@torch.inference_mode()
def _generate(policy: Policy, n: int, tokens: int) -> None:
    ids = torch.tensor([policy.prefix(PROMPT)], device=policy.device)
    policy.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_p=0.9,
        top_k=0,
        num_return_sequences=n,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=policy.eos_ids[0],
    )


def _engine(policy: Policy, n: int, tokens: int) -> None:
    source = torch.Generator(policy.head_device).manual_seed(0)
    rollout(
        policy,
        [policy.prefix(PROMPT)],
        n,
        tokens,
        decoding=Decoding(1.0, 0, 0.9),
        generators=[source],
    )


if __name__ == "__main__":
    main()
