"""The embedded preference head: its features, and what it scores."""

import json

import pytest
import torch

import aisp
from aisp.provenance import data_path
from aisp.rewards.head import EmbeddedReward, Head, _together, features

PROMPTS = ["Hi", "How do I learn to cook?"]
REPLIES = ["Hello there, how can I help?", "Buy a pan."]


def test_texts_that_begin_alike_run_once_and_give_the_same(embedded, monkeypatch):
    """Candidates of a search: extensions of one text per prompt, a strange one among them."""
    begun = "To learn to cook, start with simple dishes that you like, and repeat them until"
    ends = [" you", " they are done.", "", "!", " é", " I", " it", " all", " we", "?"]
    replies = [begun + x for x in ends]
    long = PROMPTS[0] + " Please answer in one sentence, and name a dish."
    prompts = [PROMPTS[1]] * 10 + [long] * 10 + ["Hi"]
    replies = [*replies, *replies[::-1], "Hello."]
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0)).tolist()  # mixed
    prompts, replies = [prompts[i] for i in order], [replies[i] for i in order]
    tokens = []
    handle = embedded.model.get_input_embeddings().register_forward_hook(
        lambda module, args, out: tokens.append(args[0].numel())
    )
    shared = features(embedded, prompts, replies, layers=[3, 15])
    few, tokens[:] = sum(tokens), []
    monkeypatch.setattr("aisp.rewards.head._groups", lambda p, encoded: ([], list(range(21))))
    whole = features(embedded, prompts, replies, layers=[3, 15])
    handle.remove()
    assert few < 0.5 * sum(tokens)
    torch.testing.assert_close(shared, whole, atol=2e-4, rtol=1e-4)


def test_batches_that_share_beginnings_stay_within_their_tokens():
    lengths = [30 + i % 7 for i in range(40)] + [25] * 9 + [100, 101]
    shared = [(list(range(40)), 20), (list(range(40, 49)), 22), ([49, 50], 90)]
    for limit in (1, 40, 90, 10_000):
        batches = _together(shared, lengths, limit)
        assert sorted(row for rows, _ in batches for row in rows) == list(range(51))
        for rows, runs in batches:
            assert sum(count for count, _ in runs) == len(rows)
            depths = [depth for count, depth in runs for _ in range(count)]
            widest = max(lengths[row] - depth for row, depth in zip(rows, depths, strict=True))
            assert len(rows) * max(widest, max(depths) / 16) <= limit or len(rows) == 1
            for row, depth in zip(rows, depths, strict=True):
                assert depth == next(length for group, length in shared if row in group)
    assert len(batches) == 1 and [count for count, _ in batches[0][1]] == [40, 9, 2]


def test_a_dozen_responses_to_one_prompt_share_it_and_few_do_not(embedded):
    prompt = "How do I learn to cook? " + "I like soup. " * 6

    def passes(count, batch_tokens=4096):
        seen = []
        handle = embedded.model.get_input_embeddings().register_forward_hook(
            lambda module, args, out: seen.append(tuple(args[0].shape))
        )
        replies = [f"Number {i} is {'good ' * (i % 3)}" for i in range(count)]
        f = features(embedded, [prompt] * count, replies, layers=[3], batch_tokens=batch_tokens)
        handle.remove()
        return seen, f

    one, whole = passes(16)
    assert [rows for rows, _ in one] == [1, 16]
    assert len(passes(3)[0]) == 1, "what is saved is less than a pass"
    many, parts = passes(16, batch_tokens=30)
    assert len(many) > 4 and all(rows * width <= 100 for rows, width in many)
    torch.testing.assert_close(whole, parts, atol=2e-4, rtol=1e-4)


def test_features_are_the_hidden_states_of_the_whole_model(embedded):
    """Stopping at a middle layer and padding in a batch change nothing."""
    got = features(embedded, PROMPTS, REPLIES, layers=[5, 15])
    tokenizer = embedded.tokenizer
    for i, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        before = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        start = len(tokenizer(before)["input_ids"])
        ids = torch.tensor([tokenizer(before + reply + "<|im_end|>")["input_ids"]])
        with torch.no_grad():
            states = embedded.model.model(ids, output_hidden_states=True).hidden_states
        for column, layer in enumerate((5, 15)):
            h = states[layer][0]
            torch.testing.assert_close(got[i, column, 0], h[start:].mean(0), atol=2e-3, rtol=1e-3)
            torch.testing.assert_close(got[i, column, 1], h[-1], atol=2e-3, rtol=1e-3)
    assert len(embedded.model.model.layers) == 30  # the model itself was left whole


def test_save_and_load(tmp_path):
    head = Head(torch.randn(5), 0.5, 2.0, 3, "last")
    head.save(tmp_path / "h.safetensors")
    again = Head.load(tmp_path / "h.safetensors")
    assert torch.equal(again.w, head.w)
    assert (again.center, again.scale, again.layer, again.pooling) == (0.5, 2.0, 3, "last")


def test_the_shipped_head_is_small_and_its_card_and_report_agree():
    path = data_path("reward_head/head.safetensors")
    assert path.stat().st_size < 1_000_000
    head, report = Head.load(path), json.loads(data_path("reward_head/report.json").read_text())
    assert (head.layer, head.pooling, head.scale) == tuple(
        report[k] for k in ("layer", "pooling", "scale")
    )
    card = data_path("reward_head/README.md").read_text()
    low, high = report["accuracy_held_out_95"]
    for number in (report["accuracy_held_out"], low, high, report["accuracy_cross_validated"]):
        assert f"{number:.3f}" in card


def test_the_reward_is_the_stated_formula(embedded):
    reward = aisp.load_reward("embedded", policy=embedded)
    assert isinstance(reward, EmbeddedReward) and reward.policy is embedded
    head = reward.head
    f = features(embedded, PROMPTS, REPLIES, layers=[head.layer], poolings=[head.pooling])[:, 0, 0]
    expected = (f.double() @ head.w.double() - head.center) / head.scale
    torch.testing.assert_close(reward.score(PROMPTS, REPLIES), expected)


def test_a_file_that_holds_no_head(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "h.safetensors"
    save_file({"w": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"h\.safetensors holds no preference head: KeyError"):
        Head.load(path)
    Head(torch.tensor([1.0, float("inf")]), 0.5, 2.0, 3, "last").save(path)
    with pytest.raises(ValueError, match="has 1 of 2 numbers in w that are NaN or infinite"):
        Head.load(path)


def test_batch_tokens_is_a_whole_number(embedded):
    for wrong in (0, 1.5, "4096"):
        with pytest.raises(ValueError, match=f"batch_tokens is {wrong!r}; it must be a whole"):
            EmbeddedReward(embedded, Head(torch.ones(3), 0, 1, 3, "last"), batch_tokens=wrong)
