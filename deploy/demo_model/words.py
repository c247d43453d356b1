"""The nouns, names and adjectives that every part of the demo corpus draws from.

One home for word lists, so that a word taught by a story is also known to the
questions, the lists and the JSON objects. Used by all topic modules.
"""

from __future__ import annotations


def _listed(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


GIRLS = _listed(
    """
    Mia Anna Lily Rosa Emma Zoe Nora Ada Clara Ruth Ella Maya Ivy Sara Tess Lena Alice Eva Hana Priya
    Amina June Greta Olga Yuki Leila Marta Ines Carla Dora Freya Nina
    """
)
BOYS = _listed(
    """
    Tom Ben Sam Leo Max Noah Omar Paul Jack Finn Hugo Karl Ivan Luca Adam Theo Emil Felix Raj Kofi Diego
    Oscar Peter Simon Daniel Erik Hassan Jonas Otto Victor Walter Milo
    """
)
ANIMAL_NAMES = _listed(
    """
    Pip Biscuit Pepper Shadow Luna Rusty Bella Dusty Coco Toffee Moss Bramble Juno Kiki Waffle Echo
    """
)

ANIMALS = _listed(
    """
    fox owl cat dog rabbit bear mouse frog hedgehog squirrel duck goat pony sheep penguin turtle badger
    otter wolf donkey lion tiger monkey elephant crow goose robin snail bee parrot
    """
)
PEOPLE = _listed(
    """
    baker farmer teacher sailor painter doctor gardener pilot singer tailor carpenter librarian shepherd
    miller postman cook clockmaker fisherman
    """
)
MACHINES = _listed("robot dragon giant wizard ghost snowman")

PLACES = _listed(
    """
    forest village harbour market garden library castle river lake island mountain beach meadow school
    station town valley farm museum lighthouse bakery park mill cave bridge
    """
)
THINGS = _listed(
    """
    kite lantern key boat book drum hat clock ball bell map basket umbrella violin bicycle letter coat
    box telescope cup scarf whistle ring blanket flute brush wheel mirror ladder coin
    """
)
COLOURS = _listed("red blue green yellow white black brown orange purple pink grey golden silver")
FOODS = _listed(
    """
    bread soup cheese apples honey cake rice pears nuts pancakes pie plums porridge noodles carrots
    berries
    """
)
FRUITS = _listed("apple pear plum banana cherry lemon orange grape peach mango melon strawberry")
VEGETABLES = _listed(
    """
    carrot potato onion pea bean tomato cabbage pumpkin radish leek spinach beetroot
    """
)
TOOLS = _listed("hammer saw drill spade rake axe brush ladder spanner needle scissors rope")
CLOTHES = _listed("hat coat scarf shirt sock shoe glove dress belt jacket boot sweater")
WEATHERS = _listed("sunny rainy windy cold foggy snowy warm cloudy stormy bright")
MOODS = _listed("happy sad tired proud curious lonely brave shy worried calm excited grumpy")
TRAITS = _listed(
    """
    kind clever gentle funny careful patient honest quiet cheerful friendly bold small old young
    """
)
SIZES = _listed("small big tiny large little huge")
DAYS = _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _listed(
    """
    January February March April May June July August September October November December
    """
)
SEASONS = _listed("spring summer autumn winter")
TIMES = _listed("morning afternoon evening night")
INSTRUMENTS = _listed("piano violin flute drum guitar trumpet harp")
SPORTS = _listed("football tennis chess swimming running skating cycling")
CITIES = _listed(
    """
    Paris London Rome Madrid Berlin Vienna Lisbon Athens Oslo Dublin Cairo Tokyo Lima Delhi Warsaw
    Prague
    """
)
NUMBER_WORDS = _listed(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty
    """
)

# Simple words for copying, sorting and spelling: short enough to be one or two tokens each.
PLAIN_WORDS = tuple(
    dict.fromkeys(
        ANIMALS
        + PLACES
        + THINGS
        + COLOURS
        + FRUITS
        + VEGETABLES
        + TOOLS
        + CLOTHES
        + _listed(
            """
    sun moon star tree leaf stone road house door window table chair lamp pen milk water fire snow rain
    wind sea sand hill field bird fish horse cow pig hand foot eye ear king queen song dance game train
    car bus ship plane cloud flower grass seed root wood iron glass paper ink salt sugar butter egg
    """
        )
    )
)


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return (
        f"an {noun}"
        if noun[0].lower() in "aeiou" or (noun.startswith("hon") and noun != "honey")
        else f"a {noun}"
    )


def plural(noun: str) -> str:
    """The plural of a noun of these lists."""
    irregular = {
        "sheep": "sheep",
        "mouse": "mice",
        "goose": "geese",
        "wolf": "wolves",
        "scissors": "scissors",
        "spinach": "spinach",
        "postman": "postmen",
        "fisherman": "fishermen",
        "snowman": "snowmen",
    }
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh", "potato", "tomato", "mango")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def join_words(words: list[str], last: str = "and") -> str:
    """Words as an English list: "a, b and c"."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + f" {last} " + words[-1]
