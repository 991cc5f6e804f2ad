"""What tells records apart: the policy, template, reward and configuration that they are made with.

Every record has it as `made_with`, names and digests of content, so that it can be resumed, copied
and moved without the file beside it. Records made before 0.2.0 have none; for them the run's entry in
NAME.runs.json is asked, which knows names only.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from aisp import assets
from aisp.assets import is_embedded
from aisp.experiment.identity.digests import Digests, UnidentifiedError
from aisp.experiment.identity.weights import stored_weights
from aisp.experiment.store.contents import prompt_sha256
from aisp.policy import Policy
from aisp.prompts import Prompt
from aisp.provenance import data_path, file_sha256, json_sha256
from aisp.rewards.base import CallableReward, Reward
from aisp.state import SearchConfig

# Fields of configurations that may name a trained part by its path, and its kind.
PARTS = {"aligner": "aligner", "value": "value function"}

ADVICE = {
    "checks_sha256": "the prompt is checked for something else than before",
    "policy_sha256": "the policy has other weights, settings or another tokenizer under its name",
    "template_sha256": "the template is another one under its name",
    "reward_sha256": "the reward is another one under its name, or reads other values, such as a "
    "counter or a cache (or this Python is of another version). If it gives the same rewards all "
    "the same, and is a function, go on with CallableReward(function, name={reward!r})",
}


def made_with(
    policy: Policy, reward: Any, configs: Mapping[str, SearchConfig]
) -> dict[str, dict[str, Any]]:
    """What the records of each label have in common besides their configuration's plain values.

    Args:
        reward: a Reward or a function; None leaves out what is said of it.
        configs: label -> configuration.

    Returns:
        label -> policy, template, dtype, reward, and an engine other than ours, by name; the SHA-256
        of policy, template and reward, where a name that the user gave to a function does not stand
        for it; and that of each model, value function and trained part in the configuration. Plain
        JSON.

    Raises:
        ValueError: what cannot be told from others: the reward, the template or a parameter.
    """
    digests = Digests()
    common = {
        "policy": policy.name,
        "policy_sha256": digests.of(policy.eos_ids, policy.model, policy.tokenizer),
        "dtype": str(policy.dtype).removeprefix("torch."),
        **({} if policy.engine == "aisp" else {"engine": policy.engine}),
        **_template(policy, digests),
        **({} if reward is None else told_of_reward(reward, digests)),
    }
    return {label: common | _parts(label, config, digests) for label, config in configs.items()}


def _template(policy: Policy, digests: Digests) -> dict[str, Any]:
    template = policy.template
    if isinstance(template, str):
        told = {"template": template}
        text = policy.tokenizer.chat_template if template == "chat" else None
        return told if text is None else told | {"template_sha256": digests.of(text)}
    named = getattr(template, "name", None)
    if named is not None:
        return {"template": str(named)}
    name = getattr(template, "__name__", "custom")
    try:
        return {"template": name, "template_sha256": digests.of(template)}
    except UnidentifiedError as error:
        raise ValueError(
            f"the prompt template {name!r} cannot be told from others by its content: {error}. Give "
            "it a name that stands for it, and another one whenever it changes: "
            f"template.name = '{name}-1'"
        ) from error


def told_of_reward(reward: Any, digests: Digests | None = None) -> dict[str, Any]:
    """What `made_with` says of a reward."""
    digests = digests or Digests()
    if not isinstance(reward, Reward):
        reward = CallableReward(reward)
    if isinstance(reward, CallableReward) and reward.named:
        return {"reward": reward.name}
    try:
        return {"reward": reward.name, "reward_sha256": digests.of(reward)}
    except UnidentifiedError as error:
        give = f"CallableReward(function, name='{reward.name}-1')"
        if not isinstance(reward, CallableReward):
            give = f"in its class, name = '{type(reward).__name__}-1'"
        raise ValueError(
            f"the reward {reward.name!r} cannot be told from others by its content: {error}. Give "
            f"it a name that stands for it, and another one whenever it changes: {give}"
        ) from error


def _parts(label: str, config: SearchConfig, digests: Digests) -> dict[str, str]:
    """Digests of what a configuration names but does not hold: models and files."""
    told = {}
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if name in PARTS and isinstance(value, str | Path):
            path = data_path(assets.PARTS[PARTS[name]].path) if is_embedded(value) else Path(value)
            files = stored_weights(path) if path.is_dir() else [path]
            if all(file.is_file() for file in files):  # else the method says what is missing
                told[f"{name}_sha256"] = digests.of([file_sha256(file) for file in files])
        elif isinstance(value, Policy | nn.Module):
            told[f"{name}_sha256"] = digests.of(value)
        elif not isinstance(value, bool | int | float | str | None):
            raise ValueError(
                f"{name} of {label!r} is {value!r}, a {type(value).__name__}, which no record can "
                "hold; give a number, text, True, False or None"
            )
    try:
        json.dumps(config.describe())
    except TypeError as error:
        raise ValueError(f"the configuration of {label!r} is no plain JSON: {error}") from error
    return told


def differences(
    record: dict[str, Any],
    config: SearchConfig,
    made: dict[str, Any],
    runs: Mapping[str, dict[str, Any]],
) -> dict[str, tuple[Any, Any]] | None:
    """In what a record differs from what is asked for.

    Args:
        config, made: of the record's label: its configuration, and what `made_with` says. A
            parameter that the record does not have is newer than it, and was at its default: what
            was done before there was a choice.
        runs: those that wrote the file, by id.

    Returns:
        name -> (there, here), of the configuration and of `made`; where the user's name stands for
        a function, whatever digest the record has. None where nothing says what it was made with.
    """
    there = record.get("made_with")
    if there is None:
        run = runs.get(record.get("run", ""), {})
        there = {k: v for k, v in run.items() if k in made}
        made = {k: v for k, v in made.items() if k in there}
        if "policy" not in made or "reward" not in made:
            return None
    stored, now = record.get("config") or {}, config.describe()
    if stored:
        stored = {f.name: f.default for f in fields(config)} | stored
    pairs = {k: (stored.get(k), now.get(k)) for k in {**stored, **now}}
    pairs |= {k: (there.get(k), v) for k, v in made.items()}
    pairs["engine"] = there.get("engine"), made.get("engine")  # absent where it is ours
    return {k: (old, new) for k, (old, new) in pairs.items() if old != new}


def prompt_difference(record: dict[str, Any], prompt: Prompt) -> dict[str, tuple[Any, Any]]:
    """Whether a record is of another prompt under the id: as `differences`, empty if not.

    A record without checks says nothing of them: its reward read none.
    """
    if "prompt_sha256" in record:
        name, pair = "prompt_sha256", (record["prompt_sha256"], prompt_sha256(prompt))
    else:  # a record before the hashes
        name, pair = "prompt_text", (record.get("prompt_text"), prompt.text)
    pairs = {name: pair}
    if "checks_sha256" in record:
        here = json_sha256(prompt.checks) if prompt.checks else "no checks"
        pairs["checks_sha256"] = record["checks_sha256"], here
    return {k: (old, new) for k, (old, new) in pairs.items() if old not in (None, new)}


def refusal(
    name: str, key: tuple[str, str, int], other: dict[str, tuple[Any, Any]], record: dict[str, Any]
) -> str:
    """The error where a file holds a record of something else than asked for."""
    told = "; ".join(
        f"{k} is {there!r} there and {here!r} here" for k, (there, here) in other.items()
    )
    reward = (record.get("made_with") or {}).get("reward")
    advice = ". ".join(
        ADVICE[k].format(reward=reward)
        for k in other
        if k in ADVICE and k.split("_")[0] not in other
    )
    return (
        f"{name} holds {key[0]!r} under other settings (prompt {key[1]!r}): {told}. "
        + (f"That is, {advice}. Or use " if advice else "Use ")
        + "another label or file (in notebooks, the parameter name), or delete the old records"
    )


def unknown_maker(name: str, key: tuple[str, str, int], record: dict[str, Any]) -> str:
    """The error where nothing says what a record was made with."""
    return (
        f"{name} holds {key[0]!r} (prompt {key[1]!r}) from before records named their policy and "
        f"reward, and its run {record.get('run')!r} is not in {Path(name).stem}.runs.json, which "
        "named them. Restore that file beside the records, or move the records away to begin anew"
    )
