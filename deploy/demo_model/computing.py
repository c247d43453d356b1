"""Short explanations of computing notions, written by hand, and the questions that ask for them.

Called by corpus.py.
"""

from __future__ import annotations

import random

from document import Exchange, ask, pick
from notions import CONTRASTS, NOTIONS, WHY


def explain(rng: random.Random) -> Exchange:
    """A question about a notion, with an answer of one or two sentences."""
    roll = rng.random()
    if roll < 0.08:
        question, answer = WHY[rng.randrange(len(WHY))]
        return [(ask(rng, (question,)), answer)]
    if roll < 0.18:
        pair, answer = CONTRASTS[rng.randrange(len(CONTRASTS))]
        return [
            (
                ask(
                    rng,
                    (f"What is the difference between {pair}?", f"Explain the difference between {pair}."),
                ),
                answer,
            )
        ]
    notion = pick(rng, tuple(NOTIONS))
    first, second = NOTIONS[notion]
    if rng.random() < 0.12:
        return [
            (ask(rng, (f"What is {notion}?", f"Explain {notion}.")), first),
            (pick(rng, ("Tell me more.", "More, please.", "Go on.")), second),
        ]
    if rng.random() < 0.12:
        return [
            (ask(rng, (f"Explain {notion} in one sentence.", f"What is {notion}, in one sentence?")), first)
        ]
    bare = notion.split(" ", 1)[1] if notion.startswith(("a ", "an ")) else notion
    question = ask(
        rng,
        (
            f"What is {notion}?",
            f"Explain {notion}.",
            f"Explain what {notion} is.",
            f"What does {bare} mean?",
            f"Tell me what {notion} is.",
            f"Describe {notion}.",
            f"What's {notion}?",
            f"Can you explain {notion}?",
        ),
    )
    return [(question, f"{first} {second}")]
