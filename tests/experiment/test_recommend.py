"""README's answer: what stands highest, by which lead, and what cannot be told from it."""

import pandas as pd
import pytest
from fake_runs import measured

from aisp.experiment import recommend
from aisp.experiment.studies import beyond, declared, places, standing
from aisp.experiment.studies.contenders import (
    AISP,
    ALPHA,
    BEST,
    CONTENDERS,
    GROUPS,
    MISVO_FREE,
    NOISE,
    PRIMARY,
    RAM,
    SCORES,
    STEERED,
    UNTRAINED,
    VARIATE,
    trial,
)

FIRST = GROUPS["first"]


def test_the_highest_row_and_those_that_are_level_with_it():
    records = measured({BEST: (0, 0), NOISE: (0, 0.02), AISP: (1, -1), STEERED: (1.02, 0)})
    found = standing.standing(records, "reward", FIRST)
    assert found.first in (AISP, STEERED) and len(found.level) == 1
    assert {found.first, *found.level} == {AISP, STEERED}
    assert found.lead == declared.nested(records, found.first, BEST).contrast
    assert found.lead.verdict == "higher"
    by_judge = standing.standing(records, "judged", FIRST)
    assert AISP not in (by_judge.first, *by_judge.level)
    assert {by_judge.first, *by_judge.level} == {BEST, NOISE, STEERED}


def test_best_of_n_is_said_to_be_first_where_it_is():
    records = measured({BEST: (1, 1), NOISE: (0, 0), AISP: (0.5, 0)})
    found = standing.standing(records, "reward", FIRST)
    assert (found.first, found.lead.second, found.level) == (BEST, AISP, [])
    assert 0.3 < found.lead.difference < 0.7
    text = recommend.answer({("builtin", 128): records})
    assert f"| 128 | built-in 12, 3 | **{BEST}**, {found.lead.signed} over {AISP} |" in text


def test_the_advice_is_what_the_standings_are():
    def of(**shifts):
        records = measured({BEST: (0, 0), NOISE: (0, 0)} | shifts)
        return " ".join(recommend.advice({("builtin", 128): records}))

    assert "best-of-n at its tuned temperature: run that" in of()
    both = of(**{STEERED: (1, 1)})
    assert f"**If a learned reward is what you want**, run {STEERED}." in both
    assert f"**By a judge that was not optimized**, above best-of-n: {STEERED} (+0." in both
    only = of(**{STEERED: (1, 0), AISP: (1, 0)})
    assert " (not told from it: " in only and "only stands in for what you want" in only
    trained = of(**{STEERED: (1, 1), RAM: (2, 2)})
    assert trained == both  # rows that need training have no part in it


def test_where_a_trained_row_is_highest_the_highest_of_the_others_is_named_too():
    records = measured({BEST: (0, 0), RAM: (2, 0), STEERED: (1, 0)})
    lead = {x: declared.nested(records, x, BEST).contrast.signed for x in (RAM, STEERED)}
    text = recommend.answer({("builtin", 128): records})
    assert (
        f"**{RAM}**, {lead[RAM]} over best-of-n; of the rows that can be advised **{STEERED}**"
        in text
    )
    assert f"**{STEERED}**, {lead[STEERED]} over best-of-n" in text
    assert text.count("can be advised") == 1  # by the reward alone: by the judge rows are level


def test_many_rows_that_are_level_are_counted():
    level = {x: (1, 0) for x in CONTENDERS if x not in (BEST, RAM)}
    text = recommend.answer({("builtin", 128): measured({BEST: (0, 0)} | level)})
    by_reward, by_judge = text.splitlines()[2].split(" | ")[2:4]
    others = len(level) - 1
    assert by_reward.endswith(f" (not told from it: {others} other rows)")
    assert f" (not told from it: best-of-n and {others} other rows)" in by_judge


def test_the_outcome_names_both_measures():
    records = measured({BEST: (0, 0), STEERED: (1, 0)})
    said = recommend.outcome({("builtin", 128): records})
    assert "**confirmed**" in said and "By the judge, " in said
    assert PRIMARY == (STEERED, BEST)


def test_rows_of_other_groups_count_in_the_seeds_in_which_they_are_whole():
    shifts = {x: (0, 0) for x in FIRST} | {UNTRAINED: (1, 0), RAM: (1.02, 1)}
    records = measured(shifts)
    records = records[~(records["label"].isin([RAM, UNTRAINED]) & (records["seed"] == 2))]
    trials = pd.DataFrame(
        {"label": trial(x, v), "prompt": "d", "reward": v, "seed": 0, "interrupted": False}
        for x in (RAM, UNTRAINED)
        for v in CONTENDERS[x].tried
    )
    found = recommend.further(records, trials)
    assert list(found) == ["second"] and found["second"].seeds == [0, 1]
    assert found["second"].trials["taken"].tolist() == ["1", "1"]
    table = found["second"].contrasts
    assert table.loc[f"{RAM} minus {BEST}, by reward", "verdict"] == "higher"
    assert table.loc[f"{RAM} minus {UNTRAINED}, by reward", "verdict"] == "undecided"
    assert table.loc[f"{RAM} minus {UNTRAINED}, by judge", "verdict"] == "higher"
    assert len(table) == 2 * 5
    assert recommend.further(measured({BEST: (0, 0)}), trials) == {}


def test_records_without_measures_are_left_out(tmp_path):
    assert places.stored(tmp_path) == {}
    with pytest.raises(KeyError):
        recommend.outcome({})


def test_a_row_of_a_later_group_joins_the_answer_where_it_is_whole():
    shifts = {x: (0, 0) for x in FIRST} | {RAM: (1, 0), UNTRAINED: (2, 0)}
    records = measured(shifts)
    records = records[(records["label"] != UNTRAINED) | (records["seed"] < 2)]
    records = records[~records["label"].isin(FIRST) | (records["seed"] < 3)]
    found = places.comparable(records)
    assert set(found["label"]) == {*FIRST, RAM}  # of UNTRAINED a seed is missing
    assert f"**{RAM}**" in recommend.answer({("builtin", 128): found})
    fewer = records[(records["label"] != AISP) | (records["seed"] < 2)]
    both = places.comparable(fewer)
    assert set(both["label"]) == {*FIRST, RAM, UNTRAINED} and set(both["seed"]) == {0, 1}


def test_a_program_s_checks_have_a_column_of_their_own():
    records = measured({x: (0, 0) for x in FIRST})
    checked = measured({BEST: (0, 0), NOISE: (0, 0), STEERED: (0.4, 0), SCORES: (0.1, 0)})
    checked = checked.assign(soon=checked["reward"], samples=128)
    found = {("builtin", 128): records, ("builtin", 512): records}
    lines = recommend.answer(found, checked).splitlines()
    assert {line.count("|") for line in lines} == {6}
    assert f"**{STEERED}**, +0." in lines[2] and lines[2].endswith("over best-of-n (12, 3) |")
    assert lines[3].endswith("|  |")
    assert {line.count("|") for line in recommend.answer(found).splitlines()} == {5}


def test_no_records_of_checks_make_no_column(tmp_path):
    assert recommend.checked(tmp_path) is None


def test_the_advice_goes_on_with_larger_budgets():
    main = measured({x: (0, 0) for x in FIRST} | {STEERED: (1, 0)})
    larger = measured({BEST: (0, 0), AISP: (3, 3), STEERED: (1, -1)}, seeds=1)
    found = {("builtin", 128): main, ("builtin", 512): larger}
    said = " ".join(recommend.advice(found))
    lead, judged = (
        declared.nested(larger, STEERED, BEST, x).contrast.signed for x in ("reward", "judged")
    )
    assert "This is from built-in, 128 samples (12 prompts, 3 seeds). At 512" in said
    # Of the row that is advised, not of the one that is highest there.
    assert said.endswith(
        "At 512 samples of the built-in set (12 prompts, 1 seed), against best-of-n, "
        f"{STEERED} is above it by the reward ({lead}), and below it by the judge ({judged})."
    )
    checked = measured({BEST: (0, 0), STEERED: (0, 0)}).rename(columns={"reward": "soon"})
    checked = checked.assign(reward=0.0)
    last = recommend.advice(found, checked)[-1]
    assert last.startswith("Where a program checks, by how soon a response passes (12 prompts")
    assert f"{STEERED} is not told from it (" in last
    without = larger[larger["label"] != STEERED]
    said = recommend.advice({("builtin", 128): main, ("builtin", 512): without})
    assert said[-1].endswith(f"{STEERED} is not stored.")


def test_the_advice_follows_the_rows_that_are_level_with_its_first():
    main = measured({BEST: (0, 0), STEERED: (1, 0), SCORES: (1, 0)})
    larger = measured({BEST: (0, 0), STEERED: (1, 0), SCORES: (-1, 0)})
    first, then = recommend.advice({("builtin", 128): main, ("builtin", 512): larger})
    row, other = (STEERED, SCORES) if f"run {STEERED}" in first else (SCORES, STEERED)
    assert f"run {row} (not told from it: *{other}*)" in first
    leads = {
        x: declared.nested(larger, x, BEST, "reward").contrast.signed for x in (STEERED, SCORES)
    }
    assert f"{STEERED} is above it by the reward ({leads[STEERED]})" in then
    assert f"{SCORES} is below it by the reward ({leads[SCORES]})" in then
    assert then.index(row) < then.index(other)


def test_a_row_that_leaves_the_policy_is_not_advised_and_it_is_said_why():
    shifts = {BEST: (0, 0), AISP: (-1, -1), STEERED: (1, 0), MISVO_FREE: (2, 1)}
    records = measured(shifts).assign(per_token=1.0, length=40.0, coherence=0.3)
    records["at_length"] = records["judged"] - 2 * (records["label"] == MISVO_FREE)
    same = " ".join(recommend.advice({("builtin", 128): records}))
    assert f"run {MISVO_FREE}." in same and "Not advised" not in same
    stray = records["label"].isin([MISVO_FREE, AISP])  # of which AISP stands no higher
    records.loc[stray, ["per_token", "length"]] = (2.1, 20.0)
    first, why = recommend.advice({("builtin", 128): records})
    assert f"run {STEERED}." in first and "at equal length, no row is above it" in first
    leads = {
        x: declared.nested(records, MISVO_FREE, BEST, x).contrast.signed
        for x in ("reward", "at_length")
    }
    assert why == (
        f"**Not advised: {MISVO_FREE}.** It stands higher by the reward ({leads['reward']} over "
        "best-of-n), but its responses leave what the policy says: 2.1 nats per token in surprisal, "
        "where best-of-n has 1.0, and 20 tokens for 40; by the judge at equal length it is below "
        f"best-of-n ({leads['at_length']})."
    )
    row = recommend.answer({("builtin", 128): records}).splitlines()[2]
    assert f"| **{MISVO_FREE}**, " in row and f"can be advised **{STEERED}**, " in row
    heading = recommend.answer({("builtin", 128): records}).splitlines()[0]
    assert "highest by the judge at equal length" in heading


def test_aisp_as_published_is_set_against_both_controls():
    level = {x: (0, 0) for x in FIRST}
    found = {("builtin", 128): measured(level | {AISP: (0, -1)})}
    said = recommend.published(found)
    gaps = {
        (x, m): declared.nested(found["builtin", 128], AISP, x, m).contrast.signed
        for x in (BEST, NOISE)
        for m in ("reward", "judged")
    }
    assert f"minus best-of-n at its tuned temperature, {gaps[BEST, 'reward']} by the reward" in said
    assert f"minus noise only, {gaps[NOISE, 'reward']} by the reward" in said
    assert f"and {gaps[NOISE, 'judged']} by the judge" in said
    told = f"told from 0 of these: {AISP} minus {BEST}, by judge, {AISP} minus {NOISE}, by judge."
    assert f"with the 15 secondary contrasts, {told}" in said
    assert recommend.published({("builtin", 128): measured(level)}).endswith("these: none.")
    cut = found["builtin", 128].assign(at_length=found["builtin", 128]["judged"])
    gap = declared.nested(cut, AISP, BEST, "at_length").contrast.signed
    assert recommend.published({("builtin", 128): cut}) == (
        f"{said} At equal length, which was not declared, the judge has it below best-of-n: {gap}."
    )
    assert recommend.parts(found) == ""
    both = {("builtin", 128): measured(level | {STEERED: (1, 0), VARIATE: (1, 0), ALPHA: (1, 0)})}
    said = recommend.parts(both)
    alpha, rest = (
        declared.nested(both["builtin", 128], *pair).contrast.signed
        for pair in ((ALPHA, AISP), (VARIATE, ALPHA))
    )
    assert f"*{ALPHA}* minus *{AISP}*, {alpha} by the reward" in said
    assert f"*{VARIATE}* minus *{ALPHA}*, {rest} by the reward" in said
    assert said.endswith(
        f"with the 4 secondary contrasts, told from 0 of these: {ALPHA} minus {AISP}, by reward."
    )
    short = recommend.tuned_gain(found)
    assert short == f"{gaps[BEST, 'reward']} by the reward, {gaps[BEST, 'judged']} by the judge"


def test_the_declared_contrasts_are_said_of_other_budgets_and_sets_too():
    main = measured({x: (0, 0) for x in FIRST})
    more = measured({BEST: (0, 0), NOISE: (0, 0), STEERED: (1, 1), SCORES: (2, 0)})
    found = {("builtin", 512): more, ("builtin", 128): main}
    assert recommend.elsewhere({("builtin", 128): main}, "builtin", 128) == {}
    ((where, said),) = recommend.elsewhere(found, "builtin", 128).items()
    assert where == "built-in, 512 samples" and said[0].startswith("The pair of the primary")
    assert f"**{STEERED}** is above {BEST} by " in said[0] and "By the judge, " in said[0]
    assert list(recommend.elsewhere(found, "builtin", 512)) == ["built-in, 128 samples"]
    first, third = (x for x in said if x.startswith("Of the "))
    # Two pairs by both measures, and the primary one by the judge.
    assert first.startswith("Of the first group: 5 secondary contrasts")
    assert third.startswith("Of the third group: 4 secondary contrasts")
    assert any(x.startswith("Above 0") and f"{SCORES} minus {BEST}, by reward" in x for x in said)


def test_all_sets_together_have_the_rows_and_seeds_that_each_has(tmp_path, monkeypatch):
    shifts = {x: (0, 0) for x in FIRST} | {SCORES: (1, 0)}
    sets = {x: measured(shifts) for x in beyond.SETS}
    for which, of in sets.items():
        sets[which] = of.assign(prompt=[f"{which} {x}" for x in of["prompt"]])
    hh = sets["hh"]
    sets["hh"] = hh[(hh["label"] != SCORES) & (hh["seed"] < 2)]

    def stored(sets_there):
        for which in sets_there:
            path = beyond.paths(which, 128, folder=tmp_path)["first"]
            path.touch()
        by_path = {beyond.paths(x, 128, folder=tmp_path)["first"]: of for x, of in sets.items()}
        monkeypatch.setattr(places, "load", by_path.__getitem__)
        monkeypatch.setattr(places.measures, "kept", lambda records, path: records)
        return places.stored(tmp_path)

    assert set(stored(["builtin", "shp"])) == {("builtin", 128), ("shp", 128)}
    found = stored(["hh"])
    together = found[places.TOGETHER, 128]
    assert together["prompt"].nunique() == sum(of["prompt"].nunique() for of in sets.values())
    assert set(together["label"]) == set(FIRST) and set(together["seed"]) == {0, 1}
    unseen = found[places.UNSEEN, 128]
    assert set(unseen["prompt"]) == set(sets["shp"]["prompt"]) | set(sets["hh"]["prompt"])
    rows = [line.split(" | ")[1] for line in recommend.answer(found).splitlines()[2:]]
    pooled = ["SHP and HH-RLHF 24, 2", "all three sets 36, 2"]
    assert rows == ["built-in 12, 3", "SHP 12, 3", "HH-RLHF 12, 2", *pooled]
    sets["hh"] = hh
    assert SCORES in set(stored([])[places.TOGETHER, 128]["label"])
    said = " ".join(recommend.advice(stored([])))
    assert "This is from all three sets, 128 samples (36 prompts, 3 seeds)" in said
    assert "On SHP and HH-RLHF alone, which no choice of rows saw (24 prompts, 3 seeds)" in said
    assert "Of all rows" not in said
    builtin = sets["builtin"]
    sets["builtin"] = pd.concat([builtin, *(of_row(builtin, x) for x in (UNTRAINED, RAM))])
    more = recommend.advice(stored([]))[-1]
    lead = declared.nested(sets["builtin"], UNTRAINED, BEST).contrast.signed
    assert more.startswith(
        "Of all rows of the built-in set that can be advised, highest by the reward"
    )
    assert f"is **{UNTRAINED}**, {lead} over best-of-n; highest by the judge is " in more
    columns = {"coherence": builtin["reward"] / 10, "surprisal": 40 + builtin["judged"] / 10}
    columns["length"] = 40.0
    sets["builtin"] = pd.concat(
        [builtin.assign(**columns), of_row(builtin.assign(**columns), UNTRAINED)]
    )
    texts = recommend.advice(stored([]))[-1]
    gap = declared.nested(sets["builtin"], UNTRAINED, BEST, "coherence").contrast.signed
    assert f"Responses of {UNTRAINED} differ from those of best-of-n by {gap} in coherence" in texts
    drawn = set(recommend.leads(stored([]))["place"])
    assert "all three sets, 128 samples" in drawn and "SHP and HH-RLHF, 128 samples" not in drawn


def of_row(records, label):
    """A row whose reward is 3 above that of best-of-n."""
    best = records[records["label"] == BEST]
    return best.assign(label=label, reward=best["reward"] + 3)


def test_leads_are_those_over_best_of_n_in_every_place():
    main = measured({x: (0, 0) for x in FIRST} | {SCORES: (1, 0), RAM: (2, 0)})
    more = measured({BEST: (0, 0), STEERED: (1, 1)}, seeds=1)
    table = recommend.leads({("builtin", 1024): more, ("builtin", 128): main})
    assert list(table["place"].unique()) == ["built-in, 128 samples", "built-in, 1,024 samples"]
    assert set(table["label"]) == {*FIRST, SCORES} - {BEST}  # RAM is not among the rows shown
    last = table.iloc[-2]
    gap = declared.nested(more, STEERED, BEST).contrast
    assert (last["label"], last["measure"], last["seeds"]) == (STEERED, "reward", 1)
    assert (last["difference"], last["low"], last["high"]) == gap[3:6]
    assert last["verdict"] == gap.verdict and last["prompts"] == gap.prompts
