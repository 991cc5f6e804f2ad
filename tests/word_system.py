"""A language model of five words whose laws over responses are enumerated, under noise or sampled.

A Llama with pre-logits of width 2, where `aisp.theory.toys` integrates the cones of the tokens
exactly; responses have at most three tokens. Every prompt has the same prefix, so that prompts are
independent repetitions of one system.
"""

import numpy as np
import torch
from tiny import WORDS, llama, tokenizer_of_words

import aisp
from aisp.methods import METHODS, configure
from aisp.rewards import Reward
from aisp.theory import toys

T, LAM, SIGMA, TEMPERATURE = 3, 1.2, 0.9, 0.8


def word_policy():
    """Each of the five tokens wins in a fifth of all directions."""
    model = llama(
        seed=2,
        vocab_size=5,
        hidden_size=2,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=1.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=0,
    ).float()
    turn = torch.arange(5) * (2 * torch.pi / 5)
    model.lm_head.weight.data = torch.stack([turn.cos(), turn.sin()], -1)
    return aisp.Policy(model, tokenizer_of_words(), lambda messages: "a b c", "words")


def text_of(tokens):
    return " ".join(WORDS[i] for i in tokens if i)


def token_laws(policy, sampled):
    """From every beginning of a response to the law of its next token, (5,)."""
    head, prefix = policy.model.get_output_embeddings(), policy.prefix("any")
    W, found = head.weight.double(), {}
    one = torch.zeros(1, 2, dtype=torch.float64)
    lm = toys.ToyLM(W, (one,), torch.zeros(5, dtype=torch.float64), SIGMA, LAM)
    beginnings = [()]
    for _ in range(T):
        for h in beginnings:
            seen = []
            hook = head.register_forward_pre_hook(lambda m, z, at=seen: at.append(z[0][0, -1]))
            with torch.inference_mode():
                policy.model(torch.tensor([[*prefix, *h]]), use_cache=False)
            hook.remove()
            z = seen[0].double()
            drawn = torch.softmax(W @ z / TEMPERATURE, -1)
            found[h] = drawn if sampled else lm.token_law(z[None])[0][0]
        beginnings = [(*h, w) for h in beginnings for w in range(1, 5)]
    return found


def base_law(policy, sampled=False):
    """From every response to its probability: of sampling at TEMPERATURE, or greedy under SIGMA."""
    law, open_ = {}, {(): 1.0}
    laws = token_laws(policy, sampled)
    for t in range(T):
        following = {}
        for h, p in open_.items():
            for w, q in enumerate(laws[h].tolist()):
                over = w == 0 or t == T - 1
                (law if over else following)[(*h, w)] = p * q
        open_ = following
    return {text_of(y): p for y, p in law.items()}


class Table(Reward):
    """A reward for each response, drawn once; one in ten is rejected, but the empty one is not."""

    name = "table"

    def __init__(self, texts, seed=1):
        g = np.random.default_rng(seed)
        self.of = {x: float(g.normal()) for x in texts}
        rejected = g.permutation([x for x in texts if x])[: len(texts) // 10]
        self.of |= dict.fromkeys(map(str, rejected), -np.inf)

    def score(self, prompts, responses):
        return torch.tensor([self.of[x] for x in responses], dtype=torch.float64)


def target(sampled=False, beta=1 / LAM):
    """The law proportional to p exp(beta r): from every response to its probability."""
    base = base_law(word_policy(), sampled)
    table = Table(base)
    weight = {x: p * np.exp(beta * table.of[x]) if beta else p for x, p in base.items()}
    total = sum(weight.values())
    return {x: w / total for x, w in weight.items()}


def responses(state):
    """The current responses of P prompts, n each."""
    rows = zip(state.tokens.tolist(), state.lengths.tolist(), strict=True)
    return [[text_of(y[:end]) for y, end in zip(*row, strict=True)] for row in rows]


def run(method, iterations, n=4000, prompts=("any",), **parameters):
    """Every state of a method's own `step` on the system, from the first iteration on."""
    policy, about = word_policy(), METHODS[method]
    config = configure(method, n=n, max_new_tokens=T, **{"lam": LAM} | parameters)
    table = Table(base_law(policy))
    state = about.init(policy, list(prompts), config, seed=0)
    for _ in range(iterations):
        state, info = about.step(state, policy, table, config)
        yield state, info
