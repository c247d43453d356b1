"""What the corpus is made of: plain texts and chats.

Topic modules return exchanges (question and answer pairs) or texts; corpus.py
joins them into documents; batches.py turns documents into token rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

Option = TypeVar("Option")
# One user turn and the answer to it.
Turn: TypeAlias = tuple[str, str]
# Turns that belong together: later ones may refer to earlier ones.
Exchange: TypeAlias = list[Turn]


@dataclass(frozen=True)
class Document:
    """A plain text (turns empty) or a chat with an optional system message (text empty)."""

    text: str = ""
    system: str = ""
    turns: Exchange = field(default_factory=list)


def pick(rng: random.Random, options: Sequence[Option]) -> Option:
    """One of the options, each as likely as the others."""
    return options[rng.randrange(len(options))]


def ask(rng: random.Random, options: Sequence[str]) -> str:
    """One wording of a request, as people type it: sometimes lower case, polite, or without a full stop."""
    text = pick(rng, options)
    roll = rng.random()
    if roll < 0.10:
        text = text[0].lower() + text[1:]
    elif roll < 0.16:
        text = (
            pick(rng, ("Please ", "Can you ", "Could you please ")) + text[0].lower() + text[1:]
            if text.split()[0] in _IMPERATIVES
            else text
        )
    elif roll < 0.22:
        text = pick(rng, ("Hi! ", "Hello. ", "Hey, ", "OK. ", "Thanks. ")) + text
    if rng.random() < 0.12:
        text = text.rstrip(".?!")
    if rng.random() < 0.06 and text[-1] in ".":
        text = text[:-1] + ", please."
    return text


_IMPERATIVES = frozenset(
    [
        "Tell",
        "Write",
        "Give",
        "Make",
        "List",
        "Name",
        "Count",
        "Repeat",
        "Say",
        "Sort",
        "Explain",
        "Describe",
        "Summarize",
        "Summarise",
        "Continue",
        "Show",
        "Put",
        "Spell",
        "Copy",
        "Add",
        "Create",
        "Return",
        "Answer",
        "Turn",
        "Reverse",
        "Help",
    ]
)
