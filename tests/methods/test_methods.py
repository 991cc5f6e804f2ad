"""What holds for every method: one call, one result type, budgets, interrupts, bad input."""

import copy
import inspect
import json
import re
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import reward

import aisp
from aisp.engine.stepper import Stepper
from aisp.methods import METHODS, available, configure
from aisp.methods.value import ValueFunction
from aisp.rewards import CallableReward, RewardError, score

PROMPTS = ["Hi", "How do I learn to cook?"]
SMALL = dict(n=4, kappa=3, max_new_tokens=6, progress=False)
CANDIDATES = ["iteration", "sample", "response", "reward", "log_weight"]
HISTORY = [
    "iteration",
    "reward_mean",
    "reward_std",
    "reward_max",
    "reward_best",
    "ess",
    "kl",
    "tokens",
    "seconds",
]
each_method = pytest.mark.parametrize("method", sorted(METHODS))


# What a method is given beside policy and reward, so that it draws different responses.
NEEDS = {
    "args": lambda tiny: {"temperature": 1.0, "k": 5},
    "kad": lambda tiny: {"aligned": tiny("gpt2"), "budget": 0.5},
    "ram": lambda tiny: {"aligner": tiny("gpt2"), "candidates": 5},
    "re_control": lambda tiny: {
        "value": ValueFunction(32, generator=torch.Generator().manual_seed(0)),
        "steps": 3,
    },
}


@pytest.fixture
def call(tiny):
    """Aligns with a method at a small budget, and with what else it needs."""

    def run(method, prompts="Hi", reward=reward, *, policy=None, **parameters):
        needs = NEEDS.get(method, lambda tiny: {})(tiny)
        parameters = {**SMALL, **needs, **parameters}
        return aisp.align(prompts, policy or tiny(), reward, method=method, **parameters)

    return run


def test_the_known_methods_are_listed():
    assert available() == [
        "aisp",
        "aisp_cv",
        "aisp_scores",
        "args",
        "best_of_n",
        "elliptical_slice",
        "kad",
        "metropolis",
        "misvo",
        "qalign",
        "ram",
        "re_control",
        "speculative_rejection",
        "tempered_smc",
    ]


@each_method
def test_the_signature_is_one_and_the_same(method):
    config, init, step, _ = METHODS[method]
    assert list(inspect.signature(init).parameters) == ["policy", "prompts", "config", "seed"]
    assert list(inspect.signature(step).parameters) == ["state", "policy", "reward", "config"]
    for name in inspect.signature(config).parameters:  # the one place where they are documented
        assert any(re.search(rf"\b{name}\b", c.__doc__ or "") for c in config.__mro__), name


@each_method
def test_prefixes_that_are_run_once_change_nothing(call, method, monkeypatch):
    # Otherwise some methods decode all iterations as one batch.
    apart = {"rows": 8} if hasattr(METHODS[method].config, "rows") else {}
    kept = call(method, PROMPTS, **apart)
    monkeypatch.setattr("aisp.alignment.prefill.kept", nullcontext)
    plain = call(method, PROMPTS, **apart)
    for ours, theirs in zip(kept, plain, strict=True):
        assert ours.candidates.equals(theirs.candidates)
        same = ["reward_mean", "ess", "kl", "tokens"]
        assert ours.history[same].equals(theirs.history[same])


class Even(aisp.Reward):
    """1 for a response of an even number of characters, else 0."""

    name, maximum = "even", 1.0

    def score(self, prompts, responses):
        return torch.tensor([float(len(x) % 2 == 0) for x in responses], dtype=torch.float64)


@pytest.mark.parametrize("method", ["aisp", "best_of_n", "aisp_scores"])
def test_samples_that_reach_the_highest_reward_are_counted_where_it_is_known(call, method):
    out = call(method, reward=Even())
    counts = out.candidates.groupby("iteration")["reward"].sum()
    assert 0 < counts.sum() < 12 and out.history["solved"].tolist() == counts.tolist()
    assert "solved" not in call(method).history


@each_method
def test_result_type_and_accounting(call, method):
    out = call(method, seed=5)
    assert list(out.candidates) == CANDIDATES and list(out.history)[:9] == HISTORY
    assert method not in ("aisp", "best_of_n") or list(out.history) == HISTORY
    assert len(out.candidates) == 12 and len(out.history) == 3
    assert out.method == method and out.seed == 5 and not out.interrupted
    assert isinstance(out.config, METHODS[method].config)
    described = out.config.describe()
    assert json.loads(json.dumps(described)) == described and described["n"] == 4
    best = out.candidates.loc[out.candidates["reward"].idxmax()]
    assert out.reward == best["reward"] == reward("Hi", out.response)
    assert out.response == best["response"]
    for k, h in out.history.iterrows():
        rows = out.candidates[out.candidates["iteration"] == k]
        assert rows["sample"].tolist() == [0, 1, 2, 3]
        scored = rows["reward"][rows["reward"] > -np.inf]
        assert len(scored) and (len(scored) == 4 or method == "speculative_rejection")
        np.testing.assert_allclose(h.reward_mean, scored.mean())
        np.testing.assert_allclose(h.reward_std, scored.std(ddof=0), atol=1e-12)
        assert h.reward_max == rows["reward"].max()
        seen = out.candidates[out.candidates["iteration"] <= k]
        assert h.reward_best == seen["reward"].max()
        assert 4 <= h.tokens <= 4 * 6 and h.seconds > 0
    assert repr(out).startswith(f"Alignment({method}, reward=")


@each_method
def test_batched_equals_alone_and_seeds_reproduce(call, method):
    together = call(method, PROMPTS)
    assert isinstance(together, list) and len(together) == 2
    for prompt, one in zip(PROMPTS, together, strict=True):
        alone = call(method, prompt)
        assert alone.candidates["response"].tolist() == one.candidates["response"].tolist()
        for name in set(alone.history) - {n for n in alone.history if "second" in n}:
            # atol: padding moves the last bits of float32 sums
            np.testing.assert_allclose(alone.history[name], one.history[name], atol=1e-4)
    other = call(method, seed=1)
    assert other.candidates["response"].tolist() != together[0].candidates["response"].tolist()


@each_method
def test_no_gradient_no_weight_and_no_global_state_changes(call, tiny, method):
    policy = tiny()
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    attention = policy.model.config._attn_implementation
    modules = [type(m) for m in policy.model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    call(method)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert all(p.grad is None and not p.requires_grad for p in policy.model.parameters())
    assert policy.model.config._attn_implementation == attention
    assert [type(m) for m in policy.model.modules()] == modules
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in policy.model.modules())
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, before[name])


@each_method
def test_budgets_stop_early(call, method):
    few = call(method, token_budget=1)
    assert len(few.history) == 1 and not few.interrupted
    some = call(method)
    tokens = some.history["tokens"]
    two = call(method, token_budget=int(tokens[0]) + 1)
    assert len(two.history) == 2
    quick = call(method, second_budget=1e-9)
    assert len(quick.history) == 1


@each_method
def test_a_prompt_that_has_spent_its_budget_leaves_the_batch(call, tiny, method):
    """The others are not disturbed, and each has its own number of iterations."""
    base = tiny()
    often = aisp.Policy(
        base.model, base.tokenizer, name="ends often", eos_ids=tuple(range(0, 258, 7))
    )
    prompts = [*PROMPTS, "Why?", "Name a river."]
    size = dict(policy=often, max_new_tokens=12, kappa=6)
    alone = [call(method, prompt, **size) for prompt in prompts]
    used = [out.history["tokens"].cumsum().tolist() for out in alone]
    budget = max(tokens[2] for tokens in used)  # all but the longest of them go on after three
    assert len({sum(t < budget for t in tokens) for tokens in used}) > 1, "all would end together"
    together = call(method, prompts, token_budget=budget, **size)
    for out, one, tokens in zip(alone, together, used, strict=True):
        assert len(one.history) == min(6, 1 + sum(t < budget for t in tokens))
        found = out.candidates["response"].tolist()[: len(one.candidates)]
        assert one.candidates["response"].tolist() == found
        assert one.state.iteration == len(one.history)


@each_method
def test_an_interrupt_returns_what_there_is(call, monkeypatch, method):
    scored = []

    def impatient(*args):
        scored.append(args)
        if len(scored) == 3:  # the whole responses of the third iteration
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr("aisp.state.score", impatient)
    out = call(method)
    assert out.interrupted and len(out.history) == 2 and len(out.candidates) == 8
    assert out.reward == out.candidates["reward"].max()

    scored[:] = [None, None]  # now in the first iteration: there is nothing to return
    with pytest.raises(KeyboardInterrupt):
        call(method)


@each_method
def test_a_failing_reward_keeps_what_was_decoded(call, method):
    def fails_late(prompt, response):
        return float("nan") if len(response) > 3 else 0.0

    with pytest.raises(RewardError, match="reward 'fails_late' is nan for candidate") as caught:
        call(method, reward=fails_late)
    assert caught.value.candidates is not None


@each_method
def test_align_is_a_fold_over_init_and_step(call, tiny, method):
    """The loop written out by hand gives every candidate of `align`, weights and rewards included."""
    outs = call(method, PROMPTS, seed=3)
    needs = NEEDS.get(method, lambda tiny: {})(tiny)
    config, init, step, _ = METHODS[method]
    config = config(**{k: v for k, v in {**SMALL, **needs}.items() if k != "progress"})
    state = init(tiny(), PROMPTS, config, seed=3)
    for k in range(config.kappa):
        before = state
        state, info = step(state, tiny(), CallableReward(reward), config)
        assert before.iteration == k == info.iteration and before is not state
        for row, out in enumerate(outs):
            seen = out.candidates[out.candidates["iteration"] == k]
            assert seen["response"].tolist() == info.rollout.texts[row]
            assert seen["reward"].tolist() == info.rewards[row].tolist()
            np.testing.assert_array_equal(seen["log_weight"], info.log_w[row])
            np.testing.assert_array_equal(out.history["ess"][k], info.ess[row])
            assert out.history["reward_best"][k] == state.best[row].reward
    for row, out in enumerate(outs):
        assert (out.response, out.reward) == state.best[row]
        assert out.state.best == (state.best[row],) and out.state.iteration == config.kappa


@each_method
def test_going_on_from_a_state_equals_one_longer_run(call, method):
    whole = call(method, PROMPTS, seed=4, kappa=5)
    first = call(method, PROMPTS, seed=4, kappa=2)
    rest = call(method, PROMPTS, kappa=3, state=[out.state for out in first])
    for long, one, two in zip(whole, first, rest, strict=True):
        rows = [*one.candidates.to_dict("records"), *two.candidates.to_dict("records")]
        np.testing.assert_equal(rows, long.candidates.to_dict("records"))
        timeless = [n for n in long.history if "second" not in n]
        parts = [
            *one.history[timeless].to_dict("records"),
            *two.history[timeless].to_dict("records"),
        ]
        np.testing.assert_equal(parts, long.history[timeless].to_dict("records"))
        assert (two.response, two.reward, two.seed) == (long.response, long.reward, 4)
    alone = call(method, PROMPTS[0], kappa=3, state=first[0].state)
    assert alone.candidates["response"].tolist() == rest[0].candidates["response"].tolist()


def test_states_that_do_not_fit_are_refused(call, tiny):
    out, other = call("aisp", "Hi", seed=1), call("best_of_n", "Hi", seed=1)
    with pytest.raises(ValueError, match="seed is 2, and the state was begun with 1"):
        call("aisp", "Hi", seed=2, state=out.state)
    other_words = aisp.Policy(tiny().model, tiny().tokenizer, "continuation", name="bare")
    with pytest.raises(ValueError, match="begun with another policy or template than bare"):
        call("aisp", "Hi", state=out.state, policy=other_words)
    with pytest.raises(ValueError, match="is a AISPState, of another method; best_of_n goes on"):
        call("best_of_n", "Hi", state=out.state)
    with pytest.raises(ValueError, match="shorten either"):
        call("aisp", "Hi", state=out.state, tau=6, max_new_tokens=5000)
    with pytest.raises(ValueError, match="differ from the 1 given"):
        call("aisp", "Ho", state=out.state)
    with pytest.raises(ValueError, match=r"is a SearchState, of another method; .*AISPState"):
        call("aisp", "Hi", state=other.state)
    with pytest.raises(ValueError, match=r"U has shape \(6, 32\).*\(4, 32\)"):
        call("aisp", "Hi", state=out.state, tau=4)
    with pytest.raises(ValueError, match="must be the `state` of an Alignment"):
        call("aisp", "Hi", state=out)
    later = call("aisp", "Ho", seed=1, state=call("aisp", "Ho", seed=1).state).state
    with pytest.raises(ValueError, match="states differ: 3 and 6"):
        call("aisp", ["Hi", "Ho"], state=[out.state, later])


@each_method
@pytest.mark.parametrize("seed", [True, 1.5, "0", float("nan")])
def test_seeds_are_whole_numbers(call, method, seed):
    with pytest.raises(ValueError, match=r"seed is .* it must be a whole number"):
        call(method, seed=seed)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.float32(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (Fraction(1, 2), 0.5),
        (np.float64(0.5), 0.5),
        (1, 1.0),
    ],
    ids=["float32", "tensor", "Fraction", "float64", "int"],
)
def test_numbers_of_other_libraries_become_plain_ones(given, plain):
    config = configure("aisp", sigma=given, lam=given, n=np.int64(3), kappa=torch.tensor(2))
    described = config.describe()
    assert [described[k] for k in ("sigma", "lam", "n", "kappa")] == [plain, plain, 3, 2]
    assert [type(described[k]) for k in ("sigma", "lam", "n", "kappa")] == [float, float, int, int]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(n=True), "n is True; it must be a whole number"),
        (dict(n=3.0), "n is 3.0; it must be a whole number"),
        (dict(adapt="false"), "adapt is 'false'; it must be True or False"),
        (dict(adapt=float("nan")), "adapt is nan"),
        (dict(adapt=0), "adapt is 0; it must be True or False"),
        (dict(lam="1e-3"), "lam is '1e-3'; .*write the number without quotes: 0.001"),
        (dict(sigma=[0.5]), r"sigma is \[0.5\]; it must be > 0 and finite"),
        (dict(sigma=1j), "sigma is 1j"),
        (dict(alpha=torch.ones(2)), "alpha is tensor"),
        (dict(temperature=1e-40), "temperature is 1e-40; it must be 0 .greedy. or at least 1e-06"),
    ],
)
def test_what_is_no_number_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        configure("aisp", **bad)


@pytest.mark.parametrize(
    "dials",
    [dict(lam=1e-308), dict(sigma=1e38), dict(sigma=3e38, adapt=False)],
    ids=["tiny lam", "huge sigma", "huge sigma, no adaptation"],
)
def test_extreme_dials_are_an_error_that_keeps_what_was_decoded(call, dials):
    with pytest.raises((FloatingPointError, ValueError), match=r"not finite|overflow") as caught:
        call("aisp", reward=lambda prompt, response: 1e6 * len(set(response)), **dials)
    assert caught.value.candidates is not None


def test_an_extreme_step_of_re_control_is_an_error(call):
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        call("re_control", step_size=1e100)


@each_method
def test_an_error_after_the_first_iteration_keeps_its_candidates(call, method):
    # What scores beginnings calls the reward before: of 6 tokens, or of 20 iterations at once.
    before = {"args": 4 * 6 * 5, "speculative_rejection": 20 * (4 + 2)}.get(method, 0)
    drawn = []

    def fails_later(prompt, response):
        drawn.append(response)
        if len(drawn) > 4 + before + 2:
            raise OSError("no connection")
        return float(len(response))

    with pytest.raises(RewardError, match="no connection") as caught:
        call(method, reward=fails_later, kappa=20)
    found = caught.value.candidates
    assert (found["iteration"] == 0).sum() == 4 and found["reward"].notna().sum() >= 4


@pytest.mark.gpu
@each_method
def test_every_method_runs_on_cuda(call, tiny, method):
    base = tiny()
    policy = aisp.Policy(copy.deepcopy(base.model).cuda(), base.tokenizer, name="cuda")
    needs = {}
    for name in ("aligned", "aligner"):
        if name in METHODS[method].config.__dataclass_fields__:
            other = tiny("gpt2")
            needs[name] = aisp.Policy(copy.deepcopy(other.model).cuda(), other.tokenizer)
    out = call(method, PROMPTS, policy=policy, **needs)
    again = call(method, PROMPTS, policy=policy, **needs)
    for one, two in zip(out, again, strict=True):
        assert one.candidates["response"].tolist() == two.candidates["response"].tolist()
        assert len(one.candidates) == 12


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "must contain text"),
        ("   ", "must contain text"),
        ([], "empty"),
        (["Hi", ""], "must contain text"),
        ([{"role": "user", "content": ""}], "must contain text"),
        ([{"role": "assistant", "content": "Hi"}], "user"),
        ([{"text": "Hi"}], "role"),
    ],
)
def test_bad_prompts_are_refused(tiny, prompt, message):
    with pytest.raises(ValueError, match=message):
        aisp.align(prompt, tiny(), reward, **SMALL)


def test_other_bad_calls_are_refused(tiny):
    with pytest.raises(TypeError, match="prompts is 7"):
        aisp.align(7, tiny(), reward)
    with pytest.raises(
        ValueError, match="unknown method 'bon'; known: aisp, aisp_cv, aisp_scores, args, best_of_n"
    ):
        aisp.align("Hi", tiny(), reward, method="bon")
    with pytest.raises(ValueError, match="best_of_n has no parameter 'sigma'; it takes: n, kappa"):
        aisp.align("Hi", tiny(), reward, method="best_of_n", sigma=0.5)
    with pytest.raises(ValueError, match="shorten either"):
        aisp.align("x" * 250, tiny(), reward)


def test_a_prompt_object_is_a_prompt(tiny):
    prompts = aisp.load_prompts("builtin", limit=2)
    outs = aisp.align(prompts, tiny(), reward, **SMALL)
    assert [o.prompt for o in outs] == prompts
    same = aisp.align(list(prompts[0].messages), tiny(), reward, **SMALL)
    assert same.response == outs[0].response


def test_the_progress_bar_can_be_switched_off(tiny, capsys):
    aisp.align("Hi", tiny(), reward, **SMALL)
    assert capsys.readouterr().err == ""
    aisp.align("Hi", tiny(), reward, **{**SMALL, "progress": True})
    assert "aisp" in capsys.readouterr().err


def test_the_readme_adds_a_method_a_reward_and_a_judge(tiny, monkeypatch):
    """Its code runs as it stands."""
    monkeypatch.setitem(METHODS, "cool", None)  # taken out again after the test
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    text = Path("README.md").read_text(encoding="utf-8")
    section = text.split("## Adding a method")[1].split("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    names = {"aisp": aisp, "policy": tiny()}
    exec(code, names)
    out = names["out"]
    given = {"temperature": 0.65, "top_p": 1.0, "n": 4, "kappa": 2, "progress": False}
    same = aisp.align("Why is the sky blue?", tiny(), names["Brevity"](), "best_of_n", **given)
    assert out.method == "cool" and out.config.temperature == 0.65 and len(out.candidates) == 8
    assert out.reward == same.reward == -len(out.response.split())
    assert out.candidates["response"].equals(same.candidates["response"])
    assert names["wins"]["prompts"] == 32 and names["wins"]["low"] < names["wins"]["high"]


@pytest.mark.parametrize("method", ["ram", "kad"])
@pytest.mark.parametrize("decoding", [dict(temperature=0.0), dict(temperature=1.0)])
def test_a_broken_second_model_is_an_error_too(call, tiny, method, decoding):
    other = tiny("gpt2")
    model = copy.deepcopy(other.model)
    with torch.no_grad():
        model.get_output_embeddings().weight[9] = float("nan")
    name = {"ram": "aligner", "kad": "aligned"}[method]
    broken = {name: aisp.Policy(model, other.tokenizer, name="broken"), "top_p": 1.0}
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        call(method, **broken, **decoding)


@pytest.mark.parametrize("seed", [True, "0", 1.5, None])
def test_the_sampler_checks_its_seed(tiny, seed):
    config = METHODS["aisp"].config(n=2, max_new_tokens=4)
    with pytest.raises(ValueError, match=r"seed is .*whole number"):
        METHODS["aisp"].init(tiny(), "Hi", config, seed=seed)
    whole = METHODS["aisp"].init(tiny(), "Hi", config, seed=np.int64(3))
    assert whole.seed == 3 and type(whole.seed) is int


def test_a_reward_that_is_none_is_refused_clearly(tiny):
    config = METHODS["aisp"].config(n=2, max_new_tokens=4)
    state = METHODS["aisp"].init(tiny(), "Hi", config)
    with pytest.raises(TypeError, match=r"the reward is .embedded.; pass what `aisp.load_reward`"):
        METHODS["aisp"].step(state, tiny(), "embedded", config)
    with pytest.raises(ValueError, match="sigma is 1e-200; it must be > 0, and its square too"):
        aisp.align("Hi", tiny(), reward, sigma=1e-200, **SMALL)


INDEPENDENT = {"aisp": {"adapt": False}, "best_of_n": {}, "kad": {}, "ram": {}}


@pytest.mark.parametrize("method", sorted(INDEPENDENT))
def test_iterations_decoded_together_find_what_single_ones_find(call, monkeypatch, method):
    batches, plain = [], Stepper.start

    def start(self, *args):
        batches.append(self.prompts * self.n)
        return plain(self, *args)

    monkeypatch.setattr(Stepper, "start", start)
    models = 1 if method in ("aisp", "best_of_n") else 2
    own = INDEPENDENT[method]
    single = call(method, PROMPTS, kappa=5, seed=1, rows=1, **own)
    assert batches == [8] * 5 * models
    batches.clear()
    together = call(method, PROMPTS, kappa=5, seed=1, rows=17, **own)  # two iterations of 2 prompts
    assert batches == [16] * 2 * models + [8] * models
    for one, other in zip(single, together, strict=True):
        assert one.candidates.equals(other.candidates)
        same = [c for c in one.history if "second" not in c]
        assert np.allclose(one.history[same], other.history[same], equal_nan=True, rtol=1e-6)
        assert one.state.iteration == other.state.iteration == 5


def test_how_many_iterations_are_decoded_at_once():
    config = configure("best_of_n", n=16, kappa=8)
    assert config.rows == 128
    assert [config.at_once(p) for p in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    assert configure("best_of_n", n=16, kappa=8, token_budget=10**6).at_once(1) == 1
    assert configure("best_of_n", n=16, kappa=8, second_budget=60.0).at_once(1) == 1
    assert configure("aisp", n=16, kappa=8).at_once(1) == 1, "each needs the one before"
    assert configure("aisp", n=16, kappa=8, adapt=False).at_once(1) == 8
    with pytest.raises(ValueError, match="rows is 0; it must be"):
        configure("ram", rows=0)


@pytest.mark.parametrize("method", sorted(INDEPENDENT))
def test_a_failure_among_iterations_decoded_together_keeps_all_of_them(call, method):
    drawn = []

    def fails_later(prompt, response):
        drawn.append(response)
        if len(drawn) > 4 + 2:
            raise OSError("no connection")
        return float(len(response))

    with pytest.raises(RewardError) as caught:
        call(method, reward=fails_later, kappa=4, **INDEPENDENT[method])
    found = caught.value.candidates
    zero = lambda prompt, response: 0.0  # noqa: E731
    whole = call(method, reward=zero, kappa=4, **INDEPENDENT[method]).candidates
    assert found["response"].tolist() == whole["response"].tolist()
    assert found["iteration"].tolist() == whole["iteration"].tolist()
    assert found["reward"].notna().sum() == 4


def test_iterations_that_need_each_other_are_not_decoded_together(tiny):
    config = configure("aisp", n=2, kappa=3, max_new_tokens=3)
    state = METHODS["aisp"].init(tiny(), "Hi", config)
    with pytest.raises(ValueError, match="k is 2; each iteration of AISP needs the one before"):
        next(METHODS["aisp"].steps(state, tiny(), CallableReward(reward), config, 2))
