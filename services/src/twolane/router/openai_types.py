"""The bodies of the OpenAI endpoints, checked field by field.

A field is served, harmless (accepted and ignored), known but not served (refused unless it says what
we do anyway), or unknown (refused): a client never believes in something that did not happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from twolane.core.errors import InvalidRequest
from twolane.router.sampling import SamplingRequest

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_SALT_CHARS = 256
MAX_PARAM_CHARS = 100

# Accepted and ignored.
_HARMLESS = frozenset(
    {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    | {"parallel_tool_calls", "service_tier", "verbosity"}
)
# Not served; the values that mean "leave it off".
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}


def _as_list(value: Any) -> Any:
    """A single string and null in place of a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _integer_keys(value: Any) -> Any:
    """JSON has only strings as keys; token ids are numbers."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        return value
    return {
        int(key) if isinstance(key, str) and key.isdecimal() else key: bias for key, bias in value.items()
    }


class StreamOptions(BaseModel):
    """stream_options of a streaming request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(BaseModel):
    """What chat and completion requests share; ranges are checked by sampling.resolve_sampling."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
        Field(max_length=MAX_STOPS, default_factory=list),
        BeforeValidator(_as_list),
    ]
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], Field(default_factory=dict), BeforeValidator(_integer_keys)]
    max_tokens: int | None = None
    # Beyond OpenAI, as vLLM names them.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_CHARS)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling(
        self, max_tokens: int | None, top_logprobs: int | None, names: Mapping[str, str]
    ) -> SamplingRequest:
        return SamplingRequest(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            # vLLM's word for "off".
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=self.min_tokens,
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=top_logprobs,
            names=names,
        )


class ChatBody(GenerationBody):
    """Body of POST /v1/chat/completions; messages are read by chat_messages.py."""

    messages: Any
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def sampling(self) -> SamplingRequest:
        """How to draw tokens."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        wanted = (self.top_logprobs or 0) if self.logprobs else None
        names = {"prompt": "messages"}
        if self.max_completion_tokens is None:
            return self._sampling(self.max_tokens, wanted, names)
        return self._sampling(
            self.max_completion_tokens, wanted, names | {"max_tokens": "max_completion_tokens"}
        )


class CompletionBody(GenerationBody):
    """Body of POST /v1/completions; the prompt is read by prompts.py."""

    prompt: Any
    logprobs: int | None = None

    def sampling(self) -> SamplingRequest:
        """How to draw tokens; OpenAI's default length of a completion is 16."""
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        return self._sampling(max_tokens, self.logprobs, {"top_logprobs": "logprobs"})


Body = TypeVar("Body", bound=GenerationBody)


def read_body(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    """Checks a JSON object.

    Raises:
        InvalidRequest: the error names the first field at fault.
    """
    kept = {}
    for name, value in fields.items():
        if name in _HARMLESS:
            continue
        if name in _NEUTRAL:
            if not any(value == neutral and type(value) is type(neutral) for neutral in _NEUTRAL[name]):
                raise InvalidRequest(f"'{name}' is not served here; leave it out", param=name)
            continue
        kept[name] = value
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _first_fault(error) from None


def _first_fault(error: ValidationError) -> InvalidRequest:
    fault = error.errors(include_url=False, include_input=False)[0]
    param = _path(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown parameter: '{param}'", param=param)
    if fault["type"] == "missing":
        return InvalidRequest(f"'{param}' is missing", param=param)
    return InvalidRequest(f"invalid value of '{param}': {fault['msg']}", param=param)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    # A name of a megabyte need not come back.
    return path[:MAX_PARAM_CHARS]
