"""Records on disk: complete, resumable, and whole whatever becomes of the process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from fake_runs import POLICY, PROMPTS, Fake, comparable, in_order, install, reward, run_fake

import aisp
from aisp import experiment
from aisp.alignment import Alignment
from aisp.experiment.__main__ import main
from aisp.experiment.report import tables
from aisp.prompts import Prompt
from aisp.rewards import CallableReward

SMALL = dict(n=3, kappa=2, max_new_tokens=5)
CPU = Path(__file__).parent.parent.parent / "data" / "results" / "cpu"
METHODS = {
    "best-of-n": {"method": "best_of_n", **SMALL},
    "AISP": {"method": "aisp", "sigma": 1.0, **SMALL},
}


def go(path, policy, limit=3, methods=METHODS, reward=reward, **more):
    reward = CallableReward(reward, name="reward")  # the same one, for all that records can tell
    prompts = aisp.load_prompts("builtin", split="test", limit=limit)
    return experiment.run(path, methods, prompts, policy, reward, progress=False, batch=2, **more)


def test_records_hold_what_align_returns(tiny, tmp_path):
    path = tmp_path / "deep" / "e.jsonl"
    table = go(path, tiny(), command="make it")
    assert len(table) == 6 and len(path.read_text().splitlines()) == 6
    prompts = aisp.load_prompts("builtin", split="test", limit=3)
    out = aisp.align(prompts[1], tiny(), reward, sigma=1.0, progress=False, **SMALL)
    row = table[(table["label"] == "AISP") & (table["prompt"] == prompts[1].id)].iloc[0]
    assert (row.reward, row.response, row.samples) == (out.reward, out.response, 6)
    assert row.prompt_text == prompts[1].text and row.config["sigma"] == 1.0
    assert row.history["reward_best"] == out.history["reward_best"].tolist()
    assert row.tokens == out.history["tokens"].sum() and not row.interrupted
    runs = json.loads((tmp_path / "deep" / "e.runs.json").read_text())
    note = runs[row.run]
    assert note["command"] == "make it" and note["packages"]["torch"]
    assert (note["policy"], note["reward"], note["n_prompts"]) == ("tiny-llama", "reward", 3)


def test_runs_name_the_weights_by_hash_or_revision(embedded, tmp_path):
    from aisp import assets
    from aisp.experiment.identity.weights import weight_files
    from aisp.provenance import data_path, file_sha256

    for name, folder in {"embedded": "reward_head", "embedded-judge": "judge"}.items():
        head = data_path(f"{folder}/head.safetensors")
        reward = aisp.load_reward(name, policy=embedded)
        assert weight_files(reward) == {"head.safetensors": file_sha256(head)}
    stored = assets.policy_dir() / "model.safetensors"
    assert weight_files(embedded) == {"model.safetensors": file_sha256(stored)}
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    local = weight_files(SimpleNamespace(name=str(tmp_path), model=object()))
    assert local == {"model.safetensors": file_sha256(tmp_path / "model.safetensors")}
    config = SimpleNamespace(_commit_hash="abc")
    hub = SimpleNamespace(name="some/model", model=SimpleNamespace(config=config))
    assert weight_files(hub) == {"revision": "abc"}
    assert weight_files(lambda prompt, response: 0.0) == {}


def test_a_long_run_holds_the_shorter_ones(tiny, tmp_path):
    more = {label: m | {"kappa": 5} for label, m in METHODS.items()}
    long = go(tmp_path / "long.jsonl", tiny(), methods=more)
    short = go(tmp_path / "short.jsonl", tiny())
    assert comparable(tables.stopped_after(long, 2)).equals(comparable(short))
    assert comparable(tables.stopped_after(long, 5)).equals(comparable(long))
    assert tables.stopped_after(short, 3).empty
    assert (tables.stopped_after(long, 1)["reward"] < long["reward"]).any()  # or nothing was shown


def test_provenance_tells_prompt_sets_apart_by_hash(fake, tmp_path):
    def sha256(name, prompts):
        run_fake(tmp_path / f"{name}.jsonl", prompts)
        (note,) = json.loads((tmp_path / f"{name}.runs.json").read_text()).values()
        return note["prompts_sha256"]

    first = sha256("a", PROMPTS)
    assert len(first) == 64 and sha256("reversed", PROMPTS[::-1]) == first
    assert sha256("fewer", PROMPTS[1:]) != first
    assert sha256("text", [Prompt("p0", "another question", "set"), *PROMPTS[1:]]) != first


def test_reward_calls_are_those_of_the_history_else_the_samples(fake, tmp_path):
    records = run_fake(tmp_path / "e.jsonl").set_index("label")
    assert (records.loc["A", "reward_calls"] == 4).all()
    assert (records.loc["B", "reward_calls"] == 11).all()


@pytest.mark.parametrize("name", ["sampler_comparison.jsonl", "sampler_sweep.jsonl"])
def test_stored_records_are_read_and_found_done(name, fake, tmp_path, byte_tokenizer):
    copy = tmp_path / name
    copy.write_bytes((CPU / name).read_bytes())
    sidecar = copy.with_suffix(".runs.json")
    sidecar.write_bytes((CPU / sidecar.name).read_bytes())
    records = experiment.load(copy)
    assert records["error"].isna().all() and (records["reward_calls"] == records["samples"]).all()
    methods = {
        label: {"method": group["method"].iloc[0], **group["config"].iloc[0]}
        for label, group in records.groupby("label", sort=False)
    }
    prompts = [p for p in aisp.load_prompts("builtin") if p.id in set(records["prompt"])]
    about = {"name": "embedded", "template": "chat", "dtype": torch.bfloat16}
    embedded = SimpleNamespace(**vars(POLICY) | about | {"tokenizer": byte_tokenizer})
    optimized = CallableReward(reward, name="embedded")
    again = experiment.run(copy, methods, prompts, embedded, optimized, progress=False)
    assert fake.batches == [] and copy.read_bytes() == (CPU / name).read_bytes()
    pd.testing.assert_frame_equal(again, records)


def test_prompts_that_share_an_id_are_refused(fake, tmp_path):
    with pytest.raises(ValueError, match="two prompts share an id"):
        run_fake(tmp_path / "e.jsonl", [*PROMPTS, PROMPTS[0]])


def test_text_of_other_prompt_sets_is_not_kept(tiny, tmp_path):
    prompt = aisp.prompts.Prompt("shp-1", "A private question", "shp")
    experiment.run(tmp_path / "e.jsonl", METHODS, [prompt], tiny(), reward, progress=False)
    assert "private" not in (tmp_path / "e.jsonl").read_text()


def test_quotations_of_shp_and_hh_are_not_kept_either(fake, tmp_path, monkeypatch):
    question = "Why does my sourdough starter smell of old paint after two days at twenty degrees?"
    response = f"You ask: {question[:40]}. Then of old paint. {question[30:]}"

    def answer(prompt, config, seed, method):
        one = {"iteration": 0, "response": response, "reward": 1.0}
        history = pd.DataFrame({"tokens": [7], "seconds": [0.1]})
        return Alignment(prompt, response, 1.0, pd.DataFrame([one]), history, config, seed, method)

    monkeypatch.setattr(fake, "result", answer)
    sources = {"shp-1": "shp", "hh-1": "hh", "q1": "mine.jsonl"}
    prompts = [Prompt(key, question, source) for key, source in sources.items()]
    kept = run_fake(tmp_path / "e.jsonl", prompts).drop_duplicates("prompt").set_index("prompt")
    for key in ("shp-1", "hh-1"):
        assert kept["response"][key] == "You ask: …. Then of old paint.…"
        assert kept["improvements"][key][0]["response"] == kept["response"][key]
    assert kept["response"]["q1"] == response  # the user's own


def test_a_second_run_computes_only_what_is_missing(tiny, tmp_path):
    path = tmp_path / "e.jsonl"
    go(path, tiny(), limit=2)
    first = path.read_text()

    calls = []
    table = go(path, tiny(), limit=3, reward=lambda p, r: calls.append(1) or reward(p, r))
    assert path.read_text().startswith(first) and len(table) == 6
    assert len(calls) == 2 * 6
    calls.clear()
    go(path, tiny(), limit=3, reward=lambda p, r: calls.append(1) or reward(p, r))
    assert calls == []


def test_another_configuration_under_the_same_label_is_refused(tiny, tmp_path):
    path = tmp_path / "e.jsonl"
    go(path, tiny(), limit=1)
    changed = {"AISP": {**METHODS["AISP"], "sigma": 2.0}}
    with pytest.raises(
        ValueError,
        match=r"holds 'AISP' under other settings .*: sigma is 1.0 there and 2.0 here\. ",
    ):
        go(path, tiny(), limit=1, methods=changed)


def test_a_parameter_that_is_newer_than_a_record_was_at_its_default(tiny, tmp_path):
    path = tmp_path / "e.jsonl"
    go(path, tiny(), limit=1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for one in lines:
        one["config"].pop("control_variate", None)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    content = path.read_bytes()
    go(path, tiny(), limit=1)
    assert path.read_bytes() == content
    changed = {"AISP": {**METHODS["AISP"], "control_variate": True}}
    with pytest.raises(ValueError, match="control_variate is False there and True here"):
        go(path, tiny(), limit=1, methods=changed)


def test_records_of_another_policy_reward_or_prompt_are_refused(fake, tmp_path):
    path, one = tmp_path / "e.jsonl", [Prompt("p1", "x", "s")]
    run_fake(path, one)
    content = path.read_bytes()
    changes = {"name": "other", "template": "another", "dtype": torch.bfloat16}
    for what, value in changes.items():
        policy = SimpleNamespace(**vars(POLICY) | {what: value})
        what = {"name": "policy"}.get(what, what)
        with pytest.raises(ValueError, match=rf"'A' .*: {what} is '\w+' there and '\w+' here\. "):
            experiment.run(path, {"A": {"method": "best_of_n"}}, one, policy, reward)
    with pytest.raises(ValueError, match="reward is 'reward' there and 'len' here"):
        experiment.run(path, {"A": {"method": "best_of_n"}}, one, POLICY, len)
    with pytest.raises(ValueError, match=r"prompt 'p1'.*prompt_sha256 is '\w+' there"):
        run_fake(path, [Prompt("p1", "y", "s")])
    assert path.read_bytes() == content
    lines = [json.loads(line) for line in content.decode().splitlines()]
    early = [{k: v for k, v in x.items() if k != "prompt_sha256"} for x in lines]
    before = path.with_name("before.jsonl")
    before.write_text("".join(json.dumps(x | {"prompt_text": "x"}) + "\n" for x in early))
    with pytest.raises(ValueError, match="prompt_text is 'x' there and 'y' here"):
        run_fake(before, [Prompt("p1", "y", "s")])
    other = SimpleNamespace(**vars(POLICY) | {"name": "other"})
    kept = experiment.run(path, {"C": {"method": "aisp"}}, one, other, reward, progress=False)
    assert list(kept["label"]) == ["A", "B", "C"]  # labels may differ in what they were made with


def test_a_batch_of_no_prompts_is_refused(fake, tmp_path):
    with pytest.raises(ValueError, match="batch is 0; it must be a whole number >= 1"):
        run_fake(tmp_path / "e.jsonl", batch=0)
    assert not (tmp_path / "e.jsonl").exists()


def test_a_broken_provenance_file_is_named(fake, tmp_path):
    run_fake(tmp_path / "e.jsonl")
    (tmp_path / "e.runs.json").write_text("{")
    with pytest.raises(ValueError, match=r"e\.runs\.json is no JSON .* restore it"):
        run_fake(tmp_path / "e.jsonl")


def test_a_rejected_response_leaves_strict_json(tiny, tmp_path):
    calls = []

    def picky(prompt, response):
        calls.append(1)
        return -float("inf") if len(calls) % 3 == 0 else 1.0

    def never(value):
        raise AssertionError(f"{value} is no JSON")

    go(tmp_path / "e.jsonl", tiny(), reward=picky)
    lines = (tmp_path / "e.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=never) for line in lines]
    assert [one["reward"] for one in records] == [1.0] * 6
    assert records[0]["history"]["reward_mean"] == [1.0, 1.0]  # of those that were not rejected


def test_an_interrupt_keeps_what_there_is_and_the_next_run_finishes(tiny, tmp_path):
    path, calls = tmp_path / "e.jsonl", []

    def impatient(prompt, response):
        calls.append(1)
        if len(calls) == 17:  # second iteration of the first batch of two prompts is 7 to 12
            raise KeyboardInterrupt
        return reward(prompt, response)

    partial = go(path, tiny(), reward=impatient, methods={"AISP": {**METHODS["AISP"], "kappa": 4}})
    assert len(partial) == 2 and partial["interrupted"].all()
    assert (partial["samples"] == 6).all()
    whole = go(path, tiny(), methods={"AISP": {**METHODS["AISP"], "kappa": 4}})
    assert len(whole) == 3 and not whole["interrupted"].any() and (whole["samples"] == 12).all()


def test_profiles_and_their_overrides():
    assert experiment.settings("smoke")["n"] == 4 and experiment.settings("gpu-smoke")["n"] == 16
    assert experiment.settings("smoke", n=9, kappa=None)["n"] == 9
    assert experiment.settings("smoke", kappa=None) == experiment.settings("smoke")
    with pytest.raises(
        ValueError, match="unknown profile 'huge'; known: smoke, gpu-smoke, cpu, gpu, paper"
    ):
        experiment.settings("huge")
    with pytest.raises(ValueError, match=r"no setting \['m'\]; known: n_prompts"):
        experiment.settings("smoke", m=1)


def test_an_interrupt_with_nothing_scored_keeps_the_batches_before(tiny, tmp_path):
    path, calls = tmp_path / "e.jsonl", []

    def impatient(prompt, response):
        calls.append(1)
        if len(calls) == 13:  # the first of the second batch
            raise KeyboardInterrupt
        return reward(prompt, response)

    with pytest.raises(KeyboardInterrupt):
        go(path, tiny(), reward=impatient)
    assert len(experiment.load(path)) == 2 and len(go(path, tiny())) == 6


# -- failures -------------------------------------------------------------------------------------


def test_a_failing_prompt_is_recorded_and_stops_no_other(tiny, tmp_path, capsys):
    guilty = aisp.load_prompts("builtin", split="test", limit=3)[1]

    def failing(prompt, response):
        if prompt.id == guilty.id:
            raise KeyError("no more")
        return reward(prompt, response)

    path = tmp_path / "e.jsonl"
    records = go(path, tiny(), reward=failing).set_index("prompt")
    assert "2 of 6 failed; the next run tries them again" in capsys.readouterr().err
    failed = records.loc[guilty.id]
    assert failed["error"].str.contains("RewardError: candidate 0.*KeyError: 'no more'").all()
    assert failed["reward"].isna().all() and (failed["samples"] == 0).all()
    assert '"reward": null' in path.read_text() and "NaN" not in path.read_text()
    assert main(["show", str(path)]) == 1
    shown = capsys.readouterr()
    assert f"failed: AISP, {guilty.id}, seed 0: RewardError" in shown.err and "failed" in shown.out

    calls = []
    after = go(path, tiny(), reward=lambda p, r: calls.append(p.id) or reward(p, r))
    assert set(calls) == {guilty.id} and len(after) == 6
    assert "failed" not in capsys.readouterr().err
    expected = go(tmp_path / "other.jsonl", tiny())
    columns = ["label", "prompt", "seed", "reward", "response", "samples", "tokens", "error"]
    pd.testing.assert_frame_equal(*(in_order(t)[columns] for t in (after, expected)))
    assert main(["show", str(path)]) == 0


def test_a_prompt_that_is_too_long_fails_without_its_text_in_the_record(tiny, tmp_path, capsys):
    # More than the 256 positions of the tiny model, and escaped every few letters when quoted.
    secret = 'It\'s a\n"garden"\n' * 30
    prompts = [Prompt("shp-1", "Short", "shp"), Prompt("shp-2", secret, "shp")]
    path = tmp_path / "e.jsonl"
    records = experiment.run(path, METHODS, prompts, tiny(), reward, progress=False)
    failed = records[records["error"].notna()]
    assert failed["prompt"].tolist() == ["shp-2"] * 2 and records["reward"].notna().sum() == 2
    assert failed["error"].str.contains(r"ValueError: prompt .*takes \d+ tokens").all()
    assert "garden" not in path.read_text() + capsys.readouterr().err


def test_a_failed_record_does_not_tie_its_label_to_a_configuration(fake, tmp_path):
    fake.guilty = {"p1"}
    run_fake(tmp_path / "e.jsonl", [Prompt("p1", "x", "s")])
    fake.guilty = set()
    changed = {"A": {"method": "best_of_n", "n": 5}}
    records = run_fake(tmp_path / "e.jsonl", [Prompt("p1", "x", "s")], changed)
    assert records["error"].isna().tolist() == [True, False]  # A anew; B stays as it was
    assert records["config"][0]["n"] == 5


def test_only_the_guilty_prompt_is_computed_in_vain(fake, tmp_path):
    fake.guilty = {"p2"}
    prompts = [Prompt(f"p{i}", "x", "s") for i in range(6)]
    run_fake(tmp_path / "e.jsonl", prompts, {"A": {"method": "aisp"}}, batch=4)
    assert fake.batches == [4, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("within_reward", [False, True])
def test_out_of_memory_halves_the_batch(fake, tmp_path, capsys, within_reward):
    prompts = [Prompt(f"p{i}", "x", "s") for i in range(9)]
    fake.memory, fake.within_reward = 3, within_reward
    methods = {"A": {"method": "aisp"}}
    records = run_fake(tmp_path / "e.jsonl", prompts, methods, batch=8)
    assert fake.batches == [8, 4, 2, 2, 2, 2, 1]
    assert records["batch"].tolist() == [2] * 8 + [1]
    said = capsys.readouterr().err
    assert "out of GPU memory with 8 prompts in a batch: going on with 4" in said
    fake.memory = 100
    expected = run_fake(tmp_path / "other.jsonl", prompts, methods, batch=8)
    pd.testing.assert_frame_equal(comparable(records), comparable(expected))


def test_out_of_memory_with_a_single_prompt_is_a_failure(fake, tmp_path):
    fake.memory = 0
    records = run_fake(tmp_path / "e.jsonl", [Prompt("p1", "x", "s")], {"A": {"method": "aisp"}})
    assert records["error"].tolist() == ["OutOfMemoryError: CUDA out of memory"]


def test_results_of_a_real_method_do_not_depend_on_the_halving(tiny, tmp_path, monkeypatch):
    def cramped(prompts, *args, **more):
        if len(prompts) > 1:
            raise torch.OutOfMemoryError
        return aisp.align(prompts, *args, **more)

    expected = go(tmp_path / "e.jsonl", tiny())
    monkeypatch.setattr("aisp.experiment.batches.align", cramped)
    records = go(tmp_path / "cramped.jsonl", tiny())
    columns = ["label", "prompt", "response", "reward"]
    pd.testing.assert_frame_equal(*(in_order(t)[columns] for t in (records, expected)))


# -- killed processes -----------------------------------------------------------------------------


posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and flock")


def test_a_file_cut_anywhere_is_read_and_completed(fake, tmp_path):
    whole = tmp_path / "whole.jsonl"
    expected = run_fake(whole)
    content = whole.read_bytes()
    lines = content.splitlines(keepends=True)
    ends = {0, *(sum(map(len, lines[: i + 1])) for i in range(len(lines)))}
    rng = random.Random(0)
    first, last = len(lines[0]), len(content)
    for cut in [1, first - 1, first, last - 2, last - 1, *rng.sample(range(last), 20)]:
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_bytes(content[:cut])
        # Without its newline a record is whole all the same.
        torn = cut not in ends and cut + 1 not in ends
        with pytest.warns(UserWarning, match="is torn") if torn else nullcontext():
            kept = len(experiment.load(path))
        assert kept == sum(end <= cut + 1 for end in ends if end)
        assert path.read_bytes() == content[:cut], "load must not change the file"
        with pytest.warns(UserWarning, match=r"moved to cut\d+\.torn") if torn else nullcontext():
            after = run_fake(path)
        pd.testing.assert_frame_equal(comparable(after), comparable(expected))
        assert len(path.read_text().splitlines()) == len(expected)
        if torn:
            start = max(end for end in ends if end < cut)
            assert path.with_suffix(".torn").read_bytes() == content[start:cut] + b"\n"
        else:
            assert not path.with_suffix(".torn").exists()


def test_a_broken_line_before_the_last_is_an_error(fake, tmp_path):
    path = tmp_path / "e.jsonl"
    run_fake(path)
    lines = path.read_text().splitlines(keepends=True)
    for broken in ('{"label": "AI\n', "\n", "[1, 2]\n", "{}\n"):
        content = "".join([lines[0], broken, *lines[1:]])
        path.write_text(content)
        for use in (experiment.load, run_fake):
            with pytest.raises(
                ValueError, match=rf"e\.jsonl, line 2 of {len(lines) + 1} is no rec"
            ):
                use(path)
        assert path.read_text() == content


@posix
def test_killed_at_random_times_and_resumed(fake, tmp_path):
    path = tmp_path / "killed.jsonl"
    counts = json.loads(helper("kill", path).communicate()[0])
    assert counts == sorted(counts) and 0 < counts[-1] < len(PROMPTS) * 2 * 3, counts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # whether a line was torn is up to chance
        resumed = run_fake(path, seeds=range(3))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(one["label"], one["prompt"], one["seed"]) for one in lines]
    assert len(keys) == len(set(keys)) == len(PROMPTS) * 2 * 3
    assert len({one["run"] for one in lines}) > 2, "the runs that were killed wrote nothing"
    expected = run_fake(tmp_path / "whole.jsonl", seeds=range(3))
    pd.testing.assert_frame_equal(comparable(resumed), comparable(expected))
    assert set(resumed["run"]) <= set(json.loads(path.with_suffix(".runs.json").read_text()))


@posix
def test_a_second_process_is_refused_until_the_first_is_dead(fake, tmp_path):
    path = tmp_path / "e.jsonl"
    other = helper("hold", path)
    try:
        assert other.stdout.readline() == "computing\n"
        with pytest.raises(RuntimeError, match=r"e\.jsonl is being written by another run"):
            run_fake(path)
        assert len(experiment.load(path)) == 0, "reading is free"
    finally:
        other.kill()
        other.communicate()
    assert len(run_fake(path)) == len(PROMPTS) * 2


def test_where_there_are_no_locks_a_warning_says_so(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("aisp.experiment.store.storage.fcntl", None)
    with pytest.warns(UserWarning, match=r"cannot be locked \(this system has no flock\)"):
        assert len(run_fake(tmp_path / "e.jsonl")) == len(PROMPTS) * 2


# -- what the processes do, which are killed -------------------------------------------------------


def helper(task, path):
    command = [sys.executable, __file__, task, str(path)]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path)}  # tests/ among it, for the fake
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | shared)


def be_killed(path):
    """Start a run that takes 3 s and kill it after less than 0.5 s, six times."""
    rng, counts = random.Random(0), []
    install(Fake(seconds=0.1))
    for _ in range(6):
        child = os.fork()  # importing torch each time would take longer than all the rest
        if child == 0:
            run_fake(path, seeds=range(3))
            os._exit(0)
        time.sleep(rng.uniform(0.1, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counts.append(len(experiment.load(path)))
    print(json.dumps(counts))


def hold(path):
    class Endless(Fake):
        def __call__(self, *args, **more):
            print("computing", flush=True)
            time.sleep(600)

    install(Endless())
    run_fake(path)


if __name__ == "__main__":
    {"kill": be_killed, "hold": hold}[sys.argv[1]](Path(sys.argv[2]))
