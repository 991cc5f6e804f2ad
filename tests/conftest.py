"""The fixtures that every test shares. No test may reach for the network: the switches come first."""

import gzip
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public preference data beside the checkout; tests that need it are skipped without it."""
    folder = Path(os.environ.get("AISP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no shared data here; AISP_SHARED_DATA=<folder> names it")
    return folder


@pytest.fixture(scope="session")
def embedded():
    """The embedded policy in float32 on the CPU, loaded once. Tests must not change its weights."""
    import aisp

    return aisp.load_policy("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token per byte; tests must not change it."""
    from tiny import tokenizer_of_bytes

    return tokenizer_of_bytes()


@pytest.fixture(scope="session")
def tiny(byte_tokenizer):
    """Policies by architecture, each built once."""
    from tiny import tiny_model

    import aisp

    built = {}

    def get(name: str = "llama") -> aisp.Policy:
        if name not in built:
            built[name] = aisp.Policy(tiny_model(name).float(), byte_tokenizer, name=f"tiny-{name}")
        return built[name]

    return get


@pytest.fixture(scope="session")
def pairs():
    """Large and small: one model under two templates; two models, of which one has padded logits."""
    from dataclasses import replace

    from tiny import tokenizer_of_words, word_model

    import aisp

    tokenizer = tokenizer_of_words()
    large = aisp.Policy(word_model(0, 5), tokenizer, lambda messages: "a b c", "large")
    small = aisp.Policy(word_model(1, 7), tokenizer, lambda messages: "c a", "small")
    return {
        "templates": (large, replace(large, template=lambda messages: "d d", name="small")),
        "models": (large, small),
    }


@pytest.fixture(scope="session")
def trained_adapter(tiny, tmp_path_factory):
    """A residual aligner of the tiny policy: its folder, the folder of its training, its report."""
    from tiny import HELD, PAIRS, QUICK

    from aisp.training.ram import TrainingConfig, train

    folder = tmp_path_factory.mktemp("ram")
    out, work = folder / "adapter", folder / "work"
    config = TrainingConfig(**QUICK)
    report = train(tiny(), PAIRS, HELD, config, out=out, work=work, progress=False)
    return out, work, report


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache of the hub as after downloads: makes and returns the folder of an id at a commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def snapshot(id: str, commit: str, newest: bool = False) -> Path:
        repository = tmp_path / "hub" / f"models--{id.replace('/', '--')}"
        folder = repository / "snapshots" / commit
        folder.mkdir(parents=True)
        if newest:
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text(commit)
        return folder

    return snapshot


@pytest.fixture(params=["jsonl", "jsonl.gz"])
def write(request, tmp_path):
    """Writes records (or raw lines) as a plain or a compressed file, and returns its path."""

    def write(*records, name="set"):
        path = tmp_path / f"{name}.{request.param}"
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
        data = "".join(line + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path

    return write
