"""scripts/compare_loss at its smallest: real ranks train by every method, and end with the same parameters."""

import pytest
from jobs import ROOT, shell
from test_demo import AS_A_USER

from gtcbmuf.simulate import results

pytest.importorskip("torch")


def test_every_method_trains(tmp_path):
    status, output, _ = shell(f"python {ROOT}/scripts/compare_loss.py --methods 'DDP;PowerSGD 2;GTC 0.02' --seeds 0 --ranks 2 "
                              "--hidden 16 --steps 100 --save runs.jsonl", tmp_path, timeout=300, **AS_A_USER)  # fmt: skip
    assert status == 0, output
    dense, *others = results.read(tmp_path / "runs.jsonl")
    assert dense["losses"][-1] < dense["losses"][0] - 0.5
    for record in others:
        assert record["losses"][0] == pytest.approx(dense["losses"][0], rel=0.05)
        assert record["losses"][-1] == pytest.approx(dense["losses"][-1], rel=0.2)
        assert record["bytes_sent_per_worker_and_step"] < dense["bytes_sent_per_worker_and_step"]
    assert dense["bytes_sent_per_worker_and_step"] == 4 * dense["parameters"]  # of two ranks each sends half of all, twice
