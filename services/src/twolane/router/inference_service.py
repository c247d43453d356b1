"""twolane.v1.Inference: the same requests as over REST, typed, with text, tokens or a chat as input.

Closing the call cancels the request, its deadline bounds the work. Errors are raised as TwolaneError;
the server's interceptor makes statuses of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from twolane.core.errors import Cancelled, DeadlineExceeded, InvalidRequest, TwolaneError
from twolane.core.request import FinishReason
from twolane.router.answer import Answer
from twolane.router.generation import GenerationRequest
from twolane.router.openai_types import MAX_CHOICES, MAX_SALT_CHARS, MAX_STOP_CHARS, MAX_STOPS
from twolane.router.prompts import read_messages
from twolane.router.sampling import SamplingRequest
from twolane.router.serving import Serving, new_request_id, now_s
from twolane.rpc.channel import remaining_s
from twolane.rpc.convert import usage_to_proto
from twolane.rpc.words import finish_reason_to_proto
from twolane.telemetry.logs import request_id_var
from twolane.telemetry.tracing import current_traceparent
from twolane.v1 import inference_pb2, inference_pb2_grpc, types_pb2

Context = grpc.aio.ServicerContext[Any, Any]

_OPTIONAL = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "top_logprobs",
    "min_tokens",
)


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves clients over gRPC."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        """Whole answers."""
        job = await self._accept(request, context)
        sink = _ChunkSink()
        generation = await self._serving.start(job, sink)
        choices = [inference_pb2.Choice(index=answer.index) for answer in generation.answers]
        try:
            async for chunk in sink.chunks():
                choice = choices[chunk.index]
                choice.text += chunk.text
                choice.token_ids.extend(chunk.token_ids)
                choice.logprobs.extend(chunk.logprobs)
                choice.finish_reason = chunk.finish_reason
        finally:
            generation.fail(Cancelled("the call was closed"))
        usage = usage_to_proto(generation.usage())
        return inference_pb2.GenerateResponse(
            request_id=job.request_id, model=self._serving.model_name, choices=choices, usage=usage
        )

    async def GenerateStream(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateChunk]:
        """Answers piece by piece; the token counts come with the last message."""
        job = await self._accept(request, context)
        sink = _ChunkSink()
        generation = await self._serving.start(job, sink)
        last: inference_pb2.GenerateChunk | None = None
        try:
            async for chunk in sink.chunks():
                if last is not None:
                    yield last
                last = chunk if sink.ended else None
                if last is None:
                    yield chunk
            if last is not None:
                last.usage.CopyFrom(usage_to_proto(generation.usage()))
                yield last
        finally:
            generation.fail(Cancelled("the call was closed"))

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Context
    ) -> inference_pb2.ListModelsResponse:
        """The one model."""
        del request
        self._authenticate(context)
        model = inference_pb2.Model(name=self._serving.model_name, max_model_len=self._serving.max_model_len)
        return inference_pb2.ListModelsResponse(models=[model])

    def _authenticate(self, context: Context) -> None:
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        self._serving.keys.check(str(metadata.get("authorization", "")))

    async def _accept(self, request: inference_pb2.GenerateRequest, context: Context) -> GenerationRequest:
        """The checked request; counts what it refuses."""
        try:
            self._authenticate(context)
            return await self._read(request, context)
        except TwolaneError as error:
            self._serving.metrics.refused(error.code)
            raise

    async def _read(self, request: inference_pb2.GenerateRequest, context: Context) -> GenerationRequest:
        serving = self._serving
        arrival_s = now_s()
        left = remaining_s(context)
        if left is not None and left <= 0:
            raise DeadlineExceeded("the call's deadline has passed")
        serving.check_model(request.model)
        _check_limits(request)
        prompt = await self._prompt(request)
        sampling = serving.resolve(_sampling(request.sampling), len(prompt))
        job = GenerationRequest(
            request_id=new_request_id("gen"),
            prompts=(prompt,),
            sampling=(sampling,),
            stop=tuple(request.stop),
            n=request.n or 1,
            continues_prompt=request.WhichOneof("input") != "chat",
            return_token_ids=request.return_token_ids,
            cache_salt=request.cache_salt,
            timeout_s=min(serving.request_timeout_s, left if left is not None else serving.request_timeout_s),
            arrival_s=arrival_s,
            traceparent=current_traceparent(),
        )
        request_id_var.set(job.request_id)
        return job

    async def _prompt(self, request: inference_pb2.GenerateRequest) -> list[int]:
        kind = request.WhichOneof("input")
        if kind == "text":
            return await self._serving.prompts.text(request.text, "text")
        if kind == "tokens":
            return self._serving.prompts.tokens(request.tokens.ids, "tokens")
        if kind == "chat":
            messages = [{"role": m.role, "content": m.content} for m in request.chat.messages]
            return await self._serving.prompts.chat(read_messages(messages))
        raise InvalidRequest("exactly one of text, tokens and chat must be set", param="input")


class _ChunkSink:
    """Holds messages until the call takes them.

    Attributes:
        ended: the request is over.
    """

    def __init__(self) -> None:
        self.ended = False
        self._pending: list[inference_pb2.GenerateChunk] = []
        self._error: TwolaneError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def on_piece(self, answer: Answer, text: str, finish: FinishReason | None) -> None:
        """See generation.Sink."""
        chunk = inference_pb2.GenerateChunk(
            index=answer.index,
            text=text,
            token_ids=answer.take_token_ids(),
            logprobs=[entry for _, entry in answer.take_logprobs()],
            finish_reason=finish_reason_to_proto(finish),
        )
        self._pending.append(chunk)
        self._wake()

    def on_end(self, error: TwolaneError | None) -> None:
        """See generation.Sink."""
        self.ended, self._error = True, error
        self._wake()

    async def chunks(self) -> AsyncIterator[inference_pb2.GenerateChunk]:
        """Every message until the end; raises why the request failed."""
        while True:
            taken, self._pending = self._pending, []
            for chunk in taken:
                yield chunk
            if self._pending:
                continue
            if self.ended:
                break
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _sampling(message: types_pb2.SamplingParams) -> SamplingRequest:
    given = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}  # type: ignore[arg-type]
    return SamplingRequest(
        **given,
        logit_bias=dict(message.logit_bias),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        names={"prompt": "input"},
    )


def _check_limits(request: inference_pb2.GenerateRequest) -> None:
    if request.n > MAX_CHOICES:
        raise InvalidRequest(f"n must be at most {MAX_CHOICES}, not {request.n}", param="n")
    if len(request.stop) > MAX_STOPS:
        raise InvalidRequest(
            f"stop may have at most {MAX_STOPS} strings, not {len(request.stop)}", param="stop"
        )
    if any(not 1 <= len(stop) <= MAX_STOP_CHARS for stop in request.stop):
        raise InvalidRequest(f"every stop string must have 1 to {MAX_STOP_CHARS} characters", param="stop")
    if len(request.cache_salt) > MAX_SALT_CHARS:
        raise InvalidRequest(f"cache_salt may have at most {MAX_SALT_CHARS} characters", param="cache_salt")
