"""What adapters, strategies and exchanges may expect of each other; how generators are driven.

docs/layers.md is the contract; these protocols are its words in Python.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from gtcbmuf.errors import DeadlineError, GtcbmufError, RankFailedError
from gtcbmuf.policy.layout import Layout


class Header(Protocol):
    """What a policy reads of a message's header."""

    sent: int  # elements sent; of a raw message: its weight
    sender: int
    threshold: float  # τ; of a raw message: 0


class Ticket(Protocol):
    """An operation under way."""

    headers: Sequence[Header]
    bytes_sent: int

    def wait(self, timeout: float | None = None) -> None: ...
    def decode_mean(self, targets: Sequence[np.ndarray], divisor: float) -> None: ...
    def arrays(self) -> list[np.ndarray]: ...


class Exchange(Protocol):
    """One communicator."""

    rank: int
    size: int
    sequence: int  # of the next operation; see docs/layers.md

    def check_open(self) -> None: ...
    def max_sent(self, elements: int, message_bytes: int) -> int: ...
    def checksum(self, array: np.ndarray) -> int: ...
    def block_update(self, block_delta, block_update, params, start, *, momentum, lr, nesterov) -> None: ...
    def local_delta(self, model, block_update, params, out, *, momentum, nesterov) -> None: ...
    def post_encode(
        self, bucket, segments, residual_in, residual_out, threshold, *, max_sent=None, dtype=None,
        mean_into=None, divisor=1,
    ) -> Ticket: ...  # fmt: skip
    def post_owners(
        self, bucket, segments, residual_in, residual_out, threshold, second_in, second_out,
        second_threshold, *, max_sent=None, dtype=None, mean_into=None, divisor=1,
    ) -> Ticket: ...  # fmt: skip
    def post_allreduce(self, array, *, weight=1, mean=True, bucket=0) -> Ticket: ...
    def post_broadcast(self, array, *, root=0, bucket=0) -> Ticket: ...
    def post_allgather(self, array, *, bucket=0) -> Ticket: ...


class Groups(Protocol):
    """The exchanges of one rank: of all, of its group, and of its peers, the ranks at its place in the
    other groups (None where some group has no such place).

    Hybrid asks for the last two as well: the ranks of each group, its leader first, groups in
    the order of peers; and which group is this rank's.
    """

    world: Exchange
    intra: Exchange
    peers: Exchange | None
    members: Sequence[Sequence[int]]
    index: int


class Model(Protocol):
    """What a block synchronisation reads and writes; the adapter gives it."""

    rounds: bool  # whether some parameters are narrower than a flat vector

    def read(self, out: np.ndarray) -> None: ...
    def write(self, vector: np.ndarray) -> None: ...
    def hold(self, vector: np.ndarray) -> None: ...
    def averaged(self) -> list[np.ndarray]: ...
    def maximum(self) -> list[np.ndarray]: ...
    def restore(self) -> None: ...
    def at_block_boundary(self) -> None: ...
    def catch_up(self, exchange: Exchange, root: int) -> Iterator[None]: ...


class Worker(Protocol):
    """The state machine of one rank; policy/machine.py is the one implementation."""

    layout: Layout
    exchanges_gradients: bool
    steps: int
    check_every: int | None
    survives: bool
    in_place: bool

    def start(self, model: Model) -> Iterator[None]: ...
    def post(self, bucket: int, segments: Sequence[np.ndarray]) -> None: ...
    def finish(self) -> Generator[None, None, bool]: ...
    def collect(self, bucket: int) -> None: ...
    def gradient(self, bucket: int) -> np.ndarray: ...
    def after_update(self, model: Model, samples: int | None = None) -> Iterator[None]: ...
    def join(self, model: Model) -> Generator[None, None, int]: ...
    def finalize(self, model: Model) -> Iterator[None]: ...
    def global_params(self) -> np.ndarray | None: ...
    def thresholds(self) -> dict[str, float]: ...
    def measures(self, norms: bool, block_norm_since: int) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def check_state_dict(self, state: dict[str, Any]) -> None: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def identity(self) -> dict[str, Any]: ...
    def restart_block(self, model: Model) -> None: ...

    position: tuple[int, int]

    def block_legacy(self) -> dict[str, Any]: ...
    def step_legacy(self, model: Model) -> dict[str, Any]: ...
    def arrived(self, exchange: Exchange, behind: bool) -> Generator[None, None, np.ndarray | None]: ...
    def second_residuals(self, exchange: Exchange, late: bool) -> Generator[None, None, list[np.ndarray | None]]: ...
    def succeed(self, old, block, step, arrived, seconds, sequence: int, model: Model, samples: int) -> None: ...
    def rejoin(self, model: Model) -> Iterator[None]: ...


def run(generator: Iterator[None]) -> Any:
    """Drives one worker's generator to its end, where every rank is a process: waiting blocks.
    What it returns."""
    try:
        while True:
            next(generator)
    except StopIteration as end:
        return end.value


def lockstep(generators: Iterable[Iterator[None]]) -> None:
    """Drives the generators of all virtual workers, each to its next yield, round by round.

    A worker's exception is raised at the end of its round, when the others have had their
    chance to raise the same; of several, that of the first worker. RuntimeError if some
    generators end in another round than the rest: then a policy does not meet its peers.
    """
    generators = list(generators)
    while generators:
        ended, errors = [], {}
        for worker, generator in enumerate(generators):
            try:
                next(generator)
            except StopIteration:
                ended.append(worker)
            except Exception as error:  # noqa: BLE001 (raised below)
                errors[worker] = error
        if errors:
            _close(generators)
            _raise_first(errors, len(generators))
        if ended:
            _close(generators)
            if len(ended) < len(generators):
                others = sorted(set(range(len(generators))) - set(ended))
                raise RuntimeError(f"workers {ended} have ended, workers {others} wait for them")
            return


def _close(generators) -> None:
    for generator in generators:
        if hasattr(generator, "close"):
            generator.close()


def _raise_first(errors: dict[int, Exception], workers: int) -> None:
    first = errors[min(errors)]
    if len(errors) < workers:
        first.add_note(f"raised by workers {sorted(errors)} of {workers}")
    raise first


def wait_all(tickets: Iterable[Ticket]) -> None:
    """Waits for every ticket, then raises the error of the first one that has any.

    A deadline, or a rank's death, ends the waiting at once: whoever did not come to one will not come to the next.
    """
    first = None
    for ticket in tickets:
        try:
            ticket.wait()
        except (DeadlineError, RankFailedError):
            raise
        except GtcbmufError as error:
            first = first or error
    if first is not None:
        raise first
