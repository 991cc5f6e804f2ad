"""Taking out of a text what it quotes of a prompt whose words may not be published.

The longest quotation goes first, then the longest one in what remains, until none is left that
counts as one. Time and memory grow linearly with both texts: only stretches that share runs of
`least` characters with the text are looked at, through a suffix automaton (Blumer et al., 1985).
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from aisp.prompts import Prompt

ELLIPSIS = "…"


def unquoted(text: str, prompt: Prompt, least: int = 12) -> str:
    """The text with its quotations of the prompt removed, literal or escaped as in Python.

    Args:
        least: characters that make a quotation, at least 2; an ellipsis takes the place of each.
    """
    for message in prompt.messages:
        content = message["content"]
        for source in dict.fromkeys((content, repr(content)[1:-1])):
            text = without(text, source, least)
    return text


def without(text: str, source: str, least: int) -> str:
    """The text with its quotations of the source replaced, the longest first.

    No `least` characters in a row of what is returned are in the source. Of equally long quotations
    the first one goes first.
    """
    while True:
        lengths = _longest_from(text, source, least)
        if lengths is None:
            return text
        text = _replaced(text, lengths, least)
        # Once is enough, unless an ellipsis of ours is now part of a quotation.
        if ELLIPSIS not in source:
            return text


def _replaced(text: str, lengths: np.ndarray, least: int) -> str:
    """The text with the longest stretches replaced, again and again within what remains of it."""
    kept, open_parts = [], [(0, len(text))]
    while open_parts:
        start, end = open_parts.pop()
        within = np.minimum(lengths[start:end], np.arange(end - start, 0, -1))
        at = int(within.argmax()) if end > start else 0
        if end - start < least or within[at] < least:
            kept.append((start, end))
            continue
        # The right part first: the left one is then taken, and kept, before it.
        open_parts.append((start + at + int(within[at]), end))
        open_parts.append((start, start + at))
    return ELLIPSIS.join(text[start:end] for start, end in kept)


def _longest_from(text: str, source: str, least: int) -> np.ndarray | None:
    """For each place in the text, how many characters from there on are somewhere in the source.

    Where these are fewer than `least`, 0; None where that is so everywhere.
    """
    ours = {text[i : i + least] for i in range(len(text) - least + 1)}
    shared = np.zeros(len(source), dtype=bool)
    for j in range(len(source) - least + 1):
        if source[j : j + least] in ours:
            shared[j : j + least] = True
    if not shared.any():
        return None
    # What can be quoted, stretch by stretch, with what is no character between them.
    letters: list[str | None] = []
    for quotable, group in groupby(range(len(source)), key=shared.__getitem__):
        letters += [source[j] for j in group] if quotable else [None]
    # Read backwards, the longest match that ends at a place is the longest that starts there.
    lengths = np.array(_longest_ends(text[::-1], letters[::-1])[::-1])
    return np.where(lengths >= least, lengths, 0)


def _longest_ends(text: str, letters: Sequence[str | None]) -> list[int]:
    """For each place in the text, the length of the longest match with the letters that ends there."""
    edges, links, sizes = _automaton(letters)
    state, length, lengths = 0, 0, []
    for character in text:
        while state and character not in edges[state]:
            state = links[state]
            length = sizes[state]
        if character in edges[state]:
            state, length = edges[state][character], length + 1
        lengths.append(length)
    return lengths


def _automaton(letters: Sequence[str | None]) -> tuple[list[dict], list[int], list[int]]:
    """The suffix automaton: for each state its edges, its suffix link and its longest word's length.

    State 0 is the empty word. An edge of None is never taken, because no text has that letter.
    """
    edges: list[dict] = [{}]
    links, sizes, last = [-1], [0], 0
    for letter in letters:
        state, new = last, len(edges)
        edges.append({})
        links.append(0)
        sizes.append(sizes[last] + 1)
        while state != -1 and letter not in edges[state]:
            edges[state][letter] = new
            state = links[state]
        if state != -1:
            target = edges[state][letter]
            if sizes[target] != sizes[state] + 1:  # a shorter word needs a state of its own
                copy = len(edges)
                edges.append(dict(edges[target]))
                links.append(links[target])
                sizes.append(sizes[state] + 1)
                links[target] = copy
                while state != -1 and edges[state].get(letter) == target:
                    edges[state][letter] = copy
                    state = links[state]
                target = copy
            links[new] = target
        last = new
    return edges, links, sizes
