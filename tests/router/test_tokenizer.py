"""Tokens to text piece by piece is the decoding of the whole; templates render as transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.router.tiny_model import TEMPLATE, sentencepiece_like, write_tiny_model
from twolane.core.errors import ConfigError, InvalidRequest
from twolane.router.chat_template import ChatTemplate, read_chat_template
from twolane.router.detokenizer import Detokenizer
from twolane.router.model_folder import read_model_folder
from twolane.router.tokenizer import Tokenizer

SENTENCEPIECE = sentencepiece_like()


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    """The tiny model's tokenizer."""
    return Tokenizer(model_dir)


def piecewise(detokenizer: Detokenizer, ids: list[int]) -> str:
    """What comes out over a whole answer."""
    return "".join(detokenizer.feed(token_id) for token_id in ids) + detokenizer.finish()


@given(ids=st.lists(st.integers(0, 399), max_size=30))
def test_any_byte_level_tokens_decode_piecewise_as_in_one_go(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Even tokens that form no valid text add up to the decoding of the whole."""
    assert piecewise(Detokenizer(tokenizer.fast), ids) == tokenizer.fast.decode(ids, skip_special_tokens=True)


@given(text=st.text(max_size=30))
def test_no_piece_shows_a_part_of_a_character(tokenizer: Tokenizer, text: str) -> None:
    """Characters over several tokens come out whole, never as U+FFFD."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer.fast)
    pieces = [detokenizer.feed(token_id) for token_id in ids]
    assert "".join(pieces) + detokenizer.finish() == text
    assert "�" not in "".join(pieces).replace("�", "", text.count("�"))


@given(text=st.text(alphabet="abcdeh lorwé今🙂", max_size=30))
def test_text_of_a_byte_fallback_model_decodes_piecewise(text: str) -> None:
    """Byte tokens and the space mark come back as text, without the first space of the answer."""
    ids = list(SENTENCEPIECE.encode(text, add_special_tokens=False).ids)
    whole = SENTENCEPIECE.decode(ids, skip_special_tokens=True)
    assert piecewise(Detokenizer(SENTENCEPIECE), ids) == whole == text


@given(ids=st.lists(st.integers(0, 280), max_size=20))
def test_senseless_bytes_do_not_end_a_stream(ids: list[int]) -> None:
    """The library refuses some byte sequences half-way; the answer goes on."""
    assert isinstance(piecewise(Detokenizer(SENTENCEPIECE), ids), str)


def test_a_completion_keeps_the_space_after_its_prompt() -> None:
    """With the prompt as context the answer's first space stays, without it the text starts fresh."""
    prompt = list(SENTENCEPIECE.encode("he", add_special_tokens=False).ids)
    answer = list(SENTENCEPIECE.encode("hello", add_special_tokens=False).ids)
    assert piecewise(Detokenizer(SENTENCEPIECE, prompt), answer) == " hello"
    assert piecewise(Detokenizer(SENTENCEPIECE), answer) == "hello"


@given(text=st.text(max_size=20))
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Log probabilities show the bytes of every token; together they are the text."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in ids).decode() == text


def test_bytes_of_byte_fallback_and_unknown_tokens(tmp_path: Path) -> None:
    """<0xE4> is a byte, the mark of a space is a space, an id without token is nothing."""
    SENTENCEPIECE.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.token_bytes(3 + 0xE4) == b"\xe4"
    ids = SENTENCEPIECE.encode("he", add_special_tokens=False).ids
    assert b"".join(map(tokenizer.token_bytes, ids)) == b" he"
    assert tokenizer.token_bytes(99_999) == b""


async def test_a_long_text_is_encoded_on_a_thread_as_a_short_one_is_here(tokenizer: Tokenizer) -> None:
    """Both ways give the same tokens."""
    text = "the quick brown fox " * 500
    there = await tokenizer.run(len(text), lambda: tokenizer.encode(text, add_special_tokens=False))
    here = await tokenizer.run(0, lambda: tokenizer.encode(text, add_special_tokens=False))
    assert there == here


GENERATION = """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}{% endgeneration %}
{% else %}[{{ m.role }}] {{ m.content | tojson }}
{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"""
LOOPS = """{% set ns = namespace(n=0) %}{%- for m in messages -%}{% if loop.index > 2 %}{% break %}{% endif %}
  {%- set ns.n = ns.n + 1 -%}{{ eos_token }}{{ m['content'] | trim }}
{% endfor %}{{ ns.n }}{{ {'a': [1, 'é<>']} | tojson(indent=2) }}
{%- if flag is defined %}{{ flag }}{% endif %}"""


@pytest.mark.parametrize("source", [TEMPLATE, GENERATION, LOOPS])
@settings(max_examples=20, deadline=None)
@given(contents=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_templates_render_as_transformers_does(
    tmp_path_factory: pytest.TempPathFactory, source: str, contents: list[str]
) -> None:
    """The same template gives the same prompt under Hugging Face's own renderer."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.getbasetemp() / f"template-{hash(source)}"
    if not folder.exists():
        write_tiny_model(folder)
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    theirs = PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = read_chat_template(folder)
    assert ours is not None
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render(messages) == expected


def test_what_a_template_refuses_is_the_clients_error(model_dir: Path) -> None:
    """raise_exception of a template names the messages as the field at fault."""
    template = read_chat_template(model_dir)
    assert template is not None
    with pytest.raises(InvalidRequest, match="unknown role wizard") as caught:
        template.render([{"role": "wizard", "content": "x"}])
    assert caught.value.param == "messages"


def test_a_template_can_reach_nothing_of_this_process() -> None:
    """Attributes that lead out of the sandbox are refused."""
    template = ChatTemplate("{{ messages.__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}", {})
    with pytest.raises(InvalidRequest):
        template.render([])


def test_extra_variables_reach_the_template_but_take_no_reserved_name() -> None:
    """chat_template_kwargs may set enable_thinking, not the messages."""
    template = ChatTemplate("{{ enable_thinking }}", {})
    assert template.render([], {"enable_thinking": False}) == "False"
    with pytest.raises(InvalidRequest, match="messages"):
        template.render([], {"messages": []})


def test_a_template_can_come_from_the_tokenizers_configuration(tmp_path: Path) -> None:
    """A list of named templates: the default one counts."""
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ bos_token }}d"}]
    config = {"chat_template": named, "bos_token": {"content": "<b>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    template = read_chat_template(tmp_path)
    assert template is not None
    assert template.render([]) == "<b>d"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", '{"vocab_size": 0}'),
        ("config.json", "[1]"),
    ],
)
def test_a_broken_model_folder_stops_the_start(tmp_path: Path, name: str, content: str | None) -> None:
    """The error names the file."""
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=name):
        read_model_folder(tmp_path)


def test_sampling_defaults_come_from_the_generation_config(tmp_path: Path) -> None:
    """End tokens of both files count."""
    (tmp_path / "config.json").write_text(
        '{"vocab_size": 8, "max_position_embeddings": 9, "eos_token_id": 1}', encoding="utf-8"
    )
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": [2, 3]}', encoding="utf-8"
    )
    folder = read_model_folder(tmp_path)
    assert folder.eos_token_ids == {1, 2, 3}
    assert (folder.defaults.temperature, folder.defaults.top_p, folder.defaults.top_k) == (0.6, 0.9, 20)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """The error says which file is missing."""
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
