"""vLLM itself as the second engine: `make test-vllm` runs this, in an environment that has vLLM.

In float32 both engines give the same tokens, but where the two most likely ones are as good as equal.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laws import chi_square

import aisp
from aisp import experiment, metrics, sampler
from aisp.engine.decoding import Decoding, law
from aisp.engine.rollout import rollout
from aisp.prompts import Prompt
from aisp.rewards.base import CallableReward

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ROOT = Path(__file__).resolve().parents[2]
LOAD = {"engine": "vllm", "device": "cpu", "dtype": "float32", "enforce_eager": True}
PROMPTS = [
    "Hi",
    "How do I learn to cook?",
    "Name three rivers in a short and simple sentence, and say of each one where it begins.",
]
TIE = 2e-3  # logits; what float32 loses over 30 layers, summed in another order


def distinct(prompt, response):
    return len(set(response.split()))


@pytest.fixture(scope="module")
def there():
    policy = aisp.load_policy("embedded", **LOAD)
    yield policy
    policy.model.close()


@pytest.fixture(scope="module")
def few_rows():
    """At most five rows at once: requests wait, and start when others have ended."""
    policy = aisp.load_policy("embedded", max_num_seqs=5, **LOAD)
    yield policy
    policy.model.close()


def check_same(ours, prompts, a, b, V=None):
    """Equal tokens, or a tie at the first that differs; at most 2% of the responses."""
    ties = 0
    for p, prompt in enumerate(prompts):
        for i in range(a.tokens.shape[1]):
            x, y = (out.tokens[p, i, : out.lengths[p, i]].tolist() for out in (a, b))
            if x == y:
                continue
            t = next(k for k, pair in enumerate(zip(x, y, strict=False)) if pair[0] != pair[1])
            moved = None if V is None else V[p, i]
            logits = ours.response_logits(prompt, x[: t + 1], moved)[-1]
            assert abs(logits[x[t]] - logits[y[t]]) < TIE, (prompt, i, t)
            ties += 1
    assert ties <= 0.02 * a.lengths.numel(), f"{ties} ties"


@pytest.mark.parametrize("options", [{}, {"tau": 7}], ids=["all steps", "tau < T"])
def test_two_iterations_of_aisp_are_those_of_our_engine(embedded, there, options):
    """Prompts of three lengths in one batch, responses that end in the middle of it."""
    config = sampler.AISPConfig(n=16, kappa=2, max_new_tokens=32, sigma=0.7, **options)
    reward = aisp.load_reward(distinct)
    state = sampler.init(embedded, PROMPTS, config, seed=3)
    for _ in range(config.kappa):
        following, ours = sampler.step(state, embedded, reward, config)
        _, theirs = sampler.step(state, there, reward, config)
        assert torch.equal(ours.V, theirs.V)
        check_same(embedded, PROMPTS, ours.rollout, theirs.rollout, ours.V)
        state = following
    assert ours.rollout.lengths.min() < 32


def test_a_whole_run_is_that_of_our_engine(embedded, there):
    """By `align`, with the embedded reward. Without a tie all is equal, to the last U."""
    size = {"n": 8, "kappa": 2, "max_new_tokens": 16, "seed": 1, "progress": False}
    ours, theirs = (
        aisp.align(PROMPTS[1], p, aisp.load_reward("embedded", policy=p), **size)
        for p in (embedded, there)
    )
    assert ours.candidates["response"].tolist() == theirs.candidates["response"].tolist()
    assert torch.allclose(ours.U, theirs.U, atol=1e-3)
    assert ours.reward == pytest.approx(theirs.reward, abs=1e-4)


def test_an_end_of_turn_in_the_middle_of_a_batch(embedded, few_rows):
    """The full stop ends a response: rows leave at different steps, and others move up or start."""
    stop = embedded.tokenizer.encode(".", add_special_tokens=False)
    ours, theirs = (replace(p, eos_ids=(2, *stop)) for p in (embedded, few_rows))
    V = torch.randn(3, 6, 24, 576, generator=torch.Generator().manual_seed(0)) * 0.5
    a, b = (rollout(p, [p.prefix(x) for x in PROMPTS], 6, 24, V=V) for p in (ours, theirs))
    assert a.lengths.min() < 12 and a.lengths.max() == 24
    check_same(ours, PROMPTS, a, b, V)


@pytest.mark.parametrize("decoding", [Decoding(1.0, top_p=0.9), Decoding(0.7, top_k=40)], ids=str)
def test_the_law_of_sampled_decoding(embedded, there, decoding):
    prefix, n = embedded.prefix(PROMPTS[0]), 600
    out = rollout(there, [prefix], n, 1, decoding=decoding, generators=[seeded(5)])
    counts = Counter(out.tokens.flatten().tolist())
    exact = law(embedded.response_logits(PROMPTS[0], [0]), decoding)[0]
    assert chi_square(counts, {k: float(x) for k, x in enumerate(exact) if x > 0}) > 1e-3
    outs = [
        rollout(p, [prefix], 16, 16, decoding=decoding, generators=[seeded(6)])
        for p in (embedded, there)
    ]
    equal = (outs[0].tokens == outs[1].tokens).all(-1)  # the very same numbers decide
    assert equal.float().mean() > 0.9


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_surprisal_and_logits_that_are_not_finite(embedded, there):
    texts = ["You can begin with rice.", "No."]
    ours, theirs = (metrics.surprisal(p, PROMPTS[:2], texts) for p in (embedded, there))
    assert torch.allclose(ours, theirs, atol=1e-2)
    with pytest.raises(FloatingPointError, match="not finite"):
        aisp.align("Hi", there, distinct, sigma=1e38, n=2, kappa=1, progress=False)
    assert there.prefix("Hi") and aisp.align("Hi", there, distinct, n=2, kappa=1, progress=False)


def test_a_killed_engine_is_a_clear_error_and_the_next_run_goes_on(few_rows, there, tmp_path):
    """The last test of `few_rows`, whose processes it ends."""
    prompts = [Prompt(f"p{i}", t, "t") for i, t in enumerate(PROMPTS)]
    size = {"n": 4, "kappa": 2, "max_new_tokens": 8, "rows": 4}  # iterations one by one
    methods = {"best-of-n": {"method": "best_of_n", **size}}
    calls = []
    assert few_rows.model._processes and there.model._processes

    def dies(prompt, response):
        calls.append(response)
        if len(calls) == 12:  # between the iterations of the second prompt
            for process in few_rows.model._processes:
                process.kill()
        return distinct(prompt, response)

    reward = CallableReward(dies, name="distinct words")
    run = {"batch": 1, "progress": False}
    with pytest.raises(aisp.remote.EngineError, match=r"have ended.*Load the policy again"):
        experiment.run(tmp_path / "r.jsonl", methods, prompts, few_rows, reward, **run)
    kept = experiment.load(tmp_path / "r.jsonl")
    assert len(kept) == 1 and kept["made_with"][0]["engine"].startswith("vllm 0.32")
    found = experiment.run(tmp_path / "r.jsonl", methods, prompts, there, reward, **run)
    assert len(found) == 3 and found["reward"].notna().all()
    assert found["response"][0] == kept["response"][0]


def test_papermill_runs_the_main_comparison_on_it(tmp_path):
    """Notebook 06 at toy size; the methods that need our engine are left out with the reason."""
    smoke = ROOT / "data/results/smoke"
    for old in smoke.glob("vllm-test*"):  # the run would only read it
        old.unlink()
    parameters = {"profile": "smoke", "name": "vllm-test", "engine": "vllm", "dtype": "float32"}
    parameters |= {"engine_arguments": "enforce_eager=True, max_num_seqs=64"}
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks/06_main_results.ipynb")]
    command += [str(tmp_path / "out.ipynb"), "-k", "python3", "--log-level", "ERROR"]
    for name, value in parameters.items():
        command += ["-p", name, value]
    env = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    records = experiment.load(smoke / "vllm-test.jsonl")
    assert {made["engine"][:9] for made in records["made_with"]} == {"vllm 0.32"}
    assert {"AISP", "noise only"} < set(records["label"]) and records["reward"].notna().all()
    assert (
        "left out: kad: it needs the model in this process" in (tmp_path / "out.ipynb").read_text()
    )
