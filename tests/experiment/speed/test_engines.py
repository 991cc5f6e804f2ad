"""Engines side by side: who is timed at what, and how speeds are told."""

import pandas as pd
import pytest

from aisp.experiment.speed import engines, timing


def test_engines_stand_side_by_side(tiny, monkeypatch):
    asked = {}

    def by_vllm(**size):
        asked.update(size)
        rows = [
            ("vLLM", 1.0, 50.0),
            ("vLLM", 0.9, 40.0),
            ("best-of-n", 1.0, 1.0),
            ("AISP", None, 30.0),
        ]
        return pd.DataFrame(
            {
                "responses": n,
                "name": name,
                "top_p": p,
                "tokens_per_second": v,
                "low": v / 2,
                "high": v,
            }
            for n in size["responses"]
            for name, p, v in rows
        )

    monkeypatch.setattr(engines.bench_vllm, "measure", by_vllm)
    monkeypatch.setattr(
        timing, "lower_bounds", lambda policy, n, length: BOUND.assign(seconds=n / 100)
    )
    sizes = {"responses": (2, 3), "tokens": 5, "prefix": 30, "repeats": 1}
    table = engines.engines(tiny("llama"), **sizes, vllm=True)
    assert asked == {"responses": [2, 3], "tokens": 5, "prefix": 30, "repeats": 1} | {
        "device": "cpu",
        "dtype": "float32",
    }
    own = [*["engine"] * 3, *["generate"] * 2]
    assert table["name"].tolist() == [*own * 2, "generate, static cache", *["vLLM"] * 6]
    assert table["decoding"].tolist()[-3:] == ["T = 1", "top-p 0.9", "AISP"]
    assert table["tokens_per_second"].tolist()[-3:] == pytest.approx([50, 40, 30])
    last = table.iloc[-1]
    assert last["high"] == 2 * last["low"] == pytest.approx(2 * last["seconds"])
    count = table["responses"] * 5
    assert table["tokens_per_second"].to_numpy() == pytest.approx(count / table["seconds"])
    step = 2 * table["responses"] / 100  # two rows of the bound
    assert table["share"].to_numpy() == pytest.approx(5 * step / table["seconds"])
    monkeypatch.setattr(engines.bench_vllm, "measure", lambda **size: None)
    few = engines.engines(tiny("llama"), **sizes, decodings=["AISP"], vllm=True)
    assert few["name"].tolist() == ["engine", "engine"]


BOUND = pd.DataFrame({"name": ["matrix products", "cache"]})
