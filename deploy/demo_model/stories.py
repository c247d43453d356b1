"""Builds stories from one cast and one or more plots, and remembers what they said.

Called by corpus.py for plain texts, and by story_chats.py for requests and
questions; the slots that a story used tell which questions it can answer.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, field

import words
from document import pick
from plots import PLOTS
from scenes import ENDINGS, FILLERS, LINKS, OPENINGS, SETTINGS, SKILLS, Step

_PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him"), "it": ("it", "its", "it")}


@dataclass
class Story:
    """A story, the values of its slots, and the slots that its text really mentions."""

    slots: dict[str, str]
    sentences: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        """The whole story as one paragraph."""
        return " ".join(self.sentences)

    def say(self, template: str) -> None:
        """Add one filled template to the story and note the slots that it used."""
        self.used.update(name for _, name, _, _ in string.Formatter().parse(template) if name)
        self.sentences.append(template.format(**self.slots))


def _person(rng: random.Random) -> tuple[str, str, str]:
    """Name, kind and pronoun of a character."""
    roll = rng.random()
    if roll < 0.3:
        return pick(rng, words.GIRLS), pick(rng, ("girl", "girl", *words.PEOPLE)), "she"
    if roll < 0.6:
        return pick(rng, words.BOYS), pick(rng, ("boy", "boy", *words.PEOPLE)), "he"
    name = pick(rng, words.ANIMAL_NAMES + words.GIRLS + words.BOYS)
    pronoun = "she" if name in words.GIRLS else "he" if name in words.BOYS else pick(rng, ("she", "he"))
    kind = pick(rng, words.ANIMALS) if roll < 0.92 else pick(rng, words.MACHINES)
    return name, kind, pronoun


def make_cast(rng: random.Random, fixed: dict[str, str] | None = None) -> dict[str, str]:
    """Values for all slots of the plots; `fixed` (from a request) wins over chance."""
    hero, kind, pronoun = _person(rng)
    hero, kind = (fixed or {}).get("hero", hero), (fixed or {}).get("kind", kind)
    friend, friend_kind, _ = _person(rng)
    while friend == hero or friend_kind == kind:
        friend, friend_kind, _ = _person(rng)
    slots = {
        "hero": hero,
        "kind": kind,
        "friend": friend,
        "friend_kind": friend_kind,
        "place": pick(rng, words.PLACES),
        "thing": pick(rng, words.THINGS),
        "colour": pick(rng, words.COLOURS),
        "food": pick(rng, words.FOODS),
        "weather": pick(rng, words.WEATHERS),
        "mood": pick(rng, words.MOODS),
        "trait": pick(rng, words.TRAITS),
        "size": pick(rng, words.SIZES),
        "day": pick(rng, words.DAYS),
        "season": pick(rng, words.SEASONS),
        "time": pick(rng, words.TIMES),
        "skill": pick(rng, SKILLS),
        "food2": pick(rng, words.FOODS),
        "colour2": pick(rng, words.COLOURS),
        "mood2": pick(rng, words.MOODS),
        "season2": pick(rng, words.SEASONS),
    } | (fixed or {})
    if slots["hero"] in words.GIRLS or slots["hero"] in words.BOYS:
        pronoun = "she" if slots["hero"] in words.GIRLS else "he"
    if slots["kind"] in ("girl", "boy"):
        slots["kind"] = "girl" if pronoun == "she" else "boy"
    he, his, him = _PRONOUNS[pronoun]
    article = words.with_article
    return slots | {
        "he": he,
        "his": his,
        "him": him,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "the_place": "the " + slots["place"],
        "a_kind": article(slots["kind"]),
        "a_trait_kind": article(f"{slots['trait']} {slots['kind']}"),
        "a_friend_kind": article(slots["friend_kind"]),
        "a_trait_friend_kind": article(f"{slots['trait']} {slots['friend_kind']}"),
        "a_colour_thing": article(f"{slots['colour']} {slots['thing']}"),
    }


def _play(rng: random.Random, story: Story, plot: list[Step], filler_share: float) -> None:
    for step in plot:
        story.say(pick(rng, step))
        if rng.random() < filler_share:
            story.say(pick(rng, FILLERS))


def make_story(rng: random.Random, fixed: dict[str, str] | None = None, filler_share: float = 0.15) -> Story:
    """A story of one plot: 60 to 200 tokens."""
    story = Story(make_cast(rng, fixed))
    story.say(pick(rng, OPENINGS))
    for template in rng.sample(SETTINGS, rng.choice((0, 1, 1, 2))):
        story.say(template)
    _play(rng, story, PLOTS[pick(rng, tuple(PLOTS))], filler_share)
    for template in rng.sample(ENDINGS, rng.choice((1, 1, 2))):
        story.say(template)
    return story


def make_short_story(rng: random.Random, fixed: dict[str, str] | None = None) -> Story:
    """A story of three to five sentences: the opening, part of a plot, an ending."""
    story = Story(make_cast(rng, fixed))
    story.say(pick(rng, OPENINGS))
    plot = PLOTS[pick(rng, tuple(PLOTS))]
    for step in (plot[0], plot[-1]):
        story.say(pick(rng, step))
    story.say(pick(rng, ENDINGS))
    return story


def make_long_story(rng: random.Random, fixed: dict[str, str] | None = None) -> str:
    """Several plots with one hero, one paragraph each: 200 to 600 tokens."""
    slots = make_cast(rng, fixed)
    names = rng.sample(tuple(PLOTS), rng.randint(2, 4))
    paragraphs: list[str] = []
    for index, name in enumerate(names):
        story = Story(
            make_cast(rng, {key: slots[key] for key in ("hero", "kind", "place")}) if index else slots
        )
        story.slots.update({key: slots[key] for key in ("he", "his", "him", "He", "His")})
        story.say(pick(rng, LINKS if index else OPENINGS))
        if rng.random() < 0.7:
            story.say(pick(rng, SETTINGS))
        _play(rng, story, PLOTS[name], 0.3)
        if index == len(names) - 1:
            story.say(pick(rng, ENDINGS))
        paragraphs.append(story.text)
    return "\n\n".join(paragraphs)
