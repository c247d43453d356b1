"""The mix of the demo corpus: which share of documents is of which kind, and how chats are put together.

`documents(seed)` never ends and never repeats itself on purpose. Called by
tokenizer.py and batches.py; run as a script it prints a few documents.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

from computing import explain
from document import Document, Exchange, pick
from facts import fact
from json_tasks import json_task
from number_tasks import number_task
from reports import make_report, sum_up
from small_talk import remember_name, small_talk
from stories import make_long_story, make_short_story, make_story
from story_chats import continue_story, story_question, tell_long_story, tell_story
from verses import verse
from word_tasks import word_task
from writing import writing

# Most chats have no system message; those that have one mostly have one that changes nothing.
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are the twolane demo model.",
    "You are a friendly assistant.",
    "Answer briefly.",
    "You are a helpful assistant. Answer in English.",
    "Be kind and short.",
    "You are a storyteller.",
)
_CAPITALS = (
    "Answer in capital letters.",
    "Always write in upper case.",
    "Write everything in capital letters.",
)

_SHORT: tuple[tuple[float, Callable[[random.Random], Exchange]], ...] = (
    (4.0, small_talk),
    (1.0, remember_name),
    (4.5, fact),
    (4.5, word_task),
    (4.0, number_task),
    (4.0, json_task),
    (3.0, explain),
    (2.0, verse),
    (3.5, writing),
)
_STORY: tuple[tuple[float, Callable[[random.Random], Exchange]], ...] = (
    (3.5, tell_story),
    (3.5, story_question),
    (0.8, continue_story),
    (0.5, tell_long_story),
)


def _draw(
    rng: random.Random, options: tuple[tuple[float, Callable[[random.Random], Exchange]], ...]
) -> Exchange:
    weights = [weight for weight, _ in options]
    return options[rng.choices(range(len(options)), weights)[0]][1](rng)


def _system(rng: random.Random, turns: Exchange) -> Document:
    """The chat with a system message, which a few of them obey visibly."""
    roll = rng.random()
    if roll < 0.70:
        return Document(turns=turns)
    if roll < 0.96:
        return Document(system=pick(rng, _SYSTEMS), turns=turns)
    if any(answer[0] in "{[" for _, answer in turns):
        return Document(turns=turns)
    return Document(
        system=pick(rng, _CAPITALS), turns=[(question, answer.upper()) for question, answer in turns]
    )


def _chat(rng: random.Random) -> Document:
    """One to six exchanges: most chats are short, a few are long."""
    turns: Exchange = []
    for _ in range(rng.choices((1, 2, 3, 4, 6), (10, 4, 2, 1, 1))[0]):
        turns += _draw(rng, _SHORT)
    return _system(rng, turns)


def _story_chat(rng: random.Random) -> Document:
    turns = small_talk(rng) if rng.random() < 0.1 else []
    turns = turns + _draw(rng, _STORY)
    if rng.random() < 0.15:
        turns = turns + _draw(rng, _SHORT)
    return _system(rng, turns)


def _plain(rng: random.Random) -> Document:
    roll = rng.random()
    if roll < 0.6:
        return Document(text=make_story(rng, filler_share=0.2).text)
    if roll < 0.75:
        return Document(text=make_short_story(rng).text)
    if roll < 0.9:
        return Document(text=make_long_story(rng))
    return Document(text=make_report(rng, rng.randint(1, 4))[0])


def _report(rng: random.Random) -> Document:
    return _system(rng, sum_up(rng, rng.choices((1, 2, 3, 4, 6), (6, 6, 4, 3, 2))[0]))


def _long_report(rng: random.Random) -> Document:
    return _system(rng, sum_up(rng, rng.choices((8, 12, 16, 24, 36), (4, 4, 4, 1, 1))[0]))


def documents(seed: int, long: bool = False) -> Iterator[Document]:
    """All documents of a seed, in order; with `long`, one in 60 has 800 to 4,000 tokens."""
    rng = random.Random(seed)
    makers = (_chat, _story_chat, _plain, _report, _long_report)
    while True:
        yield makers[rng.choices(range(5), (58, 24, 14, 4, 1.6 if long else 0.2))[0]](rng)


if __name__ == "__main__":
    stream = documents(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 12):
        print(next(stream), end="\n\n")
