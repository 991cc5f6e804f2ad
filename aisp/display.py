"""How results show themselves: a card in HTML, a figure of rewards by sample, text in a terminal.

Text of models is text, never markup and never a command: everything that is shown is escaped.
"""

import html
import math
import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT, MARGIN = 240, 64, 6  # of the small curve, in CSS pixels
_TOP_LEFT = "text-align:left;vertical-align:top"
JOINERS = "\u200c\u200d"  # format characters that spelling needs: in Persian, Hindi, and emoji


def printable(text: str) -> str:
    r"""The text on one line, with nothing in it that a terminal would obey.

    Line breaks and control characters become their escapes, such as "\n" and "\x1b"; so do halves of
    surrogate pairs, and the invisible characters that change the direction of text or hide in it.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    # Control, format and surrogate characters; line and paragraph separators.
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS:
        return character.encode("unicode_escape").decode()
    return character


def card(title: str, prompt: str, response: str, reward: float, rewards: Sequence[float]) -> str:
    """A result as HTML: prompt, best response, its reward, and the rewards of all samples.

    Args:
        title: such as the method and its budget.
        rewards: of all samples in the order of their drawing; -inf and NaN are left out.
    """

    def row(name: str, text: str) -> str:
        words = f"{_TOP_LEFT};white-space:pre-wrap;overflow-wrap:anywhere"
        return f'<tr>{head(name)}<td style="{words}">{html.escape(text)}</td></tr>'

    def head(name: str) -> str:
        return f'<th style="{_TOP_LEFT};white-space:nowrap">{name}</th>'

    return (
        f'<table style="max-width:48em"><caption style="text-align:left">{html.escape(title)}'
        f"</caption><tbody>{row('prompt', prompt)}{row('response', response)}"
        f"{row('reward', f'{reward:.3f}')}"
        f'<tr>{head("samples")}<td style="text-align:left">{curve(rewards)}</td></tr></tbody></table>'
    )


def curve(rewards: Sequence[float]) -> str:
    """Rewards by sample as a small SVG: a dot for each, and the best so far as a line."""
    finite = [r for r in rewards if math.isfinite(r)]
    if not finite:
        return "no finite reward"
    low, high = min(finite), max(finite)

    def point(i: int, r: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * i / max(1, len(rewards) - 1)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (r - low) / ((high - low) or 1)
        return round(x, 1), round(y, 1)

    best = [(i, r) for i, r in enumerate(accumulate(rewards, _higher)) if math.isfinite(r)]
    line = " ".join("{},{}".format(*point(i, r)) for i, r in best)
    dots = "".join(
        '<circle cx="{}" cy="{}" r="1.5" fill="currentColor" fill-opacity="0.45"/>'.format(
            *point(i, r)
        )
        for i, r in enumerate(rewards)
        if math.isfinite(r)
    )
    words = f"rewards of {len(rewards)} samples, from {low:.2f} to {high:.2f}"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{words}"><title>{words}</title>{dots}<polyline points="{line}" fill="none" '
        'stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def rewards_by_sample(rewards: Sequence[float], iterations: Sequence[int], title: str) -> "Figure":
    """Rewards of all samples and the best so far, iterations marked off from each other.

    Args:
        rewards: of all samples in the order of their drawing.
        iterations: of the same samples.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5.0, 2.6), layout="constrained")
    number = range(1, len(rewards) + 1)
    ax.plot(number, rewards, ".", color="0.55", markersize=4, label="sample")
    best = list(accumulate(rewards, _higher))
    ax.step(number, best, where="post", color="C0", label="best so far")
    for i in range(1, len(iterations)):
        if iterations[i] != iterations[i - 1]:
            ax.axvline(i + 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.set(xlabel="sample (vertical lines separate iterations)", ylabel="reward")
    ax.set_title(title, loc="left", fontsize=9)
    fig.legend(frameon=False, fontsize=8, loc="outside right upper")  # where no dot can lie
    plt.close(fig)  # shown by whoever asked for it, once
    return fig


def _higher(best: float, new: float) -> float:
    return new if math.isnan(best) or new > best else best


def side_by_side(
    labels: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]
) -> str:
    """Answers of several methods beside each other, as HTML.

    Args:
        labels: of the columns after the first, which holds the prompt.
        rows: (prompt, one (response, reward) per label); a NaN reward marks a missing one.
    """
    cell = f"{_TOP_LEFT};white-space:pre-wrap;overflow-wrap:anywhere"
    width = f"width:{100 / (len(labels) + 1):.0f}%"
    head = "".join(f'<th style="{cell};{width}">{html.escape(x)}</th>' for x in ("prompt", *labels))
    body = ""
    for prompt, answers in rows:
        shown = [html.escape(prompt)]
        for response, reward in answers:
            missing = math.isnan(reward)
            text = "(none)" if missing else f"<b>{reward:.2f}</b>\n{html.escape(response.strip())}"
            shown.append(text)
        body += "<tr>" + "".join(f'<td style="{cell}">{text}</td>' for text in shown) + "</tr>\n"
    return (
        '<table style="table-layout:fixed;width:100%">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    )
