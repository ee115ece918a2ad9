"""What an adapter tells of its steps, and who listens: metrics, a timeline, a profiler (NVTX)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from gtcbmuf.observe.metrics import Metrics
from gtcbmuf.observe.timeline import Timeline
from gtcbmuf.observe.watched import watch

try:
    import nvtx
except ImportError:
    nvtx = None  # no ranges

DOMAIN = "gtcbmuf"  # of the ranges
_NOBODY = contextlib.nullcontext()  # who listens


class Observer:
    """Of one wrapper. groups: its exchanges, to be used from now on: with a timeline they are watched."""

    def __init__(self, groups, metrics: Metrics | None, timeline: Timeline | None):
        self.metrics, self.timeline = metrics, timeline
        for listener in filter(None, (metrics, timeline)):
            listener.open(groups)
        self.groups = groups if timeline is None else watch(groups, timeline)

    def span(self, name: str) -> contextlib.AbstractContextManager:
        """What the training thread does inside."""
        return _NOBODY if self.timeline is None and nvtx is None else self._span(name)

    @contextlib.contextmanager
    def _span(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        with contextlib.nullcontext() if nvtx is None else nvtx.annotate(name, domain=DOMAIN):
            yield
        if self.timeline is not None:
            self.timeline.span(name, begin, time.monotonic())

    def step(self, worker) -> None:
        """A step has ended."""
        if self.metrics is not None:
            self.metrics.step(worker)
        if self.timeline is not None:
            self.timeline.begin_step(worker.steps)

    def close(self) -> None:
        for listener in filter(None, (self.metrics, self.timeline)):
            listener.close()
