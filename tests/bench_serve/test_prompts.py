"""Prompts have the length and the shared beginning that the load asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from twolane.bench.prompts import (
    WORDS,
    TextPrompts,
    TokenIdPrompts,
    WordPrompts,
    ordinary_ids,
    prompt_maker,
)
from twolane.core.errors import ConfigError


def _tokenizer(*, merges: bool = True) -> Tokenizer:
    """A byte-level tokenizer that knows " word" for every common word, or only single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate(alphabet)}
    pairs: list[tuple[str, str]] = []
    for word in WORDS if merges else ():
        whole = "Ġ"
        for letter in word:
            if (whole, letter) not in pairs:
                pairs.append((whole, letter))
            whole += letter
            vocab.setdefault(whole, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


@pytest.mark.parametrize(("tokens", "shared"), [(1, 0), (7, 3), (500, 499), (300, 0)])
def test_token_ids_are_as_many_as_asked_for(tokens: int, shared: int) -> None:
    """And none is special."""
    tokenizer = _tokenizer()
    prompt = TokenIdPrompts(tokenizer, seed=1).make(4, tokens, shared)
    assert len(prompt) == tokens
    assert set(prompt) <= set(ordinary_ids(tokenizer))
    assert tokenizer.token_to_id("<end>") not in ordinary_ids(tokenizer)


@pytest.mark.parametrize(("tokens", "shared"), [(1, 0), (40, 10), (333, 128)])
def test_text_has_exactly_the_tokens_asked_for(tokens: int, shared: int) -> None:
    """Counted by the tokenizer itself."""
    tokenizer = _tokenizer()
    text = TextPrompts(tokenizer, seed=1).make(4, tokens, shared)
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == tokens


def test_shared_beginnings_are_equal_and_the_rest_differs() -> None:
    """A longer shared part begins like a shorter one, also when it is asked for later."""
    maker = TokenIdPrompts(_tokenizer(), seed=1)
    first, second, third = maker.make(0, 64, 20), maker.make(1, 64, 40), maker.make(2, 4000, 3000)
    assert first[:20] == second[:20] == third[:20]
    assert second[:40] == third[:40]
    assert first[20:40] != second[20:40]


def test_the_same_seed_makes_the_same_prompts_in_any_order() -> None:
    """A run can be repeated."""
    one, two = WordPrompts(seed=3), WordPrompts(seed=3)
    forward = [one.make(index, 20 + index, index) for index in range(5)]
    backward = [two.make(index, 20 + index, index) for index in reversed(range(5))]
    assert forward == backward[::-1]
    assert WordPrompts(seed=4).make(0, 20, 0) != forward[0]


def test_words_are_as_many_as_asked_for() -> None:
    """About a token each."""
    maker = WordPrompts(seed=0)
    assert len(maker.make(0, 50, 10).split(" ")) == 50
    assert maker.exact is False


def test_a_tokenizer_without_common_words_cannot_make_counted_text() -> None:
    """The message says what to use in its place."""
    with pytest.raises(ConfigError, match="use --prompts token-ids"):
        TextPrompts(_tokenizer(merges=False), seed=0)


def test_the_kind_follows_from_the_flags(tmp_path: Path) -> None:
    """With a tokenizer prompts are exact unless words are asked for."""
    _tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert isinstance(prompt_maker("auto", None, 0), WordPrompts)
    assert isinstance(prompt_maker("auto", tmp_path, 0), TokenIdPrompts)
    assert isinstance(prompt_maker("words", tmp_path, 0), WordPrompts)
    assert isinstance(prompt_maker("text", tmp_path, 0), TextPrompts)


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_folder_without_a_good_tokenizer_is_refused(content: str | None, tmp_path: Path) -> None:
    """The message names the file."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        prompt_maker("token-ids", tmp_path, 0)
    with pytest.raises(ConfigError, match="needs --model-dir"):
        prompt_maker("token-ids", None, 0)
