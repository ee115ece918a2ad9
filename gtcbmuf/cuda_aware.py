"""Whether MPI is given the memory of GPUs to read and write: what it says itself, and what the environment says."""

from __future__ import annotations

from typing import NamedTuple

from gtcbmuf import agreement
from gtcbmuf.errors import SettingsError


class Decision(NamedTuple):
    """The same on all ranks."""

    direct: bool
    why: str


def decide(MPI, comm, asked: bool | None) -> Decision:
    """All ranks must call it together. asked: GTCBMUF_CUDA_MPI, which wins; SettingsError, on all, where ranks differ in it."""
    from gtcbmuf import _core

    everyone = comm.allgather((asked, _core.mpi_is_cuda_aware(MPI.__file__)))
    if any(one[0] != asked for one in everyone):
        differ = "; ".join(f"rank {rank}: {'not set' if one[0] is None else int(one[0])}" for rank, one in enumerate(everyone))
        raise SettingsError(f"GTCBMUF_CUDA_MPI differs from rank to rank: give all the same ({differ})")
    if asked is not None:
        return Decision(asked, f"GTCBMUF_CUDA_MPI={int(asked)}")
    unable = [rank for rank, one in enumerate(everyone) if one[1] != 1]
    if not unable:
        return Decision(True, "MPI says that it is CUDA-aware")
    where = "" if len(unable) == len(everyone) else f" on rank {agreement.ranks(unable)}"
    silent = everyone[unable[0]][1] < 0
    return Decision(False, f"MPI does not say whether it is CUDA-aware{where}" if silent else f"MPI says that it is not CUDA-aware{where}")
