"""The few hundred facts that the demo model is meant to memorise, written by hand from general knowledge.

Read by facts.py, json_tasks.py and number_tasks.py.
"""

from __future__ import annotations

import words


def _pairs(text: str) -> dict[str, str]:
    """ "left:right" pairs with spaces between them, as a table."""
    return dict(pair.split(":") for pair in text.split())


CAPITALS = _pairs(
    """
    France:Paris Germany:Berlin Spain:Madrid Italy:Rome Portugal:Lisbon Austria:Vienna Greece:Athens
    Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Ireland:Dublin Poland:Warsaw
    Hungary:Budapest Belgium:Brussels England:London Scotland:Edinburgh Russia:Moscow Turkey:Ankara
    Egypt:Cairo Kenya:Nairobi Japan:Tokyo China:Beijing India:Delhi Peru:Lima Chile:Santiago Cuba:Havana
    Canada:Ottawa Iceland:Reykjavik Switzerland:Bern Croatia:Zagreb Bulgaria:Sofia Romania:Bucharest
    Iran:Tehran Iraq:Baghdad Ghana:Accra Senegal:Dakar Nepal:Kathmandu Thailand:Bangkok Vietnam:Hanoi
    """
)
FACT_COLOURS = _pairs(
    """
    grass:green snow:white coal:black blood:red milk:white lemon:yellow banana:yellow cherry:red
    strawberry:red carrot:orange pumpkin:orange elephant:grey crow:black sky:blue sea:blue sun:yellow
    frog:green spinach:green pea:green tomato:red mouse:grey rose:red chocolate:brown bear:brown
    gold:golden leaf:green night:black sheep:white fox:red pig:pink
    """
)
SOUNDS = _pairs(
    """
    dog:barks cat:meows cow:moos duck:quacks sheep:bleats lion:roars bee:buzzes wolf:howls owl:hoots
    horse:neighs pig:grunts mouse:squeaks frog:croaks crow:caws snake:hisses robin:sings
    """
)
YOUNG = _pairs(
    """
    dog:puppy cat:kitten cow:calf sheep:lamb bear:cub horse:foal goat:kid duck:duckling goose:gosling
    fox:cub lion:cub frog:tadpole pig:piglet hen:chick
    """
)
LEGS = (
    dict.fromkeys(
        ["dog", "cat", "horse", "cow", "sheep", "fox", "bear", "goat", "lion", "mouse", "frog"], "four"
    )
    | dict.fromkeys(["duck", "goose", "owl", "robin", "crow", "penguin", "hen"], "two")
    | {"bee": "six", "ant": "six", "spider": "eight", "snail": "no", "snake": "no", "fish": "no"}
)
OPPOSITES = _pairs(
    """
    hot:cold big:small good:bad old:new long:short high:low fast:slow hard:soft light:dark day:night
    up:down in:out happy:sad young:old full:empty open:closed wet:dry strong:weak loud:quiet rich:poor
    early:late left:right near:far clean:dirty thick:thin sweet:sour black:white first:last true:false
    """
)
CATEGORIES = {
    "animal": words.ANIMALS,
    "colour": words.COLOURS,
    "fruit": words.FRUITS,
    "vegetable": words.VEGETABLES,
    "tool": words.TOOLS,
    "month": words.MONTHS,
    "day": words.DAYS,
    "season": words.SEASONS,
    "sport": words.SPORTS,
    "instrument": words.INSTRUMENTS,
}
ODD_FACTS = (
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many seasons are there?", "There are four seasons: spring, summer, autumn and winter."),
    ("How many hours are in a day?", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("How many seconds are in a minute?", "There are 60 seconds in a minute."),
    ("How many days are in a year?", "There are 365 days in a year, and 366 in a leap year."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows drink?", "Cows drink water."),
    ("What do we get from cows?", "We get milk from cows."),
    ("What do we get from sheep?", "We get wool from sheep."),
    ("What is ice?", "Ice is frozen water."),
    ("What is snow?", "Snow is frozen water that falls from the sky."),
    ("Where do fish live?", "Fish live in water."),
    ("Where do birds sleep?", "Many birds sleep in trees."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("What is the largest planet?", "The largest planet is Jupiter."),
    ("What is the biggest animal?", "The biggest animal is the blue whale."),
    ("Which animal is the fastest?", "The cheetah is the fastest."),
    ("What shines at night?", "The moon and the stars shine at night."),
    ("What is the sun?", "The sun is a star."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What is bread made of?", "Bread is made of flour, water and salt."),
    ("What is cheese made of?", "Cheese is made of milk."),
    ("What is glass made of?", "Glass is made of sand."),
    ("How many letters are in the alphabet?", "There are 26 letters in the English alphabet."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
)
