"""Starting jobs as a user would: a command in a shell, with what small machines need for MPI."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


class Done(NamedTuple):
    status: int
    output: str  # stdout and stderr as they came
    seconds: float


def shell(command: str, folder: Path = ROOT, timeout: float = 100, **environ: str) -> Done:
    """Run it as if the environment of this Python were active."""
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
               "GTCBMUF_TIMEOUT_SECONDS": "60", **environ}  # fmt: skip
    begin = time.monotonic()
    done = subprocess.run(["bash", "-c", f". {ROOT}/scripts/lib/mpi_env.sh; {command}"],
                          cwd=folder, env=environ, check=False, text=True, timeout=timeout,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    return Done(done.returncode, done.stdout, time.monotonic() - begin)


def job(ranks: int, *arguments: str, mpirun: Path = BIN, python: Path = BIN, timeout: float = 100, **environ) -> Done:
    """mpirun of one environment, starting the Python of one (this one, both, by default)."""
    launcher = mpirun / "mpirun" if (mpirun / "mpirun").exists() else "mpirun"
    command = [str(launcher), "-n", str(ranks), str(python / "python"), *arguments]
    return shell(f"exec {shlex.join(command)}", timeout=timeout, **environ)
