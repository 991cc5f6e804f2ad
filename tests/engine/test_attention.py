"""Shared prefixes change nothing but the time: the same tokens as with copied ones."""

import pytest
import torch
import transformers as tf
from tiny import ARCHITECTURES, PROMPTS, SIZE

import aisp.engine.stepper as engine
from aisp import Policy
from aisp.engine.attention import NAME, PrefixCache, obstacle_to_sharing, sees_everything
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout


def plain(monkeypatch):
    monkeypatch.setattr(engine, "obstacle_to_sharing", lambda model: "asked to")
    return pytest.warns(UserWarning, match="without shared prefixes.*asked to")


def both(monkeypatch, policy, prompts, n, T, **options):
    """The same rollout with shared and with copied prefixes."""
    prefixes = [policy.prefix(p) for p in prompts]
    g = torch.Generator().manual_seed(5)
    V = torch.randn(len(prompts), n, T, policy.d, generator=g) * options.pop("scale", 1.0)

    def go():
        seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return rollout(
            policy, prefixes, n, T, V=V, generators=seeds, keep_prelogits=True, **options
        )

    shared = go()
    with plain(monkeypatch):
        return shared, go()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0, 0, 0.9)], ids=["greedy", "top-p"])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2]], ids=["ragged", "one"])
def test_the_same_tokens_and_prelogits(tiny, monkeypatch, name, decoding, prompts):
    assert obstacle_to_sharing(tiny(name).model) is None
    shared, copied = both(monkeypatch, tiny(name), prompts, 6, 20, decoding=decoding)
    assert torch.equal(shared.tokens, copied.tokens)
    torch.testing.assert_close(shared.prelogits, copied.prelogits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [4, 16, 40])
def test_the_same_tokens_where_every_layer_has_a_window(byte_tokenizer, monkeypatch, window):
    """Shorter than a prompt, than the responses, and than both together: 16 to 63, and 20 tokens."""
    torch.manual_seed(0)
    size = SIZE | {"num_key_value_heads": 2, "sliding_window": window, "eos_token_id": 0}
    policy = Policy(tf.MistralForCausalLM(tf.MistralConfig(**size)).float(), byte_tokenizer)
    assert not sees_everything(policy.model)
    shared, copied = both(monkeypatch, policy, PROMPTS, 4, 20)
    assert torch.equal(shared.tokens, copied.tokens)
    torch.testing.assert_close(shared.prelogits, copied.prelogits, atol=1e-4, rtol=1e-4)


def test_the_same_tokens_where_the_model_also_reads_images(byte_tokenizer, monkeypatch):
    """As Gemma 3 from 4B on is loaded: the language model within another, with a window in one layer."""
    torch.manual_seed(0)
    text = SIZE | {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 8}
    text |= {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = tf.AutoModelForCausalLM.from_config(config).float()
    assert type(model) is tf.Gemma3ForConditionalGeneration
    shared, copied = both(monkeypatch, Policy(model, byte_tokenizer), PROMPTS, 4, 20)
    assert torch.equal(shared.tokens, copied.tokens)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_tokens_while_responses_and_whole_prompts_leave(tiny, monkeypatch, name):
    """Every third token ends a turn, so that rows leave step by step, and unevenly."""
    base = tiny(name)
    eager = Policy(base.model, base.tokenizer, name="ends often", eos_ids=tuple(range(0, 258, 3)))
    shapes, keep = [], PrefixCache.keep

    def spied(self, rows):
        keep(self, rows)
        shapes.append((self.shape, self.row is None))

    monkeypatch.setattr(PrefixCache, "keep", spied)
    shared, copied = both(monkeypatch, eager, PROMPTS, 12, 24, decoding=Decoding(1.0))
    assert torch.equal(shared.tokens, copied.tokens)
    assert torch.equal(shared.lengths, copied.lengths)
    torch.testing.assert_close(shared.prelogits, copied.prelogits, atol=1e-4, rtol=1e-4)
    assert any(not full for _, full in shapes), "no uneven batch was met"
    assert min(P for (P, _), _ in shapes) < len(PROMPTS), "no prompt left"


def test_the_same_tokens_on_the_embedded_model(embedded, monkeypatch):
    prompts = ["How do I learn to cook?", "Say hello."]
    shared, copied = both(monkeypatch, embedded, prompts, 4, 12, scale=0.5)
    assert torch.equal(shared.tokens, copied.tokens)


def test_in_bfloat16_tokens_part_only_at_a_near_tie(embedded, monkeypatch):
    """Rounding differs between the two orders of summation; a clear decision must not."""
    import copy

    model = copy.deepcopy(embedded.model).to(torch.bfloat16)
    policy = Policy(model, embedded.tokenizer, name="embedded in bfloat16")
    shared, copied = both(monkeypatch, policy, ["How do I learn to cook?"], 16, 24, scale=0.5)
    W = model.get_output_embeddings().weight.float()
    g = torch.Generator().manual_seed(5)
    V = torch.randn(1, 16, 24, policy.d, generator=g) * 0.5
    differs = (shared.tokens != copied.tokens)[0]
    assert differs.any(1).sum() < 12, "most responses differ: more than rounding"
    for i in torch.nonzero(differs.any(1)).flatten().tolist():
        t = int(differs[i].int().argmax())
        logits = (copied.prelogits[0, i, t].float() + V[0, i, t]) @ W.T
        gap = logits.max() - logits[shared.tokens[0, i, t]]
        assert gap < 0.03 * logits.max().abs(), "not a tie: bfloat16 resolves about 1 in 128"


def test_the_attention_of_the_model_is_put_back(tiny):
    policy = tiny("llama")
    before = policy.model.config._attn_implementation
    assert before != NAME
    rollout(policy, [policy.prefix("Hi")], 2, 4)
    assert policy.model.config._attn_implementation == before

    def fails(module, args):
        if policy.model.config._attn_implementation == NAME:
            raise RuntimeError("in the middle")

    handle = policy.model.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        rollout(policy, [policy.prefix("Hi")], 2, 4)
    handle.remove()
    assert policy.model.config._attn_implementation == before


def test_models_that_cannot_share_are_told_apart(tiny, monkeypatch):
    llama = tiny("llama").model
    monkeypatch.setattr(
        llama.config, "layer_types", ["full_attention", "chunked_attention"], raising=False
    )
    assert "not known here: chunked_attention" in obstacle_to_sharing(llama)
    monkeypatch.setattr(llama.config, "layer_types", None)
    monkeypatch.setattr(llama.config, "attn_logit_softcapping", 50.0, raising=False)
    assert "soft-capped" in obstacle_to_sharing(llama)
    monkeypatch.setattr(type(llama), "_supports_attention_backend", False)
    assert "attention interface" in obstacle_to_sharing(llama)
    with pytest.warns(UserWarning, match="LlamaForCausalLM decodes without shared prefixes"):
        rollout(tiny("llama"), [tiny("llama").prefix("Hi")], 2, 3)
