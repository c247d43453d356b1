"""Small sums to 20, counting, and lists of things of one kind.

Called by corpus.py. The sums are few enough to be memorised.
"""

from __future__ import annotations

import random

import words
from document import Exchange, Turn, ask, pick
from fact_tables import CATEGORIES


def add(rng: random.Random) -> Turn:
    """A sum, difference or small product with a result from 0 to 20."""
    roll = rng.random()
    if roll < 0.55:
        first = rng.randint(0, 20)
        second = rng.randint(0, 20 - first)
        sign, word, result = "+", "plus", first + second
    elif roll < 0.85:
        first = rng.randint(0, 20)
        second = rng.randint(0, first)
        sign, word, result = "-", "minus", first - second
    else:
        first = rng.randint(1, 10)
        second = rng.randint(1, 20 // first)
        sign, word, result = "*", "times", first * second
    if rng.random() < 0.2:
        names = words.NUMBER_WORDS
        return ask(
            rng, (f"What is {names[first]} {word} {names[second]}?",)
        ), f"{names[first].capitalize()} {word} {names[second]} is {names[result]}."
    question = ask(
        rng,
        (
            f"What is {first} {sign} {second}?",
            f"{first} {sign} {second} = ?",
            f"How much is {first} {word} {second}?",
            f"What is {first} {word} {second}?",
            f"{first} {sign} {second}",
            f"{first}{sign}{second}",
        ),
    )
    return question, f"{first} {sign} {second} = {result}"


def story_sum(rng: random.Random) -> Turn:
    """A sum told as a tiny story."""
    name, noun = pick(rng, words.GIRLS + words.BOYS), words.plural(pick(rng, words.FRUITS))
    first = rng.randint(2, 10)
    if rng.random() < 0.5:
        second = rng.randint(1, 10)
        tale, sign, result = f"{name} has {first} {noun} and gets {second} more.", "+", first + second
    else:
        second = rng.randint(1, first - 1)
        tale, sign, result = f"{name} has {first} {noun} and eats {second}.", "-", first - second
    return (
        f"{tale} How many {noun} does {name} have now?",
        f"{first} {sign} {second} = {result}. {name} has {result} {noun}.",
    )


def count(rng: random.Random) -> Turn:
    """Counting up or down."""
    low = rng.choice((1, 1, 1, 2, 5, 10))
    high = low + rng.randint(3, 15)
    numbers = [str(number) for number in range(low, high + 1)]
    if rng.random() < 0.25:
        return ask(
            rng, (f"Count down from {high} to {low}.", f"Count backwards from {high} to {low}.")
        ), ", ".join(reversed(numbers))
    return ask(
        rng,
        (
            f"Count from {low} to {high}.",
            f"Count up from {low} to {high}.",
            f"Write the numbers from {low} to {high}.",
        ),
    ), ", ".join(numbers)


def compare(rng: random.Random) -> Turn:
    """The larger of two numbers."""
    first, second = rng.sample(range(1, 100), 2)
    return ask(
        rng, (f"Which is larger, {first} or {second}?", f"Which number is bigger: {first} or {second}?")
    ), f"{max(first, second)} is larger than {min(first, second)}."


def list_things(rng: random.Random) -> Turn:
    """A list of things of one kind, with commas, numbers or dashes."""
    kind = pick(rng, ("animal", "animal", "colour", "fruit", "vegetable", "tool", "sport", "instrument"))
    size = rng.randint(2, 7 if kind != "sport" else 5)
    some = rng.sample(CATEGORIES[kind], size)
    number, kinds = pick(rng, (str(size), words.NUMBER_WORDS[size])), words.plural(kind)
    roll = rng.random()
    if roll < 0.45:
        return ask(
            rng,
            (
                f"Name {number} {kinds}.",
                f"List {number} {kinds}.",
                f"Give me {number} {kinds}.",
                f"Tell me {number} {kinds}.",
            ),
        ), words.join_words(some).capitalize() + "."
    if roll < 0.8:
        return ask(
            rng,
            (f"Write a numbered list of {number} {kinds}.", f"Give me a numbered list of {number} {kinds}."),
        ), "\n".join(f"{index}. {word}" for index, word in enumerate(some, 1))
    return ask(
        rng, (f"Write a list of {number} {kinds} with dashes.", f"Make a bullet list of {number} {kinds}.")
    ), "\n".join(f"- {word}" for word in some)


def calendar_list(rng: random.Random) -> Turn:
    """The days, months or seasons in order."""
    kind, names = rng.choice(
        (("days of the week", words.DAYS), ("months of the year", words.MONTHS), ("seasons", words.SEASONS))
    )
    return ask(
        rng, (f"List the {kind}.", f"Name the {kind}.", f"What are the {kind}?", f"Tell me the {kind}.")
    ), words.join_words(names) + "."


def number_task(rng: random.Random) -> Exchange:
    """One of the tasks above."""
    tasks = (add, story_sum, count, compare, list_things, calendar_list)
    return [tasks[rng.choices(range(6), (6, 1, 2, 1, 4, 1))[0]](rng)]
