"""The official openai client against the running product; greedy answers equal transformers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import transformers

from tests.e2e.conftest import Product
from twolane.cli import topology
from twolane.cli.topology import UpConfig

MODEL = "twolane-demo"
STORY = [{"role": "user", "content": "Tell me a short story."}]


@pytest.fixture(scope="module")
def reference() -> Any:
    """The demo model and its tokenizer by transformers, in float32."""
    folder = str(topology.model_folder(UpConfig()))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def reference_answer(reference: Any, messages: list[dict[str, str]], max_tokens: int) -> str:
    """Greedy answer by transformers."""
    model, tokenizer = reference
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=max_tokens, do_sample=False)
    text: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_greedy_chat_equals_transformers(product: Product, reference: Any) -> None:
    """Eight conversations at once, of very different lengths, through all four processes."""
    subjects = ["Hello!", "Who are you?", "Tell me a story about a cat.", "What is a queue?"]
    chats = [[{"role": "user", "content": subject}] for subject in subjects]
    chats += [
        [{"role": "user", "content": f"{'The red fox sat by the river. ' * n}Who sat?"}]
        for n in (5, 30, 80, 150)
    ]

    def ask(messages: Any) -> str:
        answer = product.client().chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_completion_tokens=40
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, chats))
    assert answers == [reference_answer(reference, messages, 40) for messages in chats]


def test_streamed_and_whole_answers_agree(product: Product) -> None:
    """The same seed gives the same text, streamed or not, and usage counts it."""
    client = product.client()
    options: Any = {"model": MODEL, "messages": STORY, "seed": 7, "max_completion_tokens": 60}
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_seeds_repeat_and_differ(product: Product) -> None:
    """Sampling is repeatable by seed and varies without."""

    def ask(seed: int) -> str | None:
        answer = product.client().chat.completions.create(
            model=MODEL, messages=STORY, seed=seed, temperature=1.0, max_tokens=30
        )
        text: str | None = answer.choices[0].message.content
        return text

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_several_choices(product: Product) -> None:
    """n answers, each with its index, streamed ones interleaved."""
    client = product.client()
    options: Any = {"model": MODEL, "messages": STORY, "n": 3, "seed": 3, "max_completion_tokens": 20}
    whole = client.chat.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_stop_strings_end_the_answer_and_are_not_in_it(product: Product) -> None:
    """A stop string across tokens is found; the text before it stays."""
    client = product.client()
    options: Any = {"model": MODEL, "messages": STORY, "temperature": 0, "max_completion_tokens": 60}
    full = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = full[10:14]
    cut = client.chat.completions.create(**options, stop=[stop]).choices[0]
    assert cut.message.content == full[: full.index(stop)]
    assert cut.finish_reason == "stop"


def test_logprobs(product: Product) -> None:
    """The chosen token is the best one at temperature 0, and alternatives are sorted."""
    answer = product.client().chat.completions.create(
        model=MODEL, messages=STORY, temperature=0, logprobs=True, top_logprobs=3, max_tokens=5
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for entry in content:
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert [each.logprob for each in entry.top_logprobs] == sorted(
            (each.logprob for each in entry.top_logprobs), reverse=True
        )


def test_completions_and_models(product: Product) -> None:
    """The older endpoint takes text and token ids; the model list names the model."""
    client = product.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    text = client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=12)
    assert text.choices[0].text
    echoed = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=12, stream=True
        )
    )
    assert echoed == text.choices[0].text


def test_a_second_turn_is_cached(product: Product) -> None:
    """The conversation so far is found in the prefix cache and counted as such."""
    client = product.client()
    first = [{"role": "user", "content": "The small dog ran over the green hill. " * 20 + "Who ran?"}]
    answer = client.chat.completions.create(model=MODEL, messages=first, temperature=0, max_tokens=16)
    turn = [
        *first,
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": "Where?"},
    ]
    again = client.chat.completions.create(model=MODEL, messages=turn, temperature=0, max_tokens=16)
    assert again.usage.prompt_tokens_details.cached_tokens > 0.8 * answer.usage.prompt_tokens


def test_errors_are_the_clients_own_classes(product: Product) -> None:
    """The client raises what its users catch."""
    client = product.client()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=STORY)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=-1)
