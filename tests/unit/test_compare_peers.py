"""scripts/compare_peers: its gradients and their τ, its files and table, what it refuses; and the page that shows its results."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import compare_peers
from peers import results, work

from gtcbmuf.errors import SettingsError


def rounds(*seconds, card_bytes=2e6):
    return {"rounds": [{"steps": 3, "seconds": s, "card_bytes": card_bytes} for s in seconds]}


RUN = {
    "link": "1gbit", "ranks": 4, "hosts": 4, "model": "LSTM", "device": "cpu", "elements": 3_400_000, "step_seconds": 0.2, "period": 20,
    "group": 2, "rounds": 3, "asked": ["none", "GTC", "DDP", "Horovod", "PowerSGD"],
    "methods": {"none": rounds(0.2, 0.21, 0.3, card_bytes=0), "GTC": {"density": 0.0051, **rounds(0.21, 0.23, 0.33)},
                "DDP": rounds(0.4, 0.31, 0.6, card_bytes=2e7), "Horovod": {"rounds": [], "left_out": "no compiler"},
                "PowerSGD": {"rounds": []}},
}  # fmt: skip
CONTENT = {"format": results.FORMAT, "version": results.VERSION, "cores": 2, "packages": {}, "runs": [RUN]}


def test_exchange_time_is_counted_round_by_round():
    """DDP: 200, 100, 300 ms; GTC: 10, 20, 30: ratios 20, 5, 10. The medians of steps alone would give 9.5."""
    assert results.exchange(RUN, "DDP") == pytest.approx([0.2, 0.1, 0.3])
    assert results.ratio(RUN, "DDP", "GTC") == pytest.approx(10)


def test_the_table():
    lines = results.table(CONTENT).splitlines()
    assert "LSTM of 3.4 M parameters" in lines[0] and "Sent when timing began: 0.51 % by GTC." in lines[0]
    assert lines[0].endswith("Horovod left out: no compiler.")
    assert "GPU" not in lines[0] and "parameters, on a GPU that they share; computation" in results.facts({**RUN, "device": "cuda"})
    assert lines[-5:] == [
        "| 1gbit | 4 | LSTM | none | 210 |  |  | 0.00 |",
        "| 1gbit | 4 | LSTM | GTC | 230 | 20.0 ± 10.0 |  | 2.00 |",
        "| 1gbit | 4 | LSTM | DDP | 400 | 200.0 ± 100.0 | 10.0 | 20.00 |",
        "| 1gbit | 4 | LSTM | Horovod | missing |  |  |  |",
        "| 1gbit | 4 | LSTM | PowerSGD | not timed |  |  |  |",
    ]


def test_a_round_that_a_killed_run_did_not_end_is_not_counted():
    run = copy.deepcopy(RUN)
    run["methods"]["DDP"] = rounds(0.4, 0.31)
    assert results.exchange(run, "DDP") == pytest.approx([0.2, 0.1])
    assert results.ratio(run, "DDP", "GTC") == pytest.approx(12.5)


def test_runs_are_added_and_replaced(tmp_path):
    file = tmp_path / "peers.json"
    results.start(file, cores=2)
    for run in RUN, {**RUN, "link": "100mbit"}, {**RUN, "device": "cuda"}, {**RUN, "asked": ["none"]}, {**RUN, "rounds": 7}:
        results.add(file, run)
    content = results.load(file)
    assert content["cores"] == 2
    found = [(r["link"], r["device"], r["rounds"]) for r in content["runs"]]
    assert found == [("100mbit", "cpu", 3), ("1gbit", "cuda", 3), ("1gbit", "cpu", 3), ("1gbit", "cpu", 7)]
    results.start(file, cores=4)  # goes on with what is there
    assert results.load(file) == content


@pytest.mark.parametrize("change, match", [
    ({"format": "gtcbmuf plan inputs"}, "something else"),
    ({"version": 0}, "version 0"),
])  # fmt: skip
def test_a_foreign_or_older_file_is_refused_and_stays(change, match, tmp_path):
    file = tmp_path / "file.json"
    text = json.dumps({**CONTENT, **change})
    file.write_text(text)
    for use in results.load, results.start, lambda path: results.add(path, RUN):
        with pytest.raises(SettingsError, match=match):
            use(file)
    assert file.read_text() == text


def test_a_damaged_or_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        results.load(tmp_path / "file.json")
    (tmp_path / "file.json").write_text(json.dumps(CONTENT)[:-20])
    with pytest.raises(SettingsError, match="damaged"):
        results.load(tmp_path / "file.json")


@pytest.mark.parametrize("words, match", [
    (["--models", "LSTM,VGG"], "there is no VGG"),
    (["--methods", "GTC;magic"], "there is no magic"),
    (["--ranks", "6"], "6 on 4 hosts"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused(words, match, capsys):
    with pytest.raises(SystemExit):
        compare_peers.parse(words)
    assert match in capsys.readouterr().err


def test_the_step_without_an_exchange_is_always_measured():
    assert compare_peers.parse(["--methods", "DDP, bf16;GTC"]).methods == ["none", "DDP, bf16", "GTC"]
    assert compare_peers.parse(["--methods", "none, together"]).methods == ["none", "none, together"]


def test_the_models():
    assert work.elements("LSTM") == 3_434_564  # as the speech task's has it with 512 units
    assert work.elements("MLP") == 25_179_136


def test_the_threshold_gives_the_density():
    """Counted by a loop over elements, as a long run sends them; and half the density wants a larger τ."""
    gradients = np.random.default_rng(0).standard_normal((work.ROTATION, 400)).astype(np.float32)
    gradients *= np.exp(1.5 * np.random.default_rng(1).standard_normal(400)).astype(np.float32)
    tau = work.threshold(gradients, 0.02)
    sent = 0
    for column in gradients.T.astype(float):
        held = 0.0
        for step in range(2 * work.SETTLE):
            held += column[step % work.ROTATION]
            if abs(held) >= tau:
                held -= tau if held > 0 else -tau
                sent += step >= work.SETTLE
    assert sent / (400 * work.SETTLE) == pytest.approx(0.02, rel=0.1)
    assert work.threshold(gradients, 0.01) > tau


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(work.MODELS, "small", [work.linear("first", 300, 10), work.linear("last", 10, 30)])


def test_backward_gives_the_ready_gradients(small):
    gradients = work.Gradients("small", rank=1)
    model = work.Model("small")
    for step in range(2):
        model.zero_grad()
        model(gradients.work(step, 0.0)).backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
        assert np.array_equal(found, gradients.flat[step])
        for p in model.parameters():
            p.grad.fill_(7)  # as an exchange may
    assert not np.array_equal(gradients.flat[0], gradients.flat[1])
    assert not np.array_equal(gradients.flat, work.Gradients("small", rank=0).flat)


def test_backward_keeps_the_gradients_and_copies_none(small):
    """A copy would be work of the processor's that a GPU's step does not have."""
    gradients = work.Gradients("small", rank=0)
    model = work.Model("small")
    for step in range(2):
        model.zero_grad()
        model(gradients.work(step, 0.0)).backward()
        given = [g.data_ptr() for layer in gradients.layers for g in layer]
        assert [p.grad.data_ptr() for p in model.parameters()] == given


def test_gradients_are_laid_ready_in_forward_and_not_at_its_beginning(small, monkeypatch):
    clock, filled = [5.0], []
    monkeypatch.setattr(work.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(work.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    work.Model("small")(work.Work(work.Gradients("small", 0).layers, 0.3, lambda: filled.append(clock[0]), begin=5.0))
    assert filled == [pytest.approx(5.03)] and clock == [pytest.approx(5.1)]


def test_gradients_become_ready_from_the_last_layer_on(small, monkeypatch):
    """Backward is two thirds of 0.3 s, and the last layer has 330 of 3340 elements. What is late already does not wait."""
    clock = [5.0]
    monkeypatch.setattr(work.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(work.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    todo = work.Work(work.Gradients("small", 0).layers, 0.3, begin=5.0)
    at = []
    for layer in 1, 0:
        found = todo.ready(layer)
        assert [g.data_ptr() for g in found] == [g.data_ptr() for g in todo.gradients[layer]]
        at.append(clock[0] - 5.0)
    assert at == pytest.approx([0.1 + 0.2 * 330 / 3340, 0.3])
    clock[0] = 9.0
    todo.ready(0)
    assert clock == [9.0]


@pytest.mark.parametrize("name", ["peers.json", "peers-gpu.json"])
def test_the_page_shows_the_results(name):
    page = [line.rstrip() for line in (ROOT / "docs" / "performance-steps.md").read_text().splitlines()]
    lines = results.table(results.load(ROOT / "docs" / "results" / name)).splitlines()
    rows = lines[lines.index("") + 1 :]
    assert any(page[at : at + len(rows)] == rows for at in range(len(page)))
    assert all(fact in page for fact in lines[: lines.index("")])


def test_the_readme_shows_some_of_them():
    page = results.table(results.load(ROOT / "docs" / "results" / "peers.json")).splitlines()
    measured = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page if line.startswith("| 1")]
    lines = (ROOT / "README.md").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("| | LSTM, 1gbit"))
    columns = [column.strip().split(", ") for column in lines[at].split("|")[2:-1]]
    shown = 0
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        method, *cells = [cell.strip().replace("*", "") for cell in line.split("|")[1:-1]]
        for (model, link), cell in zip(columns, cells, strict=True):
            of_it = {row[5].split(" ")[0] for row in measured if row[:4] == [link, "4", model, method]}
            assert cell in of_it or (cell == "" and not of_it), (method, model, link)
            shown += cell != ""
    assert shown == 32
