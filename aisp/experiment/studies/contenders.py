"""What notebook 11 compares: rows, the dial of each with what is tried, and the declared contrasts.

`aisp.experiment.studies.beyond` has the protocol, and runs these.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from aisp.checks import choice
from aisp.experiment.report import tables

if TYPE_CHECKING:
    import pandas as pd

BEST, NOISE, AISP = "best-of-n", "noise only", "AISP"
VARIATE, STEERED = "control variate", "control variate, first steps"
RAM, UNTRAINED = "RAM", "RAM, untrained aligner"
MISVO, MISVO_TEMPERED = "MISVO", "MISVO at best-of-n's temperature"
MISVO_KL, MISVO_FREE = "MISVO, plain KL", "MISVO, no regularization"
QALIGN, SUFFIX, PCN = "QAlign", "suffix refreshment", "pCN"
SLICE, SMC = "elliptical slice", "tempered SMC"
SCORES, SPECULATIVE = "AISP by exact scores", "speculative rejection"
ALPHA = "alpha = 1"


class Contender(NamedTuple):
    """A row of the comparison.

    Attributes:
        method: as `experiment.run` takes it, without budget and dial.
        dial: the parameter that is tuned.
        tried: its values in the trials; () takes the value of `like`.
        like: the row whose tuned value this one has, where it has no trials of its own.
        steered: move the mean at the first third of the steps only.
        also: parameters that take the tuned value of another row: name -> row.
    """

    method: dict[str, Any]
    dial: str
    tried: tuple[float, ...] = ()
    like: str | None = None
    steered: bool = False
    also: Mapping[str, str] = MappingProxyType({})


_CALM = {"method": "aisp", "alpha": 1.0, "control_variate": True}
_SIGMA = ("sigma", (0.35, 0.5, 0.65))
_RAM = {"method": "ram", "kl_limit": None}
_RAM_DIAL = ("temperature", (0.65, 0.8, 1.0))
_STEPS = ("step_size", (0.1, 1.0, 5.0))  # the first is the published one
_LONGER = ("step_size", (1.0, 5.0, 25.0))  # without a penalty, which long steps overshoot
_LAM = ("lam", (0.1, 0.2, 0.4))
_MOVES = {"method": "metropolis"}

CONTENDERS: dict[str, Contender] = {
    BEST: Contender({"method": "best_of_n", "top_p": 1.0}, "temperature", (0.5, 0.65, 0.8)),
    NOISE: Contender({"method": "aisp", "adapt": False}, *_SIGMA),
    AISP: Contender({"method": "aisp"}, *_SIGMA),
    VARIATE: Contender(_CALM, "sigma", like=STEERED),
    STEERED: Contender(_CALM, *_SIGMA, steered=True),
    RAM: Contender(_RAM | {"aligner": "embedded"}, *_RAM_DIAL),
    UNTRAINED: Contender(_RAM | {"aligner": "untrained"}, *_RAM_DIAL),
    MISVO: Contender({"method": "misvo"}, *_STEPS),
    MISVO_TEMPERED: Contender({"method": "misvo"}, *_STEPS, also={"temperature": BEST}),
    MISVO_KL: Contender({"method": "misvo", "regularization": "kl"}, *_STEPS),
    MISVO_FREE: Contender({"method": "misvo", "regularization": "none"}, *_LONGER),
    QALIGN: Contender({"method": "qalign"}, *_LAM, also={"temperature": BEST}),
    SUFFIX: Contender(_MOVES, *_LAM, also={"sigma": NOISE}),
    PCN: Contender(_MOVES, "pcn", (0.15, 0.3, 0.6), also={"sigma": NOISE, "lam": SUFFIX}),
    SLICE: Contender({"method": "elliptical_slice"}, *_LAM, also={"sigma": NOISE}),
    SMC: Contender({"method": "tempered_smc"}, *_LAM, also={"sigma": NOISE}),
    SCORES: Contender(
        {"method": "misvo", "weights": "softmax", "regularization": "none"},
        *_LONGER,
        also={"temperature": BEST},
    ),
    SPECULATIVE: Contender(
        {"method": "speculative_rejection", "top_p": 1.0},
        "share",
        (0.25, 0.5, 0.75),
        also={"temperature": BEST},
    ),
    ALPHA: Contender({"method": "aisp", "alpha": 1.0}, "sigma", like=STEERED),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "first": (BEST, NOISE, AISP, VARIATE, STEERED),
    "second": (RAM, UNTRAINED, MISVO, MISVO_TEMPERED, MISVO_KL, MISVO_FREE),
    "third": (QALIGN, SUFFIX, PCN, SLICE, SMC, SCORES, SPECULATIVE),
    "fourth": (ALPHA,),
}

SHOWN = (*GROUPS["first"], MISVO_FREE, SCORES)  # what figures and every set and budget have
TRAINED = (RAM,)  # what first needs a model trained for the reward

PRIMARY = (STEERED, BEST)
SECONDARY: dict[str, tuple[tuple[str, str], ...]] = {
    "first": (
        (STEERED, NOISE),
        (STEERED, AISP),
        (STEERED, VARIATE),
        (VARIATE, AISP),
        (AISP, NOISE),
        (AISP, BEST),
        (NOISE, BEST),
    ),
    "second": (
        *((row, against) for row in GROUPS["second"] for against in (BEST, STEERED)),
        (RAM, UNTRAINED),
        (MISVO, AISP),
        (MISVO, MISVO_KL),
        (MISVO, MISVO_FREE),
    ),
    "third": tuple((row, x) for row in GROUPS["third"] for x in (BEST, STEERED)),
    "fourth": ((ALPHA, AISP), (VARIATE, ALPHA)),
}


def of_groups(groups: str | Iterable[str]) -> list[str]:
    """The rows of one of GROUPS, or of several, such as "first,second".

    Raises:
        ValueError: an unknown group.
    """
    listed = groups.split(",") if isinstance(groups, str) else list(groups)
    return [row for x in listed for row in GROUPS[choice("a group", x.strip(), list(GROUPS))]]


Rows = Mapping[str, Contender]


def rows(
    budget: dict[str, int],
    tuned: dict[str, float],
    labels: Iterable[str] | None = None,
    known: Rows = CONTENDERS,
) -> dict[str, dict[str, Any]]:
    """The methods that are compared, as `experiment.run` takes them.

    Args:
        budget: n, kappa and max_new_tokens, the same for all.
        tuned: label -> the value of its dial.
        labels: of `known`; None takes those whose values are in `tuned`.
        known: all rows of the comparison, here and below.
    """
    if labels is None:
        labels = [x for x in known if set(needs(x, known)) <= set(tuned)]
    return {x: _row(known[choice("a row", x, list(known))], x, budget, tuned) for x in labels}


def _row(
    of: Contender, label: str, budget: dict[str, int], tuned: dict[str, float]
) -> dict[str, Any]:
    method = of.method | {of.dial: tuned[of.like or label]} | budget
    method |= {name: tuned[row] for name, row in of.also.items()}
    if of.steered:
        method["steered"] = max(1, budget["max_new_tokens"] // 3)
    return method


def needs(label: str, known: Rows = CONTENDERS) -> list[str]:
    """The rows whose trials decide a row's parameters."""
    of = known[choice("a row", label, list(known))]
    return [of.like or label, *of.also.values()]


def tried(labels: Iterable[str], known: Rows = CONTENDERS) -> dict[str, Contender]:
    """The rows with trials of their own that these need, in the order of `known`."""
    wanted = {x for label in labels for x in needs(label, known)}
    return {x: of for x, of in known.items() if x in wanted}


def trials(
    budget: dict[str, int],
    labels: Iterable[str],
    tuned: dict[str, float],
    known: Rows = CONTENDERS,
) -> dict[str, dict[str, Any]]:
    """The trials of these rows, as `experiment.run` takes them: label "ROW, DIAL = VALUE" -> method.

    Args:
        tuned: values of the rows whose value one of these takes `also`.
    """
    return {
        trial(label, value, known): _row(of, label, budget, tuned | {label: value})
        for label, of in tried(labels, known).items()
        for value in of.tried
    }


def trial(label: str, value: float, known: Rows = CONTENDERS) -> str:
    return f"{label}, {known[label].dial} = {value:g}"


def tuned(
    records: "pd.DataFrame", labels: Iterable[str], known: Rows = CONTENDERS
) -> dict[str, float]:
    """The value of each dial whose trial has the highest mean reward, the first of equals.

    Args:
        records: of the trials.
        labels: the rows whose trials are needed.

    Raises:
        ValueError: trials that are missing, or not of the same prompts.
    """
    whole = tables.finished(records)
    seen = {label: frozenset(of["prompt"]) for label, of in whole.groupby("label")}
    asked = tried(labels, known)
    wanted = {trial(x, value, known) for x, of in asked.items() for value in of.tried}
    if wanted - set(seen) or len({seen[x] for x in wanted}) > 1:
        raise ValueError(
            "the trials are not complete; compute them first, by the command's action `tune`"
        )
    means = whole.groupby("label")["reward"].mean()
    chosen = {}
    for label, of in asked.items():
        found = {value: means[trial(label, value, known)] for value in of.tried}
        chosen[label] = max(found, key=found.__getitem__)
    return chosen


def trial_table(
    records: "pd.DataFrame", labels: Iterable[str], known: Rows = CONTENDERS
) -> "pd.DataFrame":
    """Mean reward of every trial, and which values were taken: index rows, columns dial and values."""
    import pandas as pd

    labels = list(labels)
    means = tables.finished(records).groupby("label")["reward"].mean()
    chosen = tuned(records, labels, known)
    listed = {}
    for label, of in tried(labels, known).items():
        shown = [f"{value:g}: {means[trial(label, value, known)]:.2f}" for value in of.tried]
        listed[label] = {"dial": of.dial}
        listed[label] |= {f"trial {i + 1}": text for i, text in enumerate(shown)}
        listed[label]["taken"] = f"{chosen[label]:g}"
    return pd.DataFrame(listed).T
