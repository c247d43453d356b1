"""Plots of discovery: a treasure, a friend, a storm, a skill, a secret.

Each plot is a list of steps, each step a choice of sentences. Slots in braces
are filled by stories.py from one cast. Read by plots.py.
"""

from __future__ import annotations

from scenes import Step

JOURNEYS: dict[str, list[Step]] = {
    "treasure": [
        (
            "In an old book {hero} found a map of {the_place}.",
            "A bird dropped an old map at the feet of {hero}.",
        ),
        ("A cross on the map showed where to dig.", "The map showed a path, a tree and a big cross."),
        (
            "{hero} called {friend} the {friend_kind}, and they left at once.",
            "{friend} the {friend_kind} came along to carry the bags.",
        ),
        (
            "They walked over hills and through cold water.",
            "The way was long, and they ate {food} on the road.",
            "Once they went the wrong way and had to turn back.",
        ),
        (
            "Under the ground there was a box, and in the box was {a_colour_thing}.",
            "They dug and dug, and found {a_colour_thing}.",
        ),
        (
            "It was not gold, but they loved it.",
            '"The best part was the way here," said {friend}.',
            '"We will share it," said {hero}.',
        ),
    ],
    "friend": [
        ("{hero} had no friends in {the_place}.", "{hero} was new in {the_place} and felt {mood}."),
        ("One {time} {he} heard someone crying.", "On {day} {he} saw someone sitting alone on a stone."),
        (
            "It was {friend}, {a_trait_friend_kind}.",
            'It was {a_friend_kind}. "My name is {friend}," said the {friend_kind}.',
        ),
        (
            '"I lost my {thing}," said {friend}. "It was {colour}."',
            '"Nobody wants to play with me," said {friend}.',
        ),
        ('"Come with me," said {hero}. "I have {food} for two."', "{hero} sat down and shared {his} {food}."),
        ("From then on they met every day.", "Since that day {hero} and {friend} are best friends."),
    ],
    "storm": [
        ("One night a great storm came over {the_place}.", "Dark clouds came, and the wind grew strong."),
        ("The water rose and the roof began to shake.", "Trees fell, and the road was closed."),
        (
            "{hero} ran to the house of {friend} the {friend_kind}.",
            "{hero} heard {friend} the {friend_kind} call for help.",
        ),
        (
            "With {a_colour_thing} {he} made a sign that all could see.",
            "{He} took {a_colour_thing} and showed everyone the way.",
        ),
        (
            "They waited together until the {time} came.",
            "They told stories and ate {food} until the storm was over.",
        ),
        ("In the end everyone was safe.", "When the sun came back, nobody was hurt."),
    ],
    "learn": [
        ("{hero} wanted to learn to {skill}.", "{hero} had one big wish: {he} wanted to {skill}."),
        ("{He} tried once, and it went badly.", "At first {he} was very bad at it, and some people laughed."),
        (
            '{friend}, {a_trait_friend_kind}, said, "I will teach you."',
            '"Try again tomorrow," said {friend} the {friend_kind}.',
        ),
        (
            "So every {time} they practised near {the_place}.",
            "{hero} practised every day, in rain and in sun.",
        ),
        ("After many weeks {he} could do it.", "On {day}, in front of everyone, {he} did it."),
        ("{friend} gave {him} {a_colour_thing} as a prize.", '"I knew it," said {friend} with a smile.'),
    ],
    "secret": [
        ("Behind {the_place} {hero} found a small door.", "{hero} saw a strange light near {the_place}."),
        ("{He} needed {a_colour_thing} to go in.", "Beside it lay {a_colour_thing}."),
        ('"Who is there?" asked a soft voice.', "Something moved in the dark."),
        (
            "It was {friend}, {a_friend_kind} who had been alone for years.",
            "Out came {friend}, {a_trait_friend_kind}.",
        ),
        ('"Will you keep my secret?" asked {friend}. "Yes," said {hero}.', "{hero} promised to tell nobody."),
        ("Every {day} {he} came back with {food}.", "And {hero} never told anyone, except you."),
    ],
}
