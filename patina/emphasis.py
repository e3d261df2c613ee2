"""The notation in which WebUI users weigh words: `(word:1.2)`, `(word)`, `[word]`, and `\\(` for a plain bracket."""

import re
from itertools import groupby

PIECE = re.compile(r"\\[\\()\[\]]|\\|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]:]|[^\\()\[\]:]+")
"""One bracket, escape, weight that ends a bracket, or run of plain text."""
STRONGER = 1.1
"""What a round bracket without a number multiplies by; a square one divides."""


def weighed(text: str) -> list[tuple[str, float]]:
    """The text without its brackets, in parts of one weight each; at least one part.

    As A1111's `parse_prompt_attention`: brackets nest, one that is never closed reaches to the end, one that was never
    opened is text. Its other notations (`BREAK`, `AND`, `[from:to:when]`) stay the words that they are written in.
    """
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for match in PIECE.finditer(text):
        word, number = match[0], match[1]
        if word.startswith("\\"):
            parts.append((word[1:], 1.0))
        elif word in opened:
            opened[word].append(len(parts))
        elif word.endswith(")") and (number or word == ")") and opened["("]:
            _multiply(parts, opened["("].pop(), float(number or STRONGER))
        elif word == "]" and opened["["]:
            _multiply(parts, opened["["].pop(), 1 / STRONGER)
        else:
            parts.append((word, 1.0))
    for start in opened["("]:
        _multiply(parts, start, STRONGER)
    for start in opened["["]:
        _multiply(parts, start, 1 / STRONGER)
    runs = groupby(parts, key=lambda part: part[1])
    return [("".join(word for word, _ in run), weight) for weight, run in runs] or [("", 1.0)]


def _multiply(parts: list[tuple[str, float]], start: int, factor: float) -> None:
    parts[start:] = [(word, weight * factor) for word, weight in parts[start:]]
