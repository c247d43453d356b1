"""Trains the byte-level BPE of the demo model on its own corpus, and holds the chat template.

The full byte alphabet is in the vocabulary, so any UTF-8 text comes back
unchanged. Digits stand alone, which helps small sums. Called by train.py.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from pathlib import Path

from corpus import documents
from document import Document
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BEGIN, END_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_TURN = SPECIALS = (
    "<|begin|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
VOCABULARY_SIZE = 2048
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def segments(document: Document) -> list[tuple[str, bool]]:
    """A document in pieces, as the template writes them, and whether the model must learn to write each."""
    if document.text:
        return [(BEGIN, False), (document.text + END_TEXT, True)]
    pieces = [(BEGIN, False)]
    if document.system:
        pieces.append((SYSTEM + document.system + END_TURN, False))
    for question, answer in document.turns:
        pieces.append((USER + question + END_TURN + ASSISTANT, False))
        pieces.append((answer + END_TURN, True))
    return pieces


def _texts(seed: int, count: int) -> Iterator[str]:
    for document in itertools.islice(documents(seed), count):
        if document.text:
            yield document.text
        for turn in document.turns:
            yield from turn
    # Every letter and number must be cheap to copy, also those that the stories seldom use.
    yield from string.printable.split("\n")


def train_tokenizer(seed: int, document_count: int = 20_000) -> PreTrainedTokenizerFast:
    """The tokenizer learned from that many documents of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=3,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
    )
    tokenizer.train_from_iterator(_texts(seed, document_count), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT, END_TURN],
    )
