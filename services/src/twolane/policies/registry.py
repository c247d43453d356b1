"""Prefill policies by name, for the configuration of workers, the simulator and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twolane.core.errors import ConfigError
from twolane.policies.chunked import Chunked
from twolane.policies.fcfs import Fcfs
from twolane.policies.hrrn import Hrrn
from twolane.policies.laps import Laps
from twolane.policies.laps_fixed import LapsFixed
from twolane.policies.prefill import PrefillPolicy
from twolane.policies.settings import PrefillSettings
from twolane.policies.sjf import Sjf

_BUILDERS: Mapping[str, Callable[[PrefillSettings], PrefillPolicy]] = {
    "fcfs": Fcfs,
    "chunked": Chunked,
    "sjf": Sjf,
    "hrrn": Hrrn,
    "laps_fixed": LapsFixed,
    "laps": Laps,
}

PREFILL_POLICIES = tuple(_BUILDERS)
# Policies under which a short prompt waits for short ones alone, for routers that predict its wait.
SHORT_FIRST = frozenset({"sjf", "hrrn", "laps_fixed", "laps"})


def by_name(name: str, settings: PrefillSettings | None = None) -> PrefillPolicy:
    """Builds the policy of that name.

    Raises:
        ConfigError: no policy has the name; the message lists those there are.
    """
    builder = _BUILDERS.get(name)
    if builder is None:
        raise ConfigError(f"unknown prefill policy {name!r}; choose one of {', '.join(PREFILL_POLICIES)}")
    return builder(settings or PrefillSettings())
