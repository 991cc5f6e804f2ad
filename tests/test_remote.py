"""Policies that vLLM holds, on a stand-in for vLLM: the same responses, and clear refusals."""

import dataclasses
import sys
from importlib import metadata

import fake_vllm
import pytest
import torch
from tiny import ARCHITECTURES, PROMPTS, reward, tiny_model

import aisp
from aisp import experiment, metrics, remote, sampler
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.engine.stepper import Stepper
from aisp.experiment import identity
from aisp.methods import configure
from aisp.prompts import Prompt
from aisp.remote import ElsewhereError, EngineError

SIZE = {"n": 4, "kappa": 2, "max_new_tokens": 12, "progress": False}


@pytest.fixture(params=[False, True], ids=["first interface", "Model Runner V2"])
def two(request, tmp_path, byte_tokenizer, monkeypatch):
    """The same weights as a policy of our engine and as one of (a stand-in for) vLLM."""
    return both(tmp_path, byte_tokenizer, monkeypatch, second=request.param)


@pytest.fixture
def there(tmp_path, byte_tokenizer, monkeypatch):
    return both(tmp_path, byte_tokenizer, monkeypatch)[1]


def both(folder, tokenizer, monkeypatch, name="llama", **options):
    tiny_model(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fake_vllm.install(monkeypatch, **options)
    load = {"device": "cpu", "dtype": "float32"}
    return aisp.load_policy(folder, **load), aisp.load_policy(folder, engine="vllm", **load)


def table(outs):
    return [out.candidates["response"].tolist() for out in outs]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "aisp", "sigma": 2.0},
        {"method": "aisp", "sigma": 2.0, "tau": 5},
        {"method": "aisp", "sigma": 2.0, "adapt": False, "temperature": 0.7, "top_k": 20},
        {"method": "best_of_n"},
        {"method": "best_of_n", "temperature": 0.0, "top_p": 1.0},
        {"method": "metropolis", "sigma": 2.0, "pcn": 0.5},
        {"method": "elliptical_slice", "sigma": 2.0},
    ],
    ids=str,
)
def test_both_engines_give_the_same_responses(two, options):
    """Prompts of three lengths; some responses end before others."""
    outs = [aisp.align(PROMPTS, policy, reward, seed=1, **SIZE, **options) for policy in two]
    assert table(outs[0]) == table(outs[1])
    for a, b in zip(*outs, strict=True):
        assert a.history["tokens"].tolist() == b.history["tokens"].tolist()
        if options["method"] == "aisp":
            assert torch.equal(a.U, b.U)


def test_some_responses_ended_early(two):
    prefixes = [p.prefix(PROMPTS[0]) for p in two][:1]
    g = [[torch.Generator().manual_seed(0)] for _ in two]
    outs = [
        rollout(p, prefixes, 40, 12, decoding=Decoding(3.0), generators=x)
        for p, x in zip(two, g, strict=True)
    ]
    assert torch.equal(outs[0].lengths, outs[1].lengths) and outs[0].lengths.min() < 12
    assert torch.equal(outs[0].tokens, outs[1].tokens)


def test_a_tensor_of_perturbations_travels_whole_and_a_mean_alone(two):
    ours, there = two
    V = torch.randn(1, 2, 6, ours.d, generator=torch.Generator().manual_seed(0))
    prefix = [ours.prefix("Hi")]
    outs = [rollout(p, prefix, 2, 8, V=V) for p in two]
    assert torch.equal(outs[0].tokens, outs[1].tokens)
    assert there.model.llm.messages[-1] > V.nbytes
    U = 2 * V[0, 0]
    assert sampler.respond(ours, "Hi", U) == sampler.respond(there, "Hi", U)
    config = sampler.AISPConfig(n=64, max_new_tokens=6, sigma=1.0)
    state = sampler.init(there, "Hi", config)
    sampler.step(state, there, aisp.load_reward(reward), config)
    one, all_of_them = state.U.nbytes, 64 * state.U.nbytes
    assert one < there.model.llm.messages[-1] < one + 8192 < all_of_them


def test_logits_that_are_not_finite_are_an_error_and_the_engine_lives_on(two):
    there = two[1]
    for more in ({}, {"temperature": 1.0}):
        with pytest.raises(FloatingPointError, match="not finite"):
            aisp.align("Hi", there, reward, sigma=1e38, **SIZE, **more)
        assert aisp.align("Hi", there, reward, **SIZE).reward > 0


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"llama"}))
def test_other_heads(name, tmp_path, byte_tokenizer, monkeypatch):
    if getattr(tiny_model(name).config.get_text_config(), "final_logit_softcapping", None):
        with pytest.raises(ValueError, match=r"final_logit_softcapping.*use engine='aisp'"):
            both(tmp_path, byte_tokenizer, monkeypatch, name)
        return
    outs = [
        aisp.align(PROMPTS, p, reward, sigma=2.0, **SIZE)
        for p in both(tmp_path, byte_tokenizer, monkeypatch, name)
    ]
    assert table(outs[0]) == table(outs[1])


@pytest.mark.parametrize("bend", [torch.tanh, lambda x: x + 3.0], ids=["cap", "bias"])
def test_a_bias_is_taken_out_and_a_head_that_bends_is_found_out(bend):
    from types import SimpleNamespace

    from aisp.engine.vllm_worker import Head

    W = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    model = SimpleNamespace(compute_logits=lambda z: bend(z @ W.T))
    head = Head(model, 8, torch.float32, torch.device("cpu"))
    assert head.is_linear() == (bend is not torch.tanh)
    if head.is_linear():
        v = torch.ones(2, 8)
        assert torch.allclose(head(v), v @ W.T, atol=1e-5)


# -- what a policy of another engine does not have ------------------------------------------------


def test_methods_that_need_the_model_are_refused_before_anything_is_decoded(there):
    names = {"args": "ARGS", "re_control": "RE-Control", "kad": "KAD", "ram": "RAM"}
    names |= {"qalign": "QAlign", "metropolis": "suffix refreshment"}
    names |= {"tempered_smc": "suffix refreshment"}
    names |= {"speculative_rejection": "speculative rejection"}
    for method, name in names.items():
        with pytest.raises(ElsewhereError, match=rf"^{name} needs the model .*engine='aisp'"):
            aisp.align("Hi", there, reward, method=method, progress=False)
    with pytest.raises(ElsewhereError, match="decoding step by step"):
        Stepper(there, [[1]], 1, 1)
    assert there.model.llm.messages == []


def test_pre_logits_logits_and_weights_are_refused(there):
    prefix = [there.prefix("Hi")]
    with pytest.raises(ValueError, match="keeping pre-logits needs the model in this process"):
        rollout(there, prefix, 1, 4, keep_prelogits=True)
    with pytest.raises(ValueError, match="all logits of a response"):
        there.response_logits("Hi", [5])
    with pytest.raises(
        ElsewhereError, match=r"'get_output_embeddings' of the model.*'aisp' has it"
    ):
        there.model.get_output_embeddings()
    with pytest.raises(ElsewhereError, match="a forward pass"):
        there.model(input_ids=None)
    with pytest.raises(ValueError, match="engine='aisp'"):
        metrics.kl_to_base(there, ["Hi"], [[5]], U=torch.zeros(1, there.d))


def test_the_main_comparison_leaves_them_out_with_the_reason(there):
    from types import SimpleNamespace

    from aisp.experiment.studies import main_results

    budget = {"n": 2, "kappa": 1, "max_new_tokens": 4}
    ran, left = main_results.plan(None, there, SimpleNamespace(name="x"), budget)
    assert set(left) == {"args", "re_control", "ram", "kad"} and "vllm 0.32.0" in left["args"]
    assert {"AISP", main_results.BASELINE, main_results.BARE} <= set(ran)
    bare = dataclasses.replace(there, template="continuation")
    assert bare.model is there.model and bare.prefix("Hi") != there.prefix("Hi")


# -- loading --------------------------------------------------------------------------------------


def test_without_vllm_and_with_another_version_the_error_says_what_to_do(monkeypatch):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    with pytest.raises(EngineError, match=r"not installed here.*aisp-companion\[vllm\].*'aisp'"):
        aisp.load_policy("embedded", engine="vllm")
    monkeypatch.setattr(metadata, "version", lambda name: "0.33.1")
    with pytest.raises(EngineError, match=r"vLLM 0\.33\.1 is installed; .*works with 0\.32\.x"):
        aisp.load_policy("embedded", engine="vllm")
    with pytest.raises(ValueError, match="engine is 'vlm'"):
        aisp.load_policy("embedded", engine="vlm")


def test_arguments_reach_vllm_and_some_are_refused(there, monkeypatch):
    seen = there.model.llm.seen
    assert seen["dtype"] == "float32" and seen["load_format"] == "safetensors"
    assert seen["logits_processors"] == ["aisp.engine.vllm_worker:Processor"]
    assert seen["kv_cache_memory_bytes"] == 2 * 2**30 and seen["enable_prefix_caching"] is True
    load = {"engine": "vllm", "device": "cpu", "dtype": "float32"}
    more = aisp.load_policy(there.name, max_num_seqs=8, quantization="fp8", **load)
    assert more.model.llm.seen["max_num_seqs"] == 8
    assert more.model.settings == {"quantization": "fp8"}
    for wrong in ({"speculative_config": {"method": "ngram"}}, {"logits_processors": ["x:y"]}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} cannot be given"):
            aisp.load_policy(there.name, **load, **wrong)
    with pytest.raises(ValueError, match="tensor_parallel_size=N"):
        aisp.load_policy(there.name, device_map="auto", **load)
    with pytest.raises(ValueError, match="cannot load 'no-such/model'"):
        aisp.load_policy("no-such/model", **load)

    def broken(**options):
        raise RuntimeError("no memory\nfor it")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", broken)
    with pytest.raises(EngineError, match=r"does not start on .*no memory for it.*__main__"):
        aisp.load_policy(there.name, **load)


# -- records --------------------------------------------------------------------------------------


def test_records_name_the_engine_and_those_of_ours_are_as_they_were(two):
    config = {"x": configure("best_of_n")}
    ours, theirs = (identity.made_with(p, aisp.load_reward(reward), config)["x"] for p in two)
    assert "engine" not in ours and theirs["engine"] == "vllm 0.32.0"
    assert ours["policy_sha256"] != theirs["policy_sha256"] and ours["dtype"] == theirs["dtype"]
    again = dataclasses.replace(two[1], name="other")
    assert identity.made_with(again, aisp.load_reward(reward), config)["x"] == theirs | {
        "policy": "other"
    }
    for mine, there in ((ours, theirs), (theirs, ours)):
        record = {"config": config["x"].describe(), "made_with": there}
        assert "engine" in identity.differences(record, config["x"], mine, {})
    record = {"config": config["x"].describe(), "made_with": ours}
    assert not identity.differences(record, config["x"], ours, {})


def test_a_dead_engine_ends_the_run_with_its_records_kept_and_the_next_run_goes_on(there, tmp_path):
    prompts = [Prompt(f"p{i}", ({"role": "user", "content": t},), "t") for i, t in enumerate("abc")]
    methods = {"AISP": {"method": "aisp", **{k: v for k, v in SIZE.items() if k != "progress"}}}
    llm, calls = there.model.llm, []

    def dies(prompt, response):
        calls.append(1)
        llm.dead = llm.dead or len(calls) == 12  # in the second prompt
        return len(response)

    dies = aisp.rewards.base.CallableReward(dies, name="dies")
    path, run = tmp_path / "r.jsonl", {"batch": 1, "progress": False}
    with pytest.raises(
        EngineError, match=r"processes of vLLM .* have ended.*Load the policy again"
    ):
        experiment.run(path, methods, prompts, there, dies, **run)
    kept = experiment.load(path)
    assert kept["prompt"].tolist() == ["p0"]
    assert kept["made_with"][0]["engine"] == "vllm 0.32.0"
    llm.dead = False
    found = experiment.run(path, methods, prompts, there, dies, **run)
    assert found["prompt"].tolist() == ["p0", "p1", "p2"] and found["reward"].notna().all()
    assert found["response"][0] == kept["response"][0]


def test_an_engine_that_is_killed_while_it_is_waited_for_is_a_clear_error(there, monkeypatch):
    """vLLM itself would wait forever. An interrupt leaves the call running; the next one waits."""
    from threading import Event
    from types import SimpleNamespace

    model, release = there.model, Event()
    assert model._alive(lambda: 3) == 3
    with pytest.raises(TimeoutError, match="its own"):  # and not the one of the waiting
        model._alive(raises, TimeoutError("its own"))
    monkeypatch.setattr(model, "_processes", [SimpleNamespace(is_alive=lambda: release.is_set())])
    with pytest.raises(EngineError, match="have ended"):
        model._alive(release.wait)
    release.set()
    assert model._alive(lambda: 4) == 4


def raises(error):
    raise error


def test_import_aisp_and_our_engine_never_import_vllm(tiny):
    assert remote.VERSIONS and "vllm" not in sys.modules
    aisp.align("Hi", tiny(), reward, **SIZE)
    assert "vllm" not in sys.modules
