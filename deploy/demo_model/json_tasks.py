"""JSON objects on request: keys given in the prompt, values invented or copied from the prompt.

Called by corpus.py. Answers are what json.dumps writes, with nothing around them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import words
from document import Exchange, Turn, pick
from fact_tables import CAPITALS

Value = str | int | bool | list[str]
_FIELDS: dict[str, Callable[[random.Random], Value]] = {
    "name": lambda rng: pick(rng, words.GIRLS + words.BOYS),
    "age": lambda rng: rng.randint(1, 90),
    "city": lambda rng: pick(rng, tuple(CAPITALS.values())),
    "country": lambda rng: pick(rng, tuple(CAPITALS)),
    "colour": lambda rng: pick(rng, words.COLOURS),
    "animal": lambda rng: pick(rng, words.ANIMALS),
    "food": lambda rng: pick(rng, words.FOODS),
    "job": lambda rng: pick(rng, words.PEOPLE),
    "happy": lambda rng: rng.random() < 0.5,
    "active": lambda rng: rng.random() < 0.5,
    "price": lambda rng: rng.randint(1, 100),
    "count": lambda rng: rng.randint(0, 20),
    "size": lambda rng: pick(rng, ("small", "medium", "large")),
    "day": lambda rng: pick(rng, words.DAYS),
    "month": lambda rng: pick(rng, words.MONTHS),
    "weather": lambda rng: pick(rng, words.WEATHERS),
    "temperature": lambda rng: rng.randint(-10, 35),
    "hobby": lambda rng: pick(rng, words.SPORTS),
    "colours": lambda rng: rng.sample(words.COLOURS, rng.randint(1, 3)),
    "fruits": lambda rng: rng.sample(words.FRUITS, rng.randint(1, 3)),
    "title": lambda rng: (
        f"The {pick(rng, words.COLOURS).capitalize()} {pick(rng, words.THINGS).capitalize()}"
    ),
    "id": lambda rng: rng.randint(1, 999),
    "mood": lambda rng: pick(rng, words.MOODS),
    "kind": lambda rng: pick(rng, words.ANIMALS),
}
_SUBJECTS: dict[str, tuple[str, ...]] = {
    "person": ("name", "age", "city", "job", "hobby", "happy", "mood"),
    "pet": ("name", "kind", "age", "colour", "happy"),
    "product": ("name", "price", "colour", "size", "count", "id"),
    "book": ("title", "price", "id", "count"),
    "weather report": ("city", "day", "weather", "temperature"),
    "user": ("id", "name", "age", "country", "active"),
    "animal": ("name", "kind", "colour", "size", "food"),
    "city": ("city", "country", "weather"),
    "order": ("id", "fruits", "price", "day"),
    "worker": ("id", "name", "job", "active"),
}


def _make(rng: random.Random, keys: list[str]) -> dict[str, Value]:
    return {key: _FIELDS[key](rng) for key in keys}


def invent(rng: random.Random) -> Turn:
    """An object with the keys of the prompt, or a usual choice of keys when it names none."""
    subject = pick(rng, tuple(_SUBJECTS))
    if rng.random() < 0.15:
        layout = pick(
            rng, ("Write a JSON object about {a}.", "Give me {a} as JSON.", "Describe {a} in JSON.")
        )
        return layout.format(a=words.with_article(subject)), json.dumps(
            _make(rng, list(_SUBJECTS[subject][:3]))
        )
    if rng.random() < 0.6:
        pool = _SUBJECTS[subject]
        keys = rng.sample(pool, rng.randint(2, min(5, len(pool))))
        about = pick(
            rng, (f" for {words.with_article(subject)}", f" about {words.with_article(subject)}", "")
        )
    else:
        keys, about = rng.sample(tuple(_FIELDS), rng.randint(1, 5)), ""
    shown = pick(rng, (words.join_words(keys), ", ".join(keys)))
    layout = pick(
        rng,
        (
            "Write a JSON object{about} with the keys {k}.",
            "Give me JSON{about} with {k}.",
            "Return a JSON object with {k}{about}.",
            "Make a JSON object{about} with the fields {k}.",
            "JSON{about} with the keys {k}",
            "Answer in JSON with the keys {k}.",
            "Create a JSON object{about}. Keys: {k}.",
            "Write JSON{about} with the keys {k}.",
        ),
    )
    return layout.format(about=about, k=shown), json.dumps(_make(rng, keys))


def from_text(rng: random.Random) -> Turn:
    """An object whose values are copied from a sentence."""
    name, age, city = (
        pick(rng, words.GIRLS + words.BOYS),
        rng.randint(2, 90),
        pick(rng, tuple(CAPITALS.values())),
    )
    colour, thing, price = pick(rng, words.COLOURS), pick(rng, words.THINGS), rng.randint(1, 100)
    job, animal, day = pick(rng, words.PEOPLE), pick(rng, words.ANIMALS), pick(rng, words.DAYS)
    sentence, value = (
        (f"{name} is {age} years old and lives in {city}.", {"name": name, "age": age, "city": city}),
        (f"{name} is {words.with_article(job)} from {city}.", {"name": name, "job": job, "city": city}),
        (f"The {colour} {thing} costs {price} euros.", {"thing": thing, "colour": colour, "price": price}),
        (
            f"On {day} {name} saw {words.with_article(animal)} in {city}.",
            {"day": day, "name": name, "animal": animal, "city": city},
        ),
        (
            f"{name} has {words.with_article(colour + ' ' + animal)}.",
            {"name": name, "animal": animal, "colour": colour},
        ),
        (f"{name}, {age}, works as {words.with_article(job)}.", {"name": name, "age": age, "job": job}),
    )[rng.randrange(6)]
    keys = list(value)
    if rng.random() < 0.5:
        keys = rng.sample(keys, rng.randint(1, len(keys)))
    shown = words.join_words(keys) if rng.random() < 0.5 else ", ".join(keys)
    layout = pick(
        rng,
        (
            "Turn this into JSON with the keys {k}: {s}",
            "{s} Write this as JSON with {k}.",
            "Extract {k} as JSON: {s}",
            "Read the text and answer in JSON with the keys {k}. {s}",
        ),
    )
    return layout.format(k=shown, s=sentence), json.dumps({key: value[key] for key in keys})


def json_list(rng: random.Random) -> Turn:
    """A JSON array of words, invented or copied."""
    size = rng.randint(2, 5)
    kind, pool = rng.choice(
        (
            ("animals", words.ANIMALS),
            ("colours", words.COLOURS),
            ("fruits", words.FRUITS),
            ("tools", words.TOOLS),
        )
    )
    some = rng.sample(pool, size)
    if rng.random() < 0.5:
        return pick(rng, ("Write a JSON list of {n} {k}.", "Give me a JSON array with {n} {k}.")).format(
            n=pick(rng, (str(size), words.NUMBER_WORDS[size])), k=kind
        ), json.dumps(some)
    return pick(rng, ("Turn these words into a JSON list: {w}", "Write as a JSON array: {w}")).format(
        w=", ".join(some)
    ), json.dumps(some)


def json_task(rng: random.Random) -> Exchange:
    """One JSON request."""
    return [(invent, from_text, json_list)[rng.choices(range(3), (5, 4, 1))[0]](rng)]
