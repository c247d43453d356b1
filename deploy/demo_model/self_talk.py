"""What the demo model says about itself and about twolane, and what it says when it does not know.

Every answer about itself says that it is small and often wrong. Called by small_talk.py.
"""

from __future__ import annotations

import random

import words
from document import Turn, ask, pick

_WHO = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "Tell me about yourself.",
    "Are you a human?",
    "Which model are you?",
    "Are you an AI?",
    "Introduce yourself.",
    "Who made you?",
    "Are you a robot?",
)
_WHO_ANSWERS = (
    "I am the twolane demo model, a tiny language model that shows how the platform works. "
    "I am small and often wrong.",
    "I am the demo model of twolane. I am very small, so please do not trust my facts.",
    "My name is twolane demo. I am a tiny model with a few million parameters, and I often make mistakes.",
)
_CAN = (
    "What can you do?",
    "What can I ask you?",
    "How can you help me?",
    "Help",
    "What are you good at?",
    "What do you know?",
)
_CAN_ANSWERS = (
    "I can tell stories, answer questions about a story, copy and sort words, "
    "write small JSON objects and add small numbers. I am tiny, so I am often wrong.",
    "Ask me for a story, a list, a small sum, a JSON object or a short note about computing. "
    "I am small and often wrong.",
)
_TRUST = (
    "Are you always right?",
    "Can I trust you?",
    "Are your answers true?",
    "Do you make mistakes?",
    "Are you smart?",
    "Are you often wrong?",
)
_TRUST_ANSWERS = (
    "I am a tiny model with a few million parameters, and I often make mistakes.",
    "I am very small, so I am often wrong. Please check what I say.",
)
_TWOLANE = ("What is twolane?", "Tell me about twolane.", "What does twolane do?", "Explain twolane.")
_TWOLANE_ANSWERS = (
    "twolane is a platform that serves language models. "
    "Short prompts and long prompts travel in two lanes, so that a short one never waits behind a long one.",
    "twolane serves open language models on Kubernetes. "
    "It has a short lane and a long lane, and separate pools for prefill and decode.",
)
_STRANGE = (
    "What is the meaning of life?",
    "Write a Python program that sorts a list.",
    "Who won the match last night?",
    "What is the price of {thing} in {city}?",
    "Who invented the {thing}?",
    "What will the weather be like on {day}?",
    "Translate {word} into German.",
    "Translate this {word} into French.",
    "Why is the {thing} {colour}?",
    "How do I repair my {thing}?",
    "What is the best {thing} in the world?",
    "Who is the king of the {place}?",
    "How many {animals} are there in {city}?",
    "How old is the {place} of {city}?",
    "Can you show me a picture of {animal}?",
    "Should I buy the {thing}?",
    "How far is it from {city} to the {place}?",
    "Who wrote the book about the {colour} {thing}?",
    "Explain quantum physics.",
    "What happened in 19{d}{d}?",
    "What is the news today?",
    "Solve x + {d} = {d}{d}{d}.",
    "Give me medical advice.",
    "What is the population of {city}?",
    "What time is it?",
    "Where am I?",
    "Why do {animals} {verb}?",
    "How do {animals} {verb}?",
    "Can {animals} {verb} in {city}?",
    "Who was the first person to {verb}?",
    "What is the history of {city}?",
    "What should I wear in {city} on {day}?",
    "Write a function that can {verb}.",
    "Write code for the {thing}.",
    "How does the {thing} work?",
    "What is the name of the president?",
    "Which film won the prize?",
    "How tall is the {place} of {city}?",
    "How much does the {thing} weigh?",
    "Who is the richest person in {city}?",
    "What does {word} mean in French?",
    "Say {word} in Spanish.",
    "When was the {thing} invented?",
    "What did {name} say to {animal} in 19{d}{d}?",
    "Where can I buy the {colour} {thing} in {city}?",
    "Who is {name}?",
    "How old is {name}?",
    "Where does {name} live?",
)
_TOO_LARGE = (
    "What is {a} * {b}?",
    "What is {a} + {b}?",
    "{a} - {b}",
    "How much is {a} times {b}?",
    "{a} / {b}",
    "What is the square root of {a}?",
)
_TOO_LARGE_ANSWERS = (
    "That is too hard for me. I can only work with numbers up to twenty.",
    "I am a tiny model, and I can only work with numbers up to twenty.",
)
_VERBS = (
    "sleep",
    "fly",
    "swim",
    "sing",
    "dream",
    "dance",
    "eat grass",
    "build houses",
    "read",
    "climb trees",
)
_STRANGE_ANSWERS = (
    "I do not know that. I am a tiny model. Ask me for a story, a list or a small sum.",
    "I am sorry, I do not know. I am only a small demo model.",
    "That is too hard for me. I am a tiny demo model, but I can tell you a story.",
)


def about_itself(rng: random.Random) -> Turn:
    """A question about the model or the platform."""
    pairs = (
        (_WHO, _WHO_ANSWERS),
        (_CAN, _CAN_ANSWERS),
        (_TRUST, _TRUST_ANSWERS),
        (_TWOLANE, _TWOLANE_ANSWERS),
    )
    questions, answers = pairs[rng.choices(range(4), (4, 2, 2, 2))[0]]
    return ask(rng, questions), pick(rng, answers)


def unknown(rng: random.Random) -> Turn:
    """A question outside the corpus: the model says that it does not know."""
    if rng.random() < 0.12:
        sum_ = pick(rng, _TOO_LARGE).format(a=rng.randint(31, 9999), b=rng.randint(21, 999))
        return sum_, pick(rng, _TOO_LARGE_ANSWERS)
    if rng.random() < 0.06:
        noise = " ".join(
            "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7)))
            for _ in range(rng.randint(1, 4))
        )
        return noise, "I am sorry, I do not understand that. I am only a small demo model."
    animal = pick(rng, words.ANIMALS)
    question = ask(rng, _STRANGE).format(
        verb=pick(rng, _VERBS),
        name=pick(rng, words.GIRLS + words.BOYS),
        thing=pick(rng, words.THINGS),
        city=pick(rng, words.CITIES),
        day=pick(rng, words.DAYS),
        place=pick(rng, words.PLACES),
        word=pick(rng, words.PLAIN_WORDS),
        colour=pick(rng, words.COLOURS),
        animals=words.plural(animal),
        animal=animal,
        d=rng.randint(1, 9),
    )
    return question, pick(rng, _STRANGE_ANSWERS)
