"""RAM: the token law against enumeration, the safeguard, and what the history counts.

Chi-square tests are at a fixed seed; each states the p-value under which it would fail.
"""

import copy
import itertools

import pytest
import torch
from scipy.stats import chisquare
from tiny import logits, reward

import aisp
from aisp.engine.decoding import Decoding, law, take_token
from aisp.methods.ram import RAMConfig, choose, propose_align_reduce

SMALL = dict(n=4, kappa=2, max_new_tokens=6, progress=False)


def observed(tokens, size):
    return torch.bincount(tokens.flatten(), minlength=size).double()


def p_value(tokens, expected):
    """Of the counts under a law; the law's tokens that expect fewer than 5 draws are one cell."""
    counts = observed(tokens, len(expected))
    assert counts[expected == 0].sum() == 0
    wanted = expected.double() / expected.double().sum() * len(tokens)
    many = wanted >= 5
    cells = [torch.cat([x[many], x[~many].sum()[None]]) for x in (counts, wanted)]
    kept = cells[1] > 0
    return chisquare(cells[0][kept], cells[1][kept]).pvalue


def first_tokens(policy, aligner, n, **parameters):
    config = RAMConfig(aligner=aligner, n=n, kappa=1, max_new_tokens=1, **parameters)
    g = torch.Generator().manual_seed(7)
    out, _ = propose_align_reduce(policy, aligner, [policy.prefix("Hi")], config, [g])
    return out.tokens.flatten()


def enumerated(p, q, m):
    """The law of one token: over all m-tuples of candidates, their chance and the aligner's pick."""
    support = torch.nonzero(p).flatten().tolist()
    total = torch.zeros(len(p), dtype=torch.float64)
    for drawn in itertools.product(support, repeat=m):
        chance = torch.tensor([p[v] for v in drawn]).prod()
        weights = torch.stack([q[v] for v in drawn])
        total.index_add_(0, torch.tensor(drawn), chance * weights / weights.sum())
    return total


def test_a_uniform_aligner_leaves_the_truncated_proposal(tiny):
    policy = tiny()
    flat = copy.deepcopy(policy.model)
    flat.get_output_embeddings().weight.data.zero_()
    aligner = aisp.Policy(flat, policy.tokenizer, name="uniform")
    proposal = law(logits(policy, policy.prefix("Hi"))[0, -1:], Decoding(1.0, 0, 0.9))[0]
    assert 3 < (proposal > 0).sum() < 258
    tokens = first_tokens(policy, aligner, 20_000, kl_limit=None)
    assert p_value(tokens, proposal) > 1e-3
    # The test can fail: the whole law of the policy is another one.
    assert p_value(tokens, proposal.clamp(min=1e-4)) < 1e-3


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_token_law_equals_enumeration_over_all_candidates(tiny, m):
    policy, aligner = tiny(), tiny("gpt2")
    prefix = policy.prefix("Hi")
    decoding = dict(temperature=1.5, top_k=6, top_p=0.95)
    proposal = law(logits(policy, prefix)[0, -1:], Decoding(**decoding))[0].double()
    q = torch.softmax(0.5 * logits(aligner, prefix)[0, -1].double(), -1)
    halved = copy.deepcopy(aligner.model)  # half the logits: no candidate is negligible
    halved.get_output_embeddings().weight = torch.nn.Parameter(
        0.5 * halved.get_output_embeddings().weight.data
    )
    aligner = aisp.Policy(halved, aligner.tokenizer, name="known")
    tokens = first_tokens(policy, aligner, 20_000, candidates=m, kl_limit=None, **decoding)
    assert p_value(tokens, enumerated(proposal, q, m)) > 1e-3
    if m > 1:  # with several candidates it is neither the proposal nor the limit of many
        assert p_value(tokens, proposal) < 1e-6
        assert p_value(tokens, proposal * q) < 1e-6


def test_an_untrained_aligner_is_sampling_at_half_the_temperature(tiny):
    policy = tiny()
    decoding = dict(temperature=1.0, top_k=6, top_p=1.0)
    p = law(logits(policy, policy.prefix("Hi"))[0, -1:], Decoding(**decoding))[0].double()
    tokens = first_tokens(policy, policy, 5_000, candidates=1_000, kl_limit=None, **decoding)
    assert p_value(tokens, p * p) > 1e-3
    assert p_value(tokens, p) < 1e-3
    one = aisp.align("Hi", policy, reward, "ram", aligner="untrained", **SMALL)
    twin = aisp.Policy(policy.model, policy.tokenizer, name="twin")  # both models are run
    two = aisp.align("Hi", policy, reward, "ram", aligner=twin, **SMALL)
    assert one.candidates["response"].tolist() == two.candidates["response"].tolist()
    assert (one.history["kl_step"].abs() < 1e-6).all()
    assert one.config.describe()["aligner"] == "untrained"


def test_the_safeguard_takes_the_policys_token_where_the_divergence_is_high(tiny):
    g = torch.Generator().manual_seed(0)
    p = torch.randn(40, 258, generator=g)
    q = p + torch.linspace(0, 2, 40)[:, None] * torch.randn(40, 258, generator=g)
    u = torch.rand(40, 6, generator=g)
    exact = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x.double()) for x in (p, q))
    )
    config = RAMConfig(candidates=5, kl_limit=0.5)
    token, kl, guarded = choose(p, q, u, config)
    torch.testing.assert_close(kl.double(), exact, atol=1e-5, rtol=1e-5)
    assert guarded.tolist() == (exact > 0.5).tolist() and 0 < guarded.sum() < 40
    plain = take_token(p, config.decoding, u[:, 0])
    free, _, never = choose(p, q, u, RAMConfig(candidates=5, kl_limit=None))
    assert not never.any() and not torch.equal(free, plain)
    assert torch.equal(token, torch.where(guarded, plain, free))


def test_a_limit_that_always_holds_is_best_of_n(tiny):
    held = aisp.align("Hi", tiny(), reward, "ram", aligner=tiny("gpt2"), kl_limit=0.0, **SMALL)
    plain = aisp.align("Hi", tiny(), reward, "best_of_n", **SMALL)
    assert held.candidates["response"].tolist() == plain.candidates["response"].tolist()
    assert held.history["safeguarded"].tolist() == [1.0, 1.0]
    free = aisp.align("Hi", tiny(), reward, "ram", aligner=tiny("gpt2"), kl_limit=None, **SMALL)
    assert free.candidates["response"].tolist() != plain.candidates["response"].tolist()
    assert free.history["safeguarded"].tolist() == [0.0, 0.0]


def test_the_history_counts_unfinished_rows_only(tiny):
    """kl_step and safeguarded, against one plain pass of both models over each whole response."""
    policy, aligner = tiny(), tiny("gpt2")
    prefixes = [policy.prefix(p) for p in ("Hi", "How do I learn to cook?")]
    # Tokens of the nucleus end responses, at different steps.
    likely = logits(policy, prefixes[0])[0, -1].topk(3).indices.tolist()
    policy = aisp.Policy(policy.model, policy.tokenizer, eos_ids=tuple(likely))
    config = RAMConfig(aligner=aligner, n=8, max_new_tokens=10, temperature=1.5, kl_limit=2.5)
    sources = [torch.Generator().manual_seed(s) for s in (1, 2)]
    out, notes = propose_align_reduce(policy, aligner, prefixes, config, sources)
    assert len(out.lengths.unique()) > 2
    for row, prefix in enumerate(prefixes):
        kls = []
        for tokens, length in zip(out.tokens[row].tolist(), out.lengths[row].tolist(), strict=True):
            ids = prefix + tokens[: length - 1]
            log_p, log_q = (
                torch.log_softmax(logits(x, ids)[0, len(prefix) - 1 :], -1).double()
                for x in (policy, aligner)
            )
            kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
        kls = torch.cat(kls)
        assert len(kls) == out.lengths[row].sum()
        assert notes["kl_step"][row] == pytest.approx(kls.mean().item(), rel=1e-4)
        assert notes["safeguarded"][row] == pytest.approx((kls > 2.5).double().mean().item())
    assert 0 < sum(notes["safeguarded"]) < 2
    assert all(0 < s < 60 for s in notes["first_token_seconds"])
    assert all(s > 0 for s in notes["tokens_per_second"])


def test_greedy_takes_the_most_likely_token_of_the_product(tiny):
    policy, aligner = tiny(), tiny("gpt2")
    greedy = dict(temperature=0.0, kl_limit=None, **SMALL)
    out = aisp.align("Hi", policy, reward, "ram", aligner=aligner, **greedy)
    assert out.candidates["response"].nunique() == 1
    ids, prefix = policy.prefix("Hi"), len(policy.prefix("Hi"))
    for _ in range(6):
        product = logits(policy, ids)[0, -1] + logits(aligner, ids)[0, -1]
        ids = [*ids, int(product.argmax())]
        if ids[-1] in policy.eos_ids:
            break
    assert out.response == policy.decode([ids[prefix:]])[0]


def test_batched_equals_alone(tiny):
    prompts = ["Hi", "How do I learn to cook?", "Name three rivers."]
    config = dict(aligner=tiny("gpt2"), **SMALL)
    together = aisp.align(prompts, tiny(), reward, "ram", **config)
    for prompt, one in zip(prompts, together, strict=True):
        alone = aisp.align(prompt, tiny(), reward, "ram", **config)
        assert alone.candidates["response"].tolist() == one.candidates["response"].tolist()
        for name in ("kl_step", "safeguarded"):
            assert alone.history[name].tolist() == pytest.approx(one.history[name].tolist())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"candidates": 0}, "candidates is 0; it must be a whole number >= 1"),
        ({"candidates": 2.5}, "candidates is 2.5"),
        ({"kl_limit": -0.1}, "kl_limit is -0.1; it must be >= 0 and finite .nats., or None"),
        ({"aligner": 3}, "aligner is 3; pass a Policy"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        RAMConfig(**parameters)
