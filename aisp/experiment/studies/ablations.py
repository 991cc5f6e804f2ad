"""The questions of notebook 07: which settings each one compares, and with which control.

Every setting of AISP stands beside noise only (U held at 0) with the same perturbations. The two
differ in nothing but adaptation, so that the difference of their rewards is what adaptation adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mode
from typing import TYPE_CHECKING, Any

from aisp import metrics
from aisp.checks import real, whole
from aisp.experiment.report import tables
from aisp.experiment.report.measures import measure_or_nan
from aisp.intervals import verdict

if TYPE_CHECKING:
    import pandas as pd

    from aisp.policy import Policy
    from aisp.prompts import Prompt
    from aisp.rewards.base import Reward

AISP, NOISE, BEST = "AISP", "noise only", "best-of-n"
FIRST = ", first part"  # ends the label of a long run cut at the budget of the others
TEMPERATURE = 0.65  # sampling with the entropy of greedy decoding at sigma = 0.5 (notebook 01, 8)


@dataclass(frozen=True)
class Question:
    """Settings that one figure compares.

    Attributes:
        axis: what is varied, with its unit.
        settings: name on the axis -> series -> label of the records; the series are AISP and its
            controls.
        standard: the setting with the values that are held while something else is varied.
    """

    axis: str
    settings: dict[str, dict[str, str]]
    standard: str | None = None

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
        sigma, lam, alpha: the values that are held while something else is varied.
        longer: how many times as many iterations the long runs have.
    """
    of = _Settings(
        budget,
        real("sigma", sigma, above=0),
        real("lam", lam, above=0),
        real("alpha", alpha, least=0, most=1),
        whole("longer", longer, least=1),
    )
    long = of.long_runs()
    questions = {
        "sigma": _sigma(of),
        "lam": _lam(of),
        "split": _split(of, long),
        "decoding": _decoding(of, long),
        "alpha": _alpha(of, long),
        "tau": _tau(of, long),
        "budget": Question("samples", {of.long_budget: long}, of.long_budget),
        "drift": _drift(of, long),
    }
    return questions, of.methods


@dataclass
class _Settings:
    """What all settings have in common, and the methods that the questions ask for.

    `aisp`, `noise` and `best_of_n` add a method, with some parameters changed, and return its label.
    """

    budget: dict[str, int]
    sigma: float
    lam: float
    alpha: float
    longer: int
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def long_kappa(self) -> int:
        return self.longer * self.budget["kappa"]

    @property
    def long_budget(self) -> str:
        return f"{self.budget['n'] * self.long_kappa} samples"

    def aisp(self, label: str | None = None, **changed: Any) -> str:
        held = {"sigma": self.sigma, "lam": self.lam, "alpha": self.alpha}
        given = {"method": "aisp", **held, **self.budget, **changed}
        label = label or f"lam={given['lam']:g}, sigma={given['sigma']:g}"
        self.methods[label] = given
        return label

    def noise(self, label: str | None = None, **changed: Any) -> str:
        # lam affects only the reported ESS; 2 is the value in notebook 02's sweep.
        held = {"adapt": False, "lam": 2, "sigma": self.sigma}
        given = {"method": "aisp", **held, **self.budget, **changed}
        label = f"{NOISE}, {label or 'sigma={:g}'.format(given['sigma'])}"
        self.methods[label] = given
        return label

    def best_of_n(self, label: str, **changed: Any) -> str:
        label = f"{BEST}, {label}"
        self.methods[label] = {"method": "best_of_n", **self.budget, **changed}
        return label

    def long_runs(self) -> dict[str, str]:
        """One of each series; other settings are compared with their first iterations."""
        label, long = self.long_budget, {"kappa": self.long_kappa}
        return {
            AISP: self.aisp(f"{AISP}, {label}", **long),
            NOISE: self.noise(label, **long),
            BEST: self.best_of_n(label, **long),
        }


def _first_parts(long: dict[str, str]) -> dict[str, str]:
    return {series: f"{label}{FIRST}" for series, label in long.items()}


# The sweeps over sigma, at 2 lam, and over lam were begun in notebook 02.


def _sigma(of: _Settings) -> Question:
    values = [x * of.sigma for x in (0.4, 0.7, 1, 1.4, 2)]
    lam = 2 * of.lam
    settings = {
        f"{s:g}": {AISP: of.aisp(lam=lam, sigma=s), NOISE: of.noise(sigma=s)} for s in values
    }
    return Question(f"sigma (lam = {lam:g})", settings, f"{of.sigma:g}")


def _lam(of: _Settings) -> Question:
    values = [x * of.lam for x in (0.3, 1, 2, 4)]
    settings = {f"{lam:g}": {AISP: of.aisp(lam=lam), NOISE: of.noise()} for lam in values}
    return Question("lam (units of reward)", settings, f"{of.lam:g}")


def _split(of: _Settings, long: dict[str, str]) -> Question:
    """The same samples in fewer and larger iterations, or in more and smaller ones."""
    n, kappa, first = of.budget["n"], of.budget["kappa"], _first_parts(long)
    splits = [(f * n, kappa // f) for f in (4, 2, 1) if kappa % f == 0]
    splits += [(n // 2, 2 * kappa)] * (n % 2 == 0 and n >= 4)
    settings = {}
    for a, b in splits:
        ours = first[AISP] if a == n else of.aisp(f"n={a}, kappa={b}", n=a, kappa=b)
        settings[f"{a} x {b}"] = {AISP: ours, NOISE: first[NOISE]}
    return Question("n x kappa", settings, f"{n} x {kappa}")


def _decoding(of: _Settings, long: dict[str, str]) -> Question:
    first, at = _first_parts(long), f"T = {TEMPERATURE:g}"
    nucleus, cool = {"temperature": 1.0, "top_p": 0.9}, {"temperature": TEMPERATURE, "top_p": 1.0}
    settings = {
        "greedy": {AISP: first[AISP], NOISE: first[NOISE]},
        "top-p 0.9": {
            AISP: of.aisp("sampled, top-p 0.9", **nucleus),
            NOISE: of.noise("sampled, top-p 0.9", **nucleus),
            BEST: first[BEST],
        },
        at: {
            AISP: of.aisp(f"sampled, {at}", **cool),
            NOISE: of.noise(f"sampled, {at}", **cool),
            BEST: of.best_of_n(at, **cool),
        },
        "T = 1": {BEST: of.best_of_n("T = 1", top_p=1.0)},
    }
    return Question("tokens drawn by", settings, "greedy")


def _alpha(of: _Settings, long: dict[str, str]) -> Question:
    first, settings = _first_parts(long), {}
    for alpha in dict.fromkeys([0.0, of.alpha, 1.0]):
        ours = first[AISP] if alpha == of.alpha else of.aisp(f"alpha={alpha:g}", alpha=alpha)
        settings[f"{alpha:g}"] = {AISP: ours, NOISE: first[NOISE]}
    return Question("alpha", settings, f"{of.alpha:g}")


def _tau(of: _Settings, long: dict[str, str]) -> Question:
    tokens, first = of.budget["max_new_tokens"], _first_parts(long)
    settings = {
        f"{tau}": {AISP: of.aisp(f"tau={tau}", tau=tau), NOISE: of.noise(f"tau={tau}", tau=tau)}
        for tau in (max(1, tokens // 4), max(1, tokens // 2))
    }
    settings[f"{tokens}"] = {AISP: first[AISP], NOISE: first[NOISE]}
    return Question(f"tau (of {tokens} steps)", settings, f"{tokens}")


def _drift(of: _Settings, long: dict[str, str]) -> Question:
    """What could keep the mean of a long run from wandering off: larger iterations, a larger lam."""
    n, kappa, label = of.budget["n"], of.long_kappa, f"{AISP}, {of.long_budget}"
    settings = {f"{n} x {kappa}": dict(long)}
    for f in (2, 4):
        if kappa % f == 0:
            a, b = f * n, kappa // f
            ours = of.aisp(f"{label}, n={a}, kappa={b}", n=a, kappa=b)
            settings[f"{a} x {b}"] = {**long, AISP: ours}
    lam = 4 * of.lam
    hot = of.aisp(f"{label}, lam={lam:g}", lam=lam, kappa=kappa)
    settings[f"lam = {lam:g}"] = {**long, AISP: hot}
    axis = f"n x kappa of {of.long_budget} (lam: at {n} x {kappa})"
    return Question(axis, settings, f"{n} x {kappa}")


def questions_of(records: "pd.DataFrame") -> tuple[dict[str, Question], int]:
    """The questions that records answer, and the kappa of most of their runs of AISP.

    All other settings are those of their longest run of AISP.

    Raises:
        ValueError: no such runs.
    """
    configs = zip(records["label"], records["config"], strict=True)
    runs = {label: config for label, config in configs if config.get("adapt")}
    size = max((config["n"] * config["kappa"] for config in runs.values()), default=0)
    if f"{AISP}, {size} samples" not in runs:
        raise ValueError(
            "no records of the long runs of AISP, with which the other settings are compared"
        )
    long = runs[f"{AISP}, {size} samples"]
    kappa = mode(config["kappa"] for config in runs.values())
    budget = {"n": long["n"], "kappa": kappa, "max_new_tokens": long["max_new_tokens"]}
    fixed = {k: long[k] for k in ("sigma", "lam", "alpha")}
    return plan(budget, longer=long["kappa"] // kappa, **fixed)[0], kappa


def with_first_parts(
    records: "pd.DataFrame", questions: dict[str, Question], kappa: int
) -> "pd.DataFrame":
    """Records, and those that the long runs would have left had they ended after kappa iterations."""
    import pandas as pd

    long = records[records["label"].isin(questions["budget"].labels)]
    first = tables.stopped_after(long, kappa)
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

    by_id = {p.id: p for p in prompts}
    parts = []
    for which, label in next(iter(question.settings.values())).items():
        runs = tables.finished(records[records["label"] == label])
        longest = max((len(h["iteration"]) for h in runs["history"]), default=0)
        for k in range(longest.bit_length()):
            parts.append(tables.stopped_after(runs, 2**k).assign(label=which))
    found = pd.concat(parts, ignore_index=True)
    answered, texts = [by_id[x] for x in found["prompt"]], list(found["response"])
    found["judged"] = measure_or_nan("judge", judge.score, answered, texts).numpy()
    surprisal = partial(metrics.surprisal, policy)
    found["surprisal"] = measure_or_nan("surprisal", surprisal, answered, texts).numpy()
    kept = ["label", "prompt", "seed", "samples", "reward", "judged", "surprisal"]
    return found[kept]
