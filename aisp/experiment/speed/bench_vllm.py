"""vLLM's speed on this machine, measured in its own environment, in a process of its own.

vLLM's needs do not fit this environment's, so `measure` starts the Python of the environment that
`make test-vllm` made (VENV_VLLM, default .venv-vllm beside the notebooks). There this module runs as
a command: it loads the embedded model once, warms each size up, times plain sampling as vLLM itself
does it, and best-of-n and AISP as whole calls of `align`, all with the same number of tokens.

    .venv-vllm/bin/python -m aisp.experiment.speed.bench_vllm '{"dtype": "bfloat16"}'
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisp import provenance
from aisp.experiment.speed.timing import PROMPT, endless, prefix_of, timed
from aisp.methods import align
from aisp.policy import Policy, load_policy

if TYPE_CHECKING:
    import pandas as pd

SIZE: dict[str, Any] = {
    "responses": [16, 64, 128],
    "tokens": 48,
    "prefix": 49,
    "repeats": 3,
    "device": "cpu",
    "dtype": "bfloat16",
}


def python() -> Path | None:
    """The Python of the environment that has vLLM; None where there is none."""
    folder = Path(os.environ.get("VENV_VLLM") or provenance.checkout() / ".venv-vllm")
    found = folder.absolute() / "bin" / "python"
    return found if (folder / ".stamp").exists() and found.exists() else None


def measure(**size: Any) -> "pd.DataFrame | None":
    """Tokens per second of vLLM, warm, with its threads bound to all cores.

    This process should do nothing meanwhile: both would want the same cores.

    Args:
        **size: other values than those of SIZE.

    Returns:
        One row per (responses, name), with top_p (1 or 0.9; NaN for AISP), tokens_per_second, low,
        high (of the repeats) and the engine's version in `engine`; None where vLLM's environment is
        not there. Names: "vLLM", its own sampling; "best-of-n" and "AISP" through `align`, with a
        reward that costs nothing.

    Raises:
        ValueError: a size that is not in SIZE.
        RuntimeError: the process failed; ends with what it printed.
    """
    import pandas as pd

    unknown = [name for name in size if name not in SIZE]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no size; they are {', '.join(SIZE)}")
    program = python()
    if program is None:
        return None
    command = [str(program), "-m", "aisp.experiment.speed.bench_vllm", json.dumps(SIZE | size)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "KMP_", "MKL_"))}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"measuring vLLM failed: {done.stderr.strip()[-2000:]}")
    return pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))


def speeds(policy: Policy, size: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `measure`, with a policy that vLLM holds."""
    policy, tokens = endless(policy), size["tokens"]
    ids, rows = prefix_of(policy, size["prefix"]), []
    for n in size["responses"]:
        shared = {"n": n, "kappa": 1, "max_new_tokens": tokens, "progress": False}
        run = partial(align, PROMPT, policy, _nothing, **shared)
        sides: dict[tuple[str, float | None], Callable[[], Any]] = {
            ("vLLM", 1.0): partial(_plain, policy, ids, n, tokens, 1.0),
            ("vLLM", 0.9): partial(_plain, policy, ids, n, tokens, 0.9),
            ("best-of-n", 1.0): partial(run, method="best_of_n", top_p=1.0),
            ("best-of-n", 0.9): partial(run, method="best_of_n", top_p=0.9),
            ("AISP", None): partial(run, method="aisp"),
        }
        table = timed({str(k): v for k, v in sides.items()}, size["repeats"])
        for (name, top_p), at in zip(sides, table.itertuples(), strict=True):
            speed = {
                "tokens_per_second": n * tokens / at.seconds,
                "low": n * tokens / at.high,
                "high": n * tokens / at.low,
            }
            about = {"responses": n, "name": name, "top_p": top_p, "engine": policy.engine}
            rows.append(about | speed)
    return rows


def _nothing(prompt: Any, response: str) -> float:
    return 0.0


def _plain(policy: Any, ids: list[int], n: int, tokens: int, top_p: float) -> None:
    """n responses as vLLM samples them, without our processor."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=1.0, top_p=top_p, max_tokens=tokens, ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": ids}] * n
    outs = policy.model.llm.generate(prompts, params, use_tqdm=False)
    assert sum(len(out.outputs[0].token_ids) for out in outs) == n * tokens


def main() -> None:
    """Print the rows as JSON, on the last line."""
    size = SIZE | json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")
    where = {"device": size["device"], "dtype": size["dtype"], "max_num_seqs": 256}
    policy = load_policy("embedded", engine="vllm", **where)
    print(json.dumps(speeds(policy, size)), flush=True)


if __name__ == "__main__":
    main()
