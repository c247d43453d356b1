"""Instructions, and the sentences of letters, descriptions and dialogues.

Slots in braces are filled by writing.py, the only reader of this module.
"""

from __future__ import annotations

STEPS: dict[str, tuple[str, ...]] = {
    "make tea": (
        "Boil some water.",
        "Put the tea into a cup.",
        "Pour the hot water over it.",
        "Wait three minutes.",
        "Drink it slowly.",
    ),
    "make soup": (
        "Wash and cut the vegetables.",
        "Boil water in a pot.",
        "Add the vegetables and some salt.",
        "Cook it for half an hour.",
        "Serve it hot.",
    ),
    "bake bread": (
        "Mix flour, water, salt and yeast.",
        "Let the dough rest for an hour.",
        "Form a loaf.",
        "Bake it until it is brown.",
    ),
    "make a sandwich": (
        "Take two slices of bread.",
        "Put some butter on them.",
        "Add cheese and a leaf of salad.",
        "Close it and enjoy it.",
    ),
    "plant a seed": (
        "Fill a pot with earth.",
        "Put the seed into it.",
        "Give it some water.",
        "Place the pot in the sun.",
        "Wait and be patient.",
    ),
    "clean a window": (
        "Take a bucket of warm water.",
        "Wash the glass with a cloth.",
        "Dry it with paper.",
        "Look if it is clean.",
    ),
    "wash my hands": (
        "Hold your hands under water.",
        "Take some soap.",
        "Rub them for twenty seconds.",
        "Rinse and dry them.",
    ),
    "send a letter": (
        "Write the letter.",
        "Put it into an envelope.",
        "Write the address on it.",
        "Add a stamp.",
        "Bring it to the post.",
    ),
    "build a kite": (
        "Make a cross of two sticks.",
        "Cut the paper to fit.",
        "Glue the paper to the sticks.",
        "Tie a long string to it.",
        "Wait for wind.",
    ),
    "learn a language": (
        "Learn a few words every day.",
        "Listen to people who speak it.",
        "Read easy books.",
        "Do not be afraid of mistakes.",
    ),
    "fall asleep": (
        "Go to bed at the same time each day.",
        "Put away the phone.",
        "Make the room dark.",
        "Breathe slowly.",
    ),
    "find a bug": (
        "Read the error.",
        "Look at the log.",
        "Make the smallest case that fails.",
        "Change one thing at a time.",
        "Write a test.",
    ),
    "ride a bicycle": (
        "Hold the handle with both hands.",
        "Put one foot on the pedal.",
        "Push and look ahead.",
        "Keep going, and you will not fall.",
    ),
}
LETTER = (
    "I hope you are well.",
    "On {day} I was at the {place}, and it was {weather}.",
    "I bought {a_thing} there.",
    "I saw {a_animal} and thought of you.",
    "We ate {food} and talked about old times.",
    "My {animal} is {mood} today.",
    "The {thing} that you gave me is on my table.",
    "Please come and visit me in {month}.",
    "{other} sends you greetings.",
    "I often think of the {place}.",
    "It has been {weather} here all week.",
    "Thank you for the {food}.",
)
PLACE_LOOKS = (
    "The roof is {colour} and the door is {size}.",
    "In {season} many people come there.",
    "It is quiet there in the {time}.",
    "You can hear the wind.",
    "Near it there is {a_thing}.",
    "It smells of {food}.",
    "An old {job} takes care of it.",
    "Children play there on {day}.",
    "From there you can see the {place2}.",
)
ANIMAL_LOOKS = (
    "It is {size} and {colour}.",
    "It lives near the {place}.",
    "It likes {food}.",
    "It is {trait} and sometimes {mood}.",
    "In the {time} it goes out to find food.",
    "In {season} it sleeps a lot.",
    "Its best friend is {a_animal}.",
)
TALK = (
    ("Where are you going?", "I am going to the {place}."),
    ("What do you have there?", "It is {a_colour_thing}."),
    ("Are you hungry?", "Yes, do you have some {food}?"),
    ("It is so {weather} today.", "I like it that way."),
    ("How are you?", "I am a little {mood}."),
    ("Did you see my {thing}?", "Yes, it is near the {place}."),
    ("Shall we go to the {place}?", "Yes, let us go."),
    ("What day is it?", "It is {day}."),
    ("Can you keep a secret?", "Of course I can."),
    ("Who gave you that {thing}?", "It was {other}."),
)
