"""Two models decoded as one: the law of both decoders against enumeration, ends, the cache.

The mixtures are KAD's.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import CASES, brute_force, chi_square, laws
from tiny import WORDS, reward

import aisp
from aisp.engine.decoding import Decoding, sample
from aisp.engine.mixture import MaskedCache, lockstep, speculative, verify
from aisp.engine.rollout import rollout
from aisp.methods.kad import RULES, cascade

SAMPLED = Decoding(1.0)


# -- the law of both decoders, against enumeration ------------------------------------------------
def mixer(rule, amount):
    return lambda p, q: cascade(p, q, RULES[rule](p, q, amount))


def run(models, window=0, n=3000, T=3, rule=("primal", 0.4), decoding=SAMPLED, seed=11):
    prefixes = tuple([m.prefix("a")] for m in models)
    generators = [torch.Generator().manual_seed(seed)]
    shared = dict(mix=mixer(*rule), decoding=decoding, generators=generators)
    if window:
        return speculative(models, prefixes, n, T, window=window, **shared)
    return lockstep(models, prefixes, n, T, **shared)


def next_laws(models, sequences, temperature=1.0):
    """p and q after each sequence (all of one length), by full passes in float64."""
    for m in models:
        ids = torch.tensor([m.prefix("a") + list(s) for s in sequences])
        with torch.no_grad():
            logits = m.model(ids).logits[:, -1, :5].double()
        yield torch.softmax(logits / temperature, -1).numpy()


def exact_law(models, T, rule, temperature=1.0):
    """Probability and deferred mass per token of every response of up to T tokens."""
    ended, alive = {}, {(): (1.0, ())}
    for _ in range(T):
        longer = {}
        rows = zip(*next_laws(models, alive, temperature), alive.items(), strict=True)
        for p, q, (sequence, (chance, masses)) in rows:
            d = np.array(brute_force(rule[0], p, q, rule[1]))
            mass = (p * d).sum()
            pi = np.where(d, 0, p) + q * mass
            for y in range(5):
                into = ended if y == 0 else longer
                into[*sequence, y] = (chance * pi[y], (*masses, mass))
        alive = longer
    return ended | alive


def responses(out) -> list[tuple]:
    flat, lengths = out.tokens.flatten(0, 1).tolist(), out.lengths.flatten().tolist()
    return [tuple(tokens[:length]) for tokens, length in zip(flat, lengths, strict=True)]


def agreement(out, exact) -> float:
    return chi_square(Counter(responses(out)), {k: chance for k, (chance, _) in exact.items()})


@pytest.mark.parametrize("window", [0, 1, 2, 5])
@pytest.mark.parametrize("pair", ["templates", "models"])
@pytest.mark.parametrize("rule", CASES, ids=lambda r: r[0])
def test_output_law_is_pi(pairs, pair, rule, window):
    # Four tokens: with three, rows that go on after a rejection all take back equally many.
    exact = exact_law(pairs[pair], 4, rule)
    assert sum(chance for chance, _ in exact.values()) == pytest.approx(1)
    out, notes = run(pairs[pair], window, T=4, rule=rule)
    assert agreement(out, exact) > 1e-3
    # What is reported of the deferred mass is its mean over the tokens that were decoded.
    masses = [m for r in responses(out) for m in exact[r][1]]
    assert notes["deferred"] == [pytest.approx(np.mean(masses), abs=1e-4)]


def test_the_chi_square_test_can_fail(pairs):
    exact = exact_law(pairs["models"], 3, ("primal", 0.4))
    for window in (0, 2):
        assert agreement(run(pairs["models"], window, rule=("primal", 0.6))[0], exact) < 1e-6


@pytest.mark.parametrize("window", [0, 2])
def test_temperature_shapes_both_laws(pairs, window):
    exact = exact_law(pairs["models"], 3, ("primal", 0.3), temperature=0.6)
    out, _ = run(pairs["models"], window, rule=("primal", 0.3), decoding=Decoding(0.6))
    assert agreement(out, exact) > 1e-3


@pytest.mark.parametrize("window", [0, 3])
def test_the_ends_are_the_two_models(pairs, window):
    for i in (0, 1):
        only = exact_law((pairs["models"][i],) * 2, 3, ("primal", 0.0))
        out, notes = run(pairs["models"], window, rule=("primal", float(i)))
        assert agreement(out, only) > 1e-3 and notes["deferred"] == [i]


def test_at_the_ends_plain_decoding_takes_the_tokens_of_one_model(tiny):
    large = replace(tiny(), template="continuation")
    for end, alone in ((0.0, large), (1.0, tiny())):
        prefixes = [[m.prefix(x) for x in ("Hi", "Hello")] for m in (large, tiny(), alone)]
        sources = [[torch.Generator().manual_seed(s) for s in (1, 2)] for _ in range(2)]
        shared = dict(decoding=SAMPLED, generators=sources[0])
        out, _ = lockstep(
            (large, tiny()), tuple(prefixes[:2]), 4, 10, mix=mixer("primal", end), **shared
        )
        same = rollout(alone, prefixes[2], 4, 10, decoding=SAMPLED, generators=sources[1])
        assert torch.equal(out.tokens, same.tokens) and out.texts == same.texts


def test_verification_gives_pi():
    """Position by position, for laws that do not depend on the tokens before."""
    R = 20_000
    u = torch.rand(R, 3, 3, generator=torch.Generator().manual_seed(9))
    pi, q = laws(3, 6, 10), laws(3, 6, 11)
    drafts = torch.stack([sample(q[i].expand(R, -1), u[:, i, 0]) for i in range(2)], 1)
    shape = (R, 3, 6)
    block, agreed = verify(pi.expand(shape), q.expand(shape), drafts, u[..., 1:])
    assert {int(a) for a in agreed.unique()} == {0, 1, 2}
    for i in range(3):
        seen = Counter(block[agreed >= i, i].tolist())
        assert chi_square(seen, dict(enumerate(pi[i].tolist()))) > 1e-3
    accepted = torch.minimum(pi[0], q[0]).sum()  # the probability, of which one standard error is
    assert abs((agreed > 0).float().mean() - accepted) < 4 * 0.5 / R**0.5  # at most 0.5 / sqrt(R)


def test_verification_at_the_edges_of_the_uniforms():
    pi = laws(1, 6, 12)[None].expand(1, 2, -1)
    for v in range(6):
        top = torch.full((1, 2, 2), 1 - 2**-24)
        block, agreed = verify(pi, pi, torch.tensor([[v]]), top)
        assert block[0, 0] == v and agreed.tolist() == [1]  # pi = q accepts everything
    never = pi.clone()
    never[..., 2] = 0
    block, agreed = verify(never, pi, torch.tensor([[2]]), torch.zeros(1, 2, 2))
    assert agreed.tolist() == [0] and block[0, 0] != 2


# -- greedy, batches, ends ------------------------------------------------------------------------
def test_greedy_takes_the_argmax_of_pi_with_either_decoder(pairs, tiny):
    exact = {}  # step by step: the argmax after each prefix of the greedy response
    for rule in [*CASES, ("primal", 0.95), ("nudging", 0.9)]:
        chosen = ()
        while len(chosen) < 4 and 0 not in chosen:
            ((p, q),) = zip(*next_laws(pairs["models"], [chosen]), strict=True)
            d = np.array(brute_force(rule[0], p, q, rule[1]))
            chosen += (int((np.where(d, 0, p) + q * (p * d).sum()).argmax()),)
        exact[rule] = chosen
        for window in (0, 1, 3):
            out, _ = run(pairs["models"], window, n=2, T=4, rule=rule, decoding=Decoding(0.0))
            assert responses(out) == [chosen] * 2
    assert len(set(exact.values())) > 1
    large = replace(tiny(), template="continuation")
    texts = {
        w: aisp.align("Hello", large, reward, "kad", n=1, kappa=1, max_new_tokens=24,
                      temperature=0.0, window=w, budget=0.3, progress=False).response
        for w in (0, 1, 2, 5)
    }  # fmt: skip
    assert len(set(texts.values())) == 1


@pytest.mark.parametrize("window", [0, 2])
def test_responses_end_where_they_end(pairs, window):
    out, notes = run(pairs["models"], window, n=200, T=6)
    tokens, lengths = out.tokens[0], out.lengths[0]
    assert lengths.min() == 1 and lengths.max() == 6
    for row, length, text in zip(tokens.tolist(), lengths.tolist(), out.texts[0], strict=True):
        assert 0 not in row[: length - 1] and (length == 6 or row[length - 1] == 0)
        assert not any(row[length:])
        assert text.split() == [WORDS[t] for t in row[:length] if t]
    if window == 0:
        assert notes["large_passes"] == [pytest.approx(lengths.double().mean().item())]
    else:  # a pass gives at least one token and at most window + 1, the first pass one
        assert notes["large_passes"][0] < lengths.double().mean()
        assert 0 < notes["acceptance_length"][0] < window


def test_accepted_drafts_are_counted_within_the_response(tiny):
    """Everything deferred accepts every draft: the count is exact where no response ends early."""
    endless = replace(tiny(), template="continuation", eos_ids=(257,))
    aligned = replace(tiny(), eos_ids=(257,))
    out = aisp.align("Hi", endless, reward, "kad", aligned=aligned, budget=1.0, window=3,
                     n=2, kappa=1, max_new_tokens=9, progress=False)  # fmt: skip
    assert out.history["tokens"].tolist() == [18]  # 1 + 4 + 4 tokens per response
    assert out.history["large_passes"].tolist() == [3.0]
    assert out.history["acceptance_length"].tolist() == [3.0]


def test_the_end_tokens_of_both_models_end_a_response(pairs):
    large, small = pairs["models"]
    small = replace(small, eos_ids=(2,))
    for window in (0, 2):
        out = aisp.align("a", large, reward, "kad", aligned=small, window=window, n=200,
                         kappa=1, max_new_tokens=5, progress=False)  # fmt: skip
        words = out.candidates["response"].str.split()
        assert (words.map(lambda w: "b" in w)).any() and not words.map(
            lambda w: "b" in w[:-1]
        ).any()
        # Of those that stop early without the small model's end token, the large one's was last.
        assert words.map(lambda w: len(w) < 5 and "b" not in w).any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_taken_back_leaves_no_trace_in_the_cache(tiny, name):
    policy = tiny(name)
    prefixes = [policy.prefix("Hi"), policy.prefix("Hello there")]
    rng = torch.Generator().manual_seed(0)
    cache = MaskedCache(policy, prefixes, 2)
    rows = [list(prefixes[0]), list(prefixes[0]), list(prefixes[1]), list(prefixes[1])]

    def expected(rows, last):
        """Logits of the last positions, by a full pass of each row alone."""
        return torch.stack([policy.model(torch.tensor([r])).logits[0, -last:] for r in rows])

    with torch.inference_mode():
        torch.testing.assert_close(cache.start()[:, None], expected(rows, 1), atol=2e-4, rtol=1e-4)
        for agreed, alive in (
            ([0, 3, 1, 0], [0, 1, 2, 3]),
            ([1, 0, 0, 2], [1, 3]),
            ([2, 0], [0, 1]),
        ):
            new = torch.randint(2, 258, (len(rows), 4), generator=rng)
            rows = [r + x for r, x in zip(rows, new.tolist(), strict=True)]
            torch.testing.assert_close(cache.feed(new), expected(rows, 4), atol=2e-4, rtol=1e-4)
            cache.settle(torch.tensor(alive), torch.tensor(agreed)[alive], 4)
            rows = [rows[i][: len(rows[i]) - 3 + agreed[i]] for i in alive]
            assert cache.mask.sum(1).tolist() == list(map(len, rows))
    assert cache.cache.get_seq_length() == cache.mask.shape[1] < len(prefixes[1]) + 12


def test_drafting_does_not_run_past_the_context(tiny):
    """Responses may fill the context to its end; drafts beyond it are not used, and do no harm."""
    large = replace(tiny("gpt2"), template="continuation")  # with learned positions
    prompt = "x" * (256 - 8 - len(tiny("gpt2").prefix("x")) + 1)
    assert len(tiny("gpt2").prefix(prompt, 8)) == 256 - 8
    greedy = dict(n=1, kappa=1, max_new_tokens=8, temperature=0.0, progress=False)
    texts = [
        [a.response for a in aisp.align([prompt, "Hi"], large, reward, "kad", window=w, **greedy)]
        for w in (0, 7)
    ]
    assert texts[0] == texts[1]
