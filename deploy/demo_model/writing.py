"""Letters, descriptions, dialogues, instructions and opinions: small texts that people like to ask for.

Called by corpus.py. Names and things of the request come back in the answer.
"""

from __future__ import annotations

import random

import words
from document import Exchange, Turn, ask, pick
from phrases import ANIMAL_LOOKS, LETTER, PLACE_LOOKS, STEPS, TALK


def _slots(rng: random.Random) -> dict[str, str]:
    animal, thing, colour = pick(rng, words.ANIMALS), pick(rng, words.THINGS), pick(rng, words.COLOURS)
    return {
        "day": pick(rng, words.DAYS),
        "place": pick(rng, words.PLACES),
        "place2": pick(rng, words.PLACES),
        "thing": thing,
        "weather": pick(rng, words.WEATHERS),
        "a_thing": words.with_article(thing),
        "animal": animal,
        "colour": colour,
        "a_animal": words.with_article(animal),
        "food": pick(rng, words.FOODS),
        "mood": pick(rng, words.MOODS),
        "month": pick(rng, words.MONTHS),
        "other": pick(rng, words.GIRLS + words.BOYS),
        "size": pick(rng, words.SIZES),
        "season": pick(rng, words.SEASONS),
        "time": pick(rng, words.TIMES),
        "job": pick(rng, words.PEOPLE),
        "trait": pick(rng, words.TRAITS),
        "a_colour_thing": words.with_article(f"{colour} {thing}"),
    }


def how_to(rng: random.Random) -> Turn:
    """Numbered steps."""
    task = pick(rng, tuple(STEPS))
    steps = "\n".join(f"{index}. {step}" for index, step in enumerate(STEPS[task], 1))
    your = task.replace("my ", "your ")
    return ask(
        rng,
        (
            f"How do I {task}?",
            f"How can I {task}?",
            f"Explain how to {your}.",
            f"Tell me how to {your}.",
            f"Give me steps to {your}.",
            f"How to {your}?",
        ),
    ), steps


def letter(rng: random.Random) -> Turn:
    """A letter or mail to a named person, sometimes from one."""
    to, sender = rng.sample(words.GIRLS + words.BOYS, 2)
    slots = _slots(rng)
    kind = pick(rng, ("letter", "mail", "short letter", "postcard", "message"))
    lines = [line.format(**slots) for line in rng.sample(LETTER, rng.randint(2, 4))]
    about = ""
    if rng.random() < 0.4:
        about = f" about the {slots['place']}"
        lines.insert(
            0,
            pick(
                rng,
                (
                    "Yesterday I was at the {place}.",
                    "I want to tell you about the {place}.",
                    "The {place} is beautiful in {season}.",
                ),
            ).format(**slots),
        )
    signed = rng.random() < 0.5
    by = f" from {sender}" if signed else ""
    return ask(
        rng, (f"Write a {kind} to {to}{by}{about}.", f"Write a {kind}{by} to {to}{about}.")
    ), f"Dear {to},\n\n{' '.join(lines)}\n\nYours,\n{sender if signed else 'twolane'}"


def describe(rng: random.Random) -> Turn:
    """Two to four sentences about a place or an animal."""
    slots = _slots(rng)
    looks: tuple[str, ...]
    if rng.random() < 0.5:
        noun, looks = slots["place"], PLACE_LOOKS
        first = f"The {noun} is {pick(rng, ('old', 'small', 'very quiet', 'big and bright', 'well known'))}."
    else:
        noun, looks = slots["animal"], ANIMAL_LOOKS
        slots["a_animal"] = words.with_article(
            pick(rng, [animal for animal in words.ANIMALS if animal != noun])
        )
        praise = pick(rng, ("a beautiful", "a clever", "a funny", "an interesting"))
        first = f"{words.with_article(noun).capitalize()} is {praise} animal."
    lines = [line.format(**slots) for line in rng.sample(looks, rng.randint(1, 3))]
    a = words.with_article(noun)
    return ask(
        rng,
        (
            f"Describe {a}.",
            f"Tell me about the {noun}.",
            f"Tell me something about {a}.",
            f"Write about {a}.",
        ),
    ), " ".join([first, *lines])


def dialogue(rng: random.Random) -> Turn:
    """A short dialogue between two speakers of the request."""
    first, second = (
        rng.sample(words.ANIMALS + words.PEOPLE + words.MACHINES, 2)
        if rng.random() < 0.7
        else rng.sample(words.GIRLS + words.BOYS, 2)
    )
    named = first[0].isupper()
    shown = (
        f"{first} and {second}" if named else f"{words.with_article(first)} and {words.with_article(second)}"
    )
    lines = (
        [f"{first.capitalize()}: Hello, {second}!", f"{second.capitalize()}: Hello, {first}!"]
        if rng.random() < 0.6
        else []
    )
    slots = _slots(rng)
    for question, reply in rng.sample(TALK, rng.randint(2, 4)):
        lines += [
            f"{first.capitalize()}: {question.format(**slots)}",
            f"{second.capitalize()}: {reply.format(**slots)}",
        ]
    return ask(
        rng,
        (
            f"Write a dialogue between {shown}.",
            f"Write a short dialogue between {shown}.",
            f"Let {shown} talk to each other.",
        ),
    ), "\n".join(lines)


def opinion(rng: random.Random) -> Turn:
    """What the model likes: nothing, but it knows what many people like."""
    kind, pool = (
        ("colour", words.COLOURS),
        ("animal", words.ANIMALS),
        ("food", words.FOODS),
        ("fruit", words.FRUITS),
        ("season", words.SEASONS),
        ("day", words.DAYS),
        ("place", words.PLACES),
    )[rng.randrange(7)]
    liked = pick(rng, pool)
    shown = (
        words.plural(liked) if kind in ("animal", "fruit") else f"the {liked}" if kind == "place" else liked
    )
    if rng.random() < 0.3:
        return ask(rng, (f"Do you like {shown}?",)), pick(
            rng,
            (
                "I am only a model, but many people like {l}.",
                "I cannot like anything, but {l} would be a good choice.",
            ),
        ).format(l=shown)
    return ask(
        rng, (f"What is your favourite {kind}?", f"Which {kind} do you like best?")
    ), f"I am a model, so I have no favourite {kind}. But many people like {shown}."


def writing(rng: random.Random) -> Exchange:
    """One of the tasks above."""
    return [(how_to, letter, describe, dialogue, opinion)[rng.choices(range(5), (3, 3, 3, 3, 2))[0]](rng)]
