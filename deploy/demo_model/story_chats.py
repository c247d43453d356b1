"""Chats about stories: telling, continuing, and answering questions about one in the prompt.

Called by corpus.py. Answers to questions are copied from the prompt, which is
what teaches a small model to look back into its context.
"""

from __future__ import annotations

import random

import words
from document import Exchange, Turn, ask, pick
from stories import Story, make_long_story, make_short_story, make_story

# slot that the story must mention -> wordings of the question, wordings of the answer
_QUESTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hero": (
        (
            "Who is the story about?",
            "What is the name of the main character?",
            "Who is the hero of the story?",
        ),
        ("The story is about {hero}.", "{hero}.", "The main character is {hero}."),
    ),
    "friend": (
        ("Who is the friend of {hero}?", "Which friend is in the story?", "Who else is in the story?"),
        ("{friend}.", "The friend is {friend}.", "{friend}, {a_friend_kind}."),
    ),
    "the_place": (
        ("Where does the story happen?", "Which place is in the story?", "Where was {hero}?"),
        ("At the {place}.", "The story happens near the {place}.", "It happens at the {place}."),
    ),
    "a_colour_thing": (
        ("What colour was the {thing}?", "Which colour did the {thing} have?"),
        ("The {thing} was {colour}.", "{colour}.", "It was {colour}."),
    ),
    "thing": (
        ("Which thing is important in the story?", "What object is in the story?"),
        ("The {thing}.", "It is {a_colour_thing}."),
    ),
    "food": (
        ("What food is in the story?", "What did they eat?"),
        ("{food}.", "The food in the story is {food}."),
    ),
    "weather": (
        ("What was the weather like?", "How was the weather?"),
        ("It was {weather}.", "The weather was {weather}."),
    ),
    "day": (("On which day did it happen?", "What day was it?"), ("It was {day}.", "On {day}.")),
    "a_kind": (("What is {hero}?", "Who or what is {hero}?"), ("{hero} is {a_kind}.", "{a_kind}.")),
    "friend_kind": (("What is {friend}?", "Who or what is {friend}?"), ("{friend} is {a_friend_kind}.",)),
    "skill": (("What did {hero} want to learn?",), ("{hero} wanted to learn to {skill}.",)),
}


def _question(rng: random.Random, story: Story, slot: str) -> Turn:
    questions, answers = _QUESTIONS[slot]
    answer = pick(rng, answers).format(**story.slots)
    return ask(rng, questions).format(**story.slots), answer[0].upper() + answer[1:]


def _askable(story: Story) -> list[str]:
    """Slots whose question the text answers without doubt."""
    slots = [slot for slot in _QUESTIONS if slot in story.used]
    if "thing" in slots and "a_colour_thing" not in story.used:
        slots.remove("thing")
    return slots


def story_question(rng: random.Random) -> Exchange:
    """A story in the prompt with one question, then up to three more questions about it."""
    story = make_short_story(rng) if rng.random() < 0.4 else make_story(rng)
    slots = rng.sample(_askable(story), min(rng.randint(1, 4), len(_askable(story))))
    question, answer = _question(rng, story, slots[0])
    layout = pick(
        rng,
        (
            "{s}\n\n{q}",
            "{s}\n{q}",
            "Read this story: {s}\n\n{q}",
            "Story: {s}\n\nQuestion: {q}",
            "{q}\n\n{s}",
            "Here is a story. {s} {q}",
        ),
    )
    turns: Exchange = [(layout.format(s=story.text, q=question), answer)]
    return turns + [_question(rng, story, slot) for slot in slots[1:]]


def _wish(rng: random.Random) -> tuple[str, dict[str, str]]:
    """What a user may ask a story to be about, and the slots that this fixes."""
    animal, thing, place = pick(rng, words.ANIMALS), pick(rng, words.THINGS), pick(rng, words.PLACES)
    kind = pick(rng, words.ANIMALS + words.MACHINES + words.PEOPLE)
    name = pick(rng, words.GIRLS + words.BOYS + words.ANIMAL_NAMES)
    colour, child = pick(rng, words.COLOURS), "girl" if name in words.GIRLS else "boy"
    options: list[tuple[str, dict[str, str]]] = [
        (f" about {words.with_article(kind)}", {"kind": kind}),
        (f" about {words.with_article(kind)}", {"kind": kind}),
        (f" about {words.with_article(kind)} named {name}", {"kind": kind, "hero": name}),
        (f" about {name}", {"hero": name}),
        (
            f" about {words.with_article(animal)} and {words.with_article(thing)}",
            {"kind": animal, "thing": thing},
        ),
        (f" about {words.with_article(colour + ' ' + thing)}", {"thing": thing, "colour": colour}),
        (f" about {words.with_article(thing)}", {"thing": thing}),
        (f" in the {place}", {"place": place}),
        (f" about the {place}", {"place": place}),
        (f" about {name} the {animal}", {"hero": name, "kind": animal}),
        (f" about {words.with_article(child)} named {name}", {"hero": name, "kind": child}),
        ("", {}),
        ("", {}),
    ]
    return options[rng.randrange(len(options))]


def _told(rng: random.Random, fixed: dict[str, str]) -> Story:
    """A story that really mentions what was asked for."""
    needed = {"thing": {"a_colour_thing"}, "place": {"the_place"}}
    want = set().union(*(needed.get(key, set()) for key in fixed))
    for _ in range(20):
        story = make_story(rng, fixed)
        if want <= story.used:
            break
    return story


def tell_story(rng: random.Random) -> Exchange:
    """A request for a story, sometimes with questions about the answer afterwards."""
    wish, fixed = _wish(rng)
    request = ask(
        rng,
        (
            f"Tell me a story{wish}.",
            f"Write a story{wish}.",
            f"Tell a story{wish}.",
            f"Write a short story{wish}.",
            f"Can you tell me a story{wish}?",
            f"I want a story{wish}.",
            f"Make up a story{wish}.",
        ),
    )
    story = _told(rng, fixed)
    turns: Exchange = [(request, story.text)]
    if rng.random() < 0.35:
        slots = rng.sample(_askable(story), min(rng.randint(1, 3), len(_askable(story))))
        turns += [_question(rng, story, slot) for slot in slots]
    return turns


def tell_long_story(rng: random.Random) -> Exchange:
    """A request for a long story of several paragraphs."""
    wish, fixed = _wish(rng)
    fixed = {key: value for key, value in fixed.items() if key != "colour"}
    if "thing" in fixed:
        wish, fixed = "", {}
    request = ask(
        rng,
        (
            f"Tell me a long story{wish}.",
            f"Write a long story{wish}.",
            f"Write a very long story{wish}.",
            f"Please write a long story{wish}.",
            f"I would like to hear a long story{wish}.",
        ),
    )
    return [(request, make_long_story(rng, fixed))]


def continue_story(rng: random.Random) -> Exchange:
    """The first sentences of a story in the prompt, the rest as the answer."""
    story = make_story(rng)
    cut = rng.randint(1, 3)
    head, tail = " ".join(story.sentences[:cut]), " ".join(story.sentences[cut:])
    request = ask(
        rng,
        ("Continue this story:", "Continue the story:", "How does this story go on?", "Finish this story:"),
    )
    return [(f"{request} {head}", tail)]
