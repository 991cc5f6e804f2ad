"""The gallery: committed records give the committed figures, and what is missing is named."""

import json
import re
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from aisp import figures
from aisp.figures import gallery

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "figures"
RESULTS = ROOT / "data" / "results" / "cpu"
DRAWN = list(gallery.RECIPES)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def data_of(fig):
    """Whatever is drawn: points of lines and dots, corners of bands and bars, and all the words."""
    found = []
    for ax in fig.axes:
        found += [line.get_xydata() for line in ax.lines]
        for collection in ax.collections:
            found.append(np.asarray(collection.get_offsets()))
            found += [path.vertices for path in collection.get_paths()]
        found += [np.array([ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")])]
        found += [np.array([t.get_text() for t in ax.texts])]
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_of_committed_records_is_the_same_when_drawn_again(name):
    first, again = (data_of(gallery.make_figure(name, RESULTS)) for _ in range(2))
    assert len(first) == len(again) > 4
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", DRAWN)
def test_a_stored_figure_shows_the_stored_records(name):
    """If this fails: draw it again, with notebooks/09_figures.ipynb and profile cpu."""
    source = RESULTS / gallery.RECIPES[name].files[-1]
    assert gallery.stored_state(name, source, FOLDER) == "of these records"


def test_what_a_recipe_lacks_is_named(tmp_path):
    assert gallery.missing_files("sampler_lam", tmp_path) == ["sampler_sweep.jsonl"]
    source = tmp_path / "sampler_sweep.jsonl"
    source.write_text("{}\n")
    assert gallery.missing_files("sampler_lam", tmp_path) == []
    assert gallery.stored_state("sampler_lam", source, tmp_path) == "no stored figure"
    (tmp_path / "sampler_lam.json").write_text('{"source_sha256": "0"}')
    assert gallery.stored_state("sampler_lam", source, tmp_path) == "of other records"


def test_what_records_lack_for_a_figure_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no figure 'sampler_lm'; known: sampler_lam"):
        gallery.make_figure("sampler_lm", tmp_path)
    lines = (RESULTS / "ablations.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path / "ablations.jsonl"
    path.write_text("".join(x for x in lines if '"label": "alpha=0"' not in x))
    with pytest.raises(ValueError, match="no records of alpha=0; notebook 07 was not run to its"):
        gallery.make_figure("ablation_alpha", tmp_path)
    assert gallery.make_figure("ablation_lam", tmp_path)
    path.write_text("".join(x for x in lines if "512 samples" not in x))
    with pytest.raises(ValueError, match="no records of the long runs of AISP"):
        gallery.make_figure("ablation_lam", tmp_path)


def test_every_recipe_names_a_notebook():
    for recipe in gallery.RECIPES.values():
        assert (ROOT / "notebooks" / f"{recipe.notebook}.ipynb").exists()


def test_the_readme_of_figures_has_each_of_them_with_caption_and_command():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    ours = subprocess.run(["git", "ls-files", "*.png"], cwd=FOLDER, capture_output=True, text=True)
    names = ours.stdout.split() or [p.name for p in FOLDER.glob("*.png")]  # where git is not
    stored = {Path(x).stem for x in names if "/" not in x} - {"quickstart"}  # not what users drew
    assert stored >= set(gallery.RECIPES)
    assert stored <= set(entries), "a figure without an entry"
    assert set(entries) <= stored | set(gallery.RECIPES), "an entry without a figure"
    for name, entry in entries.items():
        if name in stored:
            assert re.search(rf"!\[[^\]]+\]\({name}\.png\)", entry), f"{name} is not shown"
        (command,) = re.findall(
            r"^    papermill (notebooks/\w+\.ipynb) ", entry, flags=re.MULTILINE
        )
        assert (ROOT / command).exists()
        assert len(entry.split()) > 25, f"{name} has no caption"
    assert "CITATION.cff" in text


def test_reward_guided_is_drawn_from_its_files(tmp_path):
    def guided(label, prompt, best, mean):
        history = {"reward_mean": [mean], "reward_best": [best]}
        counts = {"samples": 1, "reward_calls": 1, "tokens": 1, "seconds": 1.0}
        about = {"label": label, "prompt": prompt, "seed": 0, "reward": best, "history": history}
        return json.dumps(about | counts) + "\n"

    args = [guided(f"w = {w}", f"p{i}", w + i, w + i) for w in (0, 1) for i in range(3)]
    steps = [guided(f"step size {s}", f"p{i}", s + i + 2, s + i) for s in (0, 10) for i in range(3)]
    (tmp_path / "reward_guided_args.jsonl").write_text("".join(args))
    (tmp_path / "reward_guided_re_control.jsonl").write_text("".join(steps))
    assert gallery.missing_files("reward_guided", tmp_path) == ["reward_guided_value.csv"]
    knows = pd.DataFrame({"step": [0, 1, 2], "correlation": [float("nan"), 0.2, 0.4]})
    knows.to_csv(tmp_path / "reward_guided_value.csv", index=False)
    left, middle, right = gallery.make_figure("reward_guided", tmp_path).axes
    assert list(left.lines[0].get_ydata()) == [1, 2]
    np.testing.assert_allclose(middle.lines[1].get_xydata()[1:], [[2, 0.2], [3, 0.4]])
    drawn = {x.get_label(): x.get_ydata() for x in right.lines}
    assert list(drawn["best of n"]) == [3, 13]
    assert list(right.lines[0].get_ydata()) == [1, 11]


@pytest.mark.parametrize("name", DRAWN)
def test_a_stored_figure_names_the_function_that_draws_it(name):
    function = json.loads((FOLDER / f"{name}.json").read_text())["function"]
    assert gallery.make_figure(name, RESULTS).get_label() == function
    module, _, attribute = function.rpartition(".")
    assert module == "aisp.figures" and attribute in figures.__all__


def test_a_picture_that_is_there_already_keeps_the_note_of_its_notebook(tmp_path):
    source = tmp_path / "records.jsonl"
    source.write_text("{}\n")

    def drawn(height):
        fig, ax = plt.subplots()
        ax.plot([0, height])
        return fig

    given = dict(profile="cpu", source=source, folder=tmp_path)
    paths = figures.save(drawn(1), "f", **given, command="of the notebook")
    before = [path.read_bytes() for path in paths]
    again = dict(given, redrawn=True, command="of all figures")
    assert figures.save(drawn(1), "f", **again) == paths
    assert [path.read_bytes() for path in paths] == before
    figures.save(drawn(2), "f", **again)
    assert json.loads(paths[2].read_text())["parameters"] == {"command": "of all figures"}
    paths[2].write_text(json.dumps(json.loads(paths[2].read_text()) | {"commit": "an earlier one"}))
    source.write_text("[]\n")  # the same picture of other records
    figures.save(drawn(2), "f", **again)
    assert json.loads(paths[2].read_text())["commit"] != "an earlier one"


def test_captions_are_those_of_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# The figures\n\nText.\n\n# Experiments\n\n## one\n![a picture](one.png)\n\nFirst line\n"
        "and *second*.\n\n    a command\n\n# Theory\n\nIntro.\n\n## two\n![](two.png)\n\nTwo.\n"
    )
    assert gallery.captions(readme) == {"one": "First line and *second*.", "two": "Two."}
    known = gallery.captions()
    assert set(DRAWN) <= set(known) and all(len(text) > 40 for text in known.values())
