"""What records are told apart by: policy, template, reward and parts, with and without the sidecar."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_runs import POLICY, PROMPTS, reward, run_fake

from aisp import experiment
from aisp.alignment import SearchConfig
from aisp.experiment import identity
from aisp.methods import configure
from aisp.rewards import CallableReward, Reward

CONFIGS = {"A": configure("best_of_n")}
ONE = {"A": {"method": "best_of_n"}}


def made(policy=POLICY, reward=reward, configs=CONFIGS):
    return identity.made_with(policy, reward, configs)["A"]


def model(weight):
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, weight)
    torch.nn.init.zeros_(layer.bias)
    return layer


def policy(**changed):
    return SimpleNamespace(**vars(POLICY) | changed)


def run(path, policy=POLICY, reward=reward, methods=ONE):
    return experiment.run(path, methods, PROMPTS[:2], policy, reward, progress=False)


def early(path):
    """Make the records of a file as they were before they said what they are made with."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{k: v for k, v in one.items() if k != "made_with"} for one in lines]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def test_without_the_sidecar_another_policy_or_reward_is_refused_all_the_same(fake, tmp_path):
    path = tmp_path / "e.jsonl"
    run(path)
    path.with_suffix(".runs.json").unlink()
    run(path)
    assert fake.batches == [2]
    with pytest.raises(ValueError, match="policy is 'fake' there and 'other' here"):
        run(path, policy(name="other"))
    with pytest.raises(ValueError, match="reward is 'reward' there and 'len' here"):
        run(path, reward=len)
    with pytest.raises(ValueError, match="dtype is 'float32' there"):
        run(path, policy(dtype=torch.float16))


def test_other_weights_under_one_name_are_refused_also_within_one_process(fake, tmp_path):
    path, layer = tmp_path / "e.jsonl", model(1.0)
    run(path, policy(model=layer))
    run(path, policy(model=model(1.0)))
    assert fake.batches == [2]
    for other in (model(1.5), layer):
        torch.nn.init.constant_(layer.weight, 1.5)
        with pytest.raises(ValueError, match=r"policy_sha256 is .* has other weights, settings"):
            run(path, policy(model=other))


def test_other_functions_under_one_name_are_refused_until_a_name_stands_for_them(fake, tmp_path):
    def version(k):
        def polite(prompt, response):
            return float(k)

        return polite

    path = tmp_path / "e.jsonl"
    run(path, reward=version(1))
    run(path, reward=version(1))
    assert fake.batches == [2]
    with pytest.raises(ValueError, match=r"go on with CallableReward\(function, name='polite'\)"):
        run(path, reward=version(2))
    run(path, reward=CallableReward(version(2), name="polite"))  # as the error advises
    assert fake.batches == [2]
    named = tmp_path / "named.jsonl"
    run(named, reward=CallableReward(version(1), name="polite-1"))
    run(named, reward=CallableReward(version(2), name="polite-1"))
    assert fake.batches == [2, 2]
    with pytest.raises(ValueError, match="reward is 'polite-1' there and 'polite-2' here"):
        run(named, reward=CallableReward(version(2), name="polite-2"))
    with pytest.raises(ValueError, match="reward_sha256 is None there"):
        run_under_name = version(2)
        run_under_name.__name__ = "polite-1"
        run(named, reward=run_under_name)


def test_what_cannot_be_told_is_refused_and_named(fake, tmp_path):
    class Judge:
        def __call__(self, prompt, response):
            return 1.0

    judge = Judge()
    with pytest.raises(ValueError, match=r"the reward 'Judge' cannot be told .* name='Judge-1'\)"):
        run(tmp_path / "e.jsonl", reward=judge)
    assert not (tmp_path / "e.jsonl").exists()
    judge.name = "mine"
    run(tmp_path / "e.jsonl", reward=judge)

    class Batched(Reward):
        def score(self, prompts, responses):
            return torch.zeros(len(responses))

    with pytest.raises(ValueError, match="in its class, name = 'Batched-1'"):
        run(tmp_path / "e.jsonl", reward=Batched())

    def template(messages):
        return judge(messages, "")

    with pytest.raises(ValueError, match=r"template 'template' cannot be told .*template\.name = "):
        made(policy(template=template))
    template.name = "turns-1"
    assert made(policy(template=template))["template"] == "turns-1"


def test_templates_differ_by_their_text_or_code(byte_tokenizer, tmp_path):
    import copy

    other = copy.deepcopy(byte_tokenizer)
    other.chat_template += " "
    chats = [policy(template="chat", tokenizer=t) for t in (byte_tokenizer, other)]
    assert made(chats[0])["template_sha256"] != made(chats[1])["template_sha256"]
    functions = [policy(template=lambda m, k=k: f"{m}{k}") for k in (1, 2)]
    assert made(functions[0])["template_sha256"] != made(functions[1])["template_sha256"]


def test_models_and_files_in_a_configuration_are_told_by_content(tiny, tmp_path):
    from dataclasses import replace

    from aisp.methods.value import ValueFunction

    def of(method, **parameters):
        return made(configs={"A": configure(method, **parameters)})

    values = [ValueFunction(4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    same, twin, other = (of("re_control", value=value)["value_sha256"] for value in values)
    assert same == twin != other
    file = tmp_path / "value.safetensors"
    values[0].save(file)
    before = of("re_control", value=str(file))["value_sha256"]
    values[2].save(file)
    assert of("re_control", value=str(file))["value_sha256"] != before
    assert "value_sha256" not in of("re_control", value=str(tmp_path / "none"))
    assert len(of("re_control")["value_sha256"]) == len(of("ram")["aligner_sha256"]) == 64
    aligned = [tiny(), replace(tiny(), template="continuation"), tiny("gpt2")]
    assert len({of("kad", aligned=one)["aligned_sha256"] for one in aligned}) == 3


def test_a_parameter_that_is_no_plain_value_is_an_error_and_never_its_type():
    class Odd(SearchConfig):
        def __post_init__(self):
            pass

    for value in (np.float32(0.5), torch.tensor(1), object()):
        with pytest.raises(ValueError, match=r"n of 'A' is .*, which no record can hold; give a"):
            made(configs={"A": Odd(n=value)})


def test_early_records_are_told_by_the_sidecar_and_refused_without_it(fake, tmp_path):
    path = tmp_path / "e.jsonl"
    run(path)
    early(path)
    sidecar, away = path.with_suffix(".runs.json"), tmp_path / "away"
    run(path)
    assert fake.batches == [2]
    with pytest.raises(ValueError, match="policy is 'fake' there and 'other' here"):
        run(path, policy(name="other"))
    sidecar.rename(away)
    with pytest.raises(ValueError, match=r"e\.runs\.json, which named them. Restore that file"):
        run(path)
    sidecar.write_text("{}")
    with pytest.raises(ValueError, match="from before records named their policy"):
        run(path)
    assert "B" in list(run(path, methods={"B": {"method": "aisp"}})["label"])


def test_records_resumed_through_a_link_find_their_runs_either_way(fake, tmp_path):
    real, link = tmp_path / "real" / "e.jsonl", tmp_path / "link.jsonl"
    real.parent.mkdir()
    link.symlink_to(real)
    run(link)
    assert real.with_suffix(".runs.json").exists()  # beside the file, where its own path finds it
    early(real)
    run(real)
    run(link)
    shutil.move(real.with_suffix(".runs.json"), link.with_suffix(".runs.json"))  # as it was before
    run(link)
    assert fake.batches == [2]
    with pytest.raises(ValueError, match="from before records named their policy"):
        run(real)


def test_a_record_says_what_it_is_made_with(fake, tmp_path):
    run_fake(tmp_path / "e.jsonl", PROMPTS[:1])
    for line in (tmp_path / "e.jsonl").read_text().splitlines():
        one = json.loads(line)["made_with"]
        assert (one["policy"], one["dtype"], one["reward"]) == ("fake", "float32", "reward")
        assert len(one["policy_sha256"]) == len(one["reward_sha256"]) == 64
