"""Every test has temporary files of its own, mpirun's among them."""

import tempfile

import pytest


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch):
    """A job that is killed leaves Open MPI's session folder, ompi.NUMBER, behind, and an mpirun that is given the same process number
    later does not start ("The PMIx server's listener thread failed to start")."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield
