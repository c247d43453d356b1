"""Tasks whose answer is made from the words of the prompt: copying, sorting, upper case, counting, spelling.

Called by corpus.py. Random strings are in it on purpose: they can only be
answered by copying, never by memory.
"""

from __future__ import annotations

import random
import string

import words
from document import Exchange, Turn, ask, pick
from stories import make_short_story

_LETTERS = string.ascii_lowercase


def _nonsense(rng: random.Random) -> str:
    """A made-up word, a code or a number."""
    roll = rng.random()
    if roll < 0.5:
        return "".join(
            pick(rng, ("ba", "ko", "li", "mu", "ter", "sen", "da", "ro", "fi", "zu", "nel", "wi", "pa", "go"))
            for _ in range(rng.randint(2, 3))
        )
    if roll < 0.75:
        return "".join(rng.choices(string.digits, k=rng.randint(1, 5)))
    return "".join(rng.choices(_LETTERS + string.ascii_uppercase + string.digits, k=rng.randint(2, 6)))


def _phrase(rng: random.Random) -> str:
    """Something to copy: a sentence, a few words, or nonsense."""
    roll = rng.random()
    if roll < 0.4:
        return pick(rng, make_short_story(rng).sentences)
    if roll < 0.75:
        return " ".join(pick(rng, words.PLAIN_WORDS) for _ in range(rng.randint(1, 8)))
    return " ".join(
        _nonsense(rng) if rng.random() < 0.6 else pick(rng, words.PLAIN_WORDS)
        for _ in range(rng.randint(1, 5))
    )


def _some(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(words.PLAIN_WORDS, rng.randint(low, high))


def repeat(rng: random.Random) -> Turn:
    """Repeat after me."""
    phrase = _phrase(rng)
    layout = pick(
        rng,
        (
            "Repeat after me: {p}",
            "Repeat: {p}",
            "Say: {p}",
            "Copy this text: {p}",
            'Say "{p}"',
            'Repeat "{p}"',
            "Repeat this exactly: {p}",
            "Echo: {p}",
            "Please repeat after me: {p}",
        ),
    )
    return layout.format(p=phrase), phrase


def repeat_often(rng: random.Random) -> Turn:
    """The same word a stated number of times."""
    word, count = pick(rng, words.PLAIN_WORDS), rng.randint(2, 6)
    number = pick(rng, (str(count), words.NUMBER_WORDS[count]))
    return ask(
        rng,
        (
            f"Say {word} {number} times.",
            f"Write the word {word} {number} times.",
            f"Repeat {word} {number} times.",
        ),
    ), " ".join([word] * count)


def upper(rng: random.Random) -> Turn:
    """Rewrite in upper or lower case."""
    phrase = " ".join(_some(rng, 1, 5)) if rng.random() < 0.75 else pick(rng, make_short_story(rng).sentences)
    if rng.random() < 0.75:
        layout = pick(
            rng,
            (
                "Write in upper case: {p}",
                "Write this in capital letters: {p}",
                "Put in upper case: {p}",
                "Turn into capitals: {p}",
                "Make this upper case: {p}",
            ),
        )
        return layout.format(p=phrase), phrase.upper()
    return pick(rng, ("Write in lower case: {p}", "Put in small letters: {p}")).format(
        p=phrase.upper()
    ), phrase.lower()


def sort_words(rng: random.Random) -> Turn:
    """Alphabetical order, or reversed order."""
    some = _some(rng, 2, 5)
    shown = ", ".join(some)
    if rng.random() < 0.65:
        layout = pick(
            rng,
            (
                "Sort these words: {w}",
                "Put these words in alphabetical order: {w}",
                "Sort: {w}",
                "Sort the words {w}.",
            ),
        )
        return layout.format(w=shown), ", ".join(sorted(some))
    layout = pick(rng, ("Reverse the order of these words: {w}", "Reverse this list: {w}"))
    return layout.format(w=shown), ", ".join(reversed(some))


def pick_word(rng: random.Random) -> Turn:
    """First, last or how many of the words in the prompt."""
    some = _some(rng, 2, 6)
    shown = pick(rng, (", ", " ", ", ")).join(some)
    which = rng.randrange(4)
    if which == 0:
        return pick(rng, ("What is the first word? {w}", "Give me the first of these words: {w}")).format(
            w=shown
        ), some[0]
    if which == 1:
        return pick(rng, ("What is the last word? {w}", "Give me the last of these words: {w}")).format(
            w=shown
        ), some[-1]
    if which == 2:
        return pick(rng, ("How many words are there? {w}", "Count these words: {w}")).format(
            w=shown
        ), f"There are {words.NUMBER_WORDS[len(some)]} words."
    return pick(rng, ("Which word starts with {c}? {w}", "Find the word that starts with {c}: {w}")).format(
        c=some[0][0], w=shown
    ), next(word for word in some if word[0] == some[0][0])


def spell(rng: random.Random) -> Turn:
    """Spell a word, or name its first letter."""
    word = pick(rng, words.PLAIN_WORDS)
    roll = rng.random()
    if roll < 0.6:
        return ask(rng, (f"Spell {word}.", f"How do you spell {word}?", f"Spell the word {word}.")), "-".join(
            word
        )
    if roll < 0.8:
        return ask(
            rng, (f"What is the first letter of {word}?",)
        ), f"The first letter of {word} is {word[0]}."
    return ask(rng, (f"What letter does {word} end with?",)), f"The word {word} ends with {word[-1]}."


def a_or_an(rng: random.Random) -> Turn:
    """The plural of a noun, or its article."""
    noun = pick(rng, words.ANIMALS + words.THINGS + words.FRUITS + words.VEGETABLES)
    if rng.random() < 0.7:
        return ask(
            rng, (f"What is the plural of {noun}?", f"Plural of {noun}?")
        ), f"The plural of {noun} is {words.plural(noun)}."
    return ask(rng, (f"Is it a or an before {noun}?",)), f"It is {words.with_article(noun)}."


def sentence_with(rng: random.Random) -> Turn:
    """One sentence that uses a word of the prompt."""
    colour, thing, place = pick(rng, words.COLOURS), pick(rng, words.THINGS), pick(rng, words.PLACES)
    name, animal = pick(rng, words.GIRLS + words.BOYS), pick(rng, words.ANIMALS)
    word, sentence = (
        (thing, f"{name} carried {words.with_article(colour + ' ' + thing)} to the {place}."),
        (place, f"{words.with_article(animal).capitalize()} was sitting near the {place}."),
        (animal, f"In the {place} {name} saw {words.with_article(animal)}."),
        (colour, f"{name} bought {words.with_article(colour + ' ' + thing)}."),
    )[rng.randrange(4)]
    return ask(
        rng,
        (
            f"Write a sentence with the word {word}.",
            f"Make a sentence with {word}.",
            f"Use the word {word} in a sentence.",
        ),
    ), sentence


def word_task(rng: random.Random) -> Exchange:
    """One of the tasks above."""
    tasks = (repeat, repeat_often, upper, sort_words, pick_word, spell, a_or_an, sentence_with)
    return [tasks[rng.choices(range(8), (6, 1, 3, 3, 2, 1, 1, 1))[0]](rng)]
