"""Counts how often the demo model's greedy answer is right, kind of request by kind of request.

`python deploy/demo_model/accuracy.py services/src/twolane/demo_model`; the README's
table comes from it. Requests are drawn from a seed that training does not use.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from document import Turn
from evaluate import answer
from facts import fact
from json_tasks import invent
from number_tasks import add
from reports import sum_up
from story_chats import story_question
from tokenizer import END_TURN
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from word_tasks import repeat

# wanted answer, given answer -> right or not
Judge = Callable[[str, str], bool]
Case = tuple[str, Callable[[random.Random], Turn], Judge, int]


def _exact(wanted: str, given: str) -> bool:
    return given == wanted


def _keys(text: str) -> list[str] | None:
    """The keys of a JSON object in order; None when the text is no JSON object."""
    try:
        return list(json.loads(text))
    except ValueError:
        return None


def _same_keys(wanted: str, given: str) -> bool:
    return _keys(given) == _keys(wanted)


def _parses(_: str, given: str) -> bool:
    return _keys(given) is not None


def _names_town(wanted: str, given: str) -> bool:
    return wanted.rsplit(maxsplit=1)[-1] in given


def _summary(paragraphs: int) -> Callable[[random.Random], Turn]:
    return lambda rng: sum_up(rng, paragraphs)[0]


CASES: tuple[Case, ...] = (
    ("fact, answered exactly", lambda rng: fact(rng)[0], _exact, 60),
    ("sum, answered exactly", add, _exact, 40),
    ("repeat after me, exact copy", repeat, _exact, 30),
    ("JSON request, answer parses", invent, _parses, 40),
    ("JSON request, the keys asked for", invent, _same_keys, 40),
    ("question about a story, answered exactly", lambda rng: story_question(rng)[0], _exact, 30),
    ("summary of 1 paragraph names the town", _summary(1), _names_town, 10),
    ("summary of 8 paragraphs names the town", _summary(8), _names_town, 10),
    ("summary of 24 paragraphs names the town", _summary(24), _names_town, 10),
)


def main() -> None:
    """Print one table row per kind of request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(options.folder).train(False)
    reply = partial(answer, model, PreTrainedTokenizerFast.from_pretrained(options.folder), max_new_tokens=60)
    for name, make, judge, count in CASES:
        rng = random.Random(4242)
        turns = [make(rng) for _ in range(count)]
        right = sum(judge(wanted, reply(question).removesuffix(END_TURN)) for question, wanted in turns)
        print(f"| {name} | {right} of {count} |", flush=True)


if __name__ == "__main__":
    main()
