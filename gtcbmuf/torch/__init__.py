"""PyTorch with Horovod's face: `import gtcbmuf.torch as hvd`.

    hvd.init()
    opt = hvd.DistributedOptimizer(opt, named_parameters=model.named_parameters(),
                                   strategy=hvd.GTC(threshold=2e-3))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)

docs/coming-from-horovod.md says what is the same and what is not.
"""

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
from gtcbmuf.torch.amp import GradScaler
from gtcbmuf.torch.broadcasts import (
    allgather_object,
    broadcast_object,
    broadcast_optimizer_state,
    broadcast_parameters,
)
from gtcbmuf.torch.checkpoint import Restored, restore, save
from gtcbmuf.torch.model import TorchModel
from gtcbmuf.torch.named import BMUFOptimizer, GTCOptimizer, HybridOptimizer
from gtcbmuf.torch.optimizer import DistributedOptimizer
from gtcbmuf.torch.verbs import (
    Average,
    Compression,
    Max,
    Min,
    ReduceOp,
    Sum,
    allgather,
    allreduce,
    allreduce_,
    barrier,
    broadcast,
    broadcast_,
)
from gtcbmuf.torch.whole import join

__all__ = [
    "BMUF",
    "GTC",
    "Average",
    "BMUFOptimizer",
    "Compression",
    "Dense",
    "DistributedOptimizer",
    "GTCOptimizer",
    "GradScaler",
    "Hybrid",
    "HybridOptimizer",
    "Max",
    "Metrics",
    "Min",
    "Preemption",
    "ReduceOp",
    "Restored",
    "Sum",
    "Timeline",
    "TorchModel",
    "allgather",
    "allgather_object",
    "allreduce",
    "allreduce_",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "generation",
    "init",
    "is_initialized",
    "join",
    "local_rank",
    "local_size",
    "rank",
    "restore",
    "save",
    "shutdown",
    "size",
]
