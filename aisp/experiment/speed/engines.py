"""Our engine, `model.generate` and vLLM, decoding the same number of tokens on one machine."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aisp.checks import choice, whole
from aisp.engine.decoding import Decoding
from aisp.experiment.speed import bench_vllm, timing
from aisp.experiment.speed.timing import TOP_P, endless, engine, generate, prefix_of, timed
from aisp.policy import Policy

if TYPE_CHECKING:
    import pandas as pd

# How tokens are taken; None is AISP's, greedy decoding of perturbed pre-logits.
DECODINGS: dict[str, Decoding | None] = {"T = 1": Decoding(1.0), "top-p 0.9": TOP_P, "AISP": None}


def engines(
    policy: Policy,
    *,
    responses: Sequence[int] = (16, 64, 128),
    decodings: Sequence[str] = tuple(DECODINGS),
    tokens: int = 48,
    prefix: int = 49,
    repeats: int = 3,
    static: bool = True,
    vllm: bool = False,
) -> "pd.DataFrame":
    """Our engine, `model.generate` and vLLM, each decoding responses to one prompt.

    Args:
        decodings: some of DECODINGS; `generate` has the first two.
        prefix: tokens of the prompt.
        static: also time generate's static cache, which it compiles where it can, at top-p 0.9 and
            the last n.
        vllm: also measure vLLM where its environment is, see `bench_vllm`; after the others, as it
            wants all cores.

    Returns:
        One row per (responses, decoding, name), with tokens_per_second, and share, of the bound of
        this machine (`timing.lower_bounds`) that this speed is.
    """
    import pandas as pd

    policy, tokens = endless(policy), whole("tokens", tokens, least=1)
    ids = prefix_of(policy, prefix)
    sizes = [whole("responses", n, least=1) for n in responses]
    chosen = {x: DECODINGS[choice("decoding", x, tuple(DECODINGS))] for x in decodings}
    tables = []
    for n in sizes:
        # Ours apart from generate, as vLLM's are: what one leaves in caches and memory slows the other.
        ours = {
            (x, "engine"): partial(engine, policy, [ids], n, tokens, d) for x, d in chosen.items()
        }
        tables.append(_timed(ours, repeats).assign(responses=n))
        theirs: dict[tuple[str, str], Callable[..., Any]] = {}
        for name, decoding in chosen.items():
            if decoding is not None:
                side: Callable[..., Any] = partial(generate, policy, ids, n, decoding=decoding)
                theirs[name, "generate"] = side
                if static and decoding is TOP_P and n == sizes[-1]:
                    still = partial(side, cache_implementation="static")
                    theirs[name, "generate, static cache"] = still
        for side in theirs.values():  # a short warm-up: whole ones would take minutes
            side(tokens=2)
        whole_ones = {key: partial(side, tokens=tokens) for key, side in theirs.items()}
        tables.append(_timed(whole_ones, repeats, warm_up=False).assign(responses=n))
    if vllm:
        tables.append(_by_vllm(policy, sizes, decodings, tokens, prefix, repeats))
    table = pd.concat(tables, ignore_index=True)
    bounds = {n: timing.lower_bounds(policy, n, prefix + tokens // 2) for n in sizes}
    step = table["responses"].map({n: bound["seconds"].sum() for n, bound in bounds.items()})
    table["tokens_per_second"] = table["responses"] * tokens / table["seconds"]
    table["share"] = tokens * step / table["seconds"]
    return table


def _timed(
    sides: Mapping[tuple[str, str], Callable[..., Any]], repeats: int, *, warm_up: bool = True
) -> "pd.DataFrame":
    """`timed`, for functions that are known by decoding and name."""
    named = {str(i): side for i, side in enumerate(sides.values())}
    table = timed(named, repeats, warm_up=warm_up)
    table["decoding"], table["name"] = zip(*sides, strict=True) if sides else ((), ())
    return table


def _by_vllm(
    policy: Policy,
    sizes: Sequence[int],
    decodings: Sequence[str],
    tokens: int,
    prefix: int,
    repeats: int,
) -> "pd.DataFrame | None":
    """Rows as `engines` has them; None where vLLM's environment is not there."""
    import pandas as pd

    size = {"responses": list(sizes), "tokens": tokens, "prefix": prefix, "repeats": repeats}
    where = {"device": policy.device.type, "dtype": str(policy.dtype).removeprefix("torch.")}
    found = bench_vllm.measure(**size, **where)
    if found is None:
        return None
    names = {("vLLM", 1.0): "T = 1", ("vLLM", 0.9): "top-p 0.9", ("AISP", None): "AISP"}
    rows = []
    for row in found.itertuples(index=False):
        decoding = names.get((row.name, None if row.name == "AISP" else row.top_p))
        if decoding in decodings:
            count = row.responses * tokens
            seconds = {"seconds": row.tokens_per_second, "low": row.high, "high": row.low}
            about = {"name": "vLLM", "responses": row.responses, "decoding": decoding}
            rows.append(about | {k: count / speed for k, speed in seconds.items()})
    return pd.DataFrame(rows)
