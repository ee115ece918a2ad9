"""scripts/compare_loss: what it is asked for, what a rank's step is, what is sent, its table; and the page that shows its results."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import compare_loss
from peers import results as peers_results
from peers import train, work
from speech.model import AcousticModel

from gtcbmuf.errors import SettingsError
from gtcbmuf.simulate import results


@pytest.mark.parametrize("words, expected", [
    ("DDP", {"method": "DDP"}),
    ("PowerSGD 2", {"method": "PowerSGD", "rank": 2}),
    ("GTC 0.02", {"method": "GTC", "threshold": 0.02}),
])  # fmt: skip
def test_a_method_and_its_setting(words, expected):
    assert compare_loss.method(words) == expected
    assert compare_loss.name(expected) == words


@pytest.mark.parametrize("words", ["magic", "GTC", "DDP 2", ""])
def test_what_is_no_method_is_refused(words):
    with pytest.raises(SettingsError, match="give some of DDP; PowerSGD rank; GTC threshold"):
        compare_loss.method(words)


def test_jobs_differ_in_method_and_seed_alone():
    options = compare_loss.parse(["--methods", "DDP;GTC 0.5", "--seeds", "3,4", "--scale", "2"])
    jobs = compare_loss.jobs(options)
    assert [(compare_loss.name(job), job["seed"]) for job in jobs] == [("DDP", 3), ("DDP", 4), ("GTC 0.5", 3), ("GTC 0.5", 4)]
    rest = [{k: v for k, v in job.items() if k not in ("method", "threshold", "seed")} for job in jobs]
    assert all(r == rest[0] for r in rest) and rest[0]["scale"] == 2


def test_what_is_there_is_not_trained_again(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(compare_loss, "run", lambda job: trained.append(job["seed"]) or record(**job))
    for seeds in "0", "0,1":
        monkeypatch.setattr(sys, "argv", ["", "--methods", "GTC 0.02", "--seeds", seeds, "--save", str(tmp_path / "runs.jsonl")])
        compare_loss.main()
    assert trained == [0, 1]
    assert "has GTC 0.02, seed 0 already" in capsys.readouterr().out
    assert [r["seed"] for r in results.read(tmp_path / "runs.jsonl")] == [0, 1]


def record(level=1.0, **facts):
    return {"hidden": 96, "steps": 10, "losses": [9.0] * 5 + [level + 0.1] * 4 + [level - 0.4], "dev": 0.3, "test": 0.35, "seconds": 1.0,
            "bytes_sent_per_worker_and_step": 2345.0, **facts}  # fmt: skip


def test_the_table():
    """The last half is `level`; differences are taken seed by seed, where both have been trained."""
    gtc = [record(level, method="GTC", threshold=0.02, seed=seed, density=0.01) for seed, level in ((1, 1.0), (0, 1.5), (2, 8.0))]
    other = [record(level, method="PowerSGD", rank=2, seed=seed) for seed, level in ((0, 1.4), (1, 1.2))]
    assert compare_loss.table(gtc + other).splitlines()[2:] == [
        "| 96 | 10 | PowerSGD 2 |  | 2.3 | 1.400 1.200 |  | 1.000 0.800 |  | 30.0 30.0 | 35.0 35.0 |",
        "| 96 | 10 | GTC 0.02 | 1.00 % | 2.3 | 1.500 1.000 8.000 | -0.050 (-0.200 to +0.100) | 1.100 0.600 7.600 | "
        "-0.050 (-0.200 to +0.100) | 30.0 30.0 30.0 | 35.0 35.0 35.0 |",
    ]


@pytest.mark.parametrize("method, more", [("DDP", {}), ("PowerSGD, rank 2", {"rank": 2})])
def test_what_is_computed_to_be_sent_is_what_cards_have_sent(method, more):
    """In docs/results/peers.json, with a rank on each host; frames and headers come on top."""
    runs = [run for run in peers_results.load(ROOT / "docs" / "results" / "peers.json")["runs"] if run["ranks"] == run["hosts"]]
    found = [(run["ranks"], run["model"], r["card_bytes"]) for run in runs for r in run["methods"].get(method, {}).get("rounds", [])]
    assert found
    for ranks, model, sent in found:
        expected = train.ring_bytes(ranks, {"model": model, **more})
        assert expected < sent < 1.15 * expected


def test_the_model_is_the_speech_tasks():
    shapes = [tuple(p.shape) for p in AcousticModel(120, 68, 96).parameters()]
    assert [shape for layer in work.acoustic(96) for shape in layer.values()] == shapes


class Slope:
    """Loss of minibatch m: m; its gradient: m times the parameters."""

    def gradient(self, minibatch, params, out):
        np.multiply(params, minibatch, out=out)
        return minibatch


class Rank1Of4:
    rank, size = 1, 4


def test_a_step_is_the_ranks_own_sequence_at_the_parameters_of_now(monkeypatch):
    monkeypatch.setitem(work.MODELS, train.MODEL, [work.linear("first", 3, 2), work.linear("last", 2, 1)])
    model = work.Model(train.MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    sequences = train.Sequences(Slope(), model, Rank1Of4(), largest=20.0)
    for step, expected in (0, 1.0), (2, 9.0 * 20 / (9 * 11**0.5)):  # 11 elements; the second is longer than 20
        model.zero_grad()
        model(sequences.work(step, 0.0)).backward()
        assert all(torch.allclose(p.grad, torch.tensor(expected)) for p in model.parameters())
    assert sequences.losses == [1, 9]


def test_the_page_shows_the_results():
    page = (ROOT / "docs" / "performance-steps.md").read_text()
    records = results.read(ROOT / "docs" / "results" / "equal-loss.jsonl")
    assert compare_loss.table(records) in page
    knobs = [{k: v for k, v in r.items() if k in ("ranks", "scale", "learning_rate", "clip", "torch")} for r in records]
    assert records and all(k == knobs[0] for k in knobs)
