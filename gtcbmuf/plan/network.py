"""What a plan knows of the machines: a few measured numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from gtcbmuf.errors import SettingsError


def positive(name: str, value, unit: str) -> None:
    """SettingsError unless `value` is a number greater than 0 (infinity is: it costs nothing)."""
    if not (_number(value) and value > 0):
        raise SettingsError(f"{name}={value!r}: give {unit}, more than 0.")


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


@dataclass(frozen=True)
class Link:
    """bandwidth [bytes/s], each way at once; latency [s], from a post to the arrival of a byte.

    in_turn [bytes/s]: what is left of the bandwidth where every rank sends to all others in turn, and
    not to one only; None: all of it.
    """

    bandwidth: float
    latency: float = 0.0
    in_turn: float | None = None

    def __post_init__(self):
        positive("bandwidth", self.bandwidth, "bytes per second")
        if self.in_turn is not None:
            positive("in_turn", self.in_turn, "bytes per second")
        if not (_number(self.latency) and 0 <= self.latency < math.inf):
            raise SettingsError(f"latency={self.latency!r}: give seconds, at least 0.")


@dataclass(frozen=True)
class Rates:
    """What one worker gets done on its CPU.

    encode: elements of a gradient encoded [1/s], whatever the density.
    decode: elements sent, of all messages together, added to a dense gradient [1/s].
    reduce: elements of an array that an allreduce checks and adds up [1/s].
    """

    encode: float = 1e9
    decode: float = 1e8
    reduce: float = 3e8

    def __post_init__(self):
        for field in fields(self):
            positive(f"{field.name} rate", getattr(self, field.name), "elements per second")


@dataclass(frozen=True)
class Network:
    """inter: the network card of a host, which its workers share; all cards work at once.
    intra: what a worker receives from the others on its host, while all of them receive.
    """

    inter: Link
    intra: Link = Link(2e9, 1e-5)
    rates: Rates = Rates()
