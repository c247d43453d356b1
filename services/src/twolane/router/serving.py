"""What both fronts, REST and gRPC, serve with: one model's tokenizer, template, limits and dispatcher.

`app.py` makes it once; the fronts turn their own words into a GenerationRequest with its parts.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from dataclasses import dataclass
from functools import lru_cache

from twolane.core.errors import ModelNotFound
from twolane.core.request import SamplingParams
from twolane.router.auth import ApiKeys
from twolane.router.cluster import Cluster
from twolane.router.dispatch import Dispatcher
from twolane.router.generation import Generation, GenerationRequest, Sink
from twolane.router.metrics import RouterMetrics
from twolane.router.model_folder import ModelFolder
from twolane.router.prompts import PromptReader
from twolane.router.sampling import ModelLimits, SamplingRequest, resolve_sampling
from twolane.router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts.

    Attributes:
        model_name: name under which clients ask for the model.
        folder: facts of the model.
        request_timeout_s: longest time of a request.
    """

    model_name: str
    folder: ModelFolder
    tokenizer: Tokenizer
    prompts: PromptReader
    cluster: Cluster
    dispatcher: Dispatcher
    metrics: RouterMetrics
    keys: ApiKeys
    request_timeout_s: float

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound unless the name, if given, is the model's."""
        if name and name != self.model_name:
            raise ModelNotFound(
                f"the model {name!r:.200} is not served here; {self.model_name!r} is", param="model"
            )

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer: the workers' word, before any is known the folder's."""
        fingerprint = self.cluster.fingerprint
        return self.folder.max_model_len if fingerprint is None else fingerprint.max_model_len

    @property
    def system_fingerprint(self) -> str:
        """Changes when the weights or the tokenizer do."""
        fingerprint = self.cluster.fingerprint
        weights = "" if fingerprint is None else fingerprint.weights_sha256
        return _system_fingerprint(weights, self.tokenizer.sha256)

    def resolve(self, asked: SamplingRequest, prompt_tokens: int) -> SamplingParams:
        """The parameters of an answer; raises InvalidRequest and ContextTooLong."""
        limits = ModelLimits(
            vocab_size=self.folder.vocab_size,
            max_model_len=self.max_model_len,
            eos_token_ids=self.folder.eos_token_ids,
            defaults=self.folder.defaults,
        )
        return resolve_sampling(asked, limits, prompt_tokens)

    async def start(self, request: GenerationRequest, sink: Sink) -> Generation:
        """Hashes the prompts and dispatches; raises what Dispatcher.start raises."""
        hashes = await self.dispatcher.placer.hash_prompts(request.prompts, request.cache_salt)
        return self.dispatcher.start(request, hashes, sink)


@lru_cache(maxsize=16)
def _system_fingerprint(weights_sha256: str, tokenizer_sha256: str) -> str:
    return "fp_" + hashlib.sha256((weights_sha256 + tokenizer_sha256).encode()).hexdigest()[:12]


def new_request_id(kind: str) -> str:
    """Unique over all processes: workers know requests by it."""
    return f"{kind}-{uuid.uuid4().hex}"


def now_s() -> float:
    """Seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()
