"""Interrupted simulations go on to the same bits; files that do not fit are refused and kept."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_problem import LeastSquares, rate

from gtcbmuf.errors import FileError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid
from gtcbmuf.simulate import Schedule, Simulation, checkpoint, simulate

GTC_ = GTC(density=0.1, dense_below=20, max_message_bytes=160)
BLOCK = BMUF(sync_period=4, block_momentum=0.6, optimizer_state="average")
STRATEGIES = {"dense": Dense(), "gtc": GTC_, "bmuf": BLOCK, "hybrid": Hybrid(GTC_, BLOCK, 2)}
WORKERS = 5


def schedule(**change):
    settings = {"minibatches": WORKERS * 12 + 5, "learning_rate": rate, "momentum": 0.5,
                "clip": 20.0, "alone": 5, "evaluations": 4}  # fmt: skip
    return Schedule(**{**settings, **change})


def simulation(name):
    return Simulation(LeastSquares(), STRATEGIES[name], WORKERS, schedule=schedule())


def outcome(result):
    """All but the time it took."""
    return (result.params.tobytes(), result.course, result.steps, result.density, result.bytes_sent)


def finished(run):
    for _ in run.steps():
        pass
    return outcome(run.result())


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("steps", [3, 5, 6, 10, 13, 16])
def test_resumed_runs_have_the_same_bits(name, steps, tmp_path):
    """Stopped while one worker is alone (3, 5), within a block (10), at its end (13)."""
    first, file = simulation(name), tmp_path / "run"
    for _ in itertools.islice(first.steps(), steps):
        pass
    checkpoint.save(file, first.facts(), first.state())
    second = simulation(name)
    second.load_state(checkpoint.load(file, second.facts()))
    assert finished(second) == finished(simulation(name))
    assert os.listdir(tmp_path) == ["run"]


def test_what_workers_have_in_common_is_stored_once(tmp_path):
    run, file = simulation("hybrid"), tmp_path / "run"
    finished(run)
    checkpoint.save(file, run.facts(), run.state())
    with np.load(file) as arrays:
        sizes = [arrays[name].size for name in arrays.files if name != "text"]
    whole, quantised = (
        run.layout.elements,
        sum(b.elements for b in run.layout.buckets if not b.dense),
    )
    teams, w_and_delta = 3 * 2 * whole, 2 * whole  # parameters and momentum of each team
    assert sum(sizes) == teams + w_and_delta + WORKERS * quantised


JOB = """
import sys, time
sys.path[:0] = {path!r}
from test_simulate_checkpoint import *
def slow(done, entry):
    time.sleep(0.02)
    print(done, flush=True)
simulate(LeastSquares(), STRATEGIES["hybrid"], WORKERS, schedule=schedule(), save={file!r},
         save_seconds=0, progress=slow)
"""


def test_a_killed_process_is_resumed(tmp_path):
    """SIGKILL at some moment after a few saves: the file is whole, and so is the rest."""
    file = tmp_path / "run"
    code = JOB.format(
        path=[str(Path(__file__).parent), str(Path(__file__).parents[1])], file=str(file)
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    for _ in range(8):
        assert job.stdout.readline()
    time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    assert job.wait(30) == -signal.SIGKILL
    job.stdout.close()
    seen = []
    result = simulate(LeastSquares(), STRATEGIES["hybrid"], WORKERS, schedule=schedule(), save=file,
                      progress=lambda done, entry: seen.append(done))  # fmt: skip
    assert seen[0] >= 9
    assert outcome(result) == finished(simulation("hybrid"))


# -- files that do not fit ---------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path, run = tmp_path / "run", simulation("gtc")
    next(run.steps())
    checkpoint.save(path, run.facts(), run.state())
    return path


def refused(file, match, strategy="gtc", **change):
    before = file.read_bytes()
    with pytest.raises(FileError, match=match):
        simulate(LeastSquares(seed=change.pop("seed", 0)), STRATEGIES[strategy],
                 change.pop("workers", WORKERS), schedule=schedule(**change),
                 save=file, save_seconds=0)  # fmt: skip
    assert file.read_bytes() == before


@pytest.mark.parametrize("change, match", [
    ({"strategy": "dense"}, "its strategy"), ({"workers": 4}, "its workers is 5, here it is 4"),
    ({"seed": 1}, "its problem"), ({"minibatches": 90}, "its minibatches"), ({"clip": 1.0}, "clip"),
    ({"learning_rate": 0.01}, "its rates "), ({"alone": 4}, "its alone")])  # fmt: skip
def test_of_another_run(file, change, match):
    refused(file, match, **change)


def test_cut_off_or_changed(file):
    whole = file.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(file, "damaged")
    at = len(whole) // 3
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused(file, "damaged")
    file.write_text("something else")
    refused(file, "damaged, or no saved simulation")


def rewritten(file, **change):
    with np.load(file) as arrays:
        arrays = dict(arrays)
    text = {**json.loads(arrays["text"].tobytes()), **change}
    arrays["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    with open(file, "wb") as out:
        np.savez(out, **arrays)


@pytest.mark.parametrize("change, match", [
    ({"version": 2}, "has version 2, this library reads 1"), ({"format": "x"}, "not a saved simulation"),
    ({"state": {"teams": [{"array": 99}]}}, "damaged")])  # fmt: skip
def test_of_another_version(file, change, match):
    rewritten(file, **change)
    refused(file, match)


def test_a_failing_write_leaves_the_file_of_before(file, monkeypatch):
    before = file.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(file, {}, {})
    assert file.read_bytes() == before
