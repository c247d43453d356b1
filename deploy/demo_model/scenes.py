"""Sentences that any demo story may use: openings, settings, fillers, links between plots, endings.

The slots in braces are filled by stories.py from one cast, so names, things
and places stay the same through a story.
"""

from __future__ import annotations

Step = tuple[str, ...]
OPENINGS: Step = (
    "Once upon a time, {a_kind} named {hero} lived near {the_place}.",
    "There was once {a_trait_kind} called {hero} who lived by {the_place}.",
    "{hero} was {a_trait_kind}. {He} lived in a {size} house near {the_place}.",
    "One {weather} {time}, {a_kind} named {hero} walked to {the_place}.",
    "In {season}, {a_trait_kind} named {hero} came to {the_place}.",
    "Long ago, near {the_place}, there lived {a_kind} whose name was {hero}.",
    "{hero} the {kind} loved {the_place} more than any other place.",
)

SETTINGS: Step = (
    "It was a {weather} {day}, and {hero} felt {mood}.",
    "On {day} the air was {weather}, and everybody was busy.",
    "{hero} had eaten {food} and was ready for the day.",
    "The {time} was {weather} and quiet.",
    "{He} was {trait} and always a little {mood}.",
    "Everyone in {the_place} knew {him}, because {he} was so {trait}.",
    "{He} carried some {food} in a small bag.",
)

ENDINGS: Step = (
    "{hero} went home and slept well.",
    "And they were friends for ever.",
    "That evening {hero} felt very happy.",
    "They laughed and danced until the stars came out.",
    "And {he} never forgot that day.",
    "Then they sat down and ate {food} together.",
    "It had been a good day.",
    "From that day on, {hero} was always {trait}.",
    "The end.",
    "{hero} learned that it is good to ask for help.",
    "{hero} learned that small steps lead far.",
    "And if you go to {the_place}, you may still see them.",
)

FILLERS: Step = (
    "The birds were singing in the trees.",
    "A cold wind blew from the north.",
    "Somewhere a bell rang.",
    '"How strange," said {hero}.',
    "{hero} thought about it for a while.",
    "{He} looked up at the sky.",
    "Nobody said a word.",
    '"What shall we do now?" asked {hero}.',
    "The sun was low and the light was {colour2}.",
    "{hero} smiled.",
    "They could hear the water.",
    "It smelled of {food2}.",
    "{He} felt a little {mood2}, but not for long.",
    "Far away a dog was barking.",
    "There was no time to lose.",
    "The moon was round and white.",
)

LINKS: Step = (
    "The next morning {hero} woke up early.",
    "A week later something new happened.",
    "Some days passed.",
    "When {season2} came, {hero} was ready for something new.",
    "But that was not all.",
    "Many months later, {hero} came back to {the_place}.",
    "Soon there was another surprise.",
)

SKILLS = (
    "swim",
    "sing",
    "fly a kite",
    "bake bread",
    "read",
    "dance",
    "ride a bicycle",
    "play the violin",
    "climb",
    "paint",
    "skate",
    "whistle",
)
