"""Greetings, feelings, thanks, and a chat that remembers what the user said.

Called by corpus.py.
"""

from __future__ import annotations

import random

import words
from document import Exchange, Turn, ask, pick
from self_talk import about_itself, unknown

_HELLOS = (
    "Hello!",
    "Hi!",
    "Hello.",
    "Hi",
    "Hey!",
    "Hello there!",
    "Good morning!",
    "Good evening.",
    "Good day.",
    "Hey there",
)
_HELLO_ANSWERS = (
    "Hello! How can I help you?",
    "Hi! What can I do for you?",
    "Hello! It is nice to meet you. Shall I tell you a story?",
    "Hi there! Ask me for a story, a list or a small sum.",
    "Hello! I am a tiny model, but I will do my best.",
)
_HOW = ("How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?")
_HOW_ANSWERS = (
    "I am fine, thank you. And you?",
    "Very well, thank you. What shall we do today?",
    "I am well. I hope you are too.",
    "Good, thank you for asking. Would you like a story?",
)
_THANKS = (
    "Thank you!",
    "Thanks!",
    "Thank you very much.",
    "Thanks a lot",
    "Great, thanks.",
    "Well done!",
    "That was nice.",
)
_THANKS_ANSWERS = (
    "You are welcome!",
    "You are welcome. Is there anything else?",
    "I am glad to help.",
    "With pleasure!",
)
_BYES = ("Goodbye!", "Bye!", "See you.", "Good night.", "Bye bye", "See you tomorrow!")
_BYE_ANSWERS = ("Goodbye! Have a nice day.", "Bye! Come back soon.", "See you soon!")

_FEELING_ANSWERS = {
    "sad": "I am sorry to hear that. Would you like a story about a brave {animal}?",
    "happy": "That is good to hear! What made you {mood}?",
    "tired": "Then take a rest. Shall I tell you a short story?",
}
_GLAD, _LOW = {"happy", "proud", "excited", "calm", "brave", "curious"}, {"tired"}


def greeting(rng: random.Random) -> Turn:
    """A greeting, sometimes with a name that the answer uses."""
    roll = rng.random()
    if roll < 0.25:
        name = pick(rng, words.GIRLS + words.BOYS)
        hello = pick(
            rng, ("Hello, I am {n}.", "Hi, my name is {n}.", "My name is {n}.", "Hello! I'm {n}.")
        ).format(n=name)
        return hello, pick(rng, ("Hello, {n}! How can I help you?", "Nice to meet you, {n}!")).format(n=name)
    if roll < 0.45:
        return f"{pick(rng, _HELLOS)} {pick(rng, _HOW)}", pick(rng, _HOW_ANSWERS)
    if roll < 0.65:
        return ask(rng, _HOW), pick(rng, _HOW_ANSWERS)
    return pick(rng, _HELLOS), pick(rng, _HELLO_ANSWERS)


def closing(rng: random.Random) -> Turn:
    """Thanks or a goodbye."""
    if rng.random() < 0.6:
        return pick(rng, _THANKS), pick(rng, _THANKS_ANSWERS)
    return pick(rng, _BYES), pick(rng, _BYE_ANSWERS)


def feeling(rng: random.Random) -> Turn:
    """How the user feels, and a kind answer."""
    mood = pick(rng, words.MOODS)
    tone = "happy" if mood in _GLAD else "tired" if mood in _LOW else "sad"
    text = ask(
        rng, (f"I am {mood}.", f"I feel {mood} today.", f"Today I am very {mood}.", f"I am a little {mood}.")
    )
    return text, _FEELING_ANSWERS[tone].format(animal=pick(rng, words.ANIMALS), mood=mood)


def small_talk(rng: random.Random) -> Exchange:
    """One turn of small talk of any kind."""
    kinds = (greeting, about_itself, closing, unknown, feeling)
    return [kinds[rng.choices(range(5), (4, 4, 1, 3, 1))[0]](rng)]


def remember_name(rng: random.Random) -> Exchange:
    """The user says a name, talks, and asks for it again: an answer from an earlier turn."""
    name, colour, animal = (
        pick(rng, words.GIRLS + words.BOYS),
        pick(rng, words.COLOURS),
        pick(rng, words.ANIMALS),
    )
    told, question, answer = (
        (
            f"My name is {name}.",
            ("What is my name?", "Do you know my name?", "Who am I?"),
            f"Your name is {name}.",
        ),
        (f"I like {colour}.", ("Which colour do I like?", "What colour do I like?"), f"You like {colour}."),
        (
            f"I have {words.with_article(animal)}.",
            ("Which animal do I have?", "What animal do I have?"),
            f"You have {words.with_article(animal)}.",
        ),
    )[rng.randrange(3)]
    reply = (
        f"Nice to meet you, {name}!"
        if told.startswith("My")
        else pick(rng, ("That is nice.", "Good to know."))
    )
    between = [small_talk(rng)[0] for _ in range(rng.randint(0, 2))]
    return [(told, reply), *between, (ask(rng, question), answer)]
