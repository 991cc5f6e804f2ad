"""The questions of notebook 07: which settings each one compares, and with which control.

Every setting of AISP stands beside noise only (U held at 0) with the same perturbation: what the
first has and the second has not is what adaptation buys there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mode
from typing import TYPE_CHECKING, Any

from aisp.experiment import tables
from aisp.intervals import verdict

if TYPE_CHECKING:
    import pandas as pd

    from aisp.policy import Policy
    from aisp.prompts import Prompt
    from aisp.rewards.base import Reward

AISP, NOISE, BEST = "AISP", "noise only", "best-of-n"
FIRST = ", first part"  # of the label of a long run: its iterations within the budget of the others
TEMPERATURE = 0.65  # of which noise of sigma = 0.5 has the entropy (notebook 01, section 8)


@dataclass(frozen=True)
class Question:
    """Settings that one figure compares.

    Attributes:
        axis: what is varied, with its unit.
        settings: name on the axis -> series -> label of the records; the series are AISP and its
            controls.
    """

    axis: str
    settings: dict[str, dict[str, str]]

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(x for series in self.settings.values() for x in series.values()))


def plan(
    budget: dict[str, int],
    *,
    sigma: float = 0.5,
    lam: float = 1.0,
    alpha: float = 0.99,
    longer: int = 4,
) -> tuple[dict[str, Question], dict[str, dict[str, Any]]]:
    """The questions, and the methods that answer them, as `experiment.run` takes them.

    Args:
        budget: n, kappa and max_new_tokens, the same for all settings but the long runs.
        sigma, lam, alpha: what is held where something else is varied.
        longer: how many times as many iterations the long runs have.
    """
    n, kappa, tokens = budget["n"], budget["kappa"], budget["max_new_tokens"]
    methods: dict[str, dict[str, Any]] = {}

    def aisp(label=None, **changed):
        given = {"sigma": sigma, "lam": lam, "alpha": alpha, **budget, **changed}
        label = label or f"lam={given['lam']:g}, sigma={given['sigma']:g}"
        methods[label] = {"method": "aisp", **given}
        return label

    def noise(label=None, **changed):
        # lam enters only the ESS that is reported, and is that of notebook 02's sweep.
        given = {"adapt": False, "lam": 2, "sigma": sigma, **budget, **changed}
        label = f"{NOISE}, {label or 'sigma={:g}'.format(given['sigma'])}"
        methods[label] = {"method": "aisp", **given}
        return label

    def best(label, **changed):
        methods[f"{BEST}, {label}"] = {"method": "best_of_n", **budget, **changed}
        return f"{BEST}, {label}"

    # The first iterations of the long runs are what other settings are compared with.
    long, of = {"kappa": longer * kappa}, f"{n * kappa * longer} samples"
    longest = {
        AISP: aisp(f"{AISP}, {of}", **long),
        NOISE: noise(of, **long),
        BEST: best(of, **long),
    }
    base, control, plain = (f"{label}{FIRST}" for label in longest.values())
    # The sweeps over sigma, at 2 lam, and lam were begun in notebook 02.
    by_sigma = {
        f"{s:g}": {AISP: aisp(lam=2 * lam, sigma=s), NOISE: noise(sigma=s)}
        for s in (x * sigma for x in (0.4, 0.7, 1, 1.4, 2))
    }
    by_lam = {f"{x * lam:g}": {AISP: aisp(lam=x * lam), NOISE: noise()} for x in (0.3, 1, 2, 4)}
    splits = [(f * n, kappa // f) for f in (4, 2, 1) if kappa % f == 0]
    splits += [(n // 2, 2 * kappa)] * (n % 2 == 0 and n >= 4)
    by_split = {
        f"{a} x {b}": {
            AISP: base if a == n else aisp(f"n={a}, kappa={b}", n=a, kappa=b),
            NOISE: control,
        }
        for a, b in splits
    }
    nucleus, cool = {"temperature": 1.0, "top_p": 0.9}, {"temperature": TEMPERATURE, "top_p": 1.0}
    by_decoding = {
        "greedy": {AISP: base, NOISE: control},
        "top-p 0.9": {
            AISP: aisp("sampled, top-p 0.9", **nucleus),
            NOISE: noise("sampled, top-p 0.9", **nucleus),
            BEST: plain,
        },
        f"T = {TEMPERATURE:g}": {
            AISP: aisp(f"sampled, T = {TEMPERATURE:g}", **cool),
            NOISE: noise(f"sampled, T = {TEMPERATURE:g}", **cool),
            BEST: best(f"T = {TEMPERATURE:g}", **cool),
        },
        "T = 1": {BEST: best("T = 1", top_p=1.0)},
    }
    alphas = dict.fromkeys([0.0, alpha, 1.0])
    by_alpha = {
        f"{a:g}": {AISP: base if a == alpha else aisp(f"alpha={a:g}", alpha=a), NOISE: control}
        for a in alphas
    }
    by_tau = {
        f"{tau}": {AISP: aisp(f"tau={tau}", tau=tau), NOISE: noise(f"tau={tau}", tau=tau)}
        for tau in (max(1, tokens // 4), max(1, tokens // 2))
    }
    by_tau[f"{tokens}"] = {AISP: base, NOISE: control}
    # What could keep the mean of a long run from wandering off.
    by_drift = {f"{n} x {longer * kappa}": dict(longest)}
    for f in (2, 4):
        if longer * kappa % f == 0:
            a, b = f * n, longer * kappa // f
            label = aisp(f"{AISP}, {of}, n={a}, kappa={b}", n=a, kappa=b)
            by_drift[f"{a} x {b}"] = {**longest, AISP: label}
    hot = aisp(f"{AISP}, {of}, lam={4 * lam:g}", lam=4 * lam, **long)
    by_drift[f"lam = {4 * lam:g}"] = {**longest, AISP: hot}
    questions = {
        "sigma": Question(f"sigma (lam = {2 * lam:g})", by_sigma),
        "lam": Question("lam (units of reward)", by_lam),
        "split": Question("n x kappa", by_split),
        "decoding": Question("tokens drawn by", by_decoding),
        "alpha": Question("alpha", by_alpha),
        "tau": Question(f"tau (of {tokens} steps)", by_tau),
        "budget": Question("samples", {of: longest}),
        "drift": Question(f"n x kappa of {of}; lam at {n} x {longer * kappa}", by_drift),
    }
    return questions, methods


def asked(records: "pd.DataFrame") -> tuple[dict[str, Question], int]:
    """The questions that records answer, and kappa; the rest is as in their longest AISP runs.

    Raises:
        ValueError: no such runs.
    """
    of = zip(records["label"], records["config"], strict=True)
    runs = {label: config for label, config in of if config.get("adapt")}
    size = max((config["n"] * config["kappa"] for config in runs.values()), default=0)
    if f"{AISP}, {size} samples" not in runs:
        raise ValueError(
            "no records of the long runs of AISP, which the other settings stand beside"
        )
    long = runs[f"{AISP}, {size} samples"]
    kappa = mode(config["kappa"] for config in runs.values())
    budget = {"n": long["n"], "kappa": kappa, "max_new_tokens": long["max_new_tokens"]}
    fixed = {k: long[k] for k in ("sigma", "lam", "alpha")}
    return plan(budget, longer=long["kappa"] // kappa, **fixed)[0], kappa


def with_first_parts(
    records: "pd.DataFrame", questions: dict[str, Question], kappa: int
) -> "pd.DataFrame":
    """Records, and those that the long runs would have left after kappa iterations."""
    import pandas as pd

    long = records[records["label"].isin(questions["budget"].labels)]
    first = tables.after(long, kappa)
    return pd.concat([records, first.assign(label=first["label"] + FIRST)], ignore_index=True)


def answers(records: "pd.DataFrame", question: Question) -> "pd.DataFrame":
    """One row per setting: rewards with bootstrap 95% intervals, and AISP minus noise only.

    Returns:
        Index: names of the settings. Columns: per series its mean, NAME low and NAME high; then
        difference, low, high, verdict of `tables.paired` of AISP and noise only, where both ran.
    """
    import pandas as pd

    totals, rows = tables.summary(records), {}
    for name, series in question.settings.items():
        row: dict[str, Any] = {}
        for which, label in series.items():
            mean, low, high = totals.loc[label, ["reward", "low", "high"]]
            row |= {which: mean, f"{which} low": low, f"{which} high": high}
        if AISP in series and NOISE in series:
            pair = tables.paired(records, series[AISP], series[NOISE])
            row |= {k: pair[k] for k in ("difference", "low", "high", "prompts")}
            row["verdict"] = verdict(pair["low"], pair["high"])
        rows[name] = row
    return pd.DataFrame(rows).T.infer_objects()


def by_budget(
    records: "pd.DataFrame",
    question: Question,
    prompts: "Sequence[Prompt]",
    policy: "Policy",
    judge: "Reward",
) -> "pd.DataFrame":
    """What the long runs would have returned after 1, 2, 4, ... iterations, judged.

    Returns:
        One row per series, prompt and budget: label (the series), prompt, seed, samples, reward,
        judged (the judge's score), surprisal (of the response under the policy, in nats).
    """
    import pandas as pd

    from aisp import metrics
    from aisp.experiment.main_results import each

    by_id = {p.id: p for p in prompts}
    parts = []
    for which, label in next(iter(question.settings.values())).items():
        runs = tables.finished(records[records["label"] == label])
        longest = max((len(h["iteration"]) for h in runs["history"]), default=0)
        for k in range(longest.bit_length()):
            parts.append(tables.after(runs, 2**k).assign(label=which))
    found = pd.concat(parts, ignore_index=True)
    asked, texts = [by_id[x] for x in found["prompt"]], list(found["response"])
    found["judged"] = each("judge", judge.score, asked, texts).numpy()
    likely = partial(metrics.surprisal, policy)
    found["surprisal"] = each("surprisal", likely, asked, texts).numpy()
    kept = ["label", "prompt", "seed", "samples", "reward", "judged", "surprisal"]
    return found[kept]
