"""Questions about the facts of fact_tables.py, and their answers in a full sentence.

Called by corpus.py.
"""

from __future__ import annotations

import random

import words
from document import Exchange, Turn, ask, pick
from fact_tables import CAPITALS, CATEGORIES, FACT_COLOURS, LEGS, ODD_FACTS, OPPOSITES, SOUNDS, YOUNG


def _capital(rng: random.Random) -> Turn:
    country = pick(rng, tuple(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.2:
        return ask(
            rng, (f"Which country has the capital {city}?", f"{city} is the capital of which country?")
        ), f"{city} is the capital of {country}."
    question = ask(
        rng,
        (
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Capital of {country}?",
            f"Tell me the capital of {country}.",
            f"What's the capital of {country}?",
        ),
    )
    return question, f"The capital of {country} is {city}."


def _calendar(rng: random.Random) -> Turn:
    names, kind = (words.DAYS, "day") if rng.random() < 0.5 else (words.MONTHS, "month")
    index = rng.randrange(len(names))
    step = rng.choice((1, -1))
    other = names[(index + step) % len(names)]
    side = "after" if step == 1 else "before"
    return ask(
        rng,
        (
            f"Which {kind} comes {side} {names[index]}?",
            f"What {kind} is {side} {names[index]}?",
            f"What comes {side} {names[index]}?",
        ),
    ), f"{other} comes {side} {names[index]}."


def _thing(rng: random.Random) -> Turn:
    roll = rng.random()
    if roll < 0.3:
        thing, colour = pick(rng, tuple(FACT_COLOURS.items()))
        if thing in ("grass", "snow", "coal", "blood", "milk", "spinach", "chocolate", "gold"):
            return ask(
                rng, (f"What colour is {thing}?", f"Which colour does {thing} have?")
            ), f"{thing.capitalize()} is {colour}."
        article = (
            "the" if thing in ("sky", "sea", "sun", "night") else "a" if thing[0] not in "aeiou" else "an"
        )
        return ask(
            rng, (f"What colour is {article} {thing}?", f"Which colour has {article} {thing}?")
        ), f"{article.capitalize()} {thing} is {colour}."
    if roll < 0.45:
        animal, sound = pick(rng, tuple(SOUNDS.items()))
        return ask(
            rng,
            (
                f"What sound does {words.with_article(animal)} make?",
                f"What does {words.with_article(animal)} do?",
            ),
        ), f"{words.with_article(animal).capitalize()} {sound}."
    if roll < 0.6:
        animal, child = pick(rng, tuple(YOUNG.items()))
        return ask(
            rng, (f"What is a young {animal} called?", f"What do you call a baby {animal}?")
        ), f"A young {animal} is called a {child}."
    if roll < 0.75:
        animal, legs = pick(rng, tuple(LEGS.items()))
        return ask(
            rng, (f"How many legs does {words.with_article(animal)} have?",)
        ), f"{words.with_article(animal).capitalize()} has {legs} legs."
    first, second = pick(rng, tuple(OPPOSITES.items()))
    return ask(
        rng, (f"What is the opposite of {first}?", f"Opposite of {first}?")
    ), f"The opposite of {first} is {second}."


def _category(rng: random.Random) -> Turn:
    kind = pick(rng, tuple(CATEGORIES))
    word = pick(rng, CATEGORIES[kind])
    counted = kind in ("animal", "fruit", "vegetable", "tool", "instrument") and word not in (
        "spinach",
        "scissors",
    )
    name = words.with_article(word) if counted else word
    if rng.random() < 0.5:
        asked = pick(rng, tuple(CATEGORIES)) if rng.random() < 0.5 else kind
        is_so = word in CATEGORIES[asked]
        answer = (
            f"Yes, {name} is {words.with_article(asked)}."
            if is_so
            else f"No, {name} is {words.with_article(kind)}."
        )
        return ask(rng, (f"Is {name} {words.with_article(asked)}?",)), answer
    return ask(
        rng, (f"What is {name}?", f"What kind of thing is {name}?")
    ), f"{name[0].upper()}{name[1:]} is {words.with_article(kind)}."


def fact(rng: random.Random) -> Exchange:
    """One question about a fact of the tables."""
    kinds = (_capital, _calendar, _thing, _category, _odd_fact)
    return [kinds[rng.choices(range(5), (4, 2, 4, 2, 3))[0]](rng)]


def _odd_fact(rng: random.Random) -> Turn:
    question, answer = ODD_FACTS[rng.randrange(len(ODD_FACTS))]
    return ask(rng, (question,)), answer
