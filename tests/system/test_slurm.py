"""Under a real SLURM of four virtual nodes: preempted, without a node, and what the launchers need.

Slow, as root, and with Debian's packages of SLURM, which are installed if they are not there.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from jobs import BIN, ROOT, job
from slurm_cluster import Cluster, missing

from gtcbmuf.checkpoint import load

pytestmark = pytest.mark.slow
SCRIPTS = ROOT / "scripts/slurm"
TEMPLATES = sorted(path.name for path in SCRIPTS.glob("*.sbatch"))
OTHER = Path(os.environ.get("OTHER_MPI_BIN", ROOT / ".venv-mpich/bin"))
RANKS, STEPS = 4, "900"
INIT = "import gtcbmuf; gtcbmuf.init(); print('rank', gtcbmuf.rank(), 'of', gtcbmuf.size())"
VALUES = dict(line.split("=", 1) for line in subprocess.run(  # what small machines need for MPI
    ["bash", "-c", f". {ROOT}/scripts/lib/mpi_env.sh; env"], text=True, capture_output=True, check=True
).stdout.splitlines() if line.startswith(("OMPI_", "PRTE_", "MPIR_", "OMP_")))  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def place(mpi):
    """The environment with this MPI."""
    found = OTHER if mpi == "mpich" else BIN
    if not (found / "mpirun").exists():
        pytest.skip(f"this machine has no {mpi} here (scripts/test without --quick makes both)")
    return found


def submit(cluster, folder, template, *arguments):
    """A template in a folder of its own, one rank on a node: (job, its output file)."""
    folder.mkdir()
    for name in ("requeue", "train.py", template):
        shutil.copy(SCRIPTS / name, folder)
    environ = {**VALUES, "VENV": str(place(template.split("-")[0]).parent)}
    number = cluster.submit(folder, "--ntasks-per-node=1", "--cpus-per-task=1", template, *arguments, **environ)
    return number, folder / f"train-{number}.out"


def until_step(cluster, number, output, start):
    """Wait until the job has come to a multiple of 100 steps in this start of it."""

    def there():
        state = cluster.job(number).get("JobState")
        assert state not in ("COMPLETED", "FAILED"), f"{state}\n{output.read_text()}"
        parts = output.read_text().split(f"start {start} of the job") if output.exists() else []
        return len(parts) > 1 and "step " in parts[1].partition("\n")[2]

    cluster.until(f"a step of start {start}", there)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end of a run of STEPS that nothing has interrupted, without SLURM: by strategy."""

    @functools.cache
    def end(strategy):
        folder = str(tmp_path_factory.mktemp("whole") / "run")
        arguments = (folder, "--strategy", strategy, "--steps", STEPS)
        status, output, _ = job(RANKS, str(SCRIPTS / "train.py"), *arguments, timeout=300)
        assert status == 0, output
        return load(Path(folder)).files

    return end


def preempt_by_signal(cluster, number):
    """As SLURM does before the time is over."""
    cluster.ask("scancel", "--batch", "--signal=USR1", number)


def preempt_by_priority(cluster, number):
    cluster.submit(cluster.folder, "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")


def course(text, told):
    """For docs/slurm.md: seconds from the signal to what the log tells of the last stop in it."""
    times = {}
    for what in "stopping", "saved step", "requeue:":
        stamp = re.findall(rf"^(\S+ \S+) .*{what}", text, re.MULTILINE)[-1]
        times[what] = (datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f") - told).total_seconds()
    return ", ".join(f"{what} after {seconds:.2f} s" for what, seconds in times.items())


@pytest.mark.parametrize("template, strategy", [
    ("openmpi-srun-cpu.sbatch", "gtc"), ("openmpi-mpirun-cpu.sbatch", "hybrid"), ("mpich-srun-cpu.sbatch", "bmuf"),
])  # fmt: skip
def test_preempted_twice(cluster, tmp_path, whole, template, strategy):
    number, output = submit(cluster, tmp_path / "job", template, "--strategy", strategy, "--steps", STEPS)
    for start, preempt in enumerate((preempt_by_signal, preempt_by_priority)):
        until_step(cluster, number, output, start)
        told = datetime.now()
        preempt(cluster, number)
        cluster.until_requeued(number, start + 1)
        cluster.start_again(number)
        print(f"\n{template}, {preempt.__name__}: {course(output.read_text(), told)}")
    state = cluster.until_state(number, "COMPLETED", "FAILED")
    text = output.read_text()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "2"), text
    assert text.count("ended with 75 and goes back") == 2 == text.count("SIGUSR1 on rank"), text
    resumed = [int(part.split()[0]) for part in text.split("from step ")[1:]]
    assert 0 == resumed[0] < resumed[1] < resumed[2] < int(STEPS), text
    assert load(tmp_path / "job/run").files == whole(strategy)


@pytest.mark.parametrize("template, hung", [
    ("openmpi-srun-cpu.sbatch", False), ("openmpi-srun-cpu.sbatch", True), ("openmpi-mpirun-cpu.sbatch", True),
])  # fmt: skip
def test_a_node_goes_down(cluster, tmp_path, whole, template, hung):
    """SLURM puts the job back by itself. If the node still answers, the ranks are told and save; one that hangs
    (its processes are stopped) keeps them from agreeing: then the job goes on from its last save."""
    number, output = submit(cluster, tmp_path / "job", template, "--steps", STEPS, "--save-every", "50")
    until_step(cluster, number, output, 0)
    processes = cluster.processes_on("n3") if hung else []
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    cluster.ask("scontrol", "update", "NodeName=n3", "State=DOWN", "Reason=test")
    try:
        cluster.until_requeued(number, 1)
    finally:
        for pid, end in zip(processes, [signal.SIGCONT] + len(processes) * [signal.SIGKILL]):  # the first is its slurmd
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, end)
        cluster.ask("scontrol", "update", "NodeName=n3", "State=RESUME")
    cluster.start_again(number)
    state = cluster.until_state(number, "COMPLETED", "FAILED")
    text = output.read_text()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), text
    assert "NODE FAILURE" in text and (": stopping" in text) == (not hung), text
    resumed = [int(part.split()[0]) for part in text.split("from step ")[1:]]
    assert len(resumed) == 2, text
    assert resumed[0] == 0 and 50 <= resumed[1] < int(STEPS) and (resumed[1] % 50 == 0 or not hung), text
    assert load(tmp_path / "job/run").files == whole("gtc")


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_runs(cluster, tmp_path, template):
    number, output = submit(cluster, tmp_path / "job", template, "--steps", "20")
    state = cluster.until_state(number, "COMPLETED", "FAILED", "CANCELLED")
    text = output.read_text()
    assert state["JobState"] == "COMPLETED", text
    assert "4 ranks on" in text and "saved step 20" in text
    assert any("gpu:2" in value for value in state.values()) == ("gpu" in template)  # asked of each node


@pytest.mark.parametrize("mpi, pmi, found", [
    ("openmpi", "pmix", None),
    ("mpich", "pmi2", None),
    ("openmpi", "pmi2", "started by srun --mpi=pmi2, but mpi4py here uses Open MPI"),
    ("mpich", "pmix", "started by srun --mpi=pmix, but mpi4py here uses MPICH"),
    ("openmpi", "none", "srun started 2 tasks without telling them about each other"),
    ("mpich", "none", "srun started 2 tasks without telling them about each other"),
])  # fmt: skip
def test_the_launchers(cluster, mpi, pmi, found):
    done = subprocess.run(["srun", f"--mpi={pmi}", "-N2", "-n2", place(mpi) / "python", "-c", INIT],
                          env={**cluster.environ, **VALUES}, text=True, timeout=120, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    if found:
        assert done.returncode != 0 and "LauncherError" in done.stdout and found in done.stdout, done.stdout
    else:
        assert done.returncode == 0 and {"rank 0 of 2", "rank 1 of 2"} <= set(done.stdout.splitlines()), done.stdout
