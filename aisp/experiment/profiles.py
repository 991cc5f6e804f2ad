"""What an experiment notebook runs at, and where its records lie."""

from pathlib import Path
from typing import Any

from aisp.provenance import checkout

# Settings of an experiment notebook unless its parameters say otherwise.
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"n_prompts": 2, "n": 4, "kappa": 2, "max_new_tokens": 12},
    "gpu-smoke": {"n_prompts": 4, "n": 16, "kappa": 4, "max_new_tokens": 32},
    "cpu": {"n_prompts": 24, "n": 16, "kappa": 8, "max_new_tokens": 48},
    "gpu": {"n_prompts": 40, "n": 32, "kappa": 32, "max_new_tokens": 128},
    "paper": {"n_prompts": 1000, "n": 32, "kappa": 32, "max_new_tokens": 128},
}

# Sizes that check the code and tell nothing. What they write is neither committed nor mixed with
# stored results.
TOYS = ("smoke", "gpu-smoke")


def settings(profile: str, **overrides: Any) -> dict[str, Any]:
    """The settings of a profile; what is given and not None replaces the profile's value."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    unknown = overrides.keys() - PROFILES[profile].keys()
    if unknown:
        raise ValueError(f"no setting {sorted(unknown)}; known: {', '.join(PROFILES[profile])}")
    return PROFILES[profile] | {k: v for k, v in overrides.items() if v is not None}


def records_path(name: str, profile: str, folder: str | Path | None = None) -> Path:
    """Where an experiment's records lie: data/results/<profile>/<name>.jsonl in the checkout.

    Args:
        folder: another one for them; None is data/results/<profile>.

    Raises:
        ValueError: an unknown profile, or a name that is no plain file name.
    """
    settings(profile)
    place = Path(folder) if folder else checkout() / "data" / "results" / profile
    return place / f"{file_name(name)}.jsonl"


def file_name(name: Any) -> str:
    """The name of a file of records, checked.

    Raises:
        ValueError: a name that would leave its folder, or is none.
    """
    plain = isinstance(name, str) and name.isprintable() and not set("/\\:") & set(name)
    if not plain or not name.strip(". "):
        raise ValueError(
            f"name is {name!r}; it must be a plain file name such as 'main_results', without a "
            "folder and without the ending .jsonl"
        )
    return name
