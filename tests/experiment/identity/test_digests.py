"""Digests of functions and values: two different ones are never taken for one."""

import enum
import functools
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import aisp
from aisp.experiment.identity.digests import Digests, UnidentifiedError
from aisp.rewards import CallableReward, Reward


def digest(*values):
    return Digests().of(*values)


def defined(source, name="f", **more):
    """A function of its own module, as a notebook has it."""
    values = {"__name__": "__main__", **more}
    exec(source, values)
    return values[name]


PAIRS = {
    "constant": ("def f(p, r): return len(r) > 10", "def f(p, r): return len(r) > 11"),
    "type of a constant": ("def f(p, r): return 1", "def f(p, r): return 1.0"),
    "operation": ("def f(p, r): return len(r) + 2", "def f(p, r): return len(r) - 2"),
    "attribute": ("def f(p, r): return r.count('a')", "def f(p, r): return r.index('a')"),
    "default": ("def f(p, r, k=1): return k", "def f(p, r, k=2): return k"),
    "keyword": ("def f(p, r, *, k=1): return k", "def f(p, r, *, k=2): return k"),
    "global": ("k = 1\ndef f(p, r): return k", "k = 2\ndef f(p, r): return k"),
    "list": ("k = [1, 2]\ndef f(p, r): return k", "k = [2, 1]\ndef f(p, r): return k"),
    "set": ("k = {1, 2}\ndef f(p, r): return k", "k = {1, 3}\ndef f(p, r): return k"),
    "dictionary": ("k = {1: 2}\ndef f(p, r): return k", "k = {2: 1}\ndef f(p, r): return k"),
    "built-in": ("def f(p, r): return max(r)", "def f(p, r): return min(r)"),
    "global or built-in": ("def f(p, r): return len(r)", "len = 3\ndef f(p, r): return len(r)"),
    "helper": (
        "def g(r): return 1\ndef f(p, r): return g(r)",
        "def g(r): return 2\ndef f(p, r): return g(r)",
    ),
    "closure": (
        "def make(k):\n def f(p, r): return k\n return f\nf = make(1)",
        "def make(k):\n def f(p, r): return k\n return f\nf = make(2)",
    ),
    "nested": ("def f(p, r): return (lambda: 1)()", "def f(p, r): return (lambda: 2)()"),
    "comprehension": (
        "k = 1\ndef f(p, r): return [k for _ in r]",
        "k = 2\ndef f(p, r): return [k for _ in r]",
    ),
    "decorated": (
        "import functools\n@functools.lru_cache\ndef f(p, r): return 1",
        "import functools\n@functools.lru_cache\ndef f(p, r): return 2",
    ),
    "partial": (
        "import functools\ndef g(k, p, r): return k\nf = functools.partial(g, 1)",
        "import functools\ndef g(k, p, r): return k\nf = functools.partial(g, 2)",
    ),
    "pattern": (
        "import re\nk = re.compile('a')\ndef f(p, r): return k.search(r)",
        "import re\nk = re.compile('a', re.I)\ndef f(p, r): return k.search(r)",
    ),
    "class": (
        "class C:\n def g(self): return 1\ndef f(p, r): return C().g()",
        "class C:\n def g(self): return 2\ndef f(p, r): return C().g()",
    ),
    "attribute of the function": (
        "def f(p, r): return f.k\nf.k = 1",
        "def f(p, r): return f.k\nf.k = 2",
    ),
    "late import": (
        "def f(p, r):\n import math\n return math.pi",
        "def f(p, r):\n import cmath\n return cmath.pi",
    ),
}


@pytest.mark.parametrize("first, second", PAIRS.values(), ids=PAIRS)
def test_different_functions_differ_and_the_same_source_does_not(first, second):
    assert digest(defined(first)) != digest(defined(second))
    assert digest(defined(first)) == digest(defined(first))


def test_place_and_comments_do_not_count_nor_does_having_been_called():
    source = "def f(p, r): return [x for x in r if x != 'a']"
    f, elsewhere = defined(source), defined("# a word before\n\n\n" + source + "  # and after")
    before = digest(f)
    for _ in range(100):  # Python rewrites bytecode that runs often
        f("", "abc")
    assert digest(f) == before == digest(elsewhere)


def test_functions_that_call_each_other_have_an_end():
    even = "def f(n): return n == 0 or g(n - 1)\ndef g(n): return n != 0 and f(n - 1)"
    assert digest(defined(even)) == digest(defined(even)) != digest(defined(even, "g"))


def test_values_are_told_by_content():
    class Color(enum.Enum):
        RED, BLUE = 1, 2

    @dataclass
    class Pair:
        a: int
        b: object

    values = [None, True, 1, 1.0, 1j, "1", b"1", (1,), [1], {1}, frozenset({1}), {1: 1}, ((1,),)]
    values += [Path("/a/x"), Path("/b/x"), Color.RED, Color.BLUE, Pair(1, 2), Pair(2, 2), range(2)]
    values += [np.float32(1), np.float64(1), np.arange(3), np.arange(3.0), torch.arange(3)]
    values += [
        torch.arange(3.0),
        torch.float32,
        torch.nn.ReLU(),
        torch.nn.GELU(),
        re,
        sys,
        len,
        max,
    ]
    values += [
        "abc".count,
        "abd".count,
        str.lower,
        str.upper,
        functools.partial,
        "\ud800",
        float("nan"),
    ]
    assert len({digest(value) for value in values}) == len(values)
    ordered, other = set([0, 8, 16]), set([16, 8, 0])
    assert list(ordered) != list(other), "or nothing is shown"
    assert digest(ordered) == digest(other)


class Opaque:
    def __call__(self, prompt, response):
        return 1.0


@pytest.mark.parametrize(
    "source, message",
    [
        ("k = O()\ndef f(p, r): return k", r"the global 'k', which the function 'f' reads, is an"),
        ("k = [O()]\ndef f(p, r): return k", r"something in the global 'k'.*test_digests\.Opaque"),
        ("def f(p, r, k=O()): return k", r"something in a default of the function 'f'"),
        ("f = O()", r"^it is an object of .*Opaque"),
        ("f = O().__call__", r"the object of the method it is an object of"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(source, message):
    with pytest.raises(UnidentifiedError, match=message):
        digest(defined(source, O=Opaque))


def test_modules_of_the_user_are_followed_to_the_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_own_rewards.py"
    source = "def f(p, r): return my_own_rewards.polite(r)"

    def version(text):
        file.write_text(text)
        sys.modules.pop("my_own_rewards", None)
        importlib.invalidate_caches()
        module = importlib.import_module("my_own_rewards")
        return digest(defined(source, my_own_rewards=module)), digest(module)

    first = version("def polite(r): return 1\n")
    assert version("# moved\n\ndef polite(r): return 1\n")[0] == first[0]
    second = version("def polite(r): return 2000\n")
    assert second[0] != first[0] and second[1] != first[1]
    sys.modules.pop("my_own_rewards", None)


class Length(Reward):
    name = "length"

    def __init__(self, target, scale=None):
        self.target, self.scale, self._calls, self.batch_size = target, scale, 0, 8

    def score(self, prompts, responses):
        return torch.zeros(len(responses))


def test_rewards_of_one_name_differ_by_files_and_public_attributes(tmp_path):
    reward = Length(10)
    before = digest(reward)
    reward._calls, reward.batch_size = 7, 2
    assert digest(reward) == before == digest(Length(10))
    others = [Length(11), Length([10]), Length(10, torch.nn.Linear(1, 1)), CallableReward(len)]
    assert len({before, *map(digest, others)}) == 5
    digest(Length(10, object()))  # what cannot be told, the name stands for
    (tmp_path / "w").write_bytes(b"1")
    reward.files = (tmp_path / "w",)
    of_file = digest(reward)
    (tmp_path / "w").write_bytes(b"2")
    assert len({before, of_file, digest(reward)}) == 3
    reward.name = "reward"
    with pytest.raises(UnidentifiedError, match="Length"):
        digest(reward)


def test_policies_differ_by_weights_template_and_end_tokens(tiny, byte_tokenizer):
    from dataclasses import replace

    policy = tiny()
    others = [replace(policy, template="continuation"), replace(policy, eos_ids=(5,)), tiny("gpt2")]
    assert len({digest(policy), *map(digest, others)}) == 4
    assert digest(policy) == digest(replace(policy, name="another"))
    config = policy.model.config
    stretched = type(policy.model)(type(config)(**{**config.to_dict(), "rms_norm_eps": 1e-3}))
    stretched.load_state_dict(policy.model.state_dict())
    assert digest(stretched) != digest(policy.model)  # the same weights, another function


def test_a_model_whose_code_cannot_be_told_is_told_by_its_weights():
    model = defined(
        "import torch\nk = O()\nclass M(torch.nn.Linear):\n def extra(self): return k",
        "M",
        O=Opaque,
    )
    first, second = model(1, 1), model(1, 1)
    assert digest(first) == digest(first) != digest(second)


def test_a_change_between_two_runs_is_seen(tiny):
    import copy

    model = copy.deepcopy(tiny().model)
    before = digest(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert digest(model) != before
    assert aisp.rewards.CallableReward(len).named is False


def test_a_reward_class_of_a_user_is_told_by_its_code():
    """Its name alone would give an edited class the records of the old one."""

    def made(sign, scale=1.0):
        class Brevity(Reward):
            name = "brevity"
            weight = scale

            def score(self, prompts, responses):
                lengths = [len(r) for r in responses]
                return torch.tensor([-float(x) for x in lengths] if sign else lengths)

        return Digests().of(Brevity())

    assert made(True) == made(True)
    assert len({made(True), made(False), made(True, 2.0)}) == 3
