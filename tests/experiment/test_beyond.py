"""The protocol of notebook 11 as code: rows, trials, prompts, and runs that resume."""

import numpy as np
import pandas as pd
import pytest
from tiny import reward

from aisp.experiment import beyond
from aisp.methods import configure

TUNED = {beyond.BEST: 0.8, beyond.NOISE: 0.35, beyond.AISP: 0.5, beyond.STEERED: 0.65}


def test_rows_share_their_budget_and_differ_in_what_they_are_named_for():
    for samples in beyond.BUDGETS:
        budget = beyond.size(samples)
        rows = beyond.rows(budget, TUNED)
        configs = {x: configure(**m).describe() for x, m in rows.items()}
        assert tuple(rows) == beyond.ROWS
        for config in configs.values():
            assert config["n"] * config["kappa"] == samples and config["max_new_tokens"] == 48
        assert configs[beyond.BEST]["temperature"] == 0.8 and configs[beyond.BEST]["top_p"] == 1
        assert configs[beyond.NOISE]["adapt"] is False and configs[beyond.NOISE]["sigma"] == 0.35
        published, steered = configs[beyond.AISP], configs[beyond.STEERED]
        assert (published["sigma"], published["lam"], published["alpha"]) == (0.5, 1.0, 0.99)
        assert not published["control_variate"] and published["steered"] is None
        assert steered["alpha"] == 1 and steered["control_variate"] and steered["steered"] == 16
        assert configs[beyond.VARIATE] == steered | {"steered": None}
        assert steered["sigma"] == 0.65
    with pytest.raises(ValueError, match="budget is 100; known: 128, 512, 1024"):
        beyond.size(100)


def test_every_method_has_as_many_trials_and_only_its_own_dial_moves():
    assert len({len(values) for _, values in beyond.TRIALS.values()}) == 1
    trials = {x: configure(**m).describe() for x, m in beyond.trials(beyond.size(128)).items()}
    assert len(trials) == sum(len(values) for _, values in beyond.TRIALS.values())
    for label, (dial, values) in beyond.TRIALS.items():
        own = [trials[beyond.trial(label, dial, v)] for v in values]
        assert [c[dial] for c in own] == list(values)
        others = [{k: v for k, v in c.items() if k != dial} for c in own]
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
    names = [beyond.trial(x, dial, v) for x, (dial, vs) in beyond.TRIALS.items() for v in vs]
    return dict.fromkeys(names, 0.0)


def test_the_highest_mean_is_taken_and_the_first_of_equals():
    means = trial_means() | {"noise only, sigma = 0.65": 2.0, "AISP, sigma = 0.5": 0.1}
    records = made_up(means)
    assert beyond.tuned(records) == {
        beyond.BEST: 0.5,
        beyond.NOISE: 0.65,
        beyond.AISP: 0.5,
        beyond.STEERED: 0.35,
    }
    table = beyond.trial_table(records)
    assert table.loc[beyond.NOISE].tolist() == [
        "sigma",
        "0.35: 0.50",
        "0.5: 0.50",
        "0.65: 2.50",
        "0.65",
    ]
    for missing in (records[records["label"] != "AISP, sigma = 0.5"], records.drop(index=3)):
        with pytest.raises(ValueError, match=r"trials are not complete.*beyond tune"):
            beyond.tuned(missing)


def test_trials_and_runs_at_toy_size_resume(tiny, tmp_path):
    policy, own = tiny(), {"profile": "smoke", "folder": tmp_path, "progress": False}
    with pytest.raises(FileNotFoundError, match="there are no records"):
        beyond.run("builtin", 128, policy, reward, **own)
    chosen = beyond.tune(policy, reward, **own)
    assert set(chosen) == set(beyond.TRIALS)
    few = beyond.run("builtin", 128, policy, reward, labels=[beyond.BEST, beyond.STEERED], **own)
    assert len(few) == 4
    path = tmp_path / "beyond_builtin_128.jsonl"
    content = path.read_bytes()
    records = beyond.run("builtin", 128, policy, reward, seeds=[0, 1], **own)
    assert path.read_bytes().startswith(content)  # computed on, not anew
    assert records.groupby(["label", "seed"]).size().eq(2).all() and len(records) == 20
    steered = records[records["label"] == beyond.STEERED]["config"].iloc[0]
    assert steered["steered"] == 4 and steered["sigma"] == chosen[beyond.STEERED]
    with pytest.raises(ValueError, match="a row is 'KAD'; known: best-of-n"):
        beyond.run("builtin", 128, policy, reward, labels=["KAD"], **own)
    table = beyond.proposals(records)
    assert list(table.index) == list(records["label"].unique())
    ours = records[records["label"] == beyond.AISP]["history"]
    expected = np.mean([h["reward_mean"][-1] for h in ours])
    assert table.loc[beyond.AISP, "samples, last"] == pytest.approx(expected)
    assert np.isnan(table.loc[beyond.BEST, "KL, last (nats)"])
    assert table.loc[beyond.NOISE, "KL, last (nats)"] == 0


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
