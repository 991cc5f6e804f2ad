"""Figures: the data that is drawn, and the provenance beside it."""

import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from aisp import figures
from aisp.provenance import file_sha256


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def records(prompts=5):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "label": label,
            "prompt": f"p{i}",
            "config": {"n": 4},
            "reward": 0.0,
            "history": {"reward_best": sorted(rng.normal(size=3)), "ess": [1.0, None, 3.0]},
        }
        for label in ("AISP", "best-of-n")
        for i in range(prompts)
    )


def lines(fig):
    return {line.get_label(): line.get_xydata() for line in fig.axes[0].lines}


def test_reward_curves_draw_the_means_over_common_prompts():
    table = records()
    drawn = lines(figures.reward_curves(table.drop(index=9)))  # p4 lacks best-of-n
    for label, points in drawn.items():
        rows = table[(table["label"] == label) & (table["prompt"] != "p4")]
        mean = np.mean([h["reward_best"] for h in rows["history"]], axis=0)
        np.testing.assert_allclose(points, np.c_[[4, 8, 12], mean])
    failed = pd.DataFrame([{**table.iloc[9], "reward": float("nan"), "history": {}}])
    again = lines(figures.reward_curves(pd.concat([table.drop(index=9), failed])))
    for label in drawn:
        np.testing.assert_array_equal(drawn[label], again[label])


def test_selection_draws_judge_against_reward_along_the_number_of_samples():
    rng = np.random.default_rng(0)
    rows = [
        {"label": label, "rule": rule, "prompt": p, "seed": s, "samples": n}
        | {"reward": np.log2(n) + rng.normal(), "judged": -((n - 4) ** 2) + rng.normal()}
        for label in ("best-of-n", "AISP")
        for rule in ("best-of-n", "ensemble, k = 2", "other")
        for p in ("p0", "p1")
        for s in (0, 1)
        for n in (1, 4, 16)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)  # no order is relied on
    fig = figures.selection(table, ["best-of-n", "ensemble, k = 2"])
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        f"candidates of {x}" for x in dict.fromkeys(table["label"])
    ]
    for ax, label in zip(fig.axes, dict.fromkeys(table["label"]), strict=True):
        drawn = {x.get_label(): x.get_xydata() for x in ax.lines if len(x.get_xydata()) > 1}
        assert set(drawn) == {"best-of-n", "ensemble, k = 2"}
        for rule, points in drawn.items():
            own = table[(table["label"] == label) & (table["rule"] == rule)]
            exact = own.groupby("samples")[["reward", "judged"]].mean()
            np.testing.assert_allclose(points, exact)
        rings = [x.get_xydata()[0] for x in ax.lines if len(x.get_xydata()) == 1]
        np.testing.assert_allclose(rings, [points[1] for points in drawn.values()])  # n = 4
        assert [x.get_text() for x in ax.texts] == ["n = 1", "n = 4", "n = 16"]


def test_histories_draw_one_panel_per_column():
    fig = figures.histories(records(), {"reward_best": "best reward", "ess": "ESS"})
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["best reward", "ESS"]
    assert np.isnan(fig.axes[1].lines[0].get_ydata()[1])


def test_cost_curves_draw_what_was_spent_by_the_end_of_each_iteration():
    table = records()
    table["reward_calls"] = [12] * 5 + [24] * 5
    for i, h in enumerate(table["history"]):
        h |= {"tokens": [10 + i, 20, 30], "seconds": [1.0, 2.0, 1.0 + 90 * (i == 9)]}
    fig = figures.cost_curves(table)
    best = np.mean([h["reward_best"] for h in table["history"][5:]], axis=0)
    spent = [[8, 16, 24], [17, 37, 67], [1, 3, 4]]
    for ax, x, name in zip(fig.axes, spent, ("calls", "tokens", "seconds"), strict=True):
        np.testing.assert_allclose(ax.lines[1].get_xydata(), np.c_[x, best])
        assert name in ax.get_xlabel() and ax.lines[1].get_label() == "best-of-n"


def test_ablations_draw_means_and_differences_of_their_table():
    answers = pd.DataFrame(
        {
            **{"AISP": [2.0, 3.0], "AISP low": [1.0, 2.5], "AISP high": [4.0, 3.5]},
            **{"noise only": [1.0, np.nan], "noise only low": [0.5, np.nan]},
            **{"noise only high": [1.5, np.nan], "difference": [1.0, np.nan]},
            **{"low": [0.2, np.nan], "high": [1.6, np.nan], "prompts": [16, np.nan]},
        },
        index=["0.3", "1"],
    )
    left, right = figures.ablation(answers, "lam").axes
    ours, control = (c.lines[0].get_ydata() for c in left.containers)
    assert list(ours) == [2, 3] and control[0] == 1 and np.isnan(control[1])
    np.testing.assert_allclose(right.containers[0].lines[2][0].get_segments()[0][:, 1], [0.2, 1.6])
    assert "16 prompts" in right.get_title(loc="left") and right.get_xlabel() == "lam"


def test_over_optimization_draws_means_by_budget():
    rng = np.random.default_rng(0)
    rows = [
        {"label": label, "prompt": f"p{p}", "samples": 4 * 2**k}
        | dict(zip(("reward", "judged", "surprisal"), rng.normal(size=3), strict=True))
        for label in ("AISP", "best-of-n")
        for p in range(5)
        for k in range(3)
    ]
    table = pd.DataFrame(rows)
    fig = figures.over_optimization(table)
    means = table.groupby(["label", "samples"])[["reward", "judged", "surprisal"]].mean()
    for ax, column in zip(fig.axes, means, strict=True):
        drawn = {c.get_label(): c.lines[0].get_xydata() for c in ax.containers}
        assert list(drawn) == ["AISP", "best-of-n"]
        for label, points in drawn.items():
            np.testing.assert_allclose(points[:, 1], means.loc[label, column])
            np.testing.assert_allclose(points[:, 0], [4, 8, 16], rtol=0.1)  # side by side
        assert [t.get_text() for t in ax.get_xticklabels()] == ["4", "8", "16"]
    assert "means of 5 prompts" in fig.legends[0].get_title().get_text()


def test_leads_draw_a_column_for_each_place_and_fill_what_excludes_0():
    keys = ("place", "prompts", "seeds", "label", "measure", "difference", "low", "high", "verdict")
    rows = [
        (place, 32, seeds, label, measure, gap, gap - 0.3, gap + 0.4, verdict)
        for place, seeds in (("built-in, 128 samples", 3), ("SHP, 128 samples", 1))
        for measure in ("reward", "judged")
        for label, gap, verdict in (("noise only", 0.1, "undecided"), ("AISP", 1.0, "higher"))
    ]
    fig = figures.leads(pd.DataFrame([dict(zip(keys, row, strict=True)) for row in rows]))
    assert len(fig.axes) == 4
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == [
        "built-in\n128 samples\n32 prompts\n3 seeds",
        "SHP\n128 samples\n32 prompts\n1 seed",
        "",
        "",
    ]
    assert [ax.get_ylabel() for ax in fig.axes[::2]] == ["by the reward", "by the judge"]
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert names == ["AISP", "noise only"]
    for ax in fig.axes:
        control, ours = (c.lines[0] for c in ax.containers)
        assert control.get_xydata().tolist() == [[0.1, 1]]
        assert ours.get_xydata().tolist() == [[1, 0]]
        assert control.get_markerfacecolor() == "white" != ours.get_markerfacecolor()
        segment = ax.containers[1].lines[2][0].get_segments()[0]
        np.testing.assert_allclose(segment[:, 0], [0.7, 1.4])


def test_drift_draws_what_was_recorded_and_what_was_predicted():
    rows = [
        {"label": label, "prompt": f"p{p}", "iteration": k}
        | {"kl": 100.0 * k * scale + p, "kl_predicted": 110.0 * k * scale + p}
        | {"ess": 9.0 - k + p, "ess_predicted": 8.0 - k + p}
        for label, scale in (("AISP", 1), ("alpha=1", 2))
        for p in range(3)
        for k in (1, 2, 3)
    ]
    table = pd.DataFrame(rows)
    fig = figures.drift(table)
    means = table.groupby(["label", "iteration"]).mean(numeric_only=True)
    for ax, column in zip(fig.axes, ("kl", "ess"), strict=True):
        for i, label in enumerate(("AISP", "alpha=1")):
            predicted, recorded = ax.lines[2 * i : 2 * i + 2]
            assert recorded.get_label() == label and recorded.get_linestyle() == "None"
            np.testing.assert_allclose(recorded.get_ydata(), means.loc[label, column])
            np.testing.assert_allclose(
                predicted.get_ydata(), means.loc[label, f"{column}_predicted"]
            )
            assert list(recorded.get_xdata()) == [1, 2, 3]
    assert "means of 3 prompts" in fig.legends[0].get_title().get_text()


def test_prefix_share_draws_the_shares_with_their_intervals():
    shares = pd.DataFrame(
        {"t": [0, 1, 8, 12], "share": [0, 0.3, 0.8, 1], "low": [0, 0.2, 0.7, 1]}
    ).assign(high=lambda x: x["share"] + 0.1 * x["share"].between(0.1, 0.9))
    (ax,) = figures.prefix_share(shares, 3).axes
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_xydata(), shares[["t", "share"]])
    ends = [path.vertices[:, 1] for path in bars.lines[2][0].get_paths()]
    np.testing.assert_allclose(ends, shares[["low", "high"]])
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0], [12, 1]])
    assert "3 prompts" in ax.get_legend().get_title().get_text()


def test_runtime_draws_speeds_with_the_range_of_their_repeats():
    one = {"responses": 16, "seconds": 4.0, "low": 2.0, "high": 8.0, "tokens_per_second": 100.0}
    one |= {"decoding": "top-p 0.9", "share": 0.25}
    engines = pd.DataFrame([one | {"name": "generate"}, one | {"name": "engine"}])
    whole = pd.DataFrame([{"name": "AISP", "seconds": 3.0, "low": 2.0, "high": 5.0}])
    axis = {"axis": "prompts", "value": 1, "tokens_per_second": 10.0, "low": 8.0, "high": 11.0}
    tables = {"engines": engines, "whole runs": whole, "scaling": pd.DataFrame([axis])}
    tables["base"] = pd.DataFrame([{"prompts": 1}])
    left, right = figures.runtime(tables).axes
    for drawn in left.containers:
        assert drawn.lines[0].get_xydata().tolist() == [[16, 100]]
        assert drawn.lines[2][0].get_segments()[0].tolist() == [[16, 50], [16, 200]]
    assert right.patches[0].get_width() == 3
    (share,) = figures.runtime_share(tables).axes
    assert share.get_title() == "top-p 0.9"
    for drawn in share.containers:
        assert drawn.lines[0].get_xydata().tolist() == [[16, 25]]
        assert drawn.lines[2][0].get_segments()[0].tolist() == [[16, 12.5], [16, 50]]
    (scaling,) = figures.runtime_scaling(tables).axes
    (segment,) = scaling.containers[0].lines[2][0].get_segments()
    assert segment.tolist() == [[1, 8], [1, 11]] and scaling.get_xlabel() == "prompts"


def test_bars_of_single_runs_are_never_negative():
    seconds, share = np.random.default_rng(0).random((2, 200)) + 0.1
    rows = {"responses": 2, "decoding": "AISP", "name": "engine", "share": share}
    rows |= {"seconds": seconds, "low": seconds, "high": seconds, "tokens_per_second": 8 / seconds}
    tables = {"engines": pd.DataFrame(rows)}
    assert len(figures.runtime_share(tables).axes[0].containers) == 1


def test_timings_of_the_same_case_are_marked_with_their_range():
    rows = [("prompts", 1, 10.0), ("prompts", 2, 15.0), ("tokens", 4, 12.0), ("tokens", 8, 9.0)]
    scaling = pd.DataFrame(
        [{"axis": a, "value": v, "tokens_per_second": s, "low": s, "high": s} for a, v, s in rows]
    )
    base = pd.DataFrame([{"prompts": 1, "tokens": 4}])
    axes = figures.runtime_scaling({"scaling": scaling, "base": base}).axes
    for ax, case in zip(axes, ([1, 10], [4, 12]), strict=True):
        (circle,) = [x for x in ax.lines if x.get_markersize() == 7]
        assert circle.get_xydata().tolist() == [case]
        assert ax.patches[0].get_height() == 2 and ax.patches[0].get_y() == 10


def test_speed_up_by_workers_is_drawn_beside_the_ideal():
    table = pd.DataFrame({"workers": [1, 2, 4], "speedup": [1.0, 1.9, 3.0]})
    (ax,) = figures.workers({"stored": table}).axes
    drawn, ideal = (line.get_xydata().tolist() for line in ax.lines)
    assert drawn == [[1, 1], [2, 1.9], [4, 3]] and ideal == [[1, 1], [2, 2], [4, 4]]


def test_more_labels_than_colors_and_runs_of_unequal_length_are_all_drawn():
    many = pd.concat([records().assign(label=f"m{i}") for i in range(12)], ignore_index=True)
    assert len(figures.reward_curves(many).axes[0].lines) == 12
    some = records()
    some.at[0, "history"] = {"reward_best": [7.0]}
    line = figures.reward_curves(some).axes[0].lines[0]
    others = [h["reward_best"] for h in some[some["label"] == some["label"][0]]["history"][1:]]
    np.testing.assert_allclose(line.get_ydata(), np.mean([[7.0] * 3, *others], axis=0))


def test_save_writes_pdf_png_and_provenance(tmp_path):
    source = tmp_path / "records.jsonl"
    source.write_text("{}\n")
    figures.style()
    fig = figures.reward_curves(records())
    paths = figures.save(fig, "f", profile="cpu", source=source, folder=tmp_path, seed=3)
    assert [p.name for p in paths] == ["f.pdf", "f.png", "f.json"]
    note = json.loads(paths[2].read_text())
    assert note["source_sha256"] == file_sha256(source) and note["parameters"] == {"seed": 3}
    assert note["function"] == "aisp.figures.reward_curves"
    assert {"commit", "clean", "profile"} <= set(note) and note["source"] == "records.jsonl"
    assert paths[0].read_bytes()[:4] == b"%PDF" and paths[1].read_bytes()[1:4] == b"PNG"
    before = paths[1].read_bytes(), paths[0].read_bytes()
    figures.save(figures.reward_curves(records()), "f", profile="cpu", folder=tmp_path)
    assert (paths[1].read_bytes(), paths[0].read_bytes()) == before  # no dates inside


@pytest.mark.parametrize("profile", ["smoke", "gpu-smoke"])
def test_a_toy_profile_never_replaces_a_real_figure(tmp_path, profile):
    fig = figures.reward_curves(records())
    real = figures.save(fig, "f", profile="cpu", folder=tmp_path)
    toy = figures.save(fig, "f", profile=profile, folder=tmp_path)
    assert real[0].parent == tmp_path and toy[0].parent == tmp_path / profile


def compared():
    """Four sampling methods would do; here two, one that is steered, and one of a single response."""
    methods = {"AISP": "aisp", "best-of-n": "best_of_n", "RE-Control": "re_control", "ARGS": "args"}
    rng = np.random.default_rng(1)
    rows = []
    for label, method in methods.items():
        for i in range(5):
            best = np.sort(rng.normal(size=1 if method == "args" else 3)).tolist()
            samples = 1 if method == "args" else 12
            rows.append(
                {
                    "label": label,
                    "method": method,
                    "prompt": f"p{i}",
                    "config": {"n": 1 if method == "args" else 4},
                    "reward": best[-1],
                    "samples": samples,
                    "reward_calls": 40 if method == "args" else samples,
                    "history": {"reward_best": best},
                }
            )
    return pd.DataFrame(rows)


def test_main_results_keep_a_single_response_off_the_axis_of_samples():
    table = compared()
    left, right = figures.main_results(table.drop(index=4)).axes  # p4 lacks AISP
    drawn = [{x.get_label(): x.get_xydata() for x in ax.lines} for ax in (left, right)]
    assert [list(x) for x in drawn] == [["AISP", "best-of-n"], ["AISP", "RE-Control", "ARGS"]]
    whole = table[table["prompt"] != "p4"]
    for label, points in {**drawn[0], **drawn[1]}.items():
        rows = whole[whole["label"] == label]
        mean = np.mean([h["reward_best"] for h in rows["history"]], axis=0)
        if label == "ARGS":
            np.testing.assert_allclose(points[:, 1], mean[0])
        else:
            np.testing.assert_allclose(points, np.c_[[4, 8, 12], mean])
    assert not right.texts  # a label in the panel would lie on some line
    (legend,) = left.figure.legends
    entries = [t.get_text() for t in legend.texts]
    assert entries == ["AISP", "best-of-n", "ARGS (1 response, 40 reward calls)", "RE-Control"]
    for text, handle in zip(entries, legend.legend_handles, strict=True):
        assert handle.get_color() == figures.METHODS[text.split(" (")[0]].color


def test_paired_differences_show_every_prompt_and_the_mean():
    table = compared()
    table.loc[0, "reward"] = float("nan")
    (ax,) = figures.paired_differences(table, "AISP").axes
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["RE-Control", "ARGS", "best-of-n"]
    means = table.pivot_table(index="prompt", columns="label", values="reward")
    for label, dots in zip(names, ax.collections[::2], strict=True):
        values = (means["AISP"] - means[label]).dropna()
        np.testing.assert_allclose(dots.get_offsets()[:, 0], values)
    found = [x.get_xdata()[0] for x in ax.lines if x.get_marker() == "o"]
    np.testing.assert_allclose(found, [(means["AISP"] - means[x]).mean() for x in names])


def test_an_unchanged_figure_leaves_its_files_alone(tmp_path):
    """So that executing a notebook on unchanged records leaves the checkout as it was."""
    import matplotlib.pyplot as plt

    def figure(y):
        fig, ax = plt.subplots()
        ax.plot([0, y])
        return fig

    made = dict(profile="cpu", folder=tmp_path, seed=0)
    paths = figures.save(figure(1), "f", **made)
    stamp = {"commit": "an earlier one"}
    paths[2].write_text(json.dumps(json.loads(paths[2].read_text()) | stamp))
    before = [path.read_bytes() for path in paths]
    assert figures.save(figure(1), "f", **made) == paths
    assert [path.read_bytes() for path in paths] == before
    figures.save(figure(2), "f", **made)
    assert json.loads(paths[2].read_text())["commit"] != "an earlier one"
    paths[2].write_text(json.dumps(json.loads(paths[2].read_text()) | stamp))
    figures.save(figure(2), "f", **(made | {"seed": 1}))
    assert json.loads(paths[2].read_text())["commit"] != "an earlier one"


def test_a_method_has_the_same_look_and_place_in_every_figure():
    given = [
        "KAD",
        "mine",
        "noise only, sigma=0.5",
        "AISP",
        "best-of-n (T = 1), 512 samples",
        "lam=2",
    ]
    drawn = figures.looks(given)
    known = {"AISP": "AISP", "noise only, sigma=0.5": "noise only", "KAD": "KAD"}
    known["best-of-n (T = 1), 512 samples"] = "best-of-n (T = 1)"
    assert list(drawn) == [given[i] for i in (3, 2, 4, 0, 1, 5)]  # the others last, as they came
    for label, method in known.items():
        assert drawn[label] == figures.METHODS[method]
        assert figures.looks([label])[label] == figures.METHODS[method]
    colors = {x.color for x in figures.METHODS.values()}
    assert not {drawn["mine"].color, drawn["lam=2"].color} & colors


def test_no_two_labels_of_a_figure_look_alike():
    settings = [f"AISP, lam={i}" for i in range(3)]
    crowd = ["best-of-n, T = 0.65", *figures.METHODS, *settings, "AISPy"]
    drawn = figures.looks(crowd)
    assert sorted(drawn) == sorted(crowd) and len({x.color for x in drawn.values()}) == len(crowd)
    assert drawn["best-of-n"] == figures.METHODS["best-of-n"]  # a plain name goes first
    assert drawn["AISP"] == figures.METHODS["AISP"]


def test_methods_are_told_apart_in_gray():
    names = [x for x in figures.METHODS if x != "best-of-n"]  # the short name of top-p 0.9
    sampling = [x for x in names if x.startswith(("AISP", "noise", "best"))]
    for panel in (sampling, ["AISP", *(x for x in names if x not in sampling)]):
        assert len({figures.METHODS[x][1:] for x in panel}) == len(panel) == 5  # marker and line


def test_dials_draw_changes_and_adaptation_on_one_axis():
    rows = [
        {"dial": dial, "axis": f"{dial} (of 9)", "setting": setting, "kind": kind}
        | {"standard": setting == "b", "prompts": 8, "difference": x, "low": x - 1, "high": x + 1}
        | {"verdict": "higher" if x > 1 else "undecided"}
        for dial in ("sigma", "tau")
        for kind in ("change", "adaptation")
        for setting, x in (("a", 2.0), ("b", 0.5))
    ]
    table = pd.DataFrame(rows)
    table.loc[table["standard"] & (table["kind"] == "change"), "verdict"] = None
    figures.style()
    fig = figures.dials(table)
    assert len(fig.axes) == 4 and len({ax.get_ylim() for ax in fig.axes}) == 1
    points = [c.lines[0] for c in fig.axes[2].containers]
    assert [p.get_xydata().tolist() for p in points] == [[[0, 2]], [[1, 0.5]]]
    assert [p.get_markerfacecolor() == "white" for p in points] == [False, True]
    assert len(fig.axes[0].containers) == 1  # the standard setting is the zero line
    weights = {t.get_text(): t.get_fontweight() for t in fig.axes[2].get_xticklabels()}
    assert weights == {"a": "normal", "b": "bold"}
    assert fig.axes[0].get_title() == "sigma\n(of 9)"


def test_dials_are_the_same_file_however_often_they_are_shown():
    def picture(fig):
        file = io.BytesIO()
        fig.savefig(file)
        return file.getvalue()

    row = {"dial": "tau", "axis": "tau (of 48 steps)", "standard": False, "prompts": 8}
    row |= {"difference": 1.0, "low": 0.5, "high": 1.5, "verdict": "higher"}
    table = pd.DataFrame(
        [row | {"setting": x, "kind": k} for x in ("12", "24") for k in ("change", "adaptation")]
    )
    figures.style()
    fig = figures.dials(table)
    first = picture(fig)
    fig.savefig(io.BytesIO(), dpi=70)
    assert picture(fig) == first
    plt.rcParams["figure.dpi"] = 70
    assert picture(figures.dials(table)) == first
