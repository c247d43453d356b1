"""Plots near home: something is lost, feared, given, won or mended.

Each plot is a list of steps, each step a choice of sentences. Slots in braces
are filled by stories.py from one cast. Read by plots.py.
"""

from __future__ import annotations

from scenes import Step

TRIALS: dict[str, list[Step]] = {
    "lost": [
        (
            "{hero} had {a_colour_thing} that {he} took everywhere.",
            "The dearest thing {he} had was {a_colour_thing}.",
            "{His} grandmother had given {him} {a_colour_thing}.",
        ),
        (
            "But one {time} the {thing} was gone.",
            "One day {he} could not find the {thing} anywhere.",
            "Then, at {the_place}, {he} lost the {thing}.",
        ),
        (
            "{He} looked under the bed, behind the door and in every box.",
            "{He} searched all day, but it was not there.",
            "{He} asked everyone, but nobody had seen it.",
        ),
        (
            '{friend} the {friend_kind} heard about it and said, "I will help you look."',
            '"Do not be sad," said {friend} the {friend_kind}. "We will look together."',
            'Then {he} met {friend}, {a_friend_kind}. "Let us look again," said {friend}.',
        ),
        (
            "They found the {thing} under an old tree.",
            "At last {friend} saw something {colour} in the grass. It was the {thing}!",
            "The {thing} was behind a big stone, and it was not even wet.",
        ),
    ],
    "fear": [
        (
            "{hero} was afraid of the dark.",
            "{hero} was afraid of deep water.",
            "{hero} did not like loud storms at all.",
        ),
        (
            "Every {time} {he} stayed close to the house.",
            "{He} never told anyone about it.",
            "{His} heart beat fast when {he} thought of it.",
        ),
        (
            "One day {his} friend {friend}, {a_friend_kind}, called for help from {the_place}.",
            "Then {friend} the {friend_kind} fell into a hole near {the_place}.",
        ),
        (
            '"I must be brave," {hero} said, and took {a_colour_thing}.',
            "{hero} took a deep breath, held {a_colour_thing} and went out.",
        ),
        (
            "Step by step {he} came closer, and soon {friend} was safe.",
            "{He} pulled as hard as {he} could, and {friend} was free.",
        ),
        (
            '"You were so brave," said {friend}.',
            '"I was afraid," said {hero}, "but I came."',
            "After that day {he} was not afraid any more.",
        ),
    ],
    "gift": [
        (
            "It was the birthday of {friend} the {friend_kind}.",
            "{friend} the {friend_kind} was ill and had to stay in bed.",
        ),
        ("{hero} wanted to give {friend} something nice.", '"What can I bring?" thought {hero}.'),
        (
            "{He} had no money, so {he} made {a_colour_thing}.",
            "{He} worked all {time} and made {a_colour_thing}.",
            "In {the_place} {he} found {a_colour_thing} and cleaned it well.",
        ),
        ("{He} put it in paper and carried it over the hill.", "{He} also baked some {food}."),
        (
            "When {friend} saw the {thing}, {friend} laughed with joy.",
            '"This is the best gift I ever had," said {friend}.',
        ),
    ],
    "race": [
        ("On {day} there was a race at {the_place}.", "Every year there was a race around {the_place}."),
        ("The prize was {a_colour_thing}.", "The winner would get {a_colour_thing}."),
        (
            "{friend} the {friend_kind} was the fastest of all.",
            "Nobody had ever beaten {friend} the {friend_kind}.",
        ),
        (
            "{hero} was slow, but {he} never stopped.",
            "{hero} ran as well as {he} could.",
            "In the middle of the race {hero} was last.",
        ),
        ("Then {friend} fell and hurt a foot.", "But {friend} stopped to eat {food}, and fell asleep."),
        (
            "{hero} stopped and helped {friend}, and they crossed the line together.",
            "{hero} won the race and shared the prize with {friend}.",
            "{hero} won, and nobody could believe it.",
        ),
    ],
    "repair": [
        ("{hero} found {a_colour_thing} that was broken.", "One {time} the old {colour} {thing} broke."),
        (
            '"I can mend it," said {hero}, but {he} did not know how.',
            "{He} tried to mend it, but the pieces would not fit.",
        ),
        (
            "So {he} went to {friend}, {a_friend_kind} who could mend everything.",
            "{friend} the {friend_kind} looked at it for a long time.",
        ),
        (
            '"We need glue, a nail and some patience," said {friend}.',
            '"Slowly," said {friend}. "First this part, then that one."',
        ),
        ("They worked until it was late.", "They worked together and ate {food}."),
        (
            "In the end the {thing} was as good as new.",
            "When they were done, the {thing} was better than before.",
        ),
    ],
}
