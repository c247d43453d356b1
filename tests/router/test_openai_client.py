"""The official openai client against the router: what its users do must work as they know it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.router.scripted_cluster import ANSWER, ScriptedCluster

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def client(cluster: ScriptedCluster) -> AsyncIterator[AsyncOpenAI]:
    """The client; retries are off so that errors show."""
    await cluster.add_pair()
    async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made


async def test_a_chat_completion(client: AsyncOpenAI, cluster: ScriptedCluster) -> None:
    """Text, finish reason, usage with cached tokens, fingerprint, request id."""
    raw = await client.chat.completions.with_raw_response.create(
        model="tiny", messages=USER, extra_headers={"x-request-id": "mine-1"}
    )
    done = raw.parse()
    assert raw.headers["x-request-id"] == "mine-1"
    assert done.object == "chat.completion"
    assert done.choices[0].message.content == ANSWER
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].finish_reason == "stop"
    assert done.system_fingerprint is not None
    assert done.system_fingerprint.startswith("fp_")
    assert done.usage is not None
    submit = cluster.workers["p0"].submits[0]
    assert done.usage.prompt_tokens == len(submit.prompt_tokens)
    assert done.usage.completion_tokens == len(cluster.script(submit))
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == 4


async def test_a_streamed_chat_with_usage(client: AsyncOpenAI) -> None:
    """include_usage adds one last chunk without choices; all others announce it."""
    stream = await client.chat.completions.create(
        model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_stream_helper_of_the_client(client: AsyncOpenAI) -> None:
    """The higher-level stream gathers the same answer."""
    async with client.chat.completions.stream(model="tiny", messages=USER) as stream:
        async for _ in stream:
            pass
        done = await stream.get_final_completion()
    assert done.choices[0].message.content == ANSWER
    assert done.choices[0].finish_reason == "stop"


async def test_n_choices_are_drawn_from_neighbouring_seeds(
    client: AsyncOpenAI, cluster: ScriptedCluster
) -> None:
    """Each choice is a request of its own at the workers; usage counts the prompt once."""
    done = await client.chat.completions.create(model="tiny", messages=USER, n=3, seed=7)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert {choice.message.content for choice in done.choices} == {ANSWER}
    submits = cluster.workers["d0"].submits
    assert [submit.sampling.seed for submit in submits] == [7, 8, 9]
    assert [submit.request_id for submit in submits] == [f"{done.id}-{i}" for i in range(3)]
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(submits[0].prompt_tokens)
    assert done.usage.completion_tokens == 3 * len(cluster.script(submits[0]))


async def test_n_streamed_choices_come_apart_by_index(client: AsyncOpenAI) -> None:
    """Every choice has its role, its text, its end."""
    stream = await client.chat.completions.create(model="tiny", messages=USER, n=2, stream=True)
    texts, ends = ["", ""], ["", ""]
    async for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [ANSWER, ANSWER]
    assert ends == ["stop", "stop"]


async def test_a_client_that_breaks_off_frees_the_workers(
    client: AsyncOpenAI, cluster: ScriptedCluster
) -> None:
    """Leaving the loop closes the stream."""
    cluster.workers["d0"].held = True
    stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await cluster.until(lambda: bool(cluster.workers["d0"].cancels))


async def test_logprobs_of_a_chat_belong_to_its_text(client: AsyncOpenAI) -> None:
    """Tokens with bytes and alternatives; together the bytes are the text."""
    done = await client.chat.completions.create(
        model="tiny", messages=USER, logprobs=True, top_logprobs=2, stop=["jumps"]
    )
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    raw = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert done.choices[0].message.content == "the quick brown fox "
    assert raw.decode().startswith("the quick brown fox")
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)
    assert logprobs.content[0].logprob == pytest.approx(-0.5)


async def test_streamed_logprobs_are_complete(client: AsyncOpenAI) -> None:
    """Over all chunks every token is there once, those of incomplete characters included."""
    stream = await client.chat.completions.create(model="tiny", messages=USER, logprobs=True, stream=True)
    raw, text = b"", ""
    async for chunk in stream:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        for entry in (choice.logprobs.content or []) if choice.logprobs else []:
            raw += bytes(entry.bytes or [])
    assert raw.decode() == text == ANSWER


async def test_a_completion_with_logprobs(client: AsyncOpenAI) -> None:
    """The older shape: parallel lists with offsets into the text."""
    done = await client.completions.create(model="tiny", prompt="hello", logprobs=1, max_tokens=6)
    choice = done.choices[0]
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert len(choice.logprobs.tokens) == 6
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)


async def test_completions_of_several_prompts(client: AsyncOpenAI, cluster: ScriptedCluster) -> None:
    """Texts and token ids; choices are numbered prompt by prompt; 16 tokens unless asked otherwise."""
    cluster.answer = ANSWER * 3
    done = await client.completions.create(model="tiny", prompt=["one", "two"], n=2)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert all(choice.finish_reason == "length" for choice in done.choices)
    prompts = [list(submit.prompt_tokens) for submit in cluster.workers["d0"].submits]
    assert prompts[0] == prompts[1] != prompts[2]
    assert prompts[0][0] == cluster.tokenizer.fast.token_to_id("<|begin|>")
    done = await client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=3)
    assert list(cluster.workers["d0"].submits[-1].prompt_tokens) == [5, 6, 7]
    assert done.usage is not None
    assert done.usage.completion_tokens == 3


async def test_a_streamed_completion(client: AsyncOpenAI) -> None:
    """Chunks of the older shape."""
    stream = await client.completions.create(model="tiny", prompt="x", stream=True, max_tokens=100)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_models(client: AsyncOpenAI) -> None:
    """One model, with its context length."""
    listed = await client.models.list()
    assert [model.id for model in listed.data] == ["tiny"]
    assert (await client.models.retrieve("tiny")).model_extra == {"max_model_len": 512}
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_errors_are_the_clients_own_classes(client: AsyncOpenAI) -> None:
    """404 for another model, 400 with the field."""
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-4", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="tiny", messages=USER, temperature=3)
    assert bad.value.param == "temperature"
    assert "between 0.0 and 2.0" in bad.value.message


async def test_an_error_in_a_stream_is_raised(client: AsyncOpenAI, cluster: ScriptedCluster) -> None:
    """A worker killed mid-stream is an APIError, not a quiet end."""
    cluster.workers["d0"].held = True
    stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True)
    await anext(aiter(stream))
    await cluster.workers["d0"].stop()
    with pytest.raises(openai.APIError, match="d0 was lost"):
        async for _ in stream:
            pass


async def test_what_a_request_asks_for_reaches_the_workers(
    client: AsyncOpenAI, cluster: ScriptedCluster
) -> None:
    """Sampling with every default resolved, extensions and headers."""
    await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "be kind"}, *USER],
        temperature=0,
        top_p=0.5,
        seed=3,
        presence_penalty=0.25,
        logit_bias={"9": -2},
        max_completion_tokens=50,
        extra_body={
            "top_k": 5,
            "min_tokens": 2,
            "stop_token_ids": [8],
            "cache_salt": "tenant",
            "priority": 4,
        },
        extra_headers={"x-twolane-ttft-slo-ms": "250"},
    )
    submit = cluster.workers["p0"].submits[0]
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 5, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (
        0.25,
        0,
        1,
    )
    assert dict(sampling.logit_bias) == {9: -2}
    assert sampling.min_tokens == 2
    end = cluster.tokenizer.fast.token_to_id("<|end|>")
    assert set(sampling.stop_token_ids) == {8, end}
    assert (submit.cache_salt, submit.priority, submit.ttft_slo_ms) == ("tenant", 4, 250)
    text = cluster.tokenizer.fast.decode(list(submit.prompt_tokens), skip_special_tokens=False)
    assert text == "<|begin|><|system|>be kind<|end|><|user|>hello<|end|><|assistant|>"
