"""Gradients on their way out and back: hooks, buckets, and the state of one step."""

from __future__ import annotations

import threading

import numpy as np
import torch

from gtcbmuf.errors import RankFailedError
from gtcbmuf.policy import Worker
from gtcbmuf.torch.homes import CudaHome, HostHome, Segment
from gtcbmuf.torch.parameters import Named, dtype_name


class GradientReducer:
    """Counts gradients as backward makes them ready, and posts each bucket when it is complete.

    Buckets are posted in the order of the worker's layout; one that is complete before its turn
    is held back, so that all ranks post in the same order. Until `opened` (the ranks agree on
    what they train) gradients are counted only.

    A posted gradient belongs to the exchange until `collect`: `collect` checks that nobody wrote
    to it in between.
    """

    def __init__(self, named: list[Named], passes: int, worker: Worker, home: HostHome | CudaHome,
                 scaler: torch.amp.GradScaler | None = None):  # fmt: skip
        self.named, self.passes, self.worker, self.home, self.scaler = named, passes, worker, home, scaler
        self.opened = False
        self.enabled = True  # False inside no_sync()
        self.lock = threading.Lock()  # autograd has one thread per device
        self.handles = [
            n.parameter.register_post_accumulate_grad_hook(lambda _, i=i: self.count(i))
            for i, n in enumerate(named)
        ]  # hooks keep this object alive, not the wrapper: that one removes them when it goes
        self.reset()

    def reset(self) -> None:
        """Ready for the next step."""
        self.left = [self.passes] * len(self.named)  # backward passes until ready
        self.missing = [len(b.numbers) for b in self.worker.layout.buckets]
        self.next = 0  # bucket to post
        self.posted = {}  # number -> (gradient tensor, its version when it was posted, what was posted for it)
        self.borrowed = []  # arrays that the exchange reads
        self.unscale = None  # 1 / the scale of this step's losses, once it is needed
        self.collected = False

    @property
    def busy(self) -> bool:
        """Some gradient of this step was counted, and the step has not been collected."""
        return not self.collected and (self.next > 0 or any(n < self.passes for n in self.left))

    def begin_anew(self, worker: Worker) -> None:
        """With the worker of another job: what has been posted of this step is to be posted once more."""
        self.worker, self.next, self.opened = worker, 0, True

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    # -- during backward ------------------------------------------------------------------------

    def count(self, number: int) -> None:
        with self.lock:
            if self.collected or self.left[number] == 0:
                raise RuntimeError(self._once_too_often(number))
            if not self.enabled:
                return
            self.left[number] -= 1
            if self.left[number] == 0:
                self.missing[self.worker.layout.places[number][0]] -= 1
                if self.opened and self.worker.exchanges_gradients:
                    try:
                        self._post_complete()
                    except RankFailedError:
                        self.opened = False  # post_all meets it again, where there is no backward to be broken off

    def _once_too_often(self, number: int) -> str:
        name = self.named[number].name
        if self.collected:
            return (
                f"backward reached {name} after synchronize() and before step(): the gradient "
                "would be added to the group's. Call step(), or zero_grad() to drop this step."
            )
        return (
            f"backward computed the gradient of {name} more than backward_passes_per_step="
            f"{self.passes} times before step(). To accumulate gradients, raise "
            "backward_passes_per_step, or run all backward passes but the last inside no_sync()."
        )

    def _post_complete(self) -> None:
        while self.next < len(self.missing) and self.missing[self.next] == 0:
            self._post()

    def post_all(self) -> None:
        """Post what is left; parameters without a gradient take part with zeros."""
        with self.lock:
            while self.next < len(self.missing):
                self._post()

    def _post(self) -> None:
        bucket = self.worker.layout.buckets[self.next]
        segments = [self._segment(number) for number in bucket.numbers]
        self.borrowed += segments
        self.worker.post(bucket.index, segments)
        self.next += 1

    def _segment(self, number: int) -> np.ndarray | Segment:
        named = self.named[number]
        if named.parameter.grad is None:
            named.parameter.grad = torch.zeros_like(named.parameter)
        gradient = named.parameter.grad
        _check(named, gradient)
        if self.scaler is not None and number not in self.posted:  # before a rank died
            self._unscale(gradient)
        segment = self.home.segment(gradient)
        self.posted[number] = gradient, gradient._version, segment
        return segment

    @torch.no_grad()
    def _unscale(self, gradient: torch.Tensor) -> None:
        """In place: what overflowed stays infinite or NaN, and is refused by all ranks."""
        self.unscale = self.unscale or 1.0 / self.scaler.get_scale()
        if self.unscale != 1.0:
            gradient.mul_(self.unscale)

    # -- after the exchange ----------------------------------------------------------------------

    def collect(self) -> None:
        """The group's gradient into .grad of every parameter, in its own dtype."""
        self._check_untouched()
        for bucket in self.worker.layout.buckets:
            gradients, _, segments = zip(*(self.posted[number] for number in bucket.numbers))
            self.home.collect(self.worker, bucket, segments, gradients)
        self.home.confirm()
        self.borrowed.clear()
        self.posted.clear()
        self.collected = True

    def _check_untouched(self) -> None:
        for number, (gradient, version, _) in self.posted.items():
            named = self.named[number]
            if named.parameter.grad is not gradient or gradient._version != version:
                raise RuntimeError(
                    f"the gradient of {named.name} was changed while it was being exchanged, "
                    "between backward() and step(). Call synchronize() first, then clip or scale "
                    "the gradients, then step()."
                )


def _check(named: Named, gradient: torch.Tensor) -> None:
    if gradient.layout != torch.strided:
        raise TypeError(
            f"the gradient of {named.name} is sparse ({gradient.layout}); gtcbmuf exchanges dense "
            "gradients only. Build the layer with sparse=False: a gradient that is mostly zero "
            "costs GTC next to nothing."
        )
    expected = named.tensor
    if gradient.shape != expected.shape or dtype_name(gradient) != expected.dtype:
        raise TypeError(
            f"the gradient of {named.name} has shape {list(gradient.shape)} and dtype "
            f"{dtype_name(gradient)}, its parameter {list(expected.shape)} and {expected.dtype}"
        )
