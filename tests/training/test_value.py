"""Training the value function: the Bellman target, a toy with a known value, and resuming."""

import pytest
import torch

import aisp
from aisp.methods.value import ValueFunction, load_value
from aisp.training.value import bellman, main, train
from aisp.training.value_data import Trajectories, collect, within_prompt_correlation

D, T = 6, 5


def drift(N=600, seed=0, prompts=20):
    """Pre-logits that perform a random walk, with a reward linear in the last: V(h) = a . h.

    Lengths differ, and past its end a response is zero, as the engine leaves it.
    """
    g = torch.Generator().manual_seed(seed)
    h = (torch.randn(N, T, D, generator=g) * torch.tensor([1.5] + [0.3] * (T - 1))[:, None]).cumsum(
        1
    )
    lengths = torch.randint(1, T + 1, (N,), generator=g)
    a = torch.randn(D, generator=torch.Generator().manual_seed(99))
    rewards = (h[torch.arange(N), lengths - 1] @ a).double()
    h[torch.arange(T) >= lengths[:, None]] = 0
    return Trajectories(h, lengths, rewards, torch.arange(N) % prompts), a


def test_the_last_valid_position_gets_the_reward_and_the_others_the_next_value():
    data, _ = drift(N=40)
    rows, steps = torch.nonzero(torch.arange(T) < data.lengths[:, None]).unbind(-1)
    value = ValueFunction(D, 8, torch.Generator().manual_seed(0))
    prediction, target = bellman(value, data, rows, steps)
    assert prediction.requires_grad and not target.requires_grad
    for i, t, v, y in zip(
        rows.tolist(), steps.tolist(), prediction.tolist(), target.tolist(), strict=True
    ):
        assert v == pytest.approx(value(data.prelogits[i, t]).item(), abs=1e-5)
        if t == data.lengths[i] - 1:
            assert y == pytest.approx(data.rewards[i].item(), abs=1e-5)
        else:
            assert y == pytest.approx(value(data.prelogits[i, t + 1]).item(), abs=1e-5)


def test_the_gradient_is_that_of_the_prediction_alone():
    data, _ = drift(N=10)
    rows, steps = torch.nonzero(torch.arange(T) < data.lengths[:, None] - 1).unbind(-1)
    value = ValueFunction(D, 8, torch.Generator().manual_seed(0))
    prediction, target = bellman(value, data, rows, steps)
    (prediction - target).square().mean().backward()
    fixed = target.clone()
    expected = torch.autograd.grad(
        (value(data.prelogits[rows, steps]) - fixed).square().mean(), list(value.parameters())
    )
    for p, g in zip(value.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.fixture(scope="module")
def trained():
    data, a = drift(N=3000)
    value, report = train(data, width=64, epochs=60, patience=60, rate=2e-3, progress=False)
    return data, a, value, report


def test_the_learned_value_approaches_the_true_one(trained):
    _, a, value, report = trained
    fresh, _ = drift(N=500, seed=7)
    rows, steps = torch.nonzero(torch.arange(T) < fresh.lengths[:, None]).unbind(-1)
    h = fresh.prelogits[rows, steps]
    true = h @ a
    error = (value(h) - true).square().mean() / true.var()
    assert error < 0.05, f"{error:.3f} of the variance of the true value is missed"
    losses = report["validation_loss"]
    assert report["epoch"] == losses.index(min(losses)) + 1 and len(losses) <= 60
    assert report["r2"] == pytest.approx(1 - min(losses) / report["loss_of_the_mean"])
    assert 0.5 < report["r2"] < 1
    assert report["responses_fitted"] + report["responses_held_out"] == 3000
    assert not any(p.requires_grad for p in value.parameters())


def test_ascent_raises_the_true_value(trained):
    data, a, value, _ = trained
    h = data.prelogits[:200, 0]
    with torch.inference_mode():
        up = value.ascend(h, steps=10, step_size=0.05)
    assert ((up - h) @ a > 0).float().mean() > 0.97
    one = value.ascend(h, steps=1, step_size=0.05)
    (gradient,) = torch.autograd.grad(value(x := h.clone().requires_grad_()).sum(), x)
    torch.testing.assert_close(one, h + 0.05 * gradient)
    torch.testing.assert_close(value.ascend(h, steps=3, step_size=0.0), h)


def test_training_resumes_exactly(tmp_path):
    data, _ = drift(N=200)
    options = dict(width=16, patience=99, seed=3, progress=False)
    whole, report = train(data, epochs=6, **options)
    train(data, epochs=2, checkpoint=tmp_path / "a.pt", **options)
    resumed, again = train(data, epochs=6, checkpoint=tmp_path / "a.pt", **options)
    assert again == report
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    other, _ = train(data, epochs=6, **{**options, "seed": 4})
    assert not torch.equal(other.layers[0].weight, whole.layers[0].weight)


def test_it_stops_early():
    data, _ = drift(N=60)
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    data = Trajectories(data.prelogits, data.lengths, noise, data.prompt)  # nothing to learn
    _, report = train(data, width=32, epochs=200, patience=3, rate=3e-3, progress=False)
    assert len(report["validation_loss"]) == report["epoch"] + 3 < 200


def test_one_prompt_cannot_be_split():
    data, _ = drift(N=10, prompts=1)
    with pytest.raises(ValueError, match="data has 1 prompt; training needs one more"):
        train(data)


def test_collected_responses_are_the_engines(tiny, tmp_path):
    policy = tiny()
    prompts = aisp.load_prompts("builtin", limit=3)

    def reward(prompt, response):
        return float(len(response))

    reward = aisp.load_reward(reward)
    size = dict(n=2, max_new_tokens=4, batch=2, progress=False)
    data = collect(policy, reward, prompts, work=tmp_path, **size)
    assert data.prelogits.shape == (6, 4, 32) and data.prompt.tolist() == [0, 0, 1, 1, 2, 2]
    out = aisp.align(
        prompts[2], policy, reward, "best_of_n", n=2, kappa=1, max_new_tokens=4, top_p=1.0
    )
    assert data.rewards[4:].tolist() == out.candidates["reward"].tolist()
    assert data.lengths[4:].sum() == out.history["tokens"].sum()

    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    files[1].unlink()  # as if it had been killed before the second batch

    class Never(aisp.Reward):
        calls = 0

        def score(self, prompts, responses):
            self.calls += 1
            return torch.tensor([float(len(x)) for x in responses], dtype=torch.float64)

    counted = Never()
    again = collect(policy, counted, prompts, work=tmp_path, **size)
    assert counted.calls == 1 and torch.equal(again.prelogits, data.prelogits)


@pytest.mark.slow
def test_the_documented_command_trains(tmp_path, embedded):
    work = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    main(["--n", "2", "--max-new-tokens", "8", "--epochs", "2", *work])
    value = load_value(tmp_path / "out" / "value.safetensors", embedded)
    out = aisp.align(
        "Hi", embedded, lambda p, r: 0.0, "re_control", value=value, n=1, kappa=1, max_new_tokens=2
    )
    assert len(out.candidates) == 1
    with pytest.raises(SystemExit):  # the same folder with other settings
        main(["--n", "3", "--max-new-tokens", "8", "--epochs", "2", *work])


def test_correlation_within_prompts_leaves_the_prompts_out():
    """V sees the prompt's own level and noise: across prompts it correlates, within them not."""
    g = torch.Generator().manual_seed(0)
    level = 10 * torch.randn(50, 1, generator=g)
    rewards = (level + torch.randn(50, 40, generator=g)).flatten().double()
    h = torch.zeros(2000, 2, 1)
    h[:, 0, 0] = (level + torch.randn(50, 40, generator=g)).flatten()
    h[:, 1, 0] = rewards.float()
    prompt = torch.arange(50).repeat_interleave(40)
    lengths = torch.tensor([2] * 1999 + [1])

    class Identity(ValueFunction):
        def forward(self, h):
            return h[..., 0]

    table = within_prompt_correlation(Identity(1), Trajectories(h, lengths, rewards, prompt))
    assert abs(table["correlation"][0]) < 4 / 2000**0.5  # four standard errors of no correlation
    assert table["correlation"][1] == pytest.approx(1)
    assert table["responses"].tolist() == [2000, 1999]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number >= 1"),
        ({"patience": 2.5}, "patience is 2.5; it must be a whole number >= 1"),
        ({"batch_size": True}, "batch_size is True; it must be a whole number >= 1"),
        ({"rate": "3e-4"}, "rate is '3e-4'; it must be > 0 and finite.*without quotes: 0.0003"),
        ({"validation": 1.5}, r"validation is 1.5; it must lie in \[0, 1\]"),
        ({"seed": "0"}, "seed is '0'; it must be a whole number >= 0"),
        ({"width": 0}, "width is 0; it must be a whole number >= 1"),
    ],
)
def test_arguments_of_training_are_checked(wrong, message):
    data, _ = drift(N=20)
    with pytest.raises(ValueError, match=message):
        train(data, progress=False, **wrong)


def test_batches_of_prompts_are_whole(tiny):
    with pytest.raises(ValueError, match="batch is 0; it must be a whole number >= 1"):
        collect(tiny(), None, aisp.load_prompts("builtin", limit=1), n=1, max_new_tokens=1, batch=0)


def test_a_killed_training_leaves_its_checkpoint_whole(tmp_path, monkeypatch):
    """What is half written when the process ends does not take the place of what was there."""
    data, _ = drift(N=60)
    path = tmp_path / "a.pt"
    options = dict(width=8, patience=9, progress=False, checkpoint=path)
    train(data, epochs=1, **options)
    whole = path.read_bytes()

    def torn(state, to):
        to.write_bytes(whole[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        train(data, epochs=2, **options)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
