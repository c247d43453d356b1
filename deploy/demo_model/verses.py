"""Short rhymed poems, jokes and riddles, all written for this corpus.

Called by corpus.py. A poem is made of couplets; its first line names what the
user asked for.
"""

from __future__ import annotations

import random

import words
from document import Exchange, ask, pick

# Lines that may follow each other as a couplet, because they rhyme.
_RHYMES: tuple[tuple[str, ...], ...] = (
    (
        "The wind is blowing from the sea",
        "A bird is singing in the tree",
        "Come sit beside the fire with me",
        "The {colour} fish is swimming free",
        "And in the flower sleeps a bee",
    ),
    (
        "The stars are shining in the night",
        "The moon is round and very bright",
        "The little house is full of light",
        "And all the hills are soft and white",
        "The {animal} sleeps until the light",
    ),
    (
        "We walk together all the day",
        "The children laugh and run and play",
        "The {animal} comes to show the way",
        "The clouds are slowly going away",
        "The fields are green again in May",
    ),
    (
        "The clouds are moving in the sky",
        "The {colour} kite is flying high",
        "The river sings and passes by",
        "Nobody asks the reason why",
        "The {animal} gives a little sigh",
    ),
    (
        "The {animal} looks up at the moon",
        "Somebody plays a gentle tune",
        "The roses open now in June",
        "The summer will be over soon",
    ),
    (
        "The road is wet from all the rain",
        "Far off I hear the evening train",
        "And then the sun is here again",
        "The grass is growing in the lane",
    ),
    (
        "The world is white and full of snow",
        "The {colour} lamps begin to glow",
        "The old clock ticks, the hours go slow",
        "And home is where we want to go",
    ),
    (
        "There is a light, there is a star",
        "It is not near, it is not far",
        "It tells us where and who we are",
        "I keep my wishes in a jar",
    ),
)
_TITLES = ("The {N}", "A song about {a}", "A poem for {a}", "About {a}")
_JOKES = (
    ("Why did the robot go to bed so early?", "It was out of power."),
    ("Why was the clock so tired?", "It had been running all day."),
    ("Why did the snowman smile?", "He heard that winter was coming."),
    ("What did the lamp say to the candle?", "You look a little burnt out."),
    ("Why did the book go to the doctor?", "It had hurt its back."),
    ("Why is the river so rich?", "It has two banks."),
    ("Why did the token wait in the queue?", "It wanted to be part of a batch."),
    ("Why was the long prompt so slow?", "It took the wrong lane."),
    ("Why did the hen sit on the drum?", "It wanted to hear the beat of an egg."),
    ("What does a dragon eat for lunch?", "Anything, as long as it is hot."),
    ("Why did the owl invite all the others?", "It did not want to say who."),
    ("Why did the baker work at night?", "The dough had to rise early."),
)
_RIDDLES = (
    ("What has hands but cannot hold anything?", "a clock"),
    ("What has teeth but cannot bite?", "a comb"),
    ("What gets wet while it dries you?", "a towel"),
    ("What has a neck but no head?", "a bottle"),
    ("What has keys but opens no door?", "a piano"),
    ("What has legs but never walks?", "a table"),
    ("What is full of holes but still holds water?", "a sponge"),
    ("What goes up but never comes down?", "your age"),
    ("What runs all day but never leaves its bed?", "a river"),
    ("What has many leaves but is no tree?", "a book"),
    ("What has one eye but cannot see?", "a needle"),
    ("What has a mouth but never speaks?", "a river"),
)


def make_poem(rng: random.Random, noun: str | None) -> str:
    """Two to four couplets, under a title when the user named a noun."""
    lines: list[str] = []
    for rhyme in rng.sample(_RHYMES, rng.randint(2, 4)):
        first, second = rng.sample(rhyme, 2)
        lines += [first + ",", second + "."]
    animal = noun if noun in words.ANIMALS else None
    filled = [
        line.format(colour=pick(rng, words.COLOURS), animal=animal or pick(rng, words.ANIMALS))
        for line in lines
    ]
    if noun:
        filled.insert(0, pick(rng, _TITLES).format(a=words.with_article(noun), N=noun.capitalize()) + "\n")
    return "\n".join(filled)


def _poem(rng: random.Random) -> Exchange:
    noun = pick(
        rng,
        words.ANIMALS
        + words.THINGS
        + words.PLACES
        + ["star", "tree", "house", "cloud", "river", "dragon", "robot"],
    )
    if rng.random() < 0.25:
        asked = ask(rng, ("Write a poem.", "Tell me a poem.", "Write a short poem.", "Write a rhyme."))
        return [(asked, make_poem(rng, None))]
    a = words.with_article(noun)
    wordings = (
        f"Write a poem about {a}.",
        f"Write a short poem about {a}.",
        f"Make a rhyme about {a}.",
        f"Tell me a poem about {a}.",
        f"Write a poem about the {noun}.",
    )
    return [(ask(rng, wordings), make_poem(rng, noun))]


def _joke(rng: random.Random) -> Exchange:
    question, answer = _JOKES[rng.randrange(len(_JOKES))]
    wordings = (
        "Tell me a joke.",
        "Do you know a joke?",
        "Make me laugh.",
        "Tell a joke.",
        "Say something funny.",
    )
    return [(ask(rng, wordings), f"{question} {answer}")]


def _riddle(rng: random.Random) -> Exchange:
    question, answer = _RIDDLES[rng.randrange(len(_RIDDLES))]
    turns = [(ask(rng, ("Tell me a riddle.", "Give me a riddle.", "Do you know a riddle?")), question)]
    if rng.random() < 0.7:
        wordings = ("What is the answer?", "I do not know.", "I give up.", "Tell me the answer.", "No idea.")
        return [*turns, (pick(rng, wordings), f"The answer is {answer}.")]
    guesses = (f"Is it {answer}?", answer, f"It is {answer}.")
    return [*turns, (pick(rng, guesses), f"Yes! The answer is {answer}.")]


def verse(rng: random.Random) -> Exchange:
    """A request for a poem, a joke or a riddle."""
    roll = rng.random()
    return _poem(rng) if roll < 0.5 else _joke(rng) if roll < 0.75 else _riddle(rng)
