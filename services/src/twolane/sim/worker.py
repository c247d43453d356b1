"""A simulated worker: one device that is in one group at a time and may be on its way to another."""

from __future__ import annotations

from dataclasses import dataclass

from twolane.policies.roles import Group
from twolane.sim.decode_side import DecodeSide
from twolane.sim.prefill_side import PrefillSide


@dataclass(slots=True)
class SimWorker:
    """Both halves of a worker; the group says which one takes new requests.

    Attributes:
        index: its number.
        group: what it is for now.
        prefill: its prefill half.
        decode: its decode half, with the books of its pages.
        is_mixed: whether answers grow where their prompts were computed.
        going_to: the group it joins once it is drained, or None.
        alive: whether it is up.
        promised_tokens: prompt tokens of requests that were sent to its decode half and have not ended.
    """

    index: int
    group: Group
    prefill: PrefillSide
    decode: DecodeSide
    is_mixed: bool = False
    going_to: Group | None = None
    alive: bool = True
    promised_tokens: int = 0

    def __post_init__(self) -> None:
        """Puts the halves together: they share a device, its steps and its pages."""
        self.prefill.answers, self.decode.prompts = self.decode, self.prefill
        self.prefill.index = self.decode.index = self.index

    @property
    def is_empty(self) -> bool:
        """Whether neither half has anything left."""
        return self.prefill.is_empty and self.decode.is_empty
