"""A file of records: nothing is lost, whatever becomes of the file and of the process."""

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from fake_runs import POLICY, PROMPTS, Fake, comparable, install, reward, run_fake

from aisp import experiment
from aisp.experiment import reuse
from aisp.experiment.store.storage import opened
from aisp.prompts import Prompt

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and flock")
B = {"B": {"method": "aisp"}}


def keys(path):
    return {(one["label"], one["prompt"]) for one in map(json.loads, path.open())}


def in_child(do):
    """Start a process that does something and ends with status 0, or 3 for a RuntimeError."""
    child = os.fork()
    if child:
        return child
    try:
        do()
        os._exit(0)
    except RuntimeError:
        os._exit(3)
    finally:
        os._exit(1)


def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- a file that is no longer the one at its path -------------------------------------------------


class Meddling(Fake):
    """Does something to the file while the third of five batches is computed."""

    def __init__(self, meddle):
        super().__init__()
        self.meddle = meddle

    def __call__(self, *args, **more):
        out = super().__call__(*args, **more)
        if len(self.batches) == 3:
            self.meddle()
        return out


def overwrite(path):
    path.write_text(path.read_text().splitlines(keepends=True)[0])


MEDDLING = {
    "removed": lambda path: path.unlink(),
    "removed with all beside it": lambda path: shutil.rmtree(path.parent),
    "moved": lambda path: path.rename(path.with_name("elsewhere.jsonl")),
    "replaced": lambda path: shutil.copy(path, path.with_name("x")).replace(path),
    "overwritten": overwrite,
    "replaced by a folder": lambda path: (path.unlink(), path.mkdir()),
}


@posix
@pytest.mark.parametrize("meddle", MEDDLING.values(), ids=MEDDLING)
def test_all_records_are_kept_in_a_file_beside_one_that_is_gone(
    fake, tmp_path, monkeypatch, capsys, meddle
):
    path = tmp_path / "deep" / "e.jsonl"
    run_fake(path, methods=B)
    install(Meddling(lambda: meddle(path)), monkeypatch.setattr)
    records = run_fake(path)
    (rescued,) = path.parent.glob("e.rescued-*.jsonl")
    assert len(records) == 20 and len(keys(rescued)) == 20
    said = capsys.readouterr().err
    assert "e.jsonl was removed, replaced or changed" in said and str(rescued) in said
    assert "rename it to e.jsonl" in said
    runs = json.loads(rescued.with_suffix(".runs.json").read_text())
    assert set(records["run"]) == set(runs) and len(runs) == 2
    again = install(Fake(), monkeypatch.setattr)
    whole = run_fake(rescued)  # nothing is to do any more
    assert again.batches == [] and comparable(whole).equals(comparable(records))


@posix
def test_what_replaced_the_file_is_left_as_it_is(fake, tmp_path, monkeypatch):
    path, other = tmp_path / "e.jsonl", tmp_path / "other.jsonl"
    run_fake(other, PROMPTS[:2])
    content = other.read_bytes()
    install(Meddling(lambda: other.replace(path)), monkeypatch.setattr)
    run_fake(path)
    assert path.read_bytes() == content


@posix
def test_a_file_that_is_gone_again_is_kept_again(fake, tmp_path, monkeypatch):
    def remove_all():
        for file in tmp_path.glob("e*.jsonl"):
            file.unlink()

    class Twice(Fake):
        def __call__(self, *args, **more):
            out = super().__call__(*args, **more)
            if len(self.batches) in (2, 4):
                remove_all()
            return out

    install(Twice(), monkeypatch.setattr)
    assert len(run_fake(tmp_path / "e.jsonl")) == 20


def test_runs_that_are_lost_or_replaced_meanwhile_are_noted_again(fake, tmp_path, monkeypatch):
    path = tmp_path / "e.jsonl"
    run_fake(path, methods=B)
    sidecar = path.with_suffix(".runs.json")
    for content in (sidecar.read_text(), None, "{"):
        lost = Path(sidecar).unlink if content is None else lambda c=content: sidecar.write_text(c)
        install(Meddling(lost), monkeypatch.setattr)
        records = run_fake(path, seeds=[len(content or "")])
        assert set(records["run"]) <= set(json.loads(sidecar.read_text()))


# -- locks ----------------------------------------------------------------------------------------


class Parent(Fake):
    """A reward that starts a process, which outlives the run."""

    children = ()

    def __call__(self, *args, **more):
        if not self.children:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            self.children = (child,)
        return super().__call__(*args, **more)


@posix
def test_a_child_process_that_outlives_the_run_does_not_hold_the_lock(fake, tmp_path, monkeypatch):
    parent = install(Parent(), monkeypatch.setattr)
    path = tmp_path / "e.jsonl"
    try:
        run_fake(path)
        assert len(run_fake(path, seeds=[1])) == 40
    finally:
        os.kill(parent.children[0], signal.SIGKILL)
        os.waitpid(parent.children[0], 0)


@posix
def test_nor_does_it_when_the_run_was_killed(fake, tmp_path, monkeypatch):
    path, orphan = tmp_path / "e.jsonl", tmp_path / "pid"

    class Killed(Parent):
        def __call__(self, *args, **more):
            super().__call__(*args, **more)
            orphan.write_text(str(self.children[0]))
            os.kill(os.getpid(), signal.SIGKILL)

    def die():
        install(Killed())
        run_fake(path)

    assert status(in_child(die)) == -signal.SIGKILL
    try:
        assert len(run_fake(path)) == 20
    finally:
        os.kill(int(orphan.read_text()), signal.SIGKILL)


@posix
def test_a_child_that_returns_from_the_method_writes_nothing(fake, tmp_path, monkeypatch):
    forked = []

    class Forking(Fake):
        def __call__(self, *args, **more):
            if not forked:
                forked.append(os.fork())
            return super().__call__(*args, **more)

    install(Forking(), monkeypatch.setattr)
    path = tmp_path / "e.jsonl"
    try:
        run_fake(path)
    except BaseException:
        if forked[0] == 0:
            os._exit(7)
        raise
    if forked[0] == 0:
        os._exit(8)
    assert status(forked[0]) == 7  # it was told that the file is closed
    assert len(path.read_text().splitlines()) == len(keys(path)) == 20


# -- taking over ----------------------------------------------------------------------------------

ASKED = [Prompt(f"p{i}", f"question {i}", "builtin") for i in range(10)]


def begin(path, prompts=ASKED):
    """Start a file from another one, as notebooks 06 and 07 do, and compute the rest."""
    taken = experiment.take_over(path, "old", B, prompts, POLICY, reward)
    run_fake(path, prompts)
    return taken


def test_what_another_run_wrote_between_is_not_taken_over(fake, tmp_path, monkeypatch):
    run_fake(tmp_path / "old.jsonl", ASKED[:4], B)
    path, read, others = tmp_path / "e.jsonl", reuse.provenance_of, []

    def late(source):
        if not others:  # the other run is whole before this one has read what it takes over
            others.append(source)
            assert begin(path) == {"B": 4}
        return read(source)

    monkeypatch.setattr(reuse, "provenance_of", late)
    assert experiment.take_over(path, "old", B, ASKED, POLICY, reward) == {}
    assert len(keys(path)) == 20 and len(experiment.load(path)) == 20
    with opened(path), pytest.raises(RuntimeError, match="is being written by another run"):
        run_fake(path)


@posix
def test_two_processes_that_take_over_at_once_lose_nothing(fake, tmp_path):
    run_fake(tmp_path / "old.jsonl", ASKED[:4], B)
    for k, pause in enumerate((0.0, 0.005, 0.02, 0.05)):
        path = tmp_path / f"e{k}.jsonl"
        first = in_child(lambda path=path: begin(path, ASKED[:6]))
        time.sleep(pause)
        second = in_child(lambda path=path: begin(path))
        ends = status(first), status(second)
        assert set(ends) <= {0, 3} and 0 in ends, ends  # at most one was refused
        prompts = 10 if ends[1] == 0 else 6
        assert len(experiment.load(path)) == 2 * prompts
        lines = path.read_text().splitlines()
        assert len(lines) == 2 * prompts, "something was computed twice, or written over"
        runs = json.loads(path.with_suffix(".runs.json").read_text())
        assert {one["run"] for one in map(json.loads, lines)} <= set(runs)
        taken = [run for run in runs.values() if run.get("taken_over_from")]
        assert [run["taken_over_from"] for run in taken] == ["old.jsonl"]


# -- processes that are killed --------------------------------------------------------------------


@posix
def test_a_run_that_is_killed_before_any_batch_of_eight_is_done_finishes(fake, tmp_path):
    class Slow(Fake):
        def __call__(self, prompts, *args, **more):
            self.seconds = 0.15 * len(prompts)
            return super().__call__(prompts, *args, **more)

    def die_soon():
        install(Slow())
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which kills
        signal.setitimer(signal.ITIMER_REAL, 0.45)
        run_fake(path, methods=B, batch=8)
        signal.setitimer(signal.ITIMER_REAL, 0)

    path = tmp_path / "e.jsonl"
    ends = []
    while not ends or ends[-1] == -signal.SIGALRM:
        assert len(ends) < 60, experiment.load(path)
        ends.append(status(in_child(die_soon)))
    assert ends[-1] == 0 and len(ends) > 3
    records = experiment.load(path)
    assert len(records) == 10 and records["batch"].max() < 8
    assert {file.name for file in tmp_path.iterdir()} <= {"e.jsonl", "e.runs.json", "e.torn"}


@posix
def test_batches_grow_again_after_a_kill_and_a_note_of_what_is_done_counts_nothing(
    fake, tmp_path, capsys
):
    path = tmp_path / "e.jsonl"
    prompts = [Prompt(f"p{i}", "x", "s") for i in range(20)]
    note = {"label": "B", "seed": 0, "prompts": [f"p{i}" for i in range(8)]}
    path.with_suffix(".batch.json").write_text(json.dumps([note]))
    run_fake(path, prompts, B, batch=8)
    assert fake.batches == [4, 8, 8]
    assert "killed within a batch of 8: going on with 4" in capsys.readouterr().err
    fake.batches.clear()
    for left in (json.dumps([note]), "{", "[]", '[{"prompts": 3}]', json.dumps(note)):
        path.with_suffix(".batch.json").write_text(left)
        run_fake(path, prompts, {"C": {"method": "aisp"}, **B}, batch=8, seeds=[len(left)])
        assert fake.batches[:3] == [8, 8, 4], left
        fake.batches.clear()
        assert not path.with_suffix(".batch.json").exists()


def test_a_note_waits_for_the_run_that_computes_its_label(fake, tmp_path):
    path = tmp_path / "e.jsonl"  # notebook 06 runs twice: with and without the chat template
    run_fake(path, methods={"C": {"method": "aisp"}})
    note = {"label": "B", "seed": 0, "prompts": [p.id for p in PROMPTS[:8]]}
    path.with_suffix(".batch.json").write_text(json.dumps([note]))
    for prompts in (PROMPTS, [*PROMPTS, Prompt("p10", "x", "s")]):  # with nothing to do, and with
        run_fake(path, prompts, {"C": {"method": "aisp"}}, batch=8)
        assert json.loads(path.with_suffix(".batch.json").read_text()) == [note]
    fake.batches.clear()
    run_fake(path, methods=B, batch=8)
    assert fake.batches == [4, 6] and not path.with_suffix(".batch.json").exists()


def test_an_error_or_an_interrupt_is_no_kill(fake, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as failing, pytest.raises(KeyboardInterrupt):
        failing.setattr(fake, "result", interrupt)
        run_fake(tmp_path / "e.jsonl")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.jsonl", "e.runs.json"]


def test_what_a_kill_leaves_beside_the_records_is_cleared(fake, tmp_path):
    left = [tmp_path / f".e.{kind}.json.123.new" for kind in ("runs", "batch")]
    kept = tmp_path / ".e2.runs.json.123.new"  # of other records
    for file in (*left, kept):
        file.write_text("{")
    run_fake(tmp_path / "e.jsonl")
    assert not any(file.exists() for file in left) and kept.exists()


# -- files that may only be read ------------------------------------------------------------------


@pytest.fixture
def readable():
    """A folder whose files may be read but not written: root gives its rights away for it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@posix
def test_complete_records_may_be_read_only(fake, readable):
    path = readable / "e.jsonl"
    run_fake(path, PROMPTS[:4])
    for file in readable.iterdir():
        file.chmod(0o444)
    content = path.read_bytes()
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            path.open("ab")
        fake.batches.clear()
        assert len(run_fake(path, PROMPTS[:4])) == 8 and fake.batches == []
        with pytest.raises(PermissionError, match=r"not all is computed\. Make it writable"):
            run_fake(path, PROMPTS[:5])
    finally:
        if root:
            os.seteuid(0)
    assert path.read_bytes() == content and fake.batches == []


@posix
def test_a_disk_that_is_full_is_an_error_that_names_the_file(fake, tmp_path):
    import resource

    path = tmp_path / "e.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match=r"e\.jsonl"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
        try:
            run_fake(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == 8_000
    assert {file.name for file in tmp_path.iterdir()} == {"e.jsonl", "e.runs.json"}
    with pytest.warns(UserWarning, match="the last line was torn"):
        assert len(run_fake(path)) == 20


def test_a_seed_or_parameter_that_is_none_leaves_no_file(fake, tmp_path):
    path = tmp_path / "e.jsonl"
    for wrong in (
        {"seeds": [1.5]},
        {"seeds": ["0"]},
        {"batch": True},
        {"methods": {"A\ud800": B["B"]}},
    ):
        with pytest.raises(ValueError):
            run_fake(path, **wrong)
    assert not path.exists()
    import numpy as np

    assert list(run_fake(path, PROMPTS[:1], B, seeds=[np.int64(3), 3])["seed"]) == [3]
