"""The decoding engine: the same tokens as `generate`, and the perturbation where it belongs."""

import pytest
import torch
from tiny import ARCHITECTURES, PROMPTS

from aisp.engine.decoding import Decoding, take_token
from aisp.engine.rollout import rollout

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def prefixes(policy):
    return [policy.prefix(p) for p in PROMPTS]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(P, n, tau, policy, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(P, n, tau, policy.d, generator=g)


def generated(policy, prefix, T):
    out = policy.model.generate(
        torch.tensor([prefix]),
        max_new_tokens=T,
        do_sample=False,
        eos_token_id=list(policy.eos_ids),
        pad_token_id=policy.eos_ids[0],
    )
    return out[0, len(prefix) :].tolist()


def check_greedy(policy, T):
    many = prefixes(policy)
    V = torch.zeros(len(many), 2, T, policy.d)
    for perturbations in (None, V):
        out = rollout(policy, many, 2, T, V=perturbations)
        for p, prefix in enumerate(many):
            expected = generated(policy, prefix, T)
            alone = rollout(policy, [prefix], 1, T)
            assert alone.tokens[0, 0, : alone.lengths[0, 0]].tolist() == expected
            for i in range(2):
                assert out.tokens[p, i, : out.lengths[p, i]].tolist() == expected
            assert out.texts[p][0] == policy.decode([expected])[0]


@each_architecture
def test_zero_perturbation_is_generate(tiny, name):
    check_greedy(tiny(name), T=24)


def test_zero_perturbation_is_generate_on_the_embedded_model(embedded):
    check_greedy(embedded, T=16)


def full_logits(policy, ids):
    """Logits and pre-logits of every position, from one plain forward pass without a cache."""
    seen = []
    hook = policy.model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.inference_mode():
        logits = policy.model(torch.tensor([ids]), use_cache=False).logits[0]
    hook.remove()
    return logits, seen[0][0]


def head(policy, z):
    """The output embeddings with what the model does after them (soft-capping)."""
    logits = policy.model.get_output_embeddings()(z)
    cap = getattr(policy.model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@each_architecture
def test_the_perturbation_reaches_exactly_its_steps(tiny, name):
    """Each token is the argmax of head(z_t + v_t) for t < tau, and of head(z_t) after."""
    policy, n, T, tau = tiny(name), 4, 10, 5
    many = prefixes(policy)
    V = noise(len(many), n, tau, policy, scale=2.0)
    out = rollout(policy, many, n, T, V=V, keep_prelogits=True)
    moved = 0
    for p, prefix in enumerate(many):
        for i in range(n):
            tokens = out.tokens[p, i, : out.lengths[p, i]].tolist()
            logits, z = full_logits(policy, prefix + tokens)
            for t, token in enumerate(tokens):
                at = len(prefix) - 1 + t
                torch.testing.assert_close(out.prelogits[p, i, t], z[at], atol=1e-3, rtol=1e-3)
                with torch.inference_mode():
                    expected = head(policy, z[at] + V[p, i, t]) if t < tau else logits[at]
                assert token == expected.argmax()
                moved += token != logits[at].argmax()
                assert t < tau or token == logits[at].argmax()
    assert moved > 20  # the perturbation did matter


def test_perturbed_logits_are_the_head_of_the_sum(tiny):
    """Not only the argmax: the logits that a token is taken from equal head(z + v)."""
    policy, n, T, tau = tiny("gemma3"), 3, 6, 4
    V = noise(1, n, tau, policy)
    taken = []

    def noted(logits, *rest):
        taken.append(logits)
        return take_token(logits, *rest)

    prompt = prefixes(policy)[:1]
    out = rollout(policy, prompt, n, T, V=V, keep_prelogits=True, take_token=noted)
    assert (out.lengths == T).all()
    for t in range(T):
        z = out.prelogits[0, :, t]
        expected = head(policy, z + V[0, :, t]) if t < tau else head(policy, z)
        torch.testing.assert_close(taken[t], expected, atol=1e-5, rtol=1e-5)


@each_architecture
@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(1.0, 0, 0.9), Decoding(0.8, 20, 1.0)], ids=str
)
def test_batched_equals_alone(tiny, name, decoding):
    policy, n, T = tiny(name), 5, 16
    many = prefixes(policy)
    V = noise(len(many), n, T, policy)
    seeds = [11, 12, 13]
    together = rollout(policy, many, n, T, V=V, decoding=decoding, generators=generators(*seeds))
    for p, prefix in enumerate(many):
        alone = rollout(
            policy,
            [prefix],
            n,
            T,
            V=V[p : p + 1],
            decoding=decoding,
            generators=generators(seeds[p]),
        )
        assert alone.texts[0] == together.texts[p]
        torch.testing.assert_close(alone.lengths[0], together.lengths[p])


def test_finished_responses_stop_and_leave_the_rest_alone(tiny):
    """An end-of-turn bias ends many responses early; the others decode on as if they were alone."""
    policy, n, T = tiny("llama"), 24, 20
    w = policy.model.get_output_embeddings().weight
    direction = w[0] / w[0].norm()  # pushes towards token 0, the end-of-turn token
    V = noise(1, n, T, policy)
    g = torch.Generator().manual_seed(3)
    ends = torch.randint(1, T, (n,), generator=g)
    for i in range(0, n, 2):  # every other response is pushed at a step of its own
        V[0, i, ends[i]] += 200 * direction
    prefix = prefixes(policy)[:1]
    steps = []
    handle = policy.model.register_forward_pre_hook(
        lambda m, args, kwargs: steps.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    out = rollout(policy, prefix, n, T, V=V, keep_prelogits=True)
    handle.remove()
    for i in range(n):
        alone = rollout(policy, prefix, 1, T, V=V[:, i : i + 1])
        assert out.lengths[0, i] == alone.lengths[0, 0]
        assert out.tokens[0, i].tolist() == alone.tokens[0, 0].tolist()
        end = int(out.lengths[0, i])
        if i % 2 == 0:
            assert end <= ends[i] + 1
            assert out.tokens[0, i, end - 1] == 0 and (out.tokens[0, i, end:] == 0).all()
        assert (out.prelogits[0, i, end:] == 0).all()
        assert (out.prelogits[0, i, :end] != 0).any(-1).all()
    assert min(steps[1:]) < n  # they left the batch


def test_an_early_end_of_all_stops_the_loop(tiny):
    policy, T = tiny("llama"), 50
    w = policy.model.get_output_embeddings().weight
    V = torch.zeros(1, 2, T, policy.d)
    V[:, :, 1] = 200 * w[0] / w[0].norm()
    steps = []
    handle = policy.model.register_forward_pre_hook(lambda m, args: steps.append(1))
    out = rollout(policy, prefixes(policy)[:1], 2, T, V=V)
    handle.remove()
    assert out.lengths.max() <= 2 and len(steps) <= 2


def test_global_random_state_is_neither_read_nor_changed(tiny):
    policy = tiny("llama")
    outs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        out = rollout(
            policy, prefixes(policy), 3, 12, decoding=Decoding(1.0), generators=generators(1, 2, 3)
        )
        assert torch.equal(before, torch.get_rng_state())
        outs.append(out.tokens)
    assert torch.equal(*outs)


def test_no_hook_is_left_behind(tiny):
    policy = tiny("llama")
    head_module = policy.model.get_output_embeddings()
    rollout(policy, prefixes(policy), 1, 3)
    with pytest.raises(ValueError):
        rollout(policy, prefixes(policy), 1, 3, V=torch.zeros(3, 1, 4, policy.d))
    assert not head_module._forward_pre_hooks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prefixes": []}, "one or more non-empty"),
        ({"prefixes": [[1], []]}, "one or more non-empty"),
        ({"V": torch.zeros(1, 2, 3, 32)}, r"V has shape \(1, 2, 3, 32\)"),
        ({"V": torch.zeros(2, 2, 9, 32)}, "tau <= max_new_tokens = 4"),
        ({"decoding": Decoding(1.0)}, "one torch.Generator per prefix: 2 prefixes, 0 generators"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tiny, change, message):
    call = {"prefixes": [[5, 6], [7]], "n": 2, "max_new_tokens": 4} | change
    with pytest.raises(ValueError, match=message):
        rollout(tiny("llama"), **call)
