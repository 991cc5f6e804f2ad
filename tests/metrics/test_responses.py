"""Metrics against values computed by hand or in the plainest way, their ranges and their errors."""

import math

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model

import aisp
from aisp import metrics
from aisp.engine.rollout import rollout
from aisp.rewards.encoder import load_encoder

TURNS = [
    {"role": "user", "content": "Is tea hot?"},
    {"role": "assistant", "content": "Usually."},
    {"role": "user", "content": "And coffee?"},
]

# length, diversity


def test_length_in_words_and_tokens(byte_tokenizer):
    texts = ["two words", "", " one\n\ntwo  three "]
    assert metrics.length(texts).tolist() == [2, 0, 3]
    assert metrics.length(texts, byte_tokenizer).tolist() == [9, 0, 17]


@pytest.mark.parametrize(
    ("text", "plain", "re_control"),
    [
        # m-grams in all and unique: 7 and 4 bigrams, 6 and 4 trigrams, 5 and 4 of four words
        ("a b c d a b c d", 4 / 7 * 4 / 6 * 4 / 5, 4 / 8 * 4 / 7 * 4 / 6),
        ("a a a a a", 1 / 4 * 1 / 3 * 1 / 2, 1 / 5 * 1 / 4 * 1 / 3),
        ("one two three four five", 1, 4 / 5 * 3 / 4 * 2 / 3),
        ("a b c\n\nd", 1, 3 / 4 * 2 / 3 * 1 / 2),
        ("a b. a b", 1, 3 / 4 * 2 / 3 * 1 / 2),  # "b." and "b" are two words
        ("a b c", math.nan, 0),
        ("", math.nan, 0),
    ],
)
def test_diversity(text, plain, re_control):
    got = [metrics.diversity([text, "x"], convention=c) for c in ("plain", "re-control")]
    assert got[0].dtype == torch.float64 and got[0].shape == (2,)
    assert [v[0].item() for v in got] == pytest.approx([plain, re_control], nan_ok=True)


def test_diversity_of_other_words_and_its_errors():
    assert metrics.diversity(["abcdabcd"], split=list).item() == pytest.approx(64 / 210)
    with pytest.raises(ValueError, match="convention is 'nltk'; known: plain, re-control"):
        metrics.diversity(["a"], convention="nltk")
    for function in (metrics.diversity, metrics.length):
        with pytest.raises(TypeError, match="not a single string"):
            function("a text")


# coherence


def test_coherence_is_a_cosine_and_tells_topics_apart():
    encoder = load_encoder()
    prompts = ["How do I cook rice?", TURNS]
    responses = ["Rinse the rice and boil it in water.", "Coffee is served hot, as tea is."]
    got = metrics.coherence(prompts, responses, encoder=encoder)
    asked = encoder.embed(["How do I cook rice?", "Is tea hot?\n\nUsually.\n\nAnd coffee?"])
    expected = torch.cosine_similarity(asked, encoder.embed(responses))
    assert got.dtype == torch.float64 and torch.allclose(got.float(), expected, atol=1e-5)
    swapped = metrics.coherence(prompts, responses[::-1], encoder="embedded")
    assert (got > 0.5).all() and (swapped < 0.3).all() and (swapped >= -1).all()
    same = metrics.coherence(["Tea."], ["Tea."], encoder=encoder).item()
    assert same == pytest.approx(1, abs=1e-6) and same <= 1


def test_coherence_takes_matching_lists():
    with pytest.raises(ValueError, match="2 prompts and 1 responses"):
        metrics.coherence(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="not a single string"):
        metrics.coherence("a", ["c"])


# KL to the base policy


def test_token_kl_by_hand():
    q, p = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.5, 0.25]])
    assert metrics.token_kl(q.log(), p.log()).item() == pytest.approx(0.5 * math.log(2))
    assert metrics.token_kl(p.log(), q.log()).item() == math.inf
    logits = torch.randn(4, 5, 100, generator=torch.Generator().manual_seed(0))
    assert metrics.token_kl(logits + 3, logits).abs().max() < 1e-12  # not changed by a constant
    got = metrics.token_kl(logits, logits.flip(-1))
    assert got.shape == (4, 5) and got.dtype == torch.float64 and (got > 0).all()


def plain_logits(policy, prompt, tokens, U=None):
    """One forward pass per step, the head called by hand; (T, |V|)."""
    rows = []
    cap = getattr(policy.model.config, "final_logit_softcapping", None)
    for t in range(len(tokens)):
        ids = torch.tensor([policy.prefix(prompt) + list(tokens[:t])])
        with torch.no_grad():
            z = policy.model.base_model(input_ids=ids).last_hidden_state[0, -1]
            z = z + U[t] if U is not None and t < len(U) else z
            logits = policy.model.get_output_embeddings()(z)
        rows.append(cap * torch.tanh(logits / cap) if cap else logits)
    return torch.stack(rows).double()


def plain_kl(q_logits, p_logits):
    q, p = q_logits.softmax(-1), p_logits.softmax(-1)
    return sum((a * (a / b).log()).sum().item() for a, b in zip(q, p, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kl_of_a_mean_perturbation(tiny, architecture):
    policy = tiny(architecture)
    g = torch.Generator().manual_seed(0)
    prompts, responses = ["Hi", TURNS], ["Tea is hot.", [40, 50, 60, 0]]
    U = [0.3 * torch.randn(tau, policy.d, generator=g) for tau in (3, 9)]  # shorter, and longer
    kept = [u.clone() for u in U]
    got = metrics.kl_to_base(policy, prompts, responses, U=U)
    ids = [policy.tokenizer("Tea is hot.")["input_ids"], [40, 50, 60, 0]]
    for value, prompt, tokens, u in zip(got, prompts, ids, U, strict=True):
        base = plain_logits(policy, prompt, tokens)
        expected = plain_kl(plain_logits(policy, prompt, tokens, u), base)
        assert expected > 0.1 and value.item() == pytest.approx(expected, rel=1e-3)
    assert got.dtype == torch.float64 and all(map(torch.equal, U, kept))
    assert not policy.model.get_output_embeddings()._forward_pre_hooks
    none = metrics.kl_to_base(policy, prompts, responses, U=[torch.zeros(5, policy.d)] * 2)
    assert none.tolist() == [0, 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_perturbed_law_is_the_one_that_rollout_decodes_from(tiny, architecture):
    policy, T = tiny(architecture), 8
    U = 4 * torch.randn(5, policy.d, generator=torch.Generator().manual_seed(1))
    out = rollout(policy, [policy.prefix("Hi")], 1, T, V=U[None, None])
    tokens = out.tokens[0, 0, : out.lengths[0, 0]].tolist()
    logits = policy.response_logits("Hi", tokens, U)
    assert logits.argmax(-1).tolist() == tokens
    unmoved = policy.response_logits("Hi", tokens)
    assert unmoved.argmax(-1).tolist() != tokens
    assert torch.allclose(unmoved[5:], logits[5:], atol=1e-5)


def test_kl_to_another_policy_and_to_another_template(tiny, byte_tokenizer):
    base = tiny()
    bare = aisp.Policy(base.model, byte_tokenizer, "continuation")
    other = tiny_model("llama", seed=1, vocab_size=264, num_hidden_layers=1)
    padded = aisp.Policy(other, byte_tokenizer)
    tokens = byte_tokenizer("Tea.")["input_ids"]
    p = plain_logits(base, "Hi", tokens)
    for policy in (bare, padded):
        q = plain_logits(policy, "Hi", tokens)[:, :258]
        got = metrics.kl_to_base(base, ["Hi"], ["Tea."], policy=policy).item()
        assert got > 0.1 and got == pytest.approx(plain_kl(q, p), rel=1e-3)
    back = metrics.kl_to_base(padded, ["Hi"], ["Tea."], policy=base).item()
    assert back == pytest.approx(plain_kl(p, q), rel=1e-3)
    assert metrics.kl_to_base(base, ["Hi"], ["Tea."], policy=base).item() == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_surprisal_is_minus_the_log_probability(tiny, architecture):
    policy = tiny(architecture)
    tokens = policy.tokenizer("Tea.")["input_ids"]
    got = metrics.surprisal(policy, ["Hi"] * 3, ["Tea.", [*tokens, 0], torch.tensor(tokens[:2])])
    steps = plain_logits(policy, "Hi", [*tokens, 0]).log_softmax(-1)
    log_p = [row[token].item() for row, token in zip(steps, [*tokens, 0], strict=True)]
    expected = [-sum(log_p[:4]), -sum(log_p), -sum(log_p[:2])]
    assert got.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_response_without_tokens_has_no_kl(tiny):
    policy = tiny()
    U = [torch.ones(2, policy.d)]
    assert metrics.kl_to_base(policy, ["Hi"], [""], U=U).tolist() == [0]
    assert metrics.surprisal(policy, ["Hi"], [[]]).tolist() == [0]


def test_kl_errors(tiny, embedded):
    policy = tiny()
    U = torch.zeros(1, 3, policy.d)
    for laws in ({}, {"U": U, "policy": policy}):
        with pytest.raises(ValueError, match="pass one of policy and U"):
            metrics.kl_to_base(policy, ["Hi"], ["a"], **laws)
    for wrong in (U[..., 1:], U.repeat(2, 1, 1), U[0, :, 1:], list(U[0]), U[0, 0]):
        with pytest.raises(ValueError, match=rf"expected one tensor \(tau, {policy.d}\) or 1 of"):
            metrics.kl_to_base(policy, ["Hi"], ["a"], U=wrong)
    with pytest.raises(ValueError, match=r"different vocabularies .49152 and 258 tokens"):
        metrics.kl_to_base(policy, ["Hi"], ["a"], policy=embedded)
    with pytest.raises(ValueError, match="1 prompts and 2 responses"):
        metrics.surprisal(policy, ["Hi"], ["a", "b"])
    with pytest.raises(ValueError, match="of the 256 positions"):
        metrics.surprisal(policy, ["Hi"], ["a" * 256])


# one mean for all responses


def test_one_mean_is_applied_to_every_response(tiny):
    policy = tiny()
    U = 0.5 * torch.randn(4, policy.d, generator=torch.Generator().manual_seed(2))
    prompts, responses = ["Hi", "Hi", TURNS], ["Tea.", "Tea is hot.", [40, 50]]
    one = metrics.kl_to_base(policy, prompts, responses, U=U)
    assert torch.equal(one, metrics.kl_to_base(policy, prompts, responses, U=[U] * 3))
    assert torch.equal(one, metrics.kl_to_base(policy, prompts, responses, U=torch.stack([U] * 3)))
    assert (one > 0.01).all()
    with pytest.raises(
        ValueError, match=rf"shapes \[\(4, 31\)\]; .*one tensor \(tau, {policy.d}\)"
    ):
        metrics.kl_to_base(policy, ["Hi"], ["a"], U=U[:, 1:])
