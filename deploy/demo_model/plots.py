"""Plots of the demo stories: each a list of steps, each step a choice of sentences.

Slots in braces are filled by stories.py from one cast, so names, things and
places stay the same through a story. Only stories.py reads this module.
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

PLOTS: dict[str, list[Step]] = {
    "lost": [
        ("{hero} had {a_colour_thing} that {he} took everywhere.", "The dearest thing {he} had was {a_colour_thing}.",
         "{His} grandmother had given {him} {a_colour_thing}."),
        ("But one {time} the {thing} was gone.", "One day {he} could not find the {thing} anywhere.",
         "Then, at {the_place}, {he} lost the {thing}."),
        ("{He} looked under the bed, behind the door and in every box.", "{He} searched all day, but it was not there.",
         "{He} asked everyone, but nobody had seen it."),
        ("{friend} the {friend_kind} heard about it and said, \"I will help you look.\"",
         "\"Do not be sad,\" said {friend} the {friend_kind}. \"We will look together.\"",
         "Then {he} met {friend}, {a_friend_kind}. \"Let us look again,\" said {friend}."),
        ("They found the {thing} under an old tree.", "At last {friend} saw something {colour} in the grass. It was the {thing}!",
         "The {thing} was behind a big stone, and it was not even wet."),
    ],
    "fear": [
        ("{hero} was afraid of the dark.", "{hero} was afraid of deep water.", "{hero} did not like loud storms at all."),
        ("Every {time} {he} stayed close to the house.", "{He} never told anyone about it.",
         "{His} heart beat fast when {he} thought of it."),
        ("One day {his} friend {friend}, {a_friend_kind}, called for help from {the_place}.",
         "Then {friend} the {friend_kind} fell into a hole near {the_place}."),
        ("\"I must be brave,\" {hero} said, and took {a_colour_thing}.",
         "{hero} took a deep breath, held {a_colour_thing} and went out."),
        ("Step by step {he} came closer, and soon {friend} was safe.", "{He} pulled as hard as {he} could, and {friend} was free."),
        ("\"You were so brave,\" said {friend}.", "\"I was afraid,\" said {hero}, \"but I came.\"",
         "After that day {he} was not afraid any more."),
    ],
    "gift": [
        ("It was the birthday of {friend} the {friend_kind}.", "{friend} the {friend_kind} was ill and had to stay in bed."),
        ("{hero} wanted to give {friend} something nice.", "\"What can I bring?\" thought {hero}."),
        ("{He} had no money, so {he} made {a_colour_thing}.", "{He} worked all {time} and made {a_colour_thing}.",
         "In {the_place} {he} found {a_colour_thing} and cleaned it well."),
        ("{He} put it in paper and carried it over the hill.", "{He} also baked some {food}."),
        ("When {friend} saw the {thing}, {friend} laughed with joy.", "\"This is the best gift I ever had,\" said {friend}."),
    ],
    "race": [
        ("On {day} there was a race at {the_place}.", "Every year there was a race around {the_place}."),
        ("The prize was {a_colour_thing}.", "The winner would get {a_colour_thing}."),
        ("{friend} the {friend_kind} was the fastest of all.", "Nobody had ever beaten {friend} the {friend_kind}."),
        ("{hero} was slow, but {he} never stopped.", "{hero} ran as well as {he} could.", "In the middle of the race {hero} was last."),
        ("Then {friend} fell and hurt a foot.", "But {friend} stopped to eat {food}, and fell asleep."),
        ("{hero} stopped and helped {friend}, and they crossed the line together.",
         "{hero} won the race and shared the prize with {friend}.", "{hero} won, and nobody could believe it."),
    ],
    "repair": [
        ("{hero} found {a_colour_thing} that was broken.", "One {time} the old {colour} {thing} broke."),
        ("\"I can mend it,\" said {hero}, but {he} did not know how.", "{He} tried to mend it, but the pieces would not fit."),
        ("So {he} went to {friend}, {a_friend_kind} who could mend everything.",
         "{friend} the {friend_kind} looked at it for a long time."),
        ("\"We need glue, a nail and some patience,\" said {friend}.", "\"Slowly,\" said {friend}. \"First this part, then that one.\""),
        ("They worked until it was late.", "They worked together and ate {food}."),
        ("In the end the {thing} was as good as new.", "When they were done, the {thing} was better than before."),
    ],
    "treasure": [
        ("In an old book {hero} found a map of {the_place}.", "A bird dropped an old map at the feet of {hero}."),
        ("A cross on the map showed where to dig.", "The map showed a path, a tree and a big cross."),
        ("{hero} called {friend} the {friend_kind}, and they left at once.", "{friend} the {friend_kind} came along to carry the bags."),
        ("They walked over hills and through cold water.", "The way was long, and they ate {food} on the road.",
         "Once they went the wrong way and had to turn back."),
        ("Under the ground there was a box, and in the box was {a_colour_thing}.", "They dug and dug, and found {a_colour_thing}."),
        ("It was not gold, but they loved it.", "\"The best part was the way here,\" said {friend}.", "\"We will share it,\" said {hero}."),
    ],
    "friend": [
        ("{hero} had no friends in {the_place}.", "{hero} was new in {the_place} and felt {mood}."),
        ("One {time} {he} heard someone crying.", "On {day} {he} saw someone sitting alone on a stone."),
        ("It was {friend}, {a_trait_friend_kind}.", "It was {a_friend_kind}. \"My name is {friend},\" said the {friend_kind}."),
        ("\"I lost my {thing},\" said {friend}. \"It was {colour}.\"", "\"Nobody wants to play with me,\" said {friend}."),
        ("\"Come with me,\" said {hero}. \"I have {food} for two.\"", "{hero} sat down and shared {his} {food}."),
        ("From then on they met every day.", "Since that day {hero} and {friend} are best friends."),
    ],
    "storm": [
        ("One night a great storm came over {the_place}.", "Dark clouds came, and the wind grew strong."),
        ("The water rose and the roof began to shake.", "Trees fell, and the road was closed."),
        ("{hero} ran to the house of {friend} the {friend_kind}.", "{hero} heard {friend} the {friend_kind} call for help."),
        ("With {a_colour_thing} {he} made a sign that all could see.", "{He} took {a_colour_thing} and showed everyone the way."),
        ("They waited together until the {time} came.", "They told stories and ate {food} until the storm was over."),
        ("In the end everyone was safe.", "When the sun came back, nobody was hurt."),
    ],
    "learn": [
        ("{hero} wanted to learn to {skill}.", "{hero} had one big wish: {he} wanted to {skill}."),
        ("{He} tried once, and it went badly.", "At first {he} was very bad at it, and some people laughed."),
        ("{friend}, {a_trait_friend_kind}, said, \"I will teach you.\"", "\"Try again tomorrow,\" said {friend} the {friend_kind}."),
        ("So every {time} they practised near {the_place}.", "{hero} practised every day, in rain and in sun."),
        ("After many weeks {he} could do it.", "On {day}, in front of everyone, {he} did it."),
        ("{friend} gave {him} {a_colour_thing} as a prize.", "\"I knew it,\" said {friend} with a smile."),
    ],
    "secret": [
        ("Behind {the_place} {hero} found a small door.", "{hero} saw a strange light near {the_place}."),
        ("{He} needed {a_colour_thing} to go in.", "Beside it lay {a_colour_thing}."),
        ("\"Who is there?\" asked a soft voice.", "Something moved in the dark."),
        ("It was {friend}, {a_friend_kind} who had been alone for years.", "Out came {friend}, {a_trait_friend_kind}."),
        ("\"Will you keep my secret?\" asked {friend}. \"Yes,\" said {hero}.", "{hero} promised to tell nobody."),
        ("Every {day} {he} came back with {food}.", "And {hero} never told anyone, except you."),
    ],
}

ENDINGS: Step = (
    "{hero} went home and slept well.", "And they were friends for ever.", "That evening {hero} felt very happy.",
    "They laughed and danced until the stars came out.", "And {he} never forgot that day.",
    "Then they sat down and ate {food} together.", "It had been a good day.",
    "From that day on, {hero} was always {trait}.", "The end.",
    "{hero} learned that it is good to ask for help.", "{hero} learned that small steps lead far.",
    "And if you go to {the_place}, you may still see them.",
)

FILLERS: Step = (
    "The birds were singing in the trees.", "A cold wind blew from the north.", "Somewhere a bell rang.",
    "\"How strange,\" said {hero}.", "{hero} thought about it for a while.", "{He} looked up at the sky.",
    "Nobody said a word.", "\"What shall we do now?\" asked {hero}.", "The sun was low and the light was {colour2}.",
    "{hero} smiled.", "They could hear the water.", "It smelled of {food2}.", "{He} felt a little {mood2}, but not for long.",
    "Far away a dog was barking.", "There was no time to lose.", "The moon was round and white.",
)

LINKS: Step = (
    "The next morning {hero} woke up early.", "A week later something new happened.", "Some days passed.",
    "When {season2} came, {hero} was ready for something new.", "But that was not all.",
    "Many months later, {hero} came back to {the_place}.", "Soon there was another surprise.",
)

SKILLS = ("swim", "sing", "fly a kite", "bake bread", "read", "dance", "ride a bicycle", "play the violin", "climb",
          "paint", "skate", "whistle")
