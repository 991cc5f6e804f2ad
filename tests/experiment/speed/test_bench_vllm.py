"""vLLM's timings: from a process of another environment, or none where there is no such one."""

import json

import fake_vllm
import pytest
from tiny import tiny_model

import aisp
from aisp.experiment.speed import bench_vllm


def test_without_the_environment_there_is_nothing_to_measure(monkeypatch, tmp_path):
    monkeypatch.setenv("VENV_VLLM", str(tmp_path))
    assert bench_vllm.python() is None and bench_vllm.measure() is None
    with pytest.raises(ValueError, match="'rows' is no size; they are responses, tokens"):
        bench_vllm.measure(rows=3)


def test_the_process_gets_the_sizes_and_its_last_line_is_the_table(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    (tmp_path / ".stamp").touch()
    monkeypatch.setenv("VENV_VLLM", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    answer = '[{"responses": 4, "name": "AISP", "top_p": null}]'
    program.write_text(
        f"#!/bin/sh\nprintf '%s' \"$3 $OMP_NUM_THREADS\" > {tmp_path}/got\necho hello\necho '{answer}'\n"
    )
    program.chmod(0o755)
    table = bench_vllm.measure(responses=[4])
    assert table.loc[0, "name"] == "AISP" and table["top_p"].isna().all()
    got = (tmp_path / "got").read_text()
    assert json.loads(got) == bench_vllm.SIZE | {"responses": [4]}  # and threads are vLLM's to bind
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    with pytest.raises(RuntimeError, match="no memory"):
        bench_vllm.measure()


def test_every_side_decodes_all_its_tokens(monkeypatch, tmp_path, byte_tokenizer):
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    fake_vllm.install(monkeypatch)
    policy = aisp.load_policy(tmp_path, engine="vllm", device="cpu", dtype="float32")
    size = {"responses": [2, 3], "tokens": 4, "prefix": 9, "repeats": 1}
    rows = bench_vllm.speeds(policy, size)
    assert [row["responses"] for row in rows] == [2] * 5 + [3] * 5
    sides = [("vLLM", 1), ("vLLM", 0.9), ("best-of-n", 1), ("best-of-n", 0.9), ("AISP", None)]
    assert [(row["name"], row["top_p"]) for row in rows] == sides * 2
    assert all(0 < row["low"] <= row["tokens_per_second"] <= row["high"] for row in rows)
