"""What a simulated cluster consists of and what it promises; frozen, so that a run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass, field

from twolane.core.errors import ConfigError
from twolane.policies.decode import DecodeSettings
from twolane.policies.roles import RolesSettings
from twolane.policies.settings import PrefillSettings


@dataclass(frozen=True, slots=True)
class Failure:
    """Worker number `worker` loses everything at `at_s` and is back after `down_s`."""

    at_s: float
    worker: int
    down_s: float


@dataclass(frozen=True, slots=True)
class Abort:
    """The client of request number `request` goes away at `at_s`."""

    at_s: float
    request: int


@dataclass(frozen=True, slots=True)
class SimSettings:
    """One simulated deployment.

    Attributes:
        profile: name of the engine profile.
        prefill_workers: workers that start in the prefill pool.
        decode_workers: workers that start in the decode pool.
        mixed_workers: with any, there are only these, and both parts of a request are done by one of them.
        prefill_policy: name in policies.registry.
        prefill: settings of the prefill policy.
        decode_policy: name in policies.decode.
        decode: settings of decode admission.
        max_rows: rows of a decode batch at most.
        placement: name of the router's placement policy that places requests (see policies.least_wait);
            empty: the simulator's own sampling router, for large clusters.
        roles: whether the role controller moves workers.
        lane_groups: whether prefill workers serve one lane each instead of both.
        role_period_s: seconds between two decisions of the controller.
        role_settings: settings of the role controller.
        graphs: whether small steps run as captured graphs, where the profile knows what that saves.
        skip_disaggregation: whether short prompts may be computed on an idle decode worker.
        step_noise: spread (lognormal sigma) of prefill step times around the profile.
        short_tokens: uncached prompt tokens up to which a request counts as short in the report; fixed,
            so that classes are the same whatever boundary a policy fits.
        short_ttft_s: TTFT limit of short requests.
        long_ttft_s: TTFT limit of long requests.
        long_slowdown: a long request may also take this many times its time on an idle worker.
        tpot_s: limit of the mean time per further token.
        warmup_s: requests that arrive earlier are served but not counted.
        sample_s: seconds between samples of queues and roles.
        failures: workers that fail.
        aborts: requests whose clients go away; they are not counted.
        seed: of draws and noise.
    """

    profile: str = "h100_qwen3_8b"
    prefill_workers: int = 1
    decode_workers: int = 1
    mixed_workers: int = 0
    prefill_policy: str = "laps"
    prefill: PrefillSettings = field(default_factory=PrefillSettings)
    decode_policy: str = "past_future"
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    max_rows: int = 256
    placement: str = ""
    roles: bool = False
    lane_groups: bool = False
    role_period_s: float = 5.0
    role_settings: RolesSettings = field(default_factory=RolesSettings)
    graphs: bool = False
    skip_disaggregation: bool = False
    step_noise: float = 0.03
    short_tokens: int = 256
    short_ttft_s: float = 0.4
    long_ttft_s: float = 2.0
    long_slowdown: float = 5.0
    tpot_s: float = 0.1
    warmup_s: float = 0.0
    sample_s: float = 1.0
    failures: tuple[Failure, ...] = ()
    aborts: tuple[Abort, ...] = ()
    seed: int = 0

    @property
    def worker_count(self) -> int:
        """Workers of the cluster."""
        return self.mixed_workers or self.prefill_workers + self.decode_workers

    def __post_init__(self) -> None:
        """Refuses a cluster that can't serve.

        Raises:
            ConfigError: a pool is empty, or a period is not positive.
        """
        if self.prefill_workers < 1 or self.decode_workers < 1:
            raise ConfigError("a cluster needs at least one prefill and one decode worker")
        if self.mixed_workers < 0 or (self.mixed_workers and (self.roles or self.lane_groups)):
            raise ConfigError("mixed_workers must be at least 0, without roles or lane_groups")
        if self.lane_groups and self.prefill_workers < 2:
            raise ConfigError("lane_groups needs at least two prefill workers, one per lane")
        if not (self.sample_s > 0.0 and self.role_period_s > 0.0):
            raise ConfigError("sample_s and role_period_s must be above 0")
