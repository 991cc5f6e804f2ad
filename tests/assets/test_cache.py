"""The cache: a folder is whole, checked at use, and not lost before another one is there."""

import errno
import json
import os
from pathlib import Path

import pytest

from aisp.assets import cache
from aisp.assets.cache import AssetError, cache_dir, prepared
from aisp.provenance import file_sha256

CONTENT = {"a.bin": b"weights", "sub/b.json": b"{}"}


@pytest.mark.parametrize(
    ("chosen", "xdg", "expected"),
    [
        ("/a/weights", "/x", "/a/weights"),
        ("~/weights", "/x", "/home/me/weights"),
        ("", "/x", "/x/aisp"),
        (None, "/x", "/x/aisp"),
        (None, "", "/home/me/.cache/aisp"),
        (None, None, "/home/me/.cache/aisp"),
    ],
)
def test_cache_dir_follows_the_environment(monkeypatch, chosen, xdg, expected):
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in {"AISP_CACHE": chosen, "XDG_CACHE_HOME": xdg}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_sha256_of_the_standard_example(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("AISP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed."""
    names = []

    def counted(path):
        names.append(Path(path).name)
        return file_sha256(path)

    monkeypatch.setattr(cache, "file_sha256", counted)
    return names


def build(new: Path) -> None:
    for name, data in CONTENT.items():
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_bytes(data)


def fails(new: Path) -> None:
    raise AssertionError("built again")


def later(path: Path) -> None:
    """As if it had been written an hour after it was."""
    time = path.stat().st_mtime_ns + 3600 * 10**9
    os.utime(path, ns=(time, time))


def test_a_usual_load_hashes_nothing(root, hashed):
    folder = prepared("x", build)
    assert sorted(hashed) == ["a.bin", "b.json"]
    hashed.clear()
    assert prepared("x", fails) == folder and hashed == []
    assert prepared("x", fails, verify=True) == folder and sorted(hashed) == ["a.bin", "b.json"]


def test_a_file_overwritten_with_as_many_bytes_is_noticed(root):
    folder = prepared("x", build)
    (folder / "a.bin").write_bytes(b"WEIGHTS")
    later(folder / "a.bin")
    with pytest.warns(
        UserWarning, match=r"damaged .the SHA-256 of a\.bin is .*; building it again"
    ):
        prepared("x", build)
    assert (folder / "a.bin").read_bytes() == b"weights"


def test_bytes_that_changed_without_a_trace_are_found_when_verifying(root, recwarn):
    path = prepared("x", build) / "a.bin"
    times = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    prepared("x", fails)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"the SHA-256 of a\.bin"):
        prepared("x", build, verify=True)
    assert path.read_bytes() == b"weights"


@pytest.mark.parametrize("old", [False, True], ids=["copied", "without times"])
def test_a_copied_or_old_cache_is_hashed_once(root, hashed, old):
    folder = prepared("x", build)
    if old:  # as manifests were written before they held times
        manifest = json.loads((folder / "manifest.json").read_text())
        for entry in manifest["files"].values():
            del entry["mtime_ns"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        for name in CONTENT:
            later(folder / name)
    hashed.clear()
    prepared("x", fails)
    assert sorted(hashed) == ["a.bin", "b.json"]
    hashed.clear()
    prepared("x", fails)
    assert hashed == []


def test_a_copied_cache_that_is_only_read_works(root, monkeypatch, recwarn):
    folder = prepared("x", build)
    later(folder / "a.bin")

    def read_only(*args):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(cache, "_store", read_only)
    assert prepared("x", fails) == folder and not recwarn.list


def test_a_damaged_folder_stays_until_the_new_one_is_complete(root):
    folder = prepared("x", build)
    (folder / "manifest.json").unlink()
    before = {name: (folder / name).read_bytes() for name in CONTENT}
    seen = []

    def offline(new):
        seen.append((folder / "a.bin").is_file())
        raise AssetError("no connection")

    with (
        pytest.warns(UserWarning, match="manifest.json is missing"),
        pytest.raises(AssetError, match=r"damaged .* and stays as it is, .* again: no connection"),
    ):
        prepared("x", offline)
    assert seen == [True] and {name: (folder / name).read_bytes() for name in CONTENT} == before
    assert [path.name for path in root.iterdir()] == ["x"]


def test_a_lost_manifest_costs_nothing_where_digests_are_known(root, recwarn):
    folder = prepared("x", build)
    digests = {name: file_sha256(folder / name) for name in CONTENT}
    (folder / "manifest.json").unlink()
    assert prepared("x", fails, digests=digests) == folder
    assert (folder / "manifest.json").is_file() and not recwarn.list
    (folder / "manifest.json").unlink()
    (folder / "a.bin").write_bytes(b"WEIGHTS")
    with pytest.warns(UserWarning, match=r"SHA-256 of a\.bin"):
        prepared("x", build, digests=digests)
    assert (folder / "a.bin").read_bytes() == b"weights"


def test_a_full_disk_names_the_folder_and_what_to_do(root):
    def full(new):
        (new / "a.bin").write_bytes(b"we")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new / "a.bin"))

    with pytest.raises(AssetError) as caught:
        prepared("x", full)
    text = str(caught.value)
    assert f"could not build {root / 'x'}: " in text and f": '{root / 'x' / 'a.bin'}'. If" in text
    assert "No space left on device" in text and "set AISP_CACHE to a folder on another" in text
    assert list(root.iterdir()) == []
