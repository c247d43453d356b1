"""Long documents of several paragraphs about one subject, and requests to sum them up.

Called by corpus.py. The subject, and often its number or year, must be copied
over hundreds of tokens: this trains the long context.
"""

from __future__ import annotations

import random

import words
from document import Exchange, ask, pick

_FIRST = (
    "Wind",
    "Alder",
    "Stone",
    "Oak",
    "Brook",
    "North",
    "Silver",
    "Green",
    "Fair",
    "Hazel",
    "Marsh",
    "Long",
    "Rose",
    "Gold",
    "West",
    "Ash",
    "Elm",
    "Black",
    "Mill",
    "Swan",
)
_LAST = ("ford", "ton", "field", "bury", "dale", "mouth", "stead", "wick", "bridge", "haven")
_KINDS = (
    "museum",
    "library",
    "harbour",
    "bridge",
    "market",
    "school",
    "lighthouse",
    "mill",
    "garden",
    "castle",
    "bakery",
    "station",
    "theatre",
    "railway",
    "hospital",
    "farm",
    "workshop",
    "festival",
)

_LEAD = (
    "The {kind} of {town} is known in the whole country.",
    "This is a report about the {kind} of {town}.",
    "In the year {year} the {kind} of {town} was opened.",
    "Few people know how old the {kind} of {town} is.",
    "Everybody in {town} is proud of the {kind}.",
)
_BODY = (
    "It was built by {name}, {a_job}, in the year {year}.",
    "Each year about {n} people come to see it.",
    "The building is made of {colour} stone and has {n} windows.",
    "In {season} it is open from {day} to {day2}.",
    "In {month} there is a feast with music, and visitors get {food}.",
    "For many years nobody took care of it.",
    "Then {name} collected money, and the roof was repaired.",
    "Children like the {colour} {thing} near the door.",
    "On {day} the doors are closed, because the floor is cleaned.",
    "A small path leads from there to the {place}.",
    "The {job} says that the old days were better.",
    "There are plans to build a second house beside it.",
    "The wood came from the {place} and was carried by {animals}.",
    "In bad weather the lights stay on all night.",
    "A ticket costs {n2} coins, but children pay nothing.",
    "The oldest part is a {size} room with {a_thing} on the wall.",
    "During the great storm {n2} people slept there.",
    "The mayor gave a speech, and everyone listened.",
    "Some visitors come for the {food}, others for the view.",
    "In {season} the river is high and the boats are full.",
    "There is a story about {a_animal} that lived under the roof.",
    "It was closed for {n2} years and opened again in {month}.",
    "The work is done by {n2} people, and most of them are young.",
    "At {time} you can hear a bell from far away.",
    "The {colour} flag was made by the {job} of the village.",
    "Nothing has changed since then, and people like it that way.",
    "A new road was built, so that it is easy to reach.",
    "The letters of {name} are kept in a box.",
)
_LINK = ("Later", "Today", "In those days", "After some time", "At first", "Now", "In the end")
_SUMMARY = (
    "The text is about the {kind} of {town}.",
    "It is a report about the {kind} of {town}.",
    "The document describes the {kind} of {town}.",
)
_REQUEST = (
    "Summarise this text in one sentence.",
    "Summarize the text.",
    "What is this text about?",
    "Sum up the text in one sentence.",
    "What is the document about?",
    "Give me a short summary.",
    "Summarize this document.",
)


def _town(rng: random.Random) -> str:
    return pick(rng, _FIRST) + pick(rng, _LAST)


def _slots(rng: random.Random) -> dict[str, str]:
    animal, job, thing = pick(rng, words.ANIMALS), pick(rng, words.PEOPLE), pick(rng, words.THINGS)
    return {
        "year": str(rng.randint(1700, 2020)),
        "name": pick(rng, words.GIRLS + words.BOYS),
        "job": job,
        "a_job": words.with_article(job),
        "n": str(rng.randint(20, 900)),
        "n2": words.NUMBER_WORDS[rng.randint(2, 20)],
        "colour": pick(rng, words.COLOURS),
        "season": pick(rng, words.SEASONS),
        "day": pick(rng, words.DAYS[:3]),
        "day2": pick(rng, words.DAYS[3:]),
        "month": pick(rng, words.MONTHS),
        "food": pick(rng, words.FOODS),
        "thing": thing,
        "place": pick(rng, words.PLACES),
        "animals": words.plural(animal),
        "a_animal": words.with_article(animal),
        "a_thing": words.with_article(thing),
        "size": pick(rng, words.SIZES),
        "time": pick(rng, words.TIMES),
    }


def make_report(rng: random.Random, paragraphs: int) -> tuple[str, str, str]:
    """Text, kind and town of a report with so many paragraphs (about 90 tokens each)."""
    kind, town = pick(rng, _KINDS), _town(rng)
    parts: list[str] = []
    for index in range(paragraphs):
        lines = [pick(rng, _LEAD)] if index == 0 or rng.random() < 0.4 else []
        lines += rng.sample(_BODY, rng.randint(3, 7))
        filled = [line.format(**(_slots(rng) | {"kind": kind, "town": town})) for line in lines]
        if rng.random() < 0.3:
            filled[-1] = (
                f"{pick(rng, _LINK)}, {filled[-1][0].lower()}{filled[-1][1:]}"
                if filled[-1].split()[0] in ("The", "It", "A", "There", "In", "On", "At", "Each", "Some")
                else filled[-1]
            )
        parts.append(" ".join(filled))
    return "\n\n".join(parts), kind, town


def sum_up(rng: random.Random, paragraphs: int) -> Exchange:
    """A report in the prompt, one sentence about it as the answer, sometimes a second question."""
    text, kind, town = make_report(rng, paragraphs)
    request = ask(rng, _REQUEST)
    layout = pick(rng, ("{r}\n\n{t}", "{t}\n\n{r}", "{t}\n\n{r}", "{r}\n{t}"))
    turns: Exchange = [(layout.format(r=request, t=text), pick(rng, _SUMMARY).format(kind=kind, town=town))]
    if rng.random() < 0.4:
        turns.append(
            (
                ask(rng, ("Which town is it about?", "Where is it?", "What is the name of the town?")),
                f"The town is {town}.",
            )
        )
    return turns
