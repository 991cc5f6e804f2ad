"""Records are readable whatever text is in them, and shown without what a terminal would obey."""

import json
import os

import pandas as pd
import pytest
from fake_runs import PROMPTS, run_fake

from aisp import experiment
from aisp.experiment.__main__ import main
from aisp.experiment.report import tables
from aisp.experiment.store.text import storable
from aisp.prompts import Prompt
from aisp.rewards import RewardError

HALF = "half \ud800 a pair"


def named(id):
    """A prompt with any id, however strictly `Prompt` looks at it."""
    prompt = Prompt("p", PROMPTS[0].text, "set")
    object.__setattr__(prompt, "id", id)
    return prompt


def test_text_that_is_none_is_stored_and_shown_as_its_escape():
    assert storable({"a": [HALF, 1], "\udfff": None}) == {
        "a": [r"half \ud800 a pair", 1],
        r"\udfff": None,
    }
    whole = ["ø 你好 🙂", 1.5, None]
    assert storable(whole) == whole


def test_half_a_surrogate_pair_anywhere_leaves_a_file_that_can_be_read(fake, tmp_path, monkeypatch):
    prompts = [named(f"p{HALF}"), PROMPTS[1]]

    def fails(prompt, config, seed, method):
        raise RewardError(f"the reward said {HALF}")

    path = tmp_path / "e.jsonl"
    with monkeypatch.context() as failing:
        failing.setattr(fake, "result", fails)
        failed = run_fake(path, prompts)
    assert failed["error"].str.contains(r"said half \\ud800 a pair").all()
    records = run_fake(path, prompts)
    assert records["error"].isna().sum() == 4 and len(records) == 4
    assert r"phalf \ud800 a pair" in set(records["prompt"])
    path.read_text().encode()
    fake.batches.clear()
    run_fake(path, prompts)
    assert fake.batches == []  # found by its id
    assert main(["show", str(path)]) == 0


def test_files_that_have_such_text_already_are_read(fake, tmp_path):
    path = tmp_path / "e.jsonl"
    run_fake(path, PROMPTS[:1])
    lines = [json.loads(line) | {"prompt": "p\ud800", "response": "\udc00"} for line in path.open()]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    records = experiment.load(path)
    assert set(records["prompt"]) == {r"p\ud800"} and set(records["response"]) == {r"\udc00"}
    fake.batches.clear()
    run_fake(path, [named("p\ud800")])
    assert fake.batches == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_show_refuses_what_is_no_file_of_records(fake, tmp_path, capsys):
    run_fake(tmp_path / "e.jsonl", PROMPTS[:1])
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "fields").write_text('{"label": "A", "prompt": "p", "seed": 0}\n')
    (tmp_path / "list").write_text("[1]\n")
    one = json.loads((tmp_path / "e.jsonl").read_text().splitlines()[0])
    (tmp_path / "kinds").write_text(json.dumps(one | {"reward": "high", "label": 3}))
    (tmp_path / "empty").write_text("")
    for name, message in {
        "none": "there are no records at",
        "folder": "is a folder; records are a regular file",
        "pipe": "is a pipe or a device; records are",
        "fields": "line 1 of 1 is no record (it has no 'reward', 'samples', 'tokens', 'seconds')",
        "list": "line 1 of 1 is no record (it is a list)",
        "kinds": "is no record (label is 3; reward is 'high')",
        "empty": "holds no records",
        "e.runs.json": "line 1 of",
    }.items():
        with pytest.raises(SystemExit) as end:
            main(["show", str(tmp_path / name)])
        shown = capsys.readouterr()
        assert end.value.code == 2 and message in shown.err, (name, shown.err)
    with pytest.raises(ValueError, match="is a folder"):
        run_fake(tmp_path / "folder")
    with pytest.raises(ValueError, match="is a pipe"):
        run_fake(tmp_path / "pipe")


@pytest.mark.parametrize("content", ["[]", '{"r": 1}', "[[1]]", '"x"', "{"])
def test_a_sidecar_that_holds_no_runs_is_named(fake, tmp_path, content):
    path = tmp_path / "e.jsonl"
    run_fake(path, PROMPTS[:1])
    path.with_suffix(".runs.json").write_text(content)
    with pytest.raises(ValueError, match=r"e\.runs\.json (holds no runs|is no JSON).*; restore it"):
        run_fake(path, PROMPTS[:1])
    path.with_suffix(".runs.json").unlink()
    path.with_suffix(".runs.json").mkdir()
    with pytest.raises(ValueError, match=r"e\.runs\.json is a folder"):
        run_fake(path, PROMPTS[:1])


NASTY = "A\x1b[31m\nB"


def test_labels_and_errors_reach_the_terminal_as_text(fake, tmp_path, capsys):
    path = tmp_path / "e.jsonl"
    fake.guilty = {"p1\x1b[2J"}
    prompts = [Prompt("p0", "a\x07", "builtin"), Prompt("p1\x1b[2J", "b", "builtin")]
    run_fake(path, prompts, {NASTY: {"method": "aisp"}, "plain": {"method": "best_of_n"}})
    said = capsys.readouterr().err
    for style in ("text", "markdown", "latex"):
        assert main(["show", str(path), "--format", style, "--against", "plain"]) == 1
        shown = capsys.readouterr()
        said += shown.err + shown.out
        rows = [line for line in shown.out.splitlines() if "x1b" in line]
        assert rows and all("B" in row for row in rows if "31m" in row)
    with pytest.raises(SystemExit):
        main(["show", str(path), "--against", "\x1b"])
    said += capsys.readouterr().err
    assert "\x1b" not in said and "\x07" not in said
    assert r"failed: A\x1b[31m\nB, p1\x1b[2J, seed 0: RuntimeError: the model fails" in said
    cells = pd.DataFrame({"x\n": ["1\n2"]}, pd.Index([NASTY], name="method"))
    assert len(tables.markdown(cells).splitlines()) == 3


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "", "..", ".", "a/b", "a\\b", "a\n", None, 3, "a\ud800", "c:x", " "]
)
def test_a_name_that_would_leave_its_folder_is_refused(name):
    with pytest.raises(ValueError, match="it must be a plain file name such as 'main_results'"):
        experiment.records_path(name, "cpu")
    assert experiment.records_path("main_results-2.b", "cpu").name == "main_results-2.b.jsonl"


def test_the_dtype_of_records_is_that_of_their_runs(fake, tmp_path):
    path = tmp_path / "e.jsonl"
    assert experiment.stored_dtype(path) is None
    run_fake(path)
    assert experiment.stored_dtype(path) == "float32"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["made_with"]["dtype"] = "bfloat16"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    assert experiment.stored_dtype(path) is None
    # records from before each said what it was made with: the run tells
    assert experiment.stored_dtype(experiment.records_path("reward_guided", "cpu")) == "bfloat16"


def test_records_may_lie_in_a_folder_of_their_own(tmp_path):
    assert experiment.records_path("x", "cpu", tmp_path) == tmp_path / "x.jsonl"
    assert experiment.records_path("x", "cpu", None) == experiment.records_path("x", "cpu")
