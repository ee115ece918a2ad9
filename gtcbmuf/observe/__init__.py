"""What a run does, for people: a record of each step, and a timeline (docs/metrics.md)."""

from gtcbmuf.observe.metrics import Metrics
from gtcbmuf.observe.observer import Observer
from gtcbmuf.observe.timeline import Timeline

__all__ = ["Metrics", "Observer", "Timeline"]
