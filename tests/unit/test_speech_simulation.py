"""The speech task with virtual workers: the gradient in C, the script, the table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import accuracy_table
import simulate_speech
from speech import data
from speech.fast import CompilerError, SpeechProblem, compile_gradient
from speech.model import cross_entropy, frame_error_rate

from gtcbmuf.simulate import results


@pytest.fixture(scope="module")
def speech():
    return data.load()


@pytest.mark.parametrize("hidden", [16, 96, 272])
def test_the_gradient_is_that_of_autograd(speech, hidden):
    """At the start and further on, for whole sequences and for the short ends of utterances."""
    problem = SpeechProblem(speech, hidden=hidden, seed=3)
    short = np.flatnonzero((speech.first + 60 > speech.stop).numpy())
    rng = np.random.default_rng(0)
    params, out = problem.start(), np.full(len(problem.start()), np.nan, np.float32)
    for number in [0, 1, 2, *rng.choice(short, 5), *rng.integers(len(speech), size=5)]:
        problem._number = lambda minibatch, number=number: int(number)
        loss = problem.gradient(0, params, out)
        wanted_loss, wanted = by_autograd(problem, speech.batch([number]), params)
        assert loss == pytest.approx(wanted_loss, rel=1e-5)
        assert np.abs(out - wanted).max() < 2e-6 * np.abs(wanted).max() + 1e-8
        params = params - np.float32(0.3) * out


def by_autograd(problem, batch, params):
    torch.nn.utils.vector_to_parameters(torch.from_numpy(params), problem.model.parameters())
    problem.model.zero_grad()
    loss = cross_entropy(problem.model(batch[0]), batch[1])
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in problem.model.parameters()]).numpy()


def test_extreme_parameters_and_nan(speech):
    problem = SpeechProblem(speech, hidden=16)
    out = np.empty_like(problem.start())
    for scale in (1e3, 1e30):
        problem.gradient(0, problem.start() * np.float32(scale), out)
        assert np.isfinite(out).all() or scale == 1e30
    params = problem.start()
    params[5] = np.nan
    problem.gradient(0, params, out)
    assert np.isnan(out).any()


def test_sequences_are_those_of_the_set(speech):
    problem = SpeechProblem(speech, hidden=16)
    for number in range(0, len(speech), 97):
        inputs, targets = problem.sequence(number)
        wanted, labels = speech.batch([number])
        assert np.array_equal(inputs, wanted[:, 0]) and np.array_equal(targets, labels[:, 0])
    numbers = [problem._number(m) for m in range(len(speech) + 50)]
    assert sorted(numbers[: len(speech)]) == list(range(len(speech)))
    assert numbers[len(speech) :] == list(data.epoch_order(len(speech), 0, 1)[:50])


def test_evaluation(speech):
    problem = SpeechProblem(speech, hidden=16)
    rates = problem.evaluate(problem.start())
    assert list(rates) == ["dev", "test", "unseen"] and all(0.5 < r <= 1 for r in rates.values())
    assert rates["test"] == frame_error_rate(problem.model, speech.evaluation("test"))


def test_a_compiler_that_fails(monkeypatch):
    with pytest.raises(ValueError, match="multiple of 16"):
        compile_gradient(20)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(CompilerError, match="false"):
        compile_gradient(16)


# -- the script ---------------------------------------------------------------------------------------


def script(folder, *arguments):
    return [sys.executable, str(ROOT / "scripts/simulate_speech.py"), "--hidden", "16", "--no-progress",
            "--results", str(folder / "results.jsonl"), "--folder", str(folder), *arguments]  # fmt: skip


# scripts/test keeps working directories off the path of Python; a user does not.
AS_A_USER = {**os.environ, "PYTHONSAFEPATH": ""}


def ran(folder, *arguments):
    return subprocess.run(
        script(folder, *arguments), capture_output=True, text=True, check=False, env=AS_A_USER
    )


HYBRID = ("--strategy", "hybrid", "--workers", "8", "--group-size", "4", "--scale", "3",
          "--samples", "800", "--evaluations", "1")  # fmt: skip


def test_a_run_and_the_same_again(tmp_path):
    done = ran(tmp_path, *HYBRID)
    assert done.returncode == 0 and "8 workers, 100 steps each: dev" in done.stdout, done.stderr
    (record,) = results.read(tmp_path / "results.jsonl")
    assert record["block_momentum"] is None and record["seed"] == 0 and record["steps"] == 100
    assert 0 < record["test"] < 1 and 0 < record["density"] < 0.1 and len(record["course"]) == 1
    assert os.listdir(tmp_path) == ["results.jsonl"]
    again = ran(tmp_path, *HYBRID)
    assert again.returncode != 0 and "has this run already" in again.stderr
    assert len(results.read(tmp_path / "results.jsonl")) == 1


def test_killed_and_started_again(tmp_path):
    """The same line as without interruption, but for the time."""
    job = subprocess.Popen(script(tmp_path, *HYBRID, "--save-seconds", "0"), env=AS_A_USER)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("hybrid-8-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    assert job.wait(30) == -signal.SIGKILL
    assert not (tmp_path / "results.jsonl").exists()
    assert ran(tmp_path, *HYBRID).returncode == 0
    (tmp_path / "whole").mkdir()
    assert ran(tmp_path / "whole", *HYBRID).returncode == 0
    one, other = (results.read(f / "results.jsonl")[0] for f in (tmp_path, tmp_path / "whole"))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("arguments, match", [
    (("--strategy", "one", "--workers", "4"), "has one worker"),
    (("--strategy", "gtc", "--group-size", "4"), "--group-size is of hybrid, not of gtc"),
    (("--strategy", "hybrid", "--workers", "8", "--group-size", "9"), "only 8 ranks"),
    (("--workers", "0"), "workers=0"),
    (("--threshold", "-1"), "threshold=-1.0"),
    (("--samples", "31"), "not enough for one step"),
    (("--data", "nowhere.npz"), "nowhere.npz"),
    (("--hidden", "20"), "multiple of 16"),
    (("--warm-up", "1"), "less than 1"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, match, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", script(tmp_path, *arguments)[1:])
    with pytest.raises(SystemExit) as caught:
        simulate_speech.main()
    assert caught.value.code not in (0, None)
    assert match in f"{caught.value.code} {capsys.readouterr().err}"
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize("strategy", ["one", "gtc"])
def test_a_run_that_diverges_is_written_down(strategy, tmp_path, monkeypatch):
    def diverging(self, minibatch, params, out):
        out.fill(np.nan if minibatch > 40 else 0)
        return float(out[0])

    monkeypatch.setattr(SpeechProblem, "gradient", diverging)
    monkeypatch.setattr(sys, "argv", script(tmp_path, "--strategy", strategy, "--samples", "64")[1:])
    with pytest.raises(SystemExit, match="the run has failed"):
        simulate_speech.main()
    (record,) = results.read(tmp_path / "results.jsonl")
    assert "NaN" in record["failed"] and accuracy_table.tasks([record]) == {}


# -- the table ----------------------------------------------------------------------------------------


def record(strategy, workers, seed, error, **knobs):
    options = simulate_speech.parse(["--strategy", strategy, "--workers", str(workers)])
    return {**simulate_speech.knobs(options), "seed": seed, "dev": error, "test": error + 0.01,
            "unseen": 0.5, "steps": 200_000 // workers, **knobs}  # fmt: skip


RECORDS = [
    *(record("one", 1, seed, 0.30 + 0.01 * seed) for seed in (0, 1, 2)),  # test: mean 0.32
    *(record("gtc", 32, seed, 0.31 + 0.016 * seed) for seed in (0, 1)),  # 0, +5 %
    record("gtc", 32, 0, 0.2, scale=8.0),  # better on dev, but of one seed
    *(record("bmuf", 128, 0, 0.5 - 0.1 * scale, scale=scale) for scale in (1.0, 2.0)),
]


def test_cells():
    found = accuracy_table.cells(RECORDS)
    assert list(found) == [("gtc", 32), ("bmuf", 128)]
    gtc, bmuf = found.values()
    assert gtc.seeds == (0, 1) and gtc.increases == pytest.approx((0, 5))
    assert gtc.mean == pytest.approx(2.5) and gtc.spread == pytest.approx(5 / 2**0.5)
    assert bmuf.knobs["scale"] == 2.0 and bmuf.spread is None
    assert bmuf.mean == pytest.approx(100 * (0.31 / 0.32 - 1))
    assert accuracy_table.cells(RECORDS, "unseen")["gtc", 32].mean == 0
    assert accuracy_table.cells([r for r in RECORDS if r["strategy"] != "one"]) == {}


def test_what_is_missing_is_said_to_be(tmp_path, monkeypatch, capsys):
    file = tmp_path / "results.jsonl"
    for one in [*RECORDS, record("gtc", 32, 0, 0.3, samples=400_000)]:
        results.append(file, one)
    monkeypatch.setattr(sys, "argv", ["", "--results", str(file), "--plots", str(tmp_path)])
    accuracy_table.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| 32 | +2.5 % (± 3.5, 2 seeds) | 1.4 % | missing | 3.5 % | missing | below 0 |" in lines
    assert "| 64 | missing | 2.8 % | missing | 8.9 % | missing | 3.1 % |" in lines
    assert "| 128 | missing | 15.6 % | -3.1 % (one seed) | 9.6 % | missing | 4.7 % |" in lines
    assert sum("data extract.npz" in line for line in lines) == 2
    assert sum(line.startswith("missing: a run with --strategy one") for line in lines) == 1
    assert (tmp_path / "test-200000.png").stat().st_size > 10_000
    assert (tmp_path / "test-updates.png").stat().st_size > 10_000


def test_no_results_or_damaged_ones(tmp_path, monkeypatch):
    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["", "--results", str(file)])
    with pytest.raises(SystemExit, match="has no results"):
        accuracy_table.main()
    file.write_text(json.dumps({"version": 7}) + "\n")
    with pytest.raises(SystemExit, match="version 7"):
        accuracy_table.main()
