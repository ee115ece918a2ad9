"""scripts/demo.py at its smallest: every strategy trains, and is reported."""

import json

import pytest
from jobs import ROOT, shell

pytest.importorskip("torch")
DEMO = f"python {ROOT}/scripts/demo.py"
AS_A_USER = {"PYTHONSAFEPATH": "", "GTCBMUF_REQUIRE_NATIVE": ""}


def test_quick(tmp_path):
    status, output, _ = shell(f"{DEMO} --quick --ranks 2 --groups 2 --out out", tmp_path,
                              timeout=300, **AS_A_USER)  # fmt: skip
    assert status == 0, output
    rows = {line.split("  ")[0]: line for line in output.splitlines()}
    for name in ("one worker", "dense allreduce", "GTC", "BMUF", "hybrid"):
        assert " %" in rows[name] and rows[name].endswith(" s")
    records = json.loads((tmp_path / "out/results.json").read_text())
    assert list(records) == ["one", "dense", "gtc", "bmuf", "hybrid"]
    assert len({run["samples"][-1] for run in records.values()}) == 1, "the same samples for each"
    sent = {name: run["bytes_sent_per_worker_and_step"] for name, run in records.items()}
    # Of n float32 gradients, 2 ranks: each sends half of them, and then the mean of the other half.
    assert sent["dense"] == pytest.approx(4 * records["dense"]["parameters"], rel=0.01)
    assert sent["one"] == 0 < sent["gtc"] < sent["dense"] / 10
    assert (tmp_path / "out/results.png").read_bytes().startswith(b"\x89PNG")


def test_groups_that_do_not_fit_are_refused_before_anything_runs(tmp_path):
    status, output, seconds = shell(f"{DEMO} --ranks 4 --groups 3", tmp_path, **AS_A_USER)
    assert status == 2 and seconds < 20
    assert "--ranks 4 do not make --groups 3 equal groups" in output
    assert "give --groups 1 or 2 or 4" in output


def test_training_says_what_does_not_fit():
    train = f"python {ROOT}/scripts/train_speech.py"
    status, output, _ = shell(f"{train} --strategy hybrid --groups 2 --quick", **AS_A_USER)
    assert status != 0 and "1 ranks do not make 2 equal groups" in output
