"""Targets for CUDA: their arithmetic, on tiny shapes and injected times; nothing here is measured."""

import pandas as pd
import pytest
import torch

from aisp.experiment.speed import targets

CPU = torch.device("cpu")
TINY = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SIZES = {
    "bytes": 1 << 16,
    "step": {"responses": 3, "tokens": 4, "prefix": 20, "repeats": 1},
    "runs": {"n": 2, "kappa": 2, "tokens": 3, "repeats": 1},
    "long": {"n": 2, "kappa": 2, "tokens": 3, "repeats": 1},
}
ROWS = [
    ("Llama-3-8B", "speed of the engine over generate"),
    ("Llama-3-8B", "share of the bandwidth's bound, top-p 0.9"),
    ("Llama-3-8B", "share of the bandwidth's bound, AISP"),
    ("Llama-3-8B", "time of AISP over best-of-n"),
    ("Llama-3.2-1B", "time of best-of-n"),
    ("Llama-3.2-1B", "time of AISP"),
    ("LFM2-1.2B", "time of best-of-n"),
    ("LFM2-1.2B", "time of AISP"),
]


@pytest.fixture
def small(monkeypatch):
    """The same architectures, so small that a CPU decodes them at once."""
    shapes = {name: shape | TINY for name, shape in targets.SHAPES.items()}
    shapes["LFM2-1.2B"]["layer_types"] = ["conv", "full_attention"]
    monkeypatch.setattr(targets, "SHAPES", shapes)


def on_meta(shape, tokenizer):
    """The policy of a published shape, without memory."""
    return targets.policy_of(shape, tokenizer, torch.device("meta"))


def timings(**seconds):
    return pd.DataFrame({"name": list(seconds), "seconds": list(seconds.values())})


# -- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "billions"), [("Llama-3-8B", 8.03), ("Llama-3.2-1B", 1.24), ("LFM2-1.2B", 1.17)]
)
def test_shapes_have_as_many_parameters_as_published(byte_tokenizer, shape, billions):
    model = on_meta(shape, byte_tokenizer).model
    assert model.dtype == torch.bfloat16
    assert round(sum(w.numel() for w in model.parameters()) / 1e9, 2) == billions


def test_random_weights_are_finite_and_no_global_draw_moves(small, byte_tokenizer):
    before = torch.get_rng_state()
    policies = [targets.policy_of(x, byte_tokenizer, CPU) for x in targets.SHAPES]
    assert torch.equal(torch.get_rng_state(), before)
    for policy in policies:
        matrices = [w for w in policy.model.parameters() if w.ndim == 2]
        assert all(w.dtype == torch.bfloat16 and bool(w.isfinite().all()) for w in matrices)
        assert all(0.01 < w.float().std() < 0.04 for w in matrices)
    with pytest.raises(ValueError, match="shape is 'GPT-5'; known: Llama-3-8B, "):
        targets.policy_of("GPT-5", byte_tokenizer, CPU)


# -- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "weights", "token"),
    [
        # Without the input embeddings, which are not the head; 32 layers of 8 heads of 128.
        ("Llama-3-8B", 2 * (8_030_261_248 - 128_256 * 4096), 2 * 2 * 32 * 8 * 128),
        ("Llama-3.2-1B", 2 * 1_235_814_400, 2 * 2 * 16 * 8 * 64),
        ("LFM2-1.2B", 2 * 1_170_340_608, 2 * 2 * 6 * 8 * 64),  # 6 of 16 layers attend
    ],
)
def test_a_step_reads_each_weight_once_and_the_shared_prefix_once(
    byte_tokenizer, shape, weights, token
):
    policy = on_meta(shape, byte_tokenizer)
    assert targets.step_bytes(policy, 32, 100, 64) == weights + token * (100 + 32 * 32)


def test_the_bandwidth_is_that_of_the_faster_of_copying_and_reading(monkeypatch):
    def measured(copy, read):
        def timed(functions, repeats):
            for function in functions.values():
                function()
            return pd.DataFrame({"name": ["copy", "read"], "low": [copy, read], "seconds": 9.0})

        monkeypatch.setattr(targets, "timed", timed)
        return targets.bandwidth(CPU, 4000)

    assert measured(copy=2.0, read=2.0) == 2 * 8 * 4000 / 2, "a copy reads and writes"
    assert measured(copy=9.0, read=2.0) == 8 * 4000 / 2


# -- measured beside target -----------------------------------------------------------------------


def test_a_target_is_met_from_its_own_value_on():
    met = {x: targets.SPEED.row("s", x)["met"] for x in (2.99, 3.0, 4.0)}
    assert met == {2.99: "no", 3.0: "yes", 4.0: "yes"}
    met = {x: targets.RATIO.row("s", x)["met"] for x in (1.0, 1.05, 1.06)}
    assert met == {1.0: "yes", 1.05: "yes", 1.06: "no"}


def test_speed_and_share_come_from_the_same_seconds(small, byte_tokenizer, monkeypatch):
    seconds = {("top-p 0.9", "generate"): 8.0, ("top-p 0.9", "engine"): 2.0}
    seconds |= {("AISP", "engine"): 4.0}

    def engines(policy, **size):
        assert size["responses"] == [32] and size["prefix"] == 100 and size["tokens"] == 64
        rows = [(*key, x) for key, x in seconds.items()]
        return pd.DataFrame(rows, columns=["decoding", "name", "seconds"])

    monkeypatch.setattr(targets, "engines", engines)
    policy = targets.policy_of("Llama-3.2-1B", byte_tokenizer, CPU)
    size = {"responses": 32, "tokens": 64, "prefix": 100, "repeats": 1}
    speed = targets.step_bytes(policy, 32, 100, 64) * 64  # one step takes 1/64 s at least
    rows = targets.steps(policy, speed, **size)
    assert [r["measured"] for r in rows] == pytest.approx([4.0, 1 / 2, 1 / 4])
    assert [r["met"] for r in rows] == ["yes", "no", "no"]
    assert "a step takes 31.25 ms" in rows[1]["note"] and "AISP" in rows[2]["name"]


def test_aisp_is_compared_with_best_of_n_in_batches_of_its_size(tiny, monkeypatch):
    found = timings(**{"AISP": 4.0, "best-of-n": 1.0, "best-of-n, by iteration": 3.9})
    monkeypatch.setattr(targets, "whole_runs", lambda *args, **options: found)
    row = targets.equal_batches(tiny("llama"), n=32, kappa=4, tokens=8, repeats=1)
    assert row["measured"] == pytest.approx(4 / 3.9) and row["met"] == "yes"
    assert "takes 1.0 s, AISP 4.0 s" in row["note"], "what batching best-of-n gains is said too"


@pytest.mark.parametrize("obstacle", [None, "asked to"])
def test_long_runs_say_what_was_published_and_what_slows_them_here(tiny, monkeypatch, obstacle):
    monkeypatch.setattr(targets, "obstacle_to_sharing", lambda model: obstacle)
    found = timings(**{"AISP": 43.0, "best-of-n": 12.0})
    monkeypatch.setattr(targets, "whole_runs", lambda *args, **options: found)
    rows = targets.long_runs(tiny("lfm2"), n=16, kappa=16, tokens=512, repeats=1)
    assert [(r["name"], r["measured"], r["met"]) for r in rows] == [
        ("time of best-of-n", 12.0, "yes"),
        ("time of AISP", 43.0, "no"),
    ]
    assert "published: 24.4 s" in rows[0]["note"] and "published: 43.3 s" in rows[1]["note"]
    slow = "without shared prefixes and CUDA graphs: asked to"
    assert all((slow in r["note"]) == (obstacle is not None) for r in rows)


# -- the table ------------------------------------------------------------------------------------


def check_whole(table):
    assert list(zip(table["shape"], table["name"], strict=True)) == ROWS
    assert (table["measured"] > 0).all() and set(table["met"]) <= {"yes", "no"}
    assert table["target"].tolist() == [3.0, 0.6, 0.6, 1.05] + [15.0] * 4
    one, *_ = targets.notes(table)
    assert one.startswith("Llama-3-8B, speed of the engine over generate: top-p 0.9, 3 responses")


def test_every_shape_is_measured(small, byte_tokenizer):
    check_whole(targets.table(byte_tokenizer, CPU, sizes=SIZES, dtype=torch.float32))


@pytest.mark.gpu
def test_every_shape_is_measured_on_cuda(small, byte_tokenizer):
    check_whole(targets.table(byte_tokenizer, torch.device("cuda"), sizes=SIZES))


def test_a_shape_that_does_not_fit_has_a_row_that_says_so(small, byte_tokenizer, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = {"steps": [targets.SPEED.row("Llama-3-8B", 4.0)], "long_runs": []}
    for name, found in rows.items():
        monkeypatch.setattr(targets, name, lambda *args, found=found, **options: found)
    monkeypatch.setattr(targets, "equal_batches", full)
    monkeypatch.setattr(
        targets, "_free", lambda device: None
    )  # there is nothing, and it takes long
    table = targets.table(byte_tokenizer, CPU, sizes=SIZES)
    assert table["met"].tolist() == ["yes", "not measured"], "what was measured before is kept"
    assert targets.notes(table)[1] == "Llama-3-8B: it does not fit this GPU's memory"
    monkeypatch.setattr(targets, "policy_of", full)
    table = targets.table(byte_tokenizer, CPU, sizes=SIZES)
    assert table["shape"].tolist() == list(targets.SHAPES)
    assert set(table["met"]) == {"not measured"}


def test_any_other_error_is_not_hidden(small, byte_tokenizer, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(targets, "steps", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        targets.table(byte_tokenizer, CPU, sizes=SIZES)


def test_a_gpu_without_bfloat16_has_rows_that_say_so(byte_tokenizer, monkeypatch):
    asked = []

    def supported(including_emulation):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    table = targets.table(byte_tokenizer, torch.device("cuda"))
    assert asked == [False], "what is only emulated is far slower"
    assert set(table["note"]) == {"this GPU has no bfloat16"} and len(table) == 3
