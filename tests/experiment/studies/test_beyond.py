"""The protocol of notebook 11 as code: rows, trials, prompts, and runs that resume."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny import reward

from aisp.experiment.report import comparisons
from aisp.experiment.store.reading import load
from aisp.experiment.studies import beyond, contenders
from aisp.methods import configure

TUNED = {
    contenders.BEST: 0.8,
    contenders.NOISE: 0.35,
    contenders.AISP: 0.5,
    contenders.STEERED: 0.65,
}


def described(rows):
    return {x: configure(**m).describe() for x, m in rows.items()}


def test_rows_share_their_budget_and_differ_in_what_they_are_named_for():
    for samples in beyond.BUDGETS:
        configs = described(contenders.rows(beyond.size(samples), TUNED))
        assert tuple(configs) == (*contenders.GROUPS["first"], contenders.ALPHA)
        for config in configs.values():
            assert config["n"] * config["kappa"] == samples and config["max_new_tokens"] == 48
        best, published = configs[contenders.BEST], configs[contenders.AISP]
        steered = configs[contenders.STEERED]
        assert best["temperature"] == 0.8 and best["top_p"] == 1
        assert configs[contenders.NOISE]["adapt"] is False
        assert configs[contenders.NOISE]["sigma"] == 0.35
        assert (published["sigma"], published["lam"], published["alpha"]) == (0.5, 1.0, 0.99)
        assert not published["control_variate"] and published["steered"] is None
        assert steered["alpha"] == 1 and steered["control_variate"] and steered["steered"] == 16
        assert configs[contenders.VARIATE] == steered | {"steered": None}
        assert steered["sigma"] == 0.65
    with pytest.raises(ValueError, match="budget is 100; known: 128, 512, 1024"):
        beyond.size(100)


def test_a_row_without_trials_takes_the_value_of_the_row_that_it_names():
    tuned = {x: of.tried[1] for x, of in contenders.CONTENDERS.items() if of.tried}
    configs = described(contenders.rows(beyond.size(128), tuned))
    assert set(configs) == set(contenders.CONTENDERS)
    published = configs[contenders.MISVO]
    assert published["step_size"] == 1 and published["temperature"] == 1
    assert configs[contenders.MISVO_TEMPERED] == published | {"temperature": 0.65}
    assert configs[contenders.MISVO_FREE] == published | {
        "regularization": "none",
        "step_size": 5,
    }
    assert configs[contenders.MISVO_KL] == published | {"regularization": "kl"}
    ours, control = configs[contenders.RAM], configs[contenders.UNTRAINED]
    assert control == ours | {"aligner": "untrained"} and ours["kl_limit"] is None
    for row in (contenders.SUFFIX, contenders.PCN, contenders.SLICE, contenders.SMC):
        assert configs[row]["sigma"] == 0.5 and configs[row]["lam"] == 0.2
    assert configs[contenders.PCN]["pcn"] == 0.3 and configs[contenders.SUFFIX]["pcn"] is None
    assert configs[contenders.QALIGN]["temperature"] == 0.65
    without = configs[contenders.VARIATE] | {"control_variate": False}
    assert configs[contenders.ALPHA] == without
    assert contenders.of_groups("first, second,third,fourth") == list(contenders.CONTENDERS)
    with pytest.raises(ValueError, match="a group is 'fifth'; known: first, second, third, fourth"):
        contenders.of_groups("fifth")
    with pytest.raises(ValueError, match="a row is 'KAD'; known: best-of-n"):
        contenders.rows(beyond.size(128), tuned, ["KAD"])


def test_every_contrast_is_of_rows_of_its_group_or_the_first():
    for group, pairs in contenders.SECONDARY.items():
        known = {*contenders.GROUPS["first"], *contenders.GROUPS[group]}
        assert len(set(pairs)) == len(pairs) and {x for pair in pairs for x in pair} <= known
        assert contenders.PRIMARY not in pairs


def test_every_method_has_as_many_trials_and_only_its_own_dial_moves():
    tuned = {x: of.tried[0] for x, of in contenders.CONTENDERS.items() if of.tried}
    assert len({len(of.tried) for of in contenders.CONTENDERS.values() if of.tried}) == 1
    trials = described(contenders.trials(beyond.size(128), contenders.CONTENDERS, tuned))
    assert len(trials) == 3 * len(tuned)
    for label, of in contenders.tried(contenders.CONTENDERS).items():
        own = [trials[contenders.trial(label, v)] for v in of.tried]
        assert [c[of.dial] for c in own] == list(of.tried)
        others = [{k: v for k, v in c.items() if k != of.dial} for c in own]
        assert all(other == others[0] for other in others)


def test_no_prompt_of_a_trial_is_a_test_prompt():
    trials = {p.id for p in beyond.development()}
    tested = {p.id for p in beyond.prompts_of("builtin")}
    assert len(trials) == beyond.DEVELOPMENT and len(tested) == 32 and not trials & tested
    with pytest.raises(ValueError, match="set is 'pku'; known: builtin, shp, hh"):
        beyond.prompts_of("pku")


def made_up(means, prompts=("p0", "p1")):
    return pd.DataFrame(
        {"label": label, "prompt": p, "seed": 0, "reward": mean + i, "interrupted": False}
        for label, mean in means.items()
        for i, p in enumerate(prompts)
    )


def trial_means():
    rows = contenders.tried(beyond.FIRST)
    names = [contenders.trial(x, v) for x, of in rows.items() for v in of.tried]
    return dict.fromkeys(names, 0.0)


def test_the_highest_mean_is_taken_and_the_first_of_equals():
    means = trial_means() | {"noise only, sigma = 0.65": 2.0, "AISP, sigma = 0.5": 0.1}
    records = made_up(means)
    assert contenders.tuned(records, beyond.FIRST) == {
        contenders.BEST: 0.5,
        contenders.NOISE: 0.65,
        contenders.AISP: 0.5,
        contenders.STEERED: 0.35,
    }
    table = contenders.trial_table(records, beyond.FIRST)
    assert table.loc[contenders.NOISE].tolist() == [
        "sigma",
        "0.35: 0.50",
        "0.5: 0.50",
        "0.65: 2.50",
        "0.65",
    ]
    for missing in (records[records["label"] != "AISP, sigma = 0.5"], records.drop(index=3)):
        with pytest.raises(ValueError, match=r"trials are not complete.*action `tune`"):
            contenders.tuned(missing, beyond.FIRST)


def test_trials_and_runs_at_toy_size_resume(tiny, tmp_path):
    policy, own = tiny(), {"profile": "smoke", "folder": tmp_path, "progress": False}
    with pytest.raises(FileNotFoundError, match="there are no records"):
        beyond.run("builtin", 128, policy, reward, **own)
    chosen = beyond.tune(policy, reward, **own)
    assert set(chosen) == set(contenders.tried(beyond.FIRST))
    beyond.tune(policy, reward, labels=[contenders.SPECULATIVE], **own)
    labels = [contenders.BEST, contenders.SPECULATIVE, contenders.STEERED]
    few = beyond.run("builtin", 128, policy, reward, labels=labels, **own)
    assert few.groupby("label").size().to_dict() == dict.fromkeys(labels, 2)
    path, _, later, _ = beyond.paths("builtin", 128, "smoke", tmp_path).values()
    assert path == tmp_path / "beyond_builtin_128.jsonl" and later.stem.endswith("128_third")
    assert set(load(path)["label"]) == {contenders.BEST, contenders.STEERED}
    assert set(load(later)["label"]) == {contenders.SPECULATIVE}
    content = path.read_bytes()
    records = beyond.run("builtin", 128, policy, reward, seeds=[0, 1], **own)
    assert path.read_bytes().startswith(content)  # computed on, not anew
    assert records.groupby(["label", "seed"]).size().eq(2).all() and len(records) == 20
    steered = records[records["label"] == contenders.STEERED]["config"].iloc[0]
    assert steered["steered"] == 4 and steered["sigma"] == chosen[contenders.STEERED]
    with pytest.raises(ValueError, match="a row is 'KAD'; known: best-of-n"):
        beyond.run("builtin", 128, policy, reward, labels=["KAD"], **own)
    table = comparisons.proposals(records)
    assert list(table.index) == list(records["label"].unique())
    ours = records[records["label"] == contenders.AISP]["history"]
    expected = np.mean([h["reward_mean"][-1] for h in ours])
    assert table.loc[contenders.AISP, "samples, last"] == pytest.approx(expected)
    assert np.isnan(table.loc[contenders.BEST, "KL, last (nats)"])
    assert table.loc[contenders.NOISE, "KL, last (nats)"] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "--set", "pku"], "invalid choice: 'pku'"),
        (["run", "--budget", "100"], "invalid choice: 100"),
        (["run", "--seeds", "0,x"], "seeds is '0,x'; it must be different whole numbers >= 0"),
        (["run", "--seeds", "-1"], "seeds is '-1'; it must be different whole numbers >= 0"),
        (["run", "--seeds", "1,1"], "seeds is '1,1'; it must be different whole numbers"),
        (["tune", "--threads", "0"], "threads is 0; it must be a whole number >= 1"),
    ],
)
def test_a_bad_command_says_what_is_wrong(argv, message, capsys):
    with pytest.raises(SystemExit):
        beyond.main(argv)
    assert message in capsys.readouterr().err


def test_what_rows_had_found_along_the_way_is_computed_once_for_the_files_that_hold_them(
    tmp_path, monkeypatch
):
    asked = []

    def by_budget(shown, series, prompts, policy, judge):
        asked.append((list(shown["label"]), [p.id for p in prompts]))
        return pd.DataFrame({"label": list(series.settings["all"]), "reward": 0.123456789})

    monkeypatch.setattr(beyond.ablations, "by_budget", by_budget)
    files = beyond.paths("builtin", 1024, folder=tmp_path)
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("of one kind\n")
    shown = pd.DataFrame({"label": [contenders.AISP, contenders.SCORES], "seed": [0, 0]})
    named = SimpleNamespace(name="made up")

    def go():
        return beyond.along("builtin", 1024, shown, named, named, folder=tmp_path)

    table, path = go()
    assert (
        path.name == "beyond_builtin_1024_budget.csv" and table["reward"].tolist() == [0.12346] * 2
    )
    ids = [p.id for p in beyond.prompts_of("builtin")]
    assert asked == [([contenders.AISP, contenders.SCORES], ids)]
    files["second"].write_text("of another kind\n")  # holds none of these rows
    go()
    assert len(asked) == 1
    files["third"].write_text("of another kind\n")
    go()
    assert len(asked) == 2
