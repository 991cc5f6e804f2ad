"""Tables of records: means, intervals and differences are right, and survive Markdown and LaTeX."""

import json

import numpy as np
import pandas as pd
import pytest

from aisp.experiment import load
from aisp.experiment.__main__ import main
from aisp.experiment.report import tables


def records(rewards):
    return pd.DataFrame(
        [
            {
                "label": label,
                "prompt": f"p{i}",
                "seed": seed,
                "reward": float(r),
                "error": "ValueError: no" if np.isnan(r) else None,
                "samples": 4,
                "reward_calls": 5,
                "tokens": 8,
                "seconds": 1.0,
                "prompt_text": "x",
            }
            for label, by_seed in rewards.items()
            for seed, values in enumerate(by_seed)
            for i, r in enumerate(values)
        ]
    )


def test_summary_is_the_mean_over_prompts_with_its_interval():
    values = np.random.default_rng(0).normal(1.0, 2.0, 100)
    out = tables.summary(records({"A": [values, values + 2], "B": [values * 0]}))
    assert out.loc["A", "prompts"] == 100  # two seeds do not make 200
    np.testing.assert_allclose(out.loc["A", "reward"], values.mean() + 1)
    half = 1.96 * values.std(ddof=1) / 10
    np.testing.assert_allclose(out.loc["A", "high"] - out.loc["A", "low"], 2 * half, rtol=0.06)
    assert out.loc["B", ["reward", "low", "high"]].tolist() == [0, 0, 0]


def test_paired_differences_and_wins():
    out = tables.paired(records({"A": [[3, 1, 2, 5]], "B": [[1, 1, 3, 1]]}), "A", "B")
    assert out["difference"] == pytest.approx(5 / 4) and out["prompts"] == 4
    assert out["wins"] == pytest.approx((2 + 0.5) / 4)
    assert out["low"] < 5 / 4 < out["high"]
    assert 0 < out["wins_low"] <= out["wins"] <= out["wins_high"] <= 1


def test_a_label_beside_itself_differs_by_nothing():
    """As in a notebook whose control was not run, and which compares with the baseline instead."""
    out = tables.paired(records({"A": [[3, 1, 2, 5]]}), "A", "A")
    assert (out["prompts"], out["difference"], out["low"], out["high"]) == (4, 0, 0, 0)
    assert out["wins"] == 0.5


FAILED = {"A": [[3, 1, np.nan, 5]], "B": [[1, np.nan, 3, 1]], "C": [[np.nan] * 4]}


def test_failed_records_count_in_no_mean_and_are_counted():
    out = tables.summary(records(FAILED))
    assert out["failed"].tolist() == [1, 1, 4] and out["prompts"].tolist() == [3, 3, 0]
    assert out.loc["A", ["reward", "reward_calls"]].tolist() == [3, 5]
    assert out.loc["C", ["reward", "low", "high"]].isna().all()
    pair = tables.paired(records(FAILED), "A", "B")
    assert (pair["prompts"], pair["difference"], pair["wins"]) == (2, 3, 1)
    none = tables.paired(records(FAILED), "A", "C")
    assert none["prompts"] == 0 and np.isnan(none["difference"]) and np.isnan(none["wins"])


def test_interrupted_records_count_in_no_mean():
    some = records({"A": [[3, 1, 2, 5]]})
    some["interrupted"] = [False, False, True, False]
    out = tables.summary(some).loc["A"]
    assert out["prompts"] == 3 and out["reward"] == 3 and out["failed"] == 1


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no records at .*e\.jsonl"):
        load(tmp_path / "e.jsonl")


def test_comparison_has_a_column_for_every_label_and_a_row_for_every_prompt_with_a_result():
    out = tables.comparison(records(FAILED), ["B", "A", "C"])
    assert list(out.columns[2:5]) == ["B", "A", "C"]
    out = out.set_index("prompt").loc[["p0", "p1", "p2", "p3"]]
    assert out["A"].isna().tolist() == [False, False, True, False] and out["C"].isna().all()
    assert out["seconds"].tolist() == [2, 1, 1, 2]  # of what did not fail


def test_a_label_that_is_not_there_is_named():
    for make in (
        lambda: tables.paired(records(FAILED), "A", "D"),
        lambda: tables.comparison(records(FAILED), ["D"]),
        lambda: tables.table(records(FAILED), against="D"),
    ):
        with pytest.raises(ValueError, match=r"no records of \['D'\]; labels are: 'A', 'B', 'C'"):
            make()


def test_table_puts_means_differences_and_wins_with_their_intervals_into_cells():
    some = records({"A": [[3, 1, 2, 5]], "B": [[1, 1, 3, 1]], "C": [[np.nan] * 4]})
    cells = tables.table(some, against="B")
    sums, pair = tables.summary(some).loc["A"], tables.paired(some, "A", "B")
    a = cells.loc["A"]
    assert a["reward [95%]"] == f"2.75 [{sums.low:.2f}, {sums.high:.2f}]"
    assert a["minus B [95%]"] == f"+1.25 [{pair['low']:+.2f}, {pair['high']:+.2f}]"
    assert a["wins [95%]"] == f"62% [{pair['wins_low']:.0%}, {pair['wins_high']:.0%}]"
    assert a[["prompts", "samples", "reward calls", "seconds"]].tolist() == ["4", "4", "5", "1.0"]
    assert cells["failed or interrupted"].tolist() == ["0", "0", "4"]
    assert cells.loc["B", "minus B [95%]"] == "" and cells.loc["C", "reward [95%]"] == ""
    plain = tables.table(some[some["label"] != "C"])
    assert not {"failed or interrupted", "minus B [95%]", "wins [95%]"} & set(plain.columns)


NASTY = r"[50% & $x_1$ | #2 {a}~^\*b<c>"


def cells():
    index = pd.Index([NASTY, "plain"], name="method")
    return pd.DataFrame({"reward [95%]": ["-1.5 [-2.0, +3.0]", "1"], "wins": ["50%", ""]}, index)


def test_markdown():
    header, rule, nasty, plain = tables.markdown(cells()).splitlines()
    assert header == "| method | reward [95%] | wins |" and rule == "|---|---:|---:|"
    assert nasty == (r"| [50% & $x\_1$ \| #2 {a}~^\\\*b\<c> | -1.5 [-2.0, +3.0] | 50% |")
    assert plain == "| plain | 1 |  |"


def test_latex_escapes_whatever_is_special():
    lines = tables.latex(cells()).splitlines()
    assert lines[1] == r"\begin{tabular}{lrr}" and lines[-1] == r"\end{tabular}"
    assert lines[3] == r"method & reward {[}95\%] & wins \\"
    assert lines[5] == (
        r"{[}50\% \& \$x\_1\$ \textbar{} \#2 \{a\}\textasciitilde{}\textasciicircum{}"
        r"\textbackslash{}{*}b\textless{}c\textgreater{} & $-$1.5 [$-$2.0, +3.0] & 50\% \\"
    )
    assert lines[6] == r"plain & 1 &  \\"


def written(path, some):
    some = some.assign(config=None, method="aisp", response="", history=None, interrupted=False)
    some["reward"] = [None if np.isnan(r) else r for r in some["reward"]]
    rows = some.astype(object).to_dict("records")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_show_prints_the_tables_and_exits_with_1_where_something_failed(tmp_path, capsys):
    whole = records({"A": [[3, 1, 2, 5]], "B_": [[1, 1, 3, 1]]})
    path = written(tmp_path / "e.jsonl", whole)
    assert main(["show", path]) == 0
    printed = capsys.readouterr().out
    assert "A" in printed and "B_" in printed and "seconds" in printed and "reward [95%]" in printed
    for style, sign in (("markdown", "|---|"), ("latex", r"B\_ & 4 & 1.50")):
        assert main(["show", path, "--format", style, "--against", "A"]) == 0
        printed = capsys.readouterr().out
        assert sign in printed and "minus A" in printed

    path = written(tmp_path / "failed.jsonl", records(FAILED))
    assert main(["show", path, "--format", "latex"]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 6 and "failed: B, p1, seed 0: ValueError: no" in shown.err
    assert "ValueError" not in shown.out
    for wrong in (
        [str(tmp_path / "none.jsonl")],
        [path, "--against", "D"],
        [path, "--format", "x"],
    ):
        with pytest.raises(SystemExit):
            main(["show", *wrong])


def test_columns_of_histories_become_columns_of_the_records():
    histories = [{"reward_mean": [1.0, 2.0], "edit": [None, 4.0]}, {"reward_mean": [5.0]}, None]
    found = pd.DataFrame({"label": list("ABC"), "history": histories})
    table = tables.with_histories(found, {"reward_mean": "single", "edit": "edit"})
    assert list(found) == ["label", "history"]
    assert table["single"][:2].tolist() == [1.5, 5.0] and table["edit"][0] == 4.0
    assert table["edit"][1:].isna().all() and np.isnan(table["single"][2])


def test_a_gap_by_iteration_is_that_of_runs_that_stopped_there():
    rows = [
        {
            "label": label,
            "prompt": f"p{i}",
            "reward": best[-1],
            "config": {"n": 4},
            "history": {"reward_best": best},
        }
        for i in range(3)
        for label, best in (("A", [0.0, 2.0, 3.0]), ("B", [1.0, 1.0]))
    ]
    found = tables.paired_by_iteration(pd.DataFrame(rows), "A", "B")
    assert found["samples"].tolist() == [4, 8, 12]
    assert found["difference"].tolist() == [-1.0, 1.0, 2.0] == found["low"].tolist()
