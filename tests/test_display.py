"""How results show themselves: escaped, finite, and in agreement with the candidates."""

import io
import re

import pytest
from tiny import reward

import aisp
from aisp import display

SMALL = dict(n=4, kappa=3, max_new_tokens=5, progress=False)


def test_text_of_prompt_and_response_is_never_markup():
    shown = display.card("a < b", "<script>alert(1)</script>", "</td><img src=x>", 1.0, [0.5, 1.0])
    assert "<script>" not in shown and "<img" not in shown
    assert "&lt;script&gt;" in shown and "&lt;/td&gt;&lt;img src=x&gt;" in shown


def test_text_is_shown_without_what_a_terminal_would_obey():
    text = "red \x1b[31m, \tnext\r\nline, \x9b, ñ, שלום, 👩‍👧"
    assert display.printable(text) == r"red \x1b[31m, \tnext\r\nline, \x9b, ñ, שלום, 👩‍👧"
    assert display.printable("a\u202eb\u200bc\u2028\ud800") == r"a\u202eb\u200bc\u2028\ud800"
    whole = "ø 你好 🙂 \u3000 می\u200cخواهم"  # two joined words of Persian
    assert display.printable(whole) == whole


def test_an_alignment_shows_what_it_found(tiny):
    out = aisp.align("Is 1 < 2?", tiny(), reward, **SMALL)
    shown = out._repr_html_()
    assert "Is 1 &lt; 2?" in shown and f"{out.reward:.3f}" in shown and "<svg" in shown
    assert shown.count("<circle") == 12 and "12 samples in 3 iterations" in shown
    figure = out.plot()
    (ax,) = figure.axes
    samples, best = ax.lines[:2]
    assert samples.get_ydata().tolist() == out.candidates["reward"].tolist()
    assert best.get_ydata()[-1] == out.reward
    assert len(ax.lines) == 4  # samples, best so far, and two borders of iterations
    figure.savefig(io.BytesIO())  # which lays it out
    assert not figure.legends[0].get_window_extent().overlaps(ax.get_window_extent())


def test_the_line_is_the_best_so_far_and_rises():
    rewards = [float("-inf"), 0.0, -1.0, 2.0, float("nan"), 1.0]
    drawn = display.curve(rewards)
    points = re.search('points="([^"]*)"', drawn)[1].split()
    heights = [float(p.split(",")[1]) for p in points]
    assert len(points) == 5 and heights == sorted(heights, reverse=True)  # y grows downwards
    assert drawn.count("<circle") == 4


@pytest.mark.parametrize("rewards", [[], [float("-inf")], [float("nan")] * 2])
def test_no_finite_reward_is_said(rewards):
    assert display.curve(rewards) == "no finite reward"


def test_one_reward_and_equal_rewards_are_drawn_within_the_frame():
    for rewards in ([1.0], [2.0, 2.0, 2.0]):
        coordinates = re.findall(r'c[xy]="([\d.]+)"', display.curve(rewards))
        assert all(0 <= float(c) <= display.WIDTH for c in coordinates) and coordinates
