"""GTC, BMUF and their hybrid as state machines over an exchange (docs/layers.md).

No MPI, no framework and no codec in here; docs/algorithms.md has the equations.
"""

from gtcbmuf.policy.bmuf import BMUF
from gtcbmuf.policy.dense import Dense
from gtcbmuf.policy.gtc import GTC
from gtcbmuf.policy.hybrid import Hybrid
from gtcbmuf.policy.layout import Bucket, Layout, Tensor
from gtcbmuf.policy.strategy import Strategy
from gtcbmuf.policy.worker import Exchange, Model, Ticket, Worker, lockstep, run

__all__ = [
    "BMUF",
    "GTC",
    "Bucket",
    "Dense",
    "Exchange",
    "Hybrid",
    "Layout",
    "Model",
    "Strategy",
    "Tensor",
    "Ticket",
    "Worker",
    "lockstep",
    "run",
]
