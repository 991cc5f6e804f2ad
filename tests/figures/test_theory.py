"""The figures of the theory notebook draw their tables."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from aisp import figures
from aisp.theory import studies


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def drawn(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_the_loop_has_a_box_for_each_part():
    (ax,) = figures.theory_flow().axes
    boxes = [t for t in ax.texts if t.get_bbox_patch()]
    assert len(boxes) == 7 and len([t for t in ax.texts if hasattr(t, "arrow_patch")]) == 8


def test_the_bound_stands_above_the_values():
    hills = studies.two_hills(0.5, 0.1)
    tilts = pd.DataFrame(
        {"s": [0.0, 1.0, 2.0], "value": [0.1, 0.5, 0.4], "reward": [0.1, 0.6, 0.9]}
    )
    fig = figures.theory_free_energy(tilts, 0.5, hills)
    left, right = map(drawn, fig.axes)
    np.testing.assert_allclose(left[r"$E_Q[r]$"], tilts[["s", "reward"]])
    assert left[r"bound $\lambda F$"][0, 1] == 0.5
    assert right["its maximum"][0].tolist() == [hills.best, hills.value.max()]
    assert right[r"$E_{Q^*}[v]$"][0, 0] == hills.target


def test_errors_and_trades_are_those_of_their_tables():
    bias = pd.DataFrame({"n": [8, 16], "bias": [-0.2, -0.1], "se": [0.01, 0.01]})
    (ax,) = figures.theory_snis_bias(bias.assign(leading=[-0.25, -0.12])).axes
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xydata(), [[8, 0.2], [16, 0.1]])
    trade = pd.DataFrame(
        [(s, a, s * a, 1 / (1 + s), 1 + s * a) for s in (1.0, 2.0) for a in (0.0, 1.0)],
        columns=["scale", "alpha", "bias", "ess", "rmse"],
    )
    left, right = figures.theory_alpha(trade, 64).axes
    np.testing.assert_allclose(drawn(right)["$U=2\\,U^*$"], [[0, 1 / 3], [1, 1 / 3]])
    assert left.lines[2].get_xydata().tolist() == [[0, 0], [1, 2]]  # the bias at scale 2
    assert left.lines[3].get_xydata().tolist() == [[0, 1], [1, 3]]  # its RMSE


def test_an_alpha_has_one_color_in_every_figure():
    columns = ["alpha", "samples", "iteration", "kl", "distance", "ess", "reward"]
    rows = [(a, s, k, 1.0, a, 0.5, k) for a in (0.0, 0.99) for s in (64, np.inf) for k in (0, 1)]
    course = figures.theory_iteration(pd.DataFrame(rows, columns=columns)).axes
    split = pd.DataFrame(
        [(a, n, 8 // n, a, n, 0.1) for a in (0.0, 0.9, 0.99) for n in (8, 4)],
        columns=["alpha", "n", "kappa", "error", "reward", "se"],
    )
    left, right = figures.theory_n_vs_kappa(split, 9.0).axes
    np.testing.assert_allclose(drawn(left)["$\\alpha=0.9$"], [[0, 0.9], [1, 0.9]])
    assert [t.get_text() for t in right.get_xticklabels()] == ["8×1", "4×2"]
    np.testing.assert_allclose(drawn(course[1])["$\\alpha=0.99$"], [[0, 0.99], [1, 0.99]])
    cloud = pd.DataFrame({"perturbations": [1.0, 2.0], "texts": [0.5, 0.6]})
    (ax,) = figures.theory_kl(cloud, cloud * 2).axes
    np.testing.assert_allclose(drawn(ax)["direction of $\\alpha=0.99$"], [[2, 1], [4, 1.2]])
    one = {line.get_label(): line.get_color() for x in (course[0], left) for line in x.lines}
    ray = next(x for x in ax.lines if str(x.get_label()).startswith("direction"))
    assert one["$\\alpha=0.99$"] == ray.get_color() != one["$\\alpha=0$"]


def test_prelogits_and_noise_are_drawn_as_measured():
    rows = [("step 9", p, x, x / 2, 0.0, 1.0) for p in PANELS for x in (1.0, 2.0)]
    table = pd.DataFrame(rows, columns=["set", "panel", "x", "y", "low", "high"])
    left, middle, right = figures.theory_gaussianity(table, 10).axes
    np.testing.assert_allclose(drawn(left)["step 9"], [[1, 0.5], [2, 1]])
    assert "10 comp" in middle.get_title() and len(right.lines) == 1
    shares = {
        f"{what} {who}": [0.9, 0.5] for what in ("top-1", "tail") for who in ("noise", "softmax")
    }
    noise = pd.DataFrame({"sigma": [0.1, 0.5], "T matched": [0.2, 0.6], "T predicted": [0.2, 0.9]})
    axes = figures.theory_noise_temperature(noise.assign(**shares)).axes
    np.testing.assert_allclose(drawn(axes[0])["same entropy"], [[0.1, 0.2], [0.5, 0.6]])
    np.testing.assert_allclose(drawn(axes[2])["softmax at that $T$"], [[0.1, 0.9], [0.5, 0.5]])


PANELS = ("marginals", "distances", "spectrum")
