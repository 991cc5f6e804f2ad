"""Text of users and models, made safe for a JSON file."""

from typing import Any


def storable(value: Any) -> Any:
    r"""The value with text that can be written as UTF-8.

    Half of a surrogate pair is a character to Python, but no text: tables, files and other JSON
    readers refuse it. It becomes the six characters of its escape, such as "\ud800".

    Args:
        value: text, or lists and dictionaries of it; anything else is returned as it is.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "backslashreplace").decode()
    elif isinstance(value, dict):
        return {storable(k): storable(v) for k, v in value.items()}
    elif isinstance(value, list):
        return [storable(v) for v in value]
    return value
