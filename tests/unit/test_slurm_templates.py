"""The batch templates: what each must have, and that they differ only where they mean to. tests/system runs them."""

import re
import subprocess
from itertools import product
from pathlib import Path

import pytest

from gtcbmuf import Preemption

FOLDER = Path(__file__).resolve().parents[2] / "scripts/slurm"
LAUNCHES = {"openmpi-srun": "srun --mpi=pmix", "openmpi-mpirun": "mpirun", "mpich-srun": "srun --mpi=pmi2"}
DIRECTIVES = ("--requeue", "--open-mode=append", "--signal=B:USR1@", "--output=", "--nodes=", "--ntasks-per-node=",
              "--cpus-per-task=", "--time=")  # fmt: skip


def directives(name):
    return [line for line in (FOLDER / name).read_text().splitlines() if line.startswith("#SBATCH")]


def test_there_is_one_for_each_launcher_and_device():
    wanted = {f"{launch}-{device}.sbatch" for launch, device in product(LAUNCHES, ("cpu", "gpu"))}
    assert {path.name for path in FOLDER.glob("*.sbatch")} == wanted


@pytest.mark.parametrize("launch, device", list(product(LAUNCHES, ("cpu", "gpu"))))
def test_each_has_what_it_needs(launch, device):
    name = f"{launch}-{device}.sbatch"
    text = (FOLDER / name).read_text()
    for directive in DIRECTIVES:
        assert sum(line.startswith(f"#SBATCH {directive}") for line in directives(name)) == 1, directive
    assert ("#SBATCH --gpus-per-node=" in text) == (device == "gpu")
    assert f"sbatch {name}" in text, "its own name"
    rank = "./requeue --rank " if "mpirun" in launch else ""
    assert re.search(rf'^exec ./requeue {LAUNCHES[launch]} .*\\\n +{rank}python train.py run "\$@"$', text, re.MULTILINE)
    assert ("--cpus-per-task=\"$SLURM_CPUS_PER_TASK\" --wait=60" in text) == ("srun" in launch)
    assert "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK" in text and "gtcbmuf doctor" in text
    subprocess.run(["bash", "-n", FOLDER / name], check=True)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_launchers_ask_slurm_for_the_same(device):
    asked = [directives(f"{launch}-{device}.sbatch") for launch in LAUNCHES]
    assert asked[0] == asked[1] == asked[2]


def test_requeue_knows_the_exit_code():
    text = (FOLDER / "requeue").read_text()
    assert re.search(r"^SAVED=(\d+)", text, re.MULTILINE)[1] == str(Preemption.exit_code)
    subprocess.run(["bash", "-n", FOLDER / "requeue"], check=True)
