"""KAD: its rules against brute force, and the law of both decoders against enumeration.

Statistical tests are chi-square tests at a fixed seed that accept p > 1e-3.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import aisp
from aisp import figures
from aisp.engine.decoding import Decoding, law, nucleus, sample, take_token
from aisp.engine.mixture import MaskedCache, lockstep, speculative, verify
from aisp.engine.rollout import rollout
from aisp.methods import configure
from aisp.methods.kad import RULES, cascade

WORDS = ["<|im_end|>", "a", "b", "c", "d"]
SAMPLED = Decoding(1.0)
CASES = [("primal", 0.4), ("dual", 0.15), ("max_p", 0.2), ("nudging", 0.45)]


def laws(rows, size, seed, concentration=0.7):
    x = np.random.default_rng(seed).dirichlet(np.full(size, concentration), rows)
    return torch.tensor(x, dtype=torch.float32)


def brute_force(rule, p, q, amount):
    """The definition, in plain Python."""
    p, q = list(map(float, p)), list(map(float, q))
    if rule == "primal":
        d, total = [False] * len(p), 0.0
        for v in sorted(range(len(p)), key=lambda v: p[v]):  # -log p, largest first
            total += p[v]
            if total > amount:
                return d
            d[v] = True
        return d
    bound = {
        "dual": amount,
        "max_p": max(p) - amount,
        "max_q_minus": max(q) - amount,
        "max_q_plus": max(q) + amount,
        "nudging": math.inf if max(p) < amount else -math.inf,
    }[rule]
    return [x < bound for x in p]


def chi_square(counts: Counter, exact: dict) -> float:
    """p-value; the least likely cells are one, so that at least 5 are expected in each."""
    total = sum(counts.values())
    assert set(counts) <= {k for k, x in exact.items() if x > 0}
    cells = sorted(((x * total, counts[k]) for k, x in exact.items() if x > 0), reverse=True)
    while len(cells) > 1 and cells[-1][0] < 5:
        (x, i), (y, j) = cells.pop(), cells.pop()
        cells.append((x + y, i + j))
    statistic = sum((seen - expected) ** 2 / expected for expected, seen in cells)
    return float(stats.chi2.sf(statistic, len(cells) - 1))


# -- rules and the cascade ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_rules_follow_their_definition(rule):
    p, q = laws(200, 6, 0), laws(200, 6, 1)
    for amount in (0.0, 0.1, 0.35, 0.8, 1.0):
        d = RULES[rule](p, q, amount)
        assert d.shape == p.shape and d.dtype == torch.bool
        if rule == "primal" and amount in (0, 1):
            assert bool((d == bool(amount)).all())
        else:
            assert d.tolist() == [brute_force(rule, *row, amount) for row in zip(p, q, strict=True)]


def test_the_primal_stops_at_the_first_token_that_does_not_fit():
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.75, 0.25, 0.0, 0.0]])
    d = RULES["primal"](p, p, 0.5)  # the last three weigh 0.5 exactly, and fit
    assert d.tolist() == [[False, True, True, True], [False, True, True, True]]
    d = RULES["primal"](p, p, 0.375)  # 0.25 does not fit on top of 0.25
    assert d.tolist() == [[False, False, True, True], [False, True, True, True]]


def test_the_primal_approximates_the_knapsack():
    """Within budget; optimal for the mass used; short of the optimum by (B - mass) * -log p(c)."""
    rng = np.random.default_rng(3)
    subsets = np.array(list(itertools.product([0, 1], repeat=6)), dtype=float)
    short = []
    for p in laws(300, 6, 2).double().numpy().clip(1e-9):
        budget = rng.uniform(0.02, 0.98)
        d = RULES["primal"](torch.tensor(p)[None], None, budget)[0].numpy()
        mass, value = subsets @ p, subsets @ (-p * np.log(p))
        used, got = p[d].sum(), (-p * np.log(p))[d].sum()
        assert used <= budget + 1e-9
        assert got == pytest.approx(value[mass <= used + 1e-9].max(), abs=1e-9)
        critical = p[~d].min()
        gap = value[mass <= budget].max() - got
        assert gap <= (budget - used) * -math.log(critical) + 1e-9
        assert gap < -critical * math.log(critical) + 1e-9 <= 1 / math.e + 1e-8
        short.append(gap)
    assert max(short) > 0.05  # greedy it is, not optimal


def test_primal_and_dual_correspond():
    p = laws(200, 6, 4)
    for budget in (0.2, 0.5, 0.9):
        d = RULES["primal"](p, p, budget)
        for row, mask in zip(p, d, strict=True):
            critical = float(row[~mask].min())
            assert RULES["dual"](row[None], None, critical)[0].tolist() == mask.tolist()
            back = RULES["primal"](row[None], None, float(row[mask].double().sum()) + 1e-6)
            assert back[0].tolist() == mask.tolist()


def test_the_cascade_is_a_law_and_exact_at_its_ends():
    p, q = laws(50, 6, 5), laws(50, 6, 6)
    for rule, amount in CASES:
        d = RULES[rule](p, q, amount)
        pi, mass = cascade(p, q, d)
        np.testing.assert_allclose(pi.sum(-1), 1, atol=1e-6)
        for y in range(6):
            given = sum(p[:, v] * d[:, v] for v in range(6))
            np.testing.assert_allclose(pi[:, y], p[:, y] * ~d[:, y] + q[:, y] * given, atol=1e-6)
        np.testing.assert_allclose(mass, given, atol=1e-6)
    for ends, same in ((0.0, p), (1.0, q)):
        pi, mass = cascade(p, q, RULES["primal"](p, q, ends))
        assert torch.equal(pi, same) and bool((mass == ends).all())


# -- laws and nuclei ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoding",
    [Decoding(0.7), Decoding(1.0, 3), Decoding(1.3, 0, 0.6), Decoding(1.0, 4, 0.8), Decoding(0.0)],
)
def test_the_law_is_the_one_that_tokens_are_taken_from(decoding):
    logits = 2 * torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    grid = (torch.arange(20_000) + 0.5) / 20_000
    taken = take_token(logits.expand(20_000, -1), decoding, grid)
    seen = torch.bincount(taken, minlength=9) / 20_000
    np.testing.assert_allclose(law(logits, decoding)[0], seen, atol=1e-4)


def test_a_nucleus_is_the_shortest_head_that_holds_the_mass():
    p = torch.cat([laws(8, 3000, 7, 1.0), laws(8, 3000, 8, 0.01)])  # flat, and peaked
    for mass in (0.01, 0.5, 0.95):
        for row, inside in zip(p.double(), nucleus(p, mass), strict=True):
            order = row.argsort(descending=True)
            size = int((row[order].cumsum(0) < mass).sum()) + 1
            assert sorted(order[:size].tolist()) == inside.nonzero().flatten().tolist()


def test_drawing_by_inversion_never_takes_an_impossible_token():
    weights = torch.tensor([[0.0, 2.0, 0.0, 6.0, 0.0]]).expand(5, -1)
    assert sample(weights, torch.tensor([0.0, 0.2499, 0.25, 0.5, 1 - 2**-24])).tolist() == [
        1, 1, 3, 3, 3,
    ]  # fmt: skip


# -- the law of both decoders, against enumeration ------------------------------------------------


def model(seed: int, size: int):
    import transformers as tf

    torch.manual_seed(seed)  # the initial weights; nothing that is tested reads the global state
    config = tf.LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.35,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=0,
    )
    return tf.LlamaForCausalLM(config).float()


def template(words):
    return lambda messages: words


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=WORDS[0])


@pytest.fixture(scope="module")
def pairs(tokenizer):
    """Large and small: one model under two templates; two models, of which one has padded logits."""
    large = aisp.Policy(model(0, 5), tokenizer, template("a b c"), "large")
    return {
        "templates": (large, replace(large, template=template("d d"), name="small")),
        "models": (large, aisp.Policy(model(1, 7), tokenizer, template("c a"), "small")),
    }


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
        w: aisp.align("Hello", large, len_reward, "kad", n=1, kappa=1, max_new_tokens=24,
                      temperature=0.0, window=w, budget=0.3, progress=False).response
        for w in (0, 1, 2, 5)
    }  # fmt: skip
    assert len(set(texts.values())) == 1


def len_reward(prompt, response):
    return len(set(response)) + 0.01 * len(response)


SMALL = dict(n=3, kappa=2, max_new_tokens=9, progress=False)


@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batched_equals_alone(tiny, name, window):
    large = replace(tiny(name), template="continuation")
    prompts = ["Hi", "How do I learn to cook?", "a b"]
    together = aisp.align(prompts, large, len_reward, "kad", window=window, **SMALL)
    for prompt, one in zip(prompts, together, strict=True):
        alone = aisp.align(prompt, large, len_reward, "kad", window=window, **SMALL)
        assert alone.candidates["response"].tolist() == one.candidates["response"].tolist()
        columns = ["tokens", "deferred", "large_passes"] + ["acceptance_length"] * bool(window)
        np.testing.assert_allclose(
            alone.history[columns].astype(float), one.history[columns].astype(float), rtol=1e-4
        )


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
    out = aisp.align("Hi", endless, len_reward, "kad", aligned=aligned, budget=1.0, window=3,
                     n=2, kappa=1, max_new_tokens=9, progress=False)  # fmt: skip
    assert out.history["tokens"].tolist() == [18]  # 1 + 4 + 4 tokens per response
    assert out.history["large_passes"].tolist() == [3.0]
    assert out.history["acceptance_length"].tolist() == [3.0]


def test_the_end_tokens_of_both_models_end_a_response(pairs):
    large, small = pairs["models"]
    small = replace(small, eos_ids=(2,))
    for window in (0, 2):
        out = aisp.align("a", large, len_reward, "kad", aligned=small, window=window, n=200,
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
        [
            a.response
            for a in aisp.align([prompt, "Hi"], large, len_reward, "kad", window=w, **greedy)
        ]
        for w in (0, 7)
    ]
    assert texts[0] == texts[1]


# -- the method's own contract --------------------------------------------------------------------


def test_history_says_what_was_deferred_and_how_fast(tiny):
    large = replace(tiny(), template="continuation")
    own = ["deferred", "large_passes", "tokens_per_second"]
    for window in (0, 2):
        outs = aisp.align(["Hi", "Hello"], large, len_reward, "kad", window=window, **SMALL)
        for out in outs:
            assert set(own) | ({"acceptance_length"} if window else set()) <= set(out.history)
            assert ((out.history["deferred"] > 0) & (out.history["deferred"] < 0.5)).all()
            assert (out.history["tokens_per_second"] > 0).all()
    assert outs[0].config.describe()["budget"] == 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(rule="greedy"), "rule is 'greedy'; known: primal, dual"),
        (dict(budget=1.5), "budget is 1.5; it must lie in \\[0, 1\\], for rule 'primal'"),
        (dict(budget=float("nan")), "budget is nan"),
        (dict(threshold=0.1), "threshold is 0.1, but rule 'primal' has none; give budget"),
        (dict(rule="dual"), "threshold is None; it must lie in .*, for rule 'dual'"),
        (dict(rule="nudging", threshold=-0.1), "threshold is -0.1"),
        (dict(rule="dual", threshold=0.1, budget=0.5), "budget is 0.5, but rule 'dual' has none"),
        (dict(window=-1), "window is -1; it must be a whole number >= 0"),
        (dict(window=1.5), "window is 1.5"),
        (dict(aligned="embedded"), "aligned is 'embedded'; it must be a Policy"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        configure("kad", **parameters)


def test_models_that_do_not_fit_are_refused(tiny, pairs):
    with pytest.raises(ValueError, match="its chat template, but that is the policy itself"):
        aisp.align("Hi", tiny(), len_reward, "kad", **SMALL)
    with pytest.raises(ValueError, match="different vocabularies \\(258 and 5 tokens"):
        aisp.align("Hi", tiny(), len_reward, "kad", aligned=pairs["models"][1], **SMALL)
    sliding = replace(tiny("gemma3"), template="continuation")
    with pytest.raises(ValueError, match=r"sliding window.*window=0"):
        aisp.align("Hi", sliding, len_reward, "kad", window=2, **SMALL)
    with pytest.warns(UserWarning, match="without shared prefixes"):
        assert aisp.align("Hi", sliding, len_reward, "kad", **SMALL).response
    long = replace(tiny(), template=template("x" * 250))
    with pytest.raises(ValueError, match="shorten either"):
        aisp.align("Hi", replace(tiny(), template="continuation"), len_reward, "kad",
                   aligned=long, **SMALL)  # fmt: skip


def test_the_record_names_model_and_template_of_the_aligned_policy(tiny):
    assert configure("kad", aligned=tiny()).describe()["aligned"] == "tiny-llama (chat)"
    assert configure("kad").describe()["aligned"] is None
    custom = replace(tiny(), template=template("a"))
    assert configure("kad", aligned=custom).describe()["aligned"] == "tiny-llama (custom)"


def test_figure_of_reward_against_deferred_mass():
    rows = []
    for rule, amounts in (("primal", (0.0, 0.5, 1.0)), ("dual", (0.2,))):
        for amount, prompt in itertools.product(amounts, ("x", "y", "z")):
            shift = amount + (prompt == "x")
            history = {"deferred": [amount, amount], "reward_mean": [shift, shift + 1]}
            rows.append(
                {"label": f"{rule} {amount}", "prompt": prompt, "config": {"rule": rule},
                 "reward": shift + 2, "history": history}
            )  # fmt: skip
    rows = rows[:-1]  # dual lacks a prompt: it is left out for all
    fig = figures.deferral(pd.DataFrame(rows))
    single, best = fig.axes
    x, y = single.containers[0].lines[0].get_data()
    np.testing.assert_allclose(x, [0, 0.5, 1])
    np.testing.assert_allclose(y, [1, 1.5, 2])  # of x and y: 0.5 + 0.5 + amount
    np.testing.assert_allclose(best.containers[0].lines[0].get_data()[1], [2.5, 3, 3.5])
    assert [c.get_label() for c in single.containers] == ["primal", "dual"]
    assert "2 prompts" in single.get_title(loc="left")
