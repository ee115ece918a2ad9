"""Records and timelines: their numbers, files, the merged timeline, ranges for a profiler."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from virtual_team import Team, noise, sgd

from gtcbmuf import cli
from gtcbmuf.errors import FileError
from gtcbmuf.observe import Metrics, Observer, Timeline, merge, observer, timeline
from gtcbmuf.observe.metrics import COUNTED
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid

# -- measures of a worker ---------------------------------------------------------------------------------


def test_norms_are_in_units_of_each_buckets_threshold():
    strategy = GTC(thresholds={"lstm*": 2.0, "*": 0.5}, dense_below=100)
    team = Team(strategy, 2).start()
    for step in range(3):
        team.step(noise(), sgd(), step)
    worker = team.workers[1]
    residual, tau = team.flat(lambda b: _residual(worker, b)), team.flat(lambda b: _taus(worker, b))
    relative = (residual / tau)[np.isfinite(tau)].astype(np.float64)
    found = worker.measures(norms=True, block_norm_since=0)
    assert found["residual_rms"] == pytest.approx(np.sqrt(np.mean(relative**2)), rel=1e-5)
    assert found["residual_max"] == pytest.approx(np.abs(relative).max(), rel=1e-6) and found["residual_max"] > 1
    assert found["thresholded_elements"] == len(relative) == 200 + 300 + 240
    assert sorted(found["tau"], key=str) == [0.5, 2.0, None]
    assert worker.measures(norms=False, block_norm_since=0)["residual_rms"] is None


def _residual(worker, bucket):
    lane = worker.state_dict()["gradients"]["lanes"][bucket]
    return lane.get("residual", np.zeros(worker.layout.buckets[bucket].elements))


def _taus(worker, bucket):
    b = worker.layout.buckets[bucket]
    return np.full(b.elements, np.inf if b.threshold is None else b.threshold, np.float32)


def test_the_block_updates_norm_comes_once_a_block():
    team = Team(BMUF(sync_period=2), 2).start()
    norms, closed = [], 0
    for step in range(5):
        team.step(noise(), sgd(), step)
        found = team.workers[0].measures(norms=True, block_norm_since=closed)
        closed = found["blocks"]
        norms.append(found["block_update_norm"])
    update = team.states()[0]["blocks"]["block_update"].astype(np.float64)
    assert [n is not None for n in norms] == [False, True, False, True, False]
    assert norms[3] == pytest.approx(np.sqrt(np.sum(update**2)), rel=1e-6)
    assert found["tau"] == [] and found["residual_rms"] is None and found["thresholded_elements"] == 0


def test_a_warm_up_has_no_density():
    team = Team(Hybrid(GTC(threshold=1.0, warmup_steps=1, dense_below=0), BMUF(sync_period=5)), 2, group_size=2).start()
    before = team.workers[0].measures(norms=True, block_norm_since=0)
    team.step(noise(), sgd(), 0)
    after = team.workers[0].measures(norms=True, block_norm_since=0)
    assert before["thresholded_elements"] == 0 and before["tau"] == []
    assert after["residual_max"] == 0.0 and set(after["tau"]) == {1.0}


# -- records ------------------------------------------------------------------------------------------------


class Counting:
    """An exchange that only counts; total: how much each counter has come to."""

    rank = 3

    def __init__(self):
        self.total = 0.0

    def counters(self):
        return {**dict.fromkeys(COUNTED, self.total), "operations": 9}


class Worker:
    steps = 0

    def measures(self, norms, block_norm_since):
        return {"thresholded_elements": 100, "tau": [0.5], "residual_rms": 1.0 if norms else None,
                "residual_max": None, "blocks": 0, "block_update_norm": None}  # fmt: skip


def test_a_record_has_what_was_counted_since_the_one_before(tmp_path):
    world, intra, records = Counting(), Counting(), []
    metrics = Metrics(tmp_path / "new", records.append, norms_every=2)
    world.total = 1000.0  # before it began
    observed = Observer(SimpleNamespace(world=world, intra=intra, inter=None, peers=None), metrics, None)
    for step in range(1, 4):
        Worker.steps = step
        world.total += 3 * step
        intra.total += 4
        with observed.span("update"):
            pass
        observed.step(Worker())
    observed.close()
    assert [r["bytes_sent"] for r in records] == [7, 10, 13] == [r["wait_seconds"] for r in records]
    assert [r["density"] for r in records] == [0.07, 0.1, 0.13]
    assert [r["residual_rms"] for r in records] == [None, 1.0, None]
    assert [(r["rank"], r["step"]) for r in records] == [(3, 1), (3, 2), (3, 3)]
    assert all(0 <= r["step_seconds"] < 5 for r in records)
    lines = (tmp_path / "new" / "metrics-rank0003.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


def test_a_run_that_goes_on_appends(tmp_path):
    groups = SimpleNamespace(world=Counting(), intra=Counting(), inter=None, peers=None)
    for _ in range(2):
        observed = Observer(groups, Metrics(tmp_path), None)
        observed.step(Worker())
        observed.close()
    assert len((tmp_path / "metrics-rank0003.jsonl").read_text().splitlines()) == 2


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        Metrics()
    with pytest.raises(ValueError, match="norms_every=0"):
        Metrics(tmp_path, norms_every=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"rank 3: .*metrics-rank0003.jsonl cannot be written.*Give a folder"):
        Observer(SimpleNamespace(world=Counting(), intra=None, inter=None, peers=None), Metrics(tmp_path / "file"), None)


def test_virtual_workers_have_records_without_counters():
    records, team = [], Team(Dense(), 1)
    observed = Observer(team.groups[0], Metrics(callback=records.append), None)
    observed.step(team.workers[0])
    assert records[0]["density"] is None and "bytes_sent" not in records[0]


# -- the timeline -------------------------------------------------------------------------------------------


def write(folder, rank, ahead, operations, name="world"):
    """A rank's file; operations: {sequence: (ts, dur)} by its own clock."""
    events = [{"name": "gtcbmuf clock", "ph": "M", "pid": rank, "tid": 0, "args": {"wall_minus_monotonic_us": ahead}}]
    events += [{"name": "encode", "ph": "X", "pid": rank, "tid": 1, "ts": ts, "dur": dur,
                "args": {"exchange": name, "sequence": s}} for s, (ts, dur) in operations.items()]  # fmt: skip
    text = "[\n" + "".join(json.dumps(e) + ",\n" for e in events)
    (folder / f"timeline-rank{rank:04d}.json").write_text(text)


def times(events):
    return {(e["pid"], e["args"]["sequence"]): e["ts"] for e in events if "ts" in e}


def test_clocks_become_one(tmp_path):
    write(tmp_path, 0, 1000.0, {0: (10, 5), 1: (30, 5)})
    write(tmp_path, 1, -500.0, {0: (1511, 4), 1: (1529, 6)})  # 1011, 1029 by the wall clock
    assert times(merge.merge(tmp_path)) == {(0, 0): 0, (0, 1): 20, (1, 0): 1, (1, 1): 19}


@pytest.mark.parametrize("wrong", [-400.0, 300.0])
def test_a_wall_clock_that_cannot_be_right_is_set_right(tmp_path, wrong):
    """By as little as makes every operation done after it has begun everywhere."""
    write(tmp_path, 0, 0.0, {0: (10, 5), 1: (30, 5), 7: (50, 100)})
    write(tmp_path, 1, wrong, {0: (11, 4), 1: (29, 6), 8: (0, 1)})
    found = times(merge.merge(tmp_path))
    for sequence, (dur, other) in enumerate([(5, 4), (5, 6)]):
        assert found[1, sequence] <= found[0, sequence] + dur + 1e-3
        assert found[0, sequence] <= found[1, sequence] + other + 1e-3
    assert abs((found[1, 0] - found[0, 0]) - (1 + np.sign(wrong) * 4)) <= 1.001


def test_a_file_that_is_still_written_may_end_within_a_line(tmp_path):
    write(tmp_path, 0, 0.0, {0: (10, 5)})
    path = tmp_path / "timeline-rank0000.json"
    path.write_text(path.read_text() + '{"name": "upd')
    assert len(merge.merge(tmp_path)) == 1
    path.write_text("[\nnonsense\n" + path.read_text())
    with pytest.raises(FileError, match=r"line 2.*damaged"):
        merge.merge(tmp_path)


def test_what_is_no_timeline(tmp_path):
    with pytest.raises(FileError, match="no files timeline-rank"):
        merge.merge(tmp_path)
    (tmp_path / "timeline-rank0000.json").write_text("{}\n")
    with pytest.raises(FileError, match="is no timeline"):
        merge.merge(tmp_path)
    (tmp_path / "timeline-rank0000.json").write_text("[\n")
    with pytest.raises(FileError, match="what its clock is"):
        merge.merge(tmp_path)


def test_the_command(tmp_path, capsys):
    write(tmp_path, 0, 0.0, {0: (10, 5)})
    write(tmp_path, 1, 0.0, {0: (11, 5)})
    assert cli.main(["timeline", "merge", str(tmp_path)]) == 0
    assert "2 events of 2 ranks" in capsys.readouterr().out
    whole = json.loads((tmp_path / "timeline.json").read_text())
    assert [e["ts"] for e in whole["traceEvents"]] == [0, 1]
    assert cli.main(["timeline", "merge", str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main(["timeline", "merge", str(tmp_path), "--force"]) == 0


def test_steps_that_are_not_asked_for_are_not_noted(tmp_path):
    timeline, worker = Timeline(tmp_path, steps=range(2, 3)), SimpleNamespace()
    exchange = SimpleNamespace(rank=0, size=1)
    observed = Observer(SimpleNamespace(world=exchange, intra=exchange, inter=None, peers=None, members=[[0]], index=0), None, timeline)
    for step in range(1, 5):
        with observed.span("update"):
            pass
        worker.steps = step
        observed.step(worker)
    observed.close()
    events = merge.read(tmp_path / "timeline-rank0000.json")
    assert [e["name"] for e in events if e["ph"] == "X"] == ["update"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"training"}


# -- a profiler ---------------------------------------------------------------------------------------------


def test_ranges_where_nvtx_is_installed(monkeypatch):
    log = []

    @contextlib.contextmanager
    def annotate(name, domain):
        log.append(("push", name, domain))
        yield
        log.append(("pop", name, domain))

    monkeypatch.setattr(observer, "nvtx", SimpleNamespace(annotate=annotate))
    observed = Observer(SimpleNamespace(world=Counting(), intra=None, inter=None, peers=None), None, None)
    with observed.span("update"):
        log.append("inside")
    assert log == [("push", "update", "gtcbmuf"), "inside", ("pop", "update", "gtcbmuf")]


def test_nvtx_itself_takes_these_ranges(monkeypatch):
    monkeypatch.setattr(observer, "nvtx", pytest.importorskip("nvtx", reason="needs nvtx"))
    observed = Observer(SimpleNamespace(world=Counting(), intra=None, inter=None, peers=None), None, None)
    with observed.span("update"):
        pass


def test_clocks_are_compared_where_nothing_came_between(monkeypatch):
    """The wall clock is 1000 ns ahead; in all looks but one the process loses its core before it, or after it."""
    looks = [(0, 6005, 5010), (6000, 7005, 13_000), (20_000, 21_005, 20_010), *[(30_000, 40_000, 39_010)] * timeline.LOOKS]
    monotonic = iter([time for before, _, after in looks for time in (before, after)])
    wall = iter([time for _, time, _ in looks])
    monkeypatch.setattr(timeline, "time", SimpleNamespace(monotonic_ns=lambda: next(monotonic), time_ns=lambda: next(wall)))
    assert timeline.wall_ahead() == 1000
