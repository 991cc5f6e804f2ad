"""From logits to tokens: the law by definition, nuclei, and the token that a uniform number picks."""

import numpy as np
import pytest
import torch
from laws import laws

from aisp.engine.decoding import Decoding, law, nucleus, sample, take_token

LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 0.0, 1.9])


def exact_law(decoding):
    """The law over six tokens by definition: temperature, then top-k, then top-p."""
    p = torch.softmax(LOGITS.double() / decoding.temperature, -1)
    order = p.argsort(descending=True).tolist()
    order = order[: decoding.top_k or 6]
    total = sum(p[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass >= decoding.top_p:
            break
        kept.append(i)
        mass += float(p[i] / total)
    law = torch.zeros(6, dtype=torch.float64)
    law[kept] = p[kept]
    return law / law.sum()


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(1.0),
        Decoding(0.5),
        Decoding(1.0, top_p=0.7),
        Decoding(1.0, top_p=0.2),
        Decoding(1.0, top_k=3),
        Decoding(2.0, top_k=4, top_p=0.8),
    ],
    ids=str,
)
def test_sampled_tokens_follow_the_stated_law(decoding):
    """On an even grid of uniforms the counts are the law itself, up to one grid cell per edge."""
    k = 20_000
    u = (torch.arange(k, dtype=torch.float64) + 0.5) / k
    tokens = take_token(LOGITS.expand(k, -1), decoding, u)
    law = torch.bincount(tokens, minlength=6) / k
    torch.testing.assert_close(law.double(), exact_law(decoding), atol=3 / k, rtol=0)


def test_nuclei_wider_than_the_first_look_are_exact():
    """A flat law over 3000 tokens: the nucleus of 0.9 holds about 2700, far past the first 64."""
    g = torch.Generator().manual_seed(0)
    logits = 0.1 * torch.randn(1, 3000, generator=g)
    p = torch.softmax(logits[0].double(), -1).sort(descending=True)
    size = int((p.values.cumsum(0) < 0.9).sum()) + 1
    nucleus = set(p.indices[:size].tolist())
    assert size > 2000
    k = 30_000
    u = (torch.arange(k, dtype=torch.float64) + 0.5) / k
    sharp = torch.zeros(1, 3000)
    sharp[0, 7] = 20.0  # rows that need little and rows that need much, in one call
    rows = torch.cat([logits, sharp]).repeat(k // 2, 1)
    tokens = take_token(rows, Decoding(1.0, top_p=0.9), u)
    assert set(tokens[1::2].tolist()) == {7}
    seen = set(tokens[::2].tolist())
    assert seen <= nucleus and len(seen) > 0.9 * size


def test_the_extremes_of_the_uniform_are_taken():
    for decoding in (Decoding(1.0), Decoding(1.0, top_p=0.5), Decoding(1.0, top_k=2)):
        for u in (0.0, 1.0 - 2**-53):
            token = take_token(LOGITS[None], decoding, torch.tensor([u], dtype=torch.float64))
            assert exact_law(decoding)[token] > 0


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


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"top_k": 1.5}]
)
def test_decoding_checks_itself(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is"):
        Decoding(**bad)
