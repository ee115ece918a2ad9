"""Data-parallel training over MPI: thresholded gradients (GTC), block model averaging (BMUF), both.

For PyTorch import gtcbmuf.torch, for NumPy gtcbmuf.numpy; the strategies are the same in each.
"""

__version__ = "0.1.0"

from gtcbmuf.observe import Metrics, Timeline
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid
from gtcbmuf.preemption import Preemption
from gtcbmuf.runtime import (
    generation,
    init,
    is_initialized,
    local_rank,
    local_size,
    rank,
    shutdown,
    size,
)

__all__ = [
    "BMUF",
    "GTC",
    "Dense",
    "Hybrid",
    "Preemption",
    "Metrics",
    "Timeline",
    "generation",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "rank",
    "shutdown",
    "size",
]
