"""The language of a text, by `langdetect`, an optional package."""

from functools import cache
from threading import Lock
from typing import Any

# The languages that langdetect tells apart; IFEval's 30 are among them.
LANGUAGES = (
    *("af", "ar", "bg", "bn", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fa", "fi"),
    *("fr", "gu", "he", "hi", "hr", "hu", "id", "it", "ja", "kn", "ko", "lt", "lv", "mk", "ml"),
    *("mr", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sk", "sl", "so", "sq", "sv", "sw"),
    *("ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh-cn", "zh-tw"),
)

_loading = Lock()


def detected(text: str) -> str | None:
    """The code of a text's language, always the same for the same text.

    langdetect draws at random; here each text is given a generator of its own, seeded with 0.

    Returns:
        None where the text has nothing to tell it by, such as one of digits.

    Raises:
        ImportError: langdetect is not installed.
    """
    factory, none = detector()
    found = factory.create()
    found.seed = 0
    found.append(text)
    try:
        return found.detect()
    except none:
        return None


def detector() -> tuple[Any, type[Exception]]:
    """What makes detectors, and the error of one that finds nothing to go by."""
    with _loading:
        return _load()


@cache
def _load() -> tuple[Any, type[Exception]]:
    try:
        from langdetect import LangDetectException
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ImportError as error:
        raise ImportError(
            "language:response_language needs `pip install langdetect`, or leave out the prompts "
            f"that have this instruction ({error})"
        ) from error
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    return factory, LangDetectException
