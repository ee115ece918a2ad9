"""Jobs that are killed with SIGKILL and go on: their bits at the end are those of one that never stopped."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from jobs import BIN, ROOT, job, shell

SCRIPT = str(Path(__file__).with_name("resumed_run.py"))
RANKS, STEPS, EVERY = 4, 24, 3


def ends(folder):
    return [(folder / f"end-{rank}").read_bytes() for rank in range(RANKS)]


def killed_job(folder, moment):
    """Start the run and end all of its processes with SIGKILL, `moment` seconds after its first step here;
    the last step that it told of."""
    launcher = BIN / "mpirun" if (BIN / "mpirun").exists() else "mpirun"
    command = f"exec {launcher} -n {RANKS} {BIN}/python {SCRIPT} {folder} 400 {EVERY}"
    run = subprocess.Popen(["bash", "-c", f". {ROOT}/scripts/lib/mpi_env.sh; {command}"],
                           stdout=subprocess.PIPE, text=True)  # fmt: skip
    first = next((line for line in run.stdout if line.strip().isdigit()), "0")
    time.sleep(moment)
    for pid in [*((folder / f"pid-{rank}").read_text() for rank in range(RANKS)), run.pid]:
        os.kill(int(pid), signal.SIGKILL)
    steps = [line for line in [first, *run.stdout] if line.strip().isdigit()]
    run.stdout.close()
    run.wait(30)
    return int(steps[-1])


def test_killed_twice_and_resumed(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    moments = random.Random()  # the failure tells them
    tried, last = [], 0
    for _ in range(2):
        tried.append(moments.uniform(0.05, 1.5))
        last = max(last, killed_job(parts, tried[-1]))
    steps = str(max(STEPS, last + 8))
    status, output, _ = job(RANKS, SCRIPT, str(whole), steps, "0")
    assert status == 0 and "resumed at 0 0 0 0 0 0 0 0" in output, output
    status, output, _ = job(RANKS, SCRIPT, str(parts), steps, str(EVERY))
    assert status == 0, output
    resumed = [int(n) for n in output.split("resumed at ")[1].splitlines()[0].split()]
    assert min(resumed) >= last - EVERY - 1, (resumed, last, tried)
    assert ends(parts) == ends(whole), f"killed after {tried} s, resumed at {resumed}"


def test_a_file_system_that_is_full(tmp_path):
    """A tmpfs with room for one checkpoint and a half: refused on all ranks, the old one is whole."""
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", small],
                                      check=False, capture_output=True).returncode:  # fmt: skip
        pytest.skip("needs the right to mount a small file system")
    code = f"""
import torch, gtcbmuf.torch as hvd
hvd.init()
model = torch.nn.Linear(100, 200)  # 80 kB, and as much of momentum and residuals
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
opt = hvd.GTCOptimizer(opt, model.named_parameters(), threshold=1e-6)
def step():
    opt.zero_grad(); model(torch.ones(1, 100)).sum().backward(); opt.step()
hvd.broadcast_parameters(model.state_dict())
hvd.save("{small}", model, opt, step=1)
step()
try:
    hvd.save("{small}", model, opt, step=2)
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}\\n", end="")
print("step", hvd.restore("{small}", model, opt).step, "\\n", end="")
"""
    try:
        status, output, _ = job(3, "-c", code)
        assert status == 0, output
        assert output.count("FileError: rank") == 3 and output.count("No space left on device") == 3, output
        assert output.count("step 1") == 3
        status, output, _ = shell(f"gtcbmuf checkpoint inspect {small}")
        assert status == 0 and "step       1" in output, output
    finally:
        subprocess.run(["umount", small], check=True)
