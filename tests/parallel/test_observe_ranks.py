"""Metrics and timelines of real steps: what they say against what the exchanges count."""

import json

import numpy as np
import pytest
from torch_runs import train_rank, wrapped

import gtcbmuf.torch as hvd
from gtcbmuf import runtime
from gtcbmuf.observe import merge

STEPS = 6


@pytest.fixture(autouse=True, scope="module")
def _init():
    hvd.init()


def hybrid(size):
    block = hvd.BMUF(sync_period=3, block_momentum=0.5)
    return hvd.Hybrid(hvd.GTC(threshold=0.01, dense_below=20), block, groups=[list(range(size))])


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_a_record_for_every_step_of_every_rank(comm, shared_tmp_path, kind):
    strategy = hvd.Dense() if kind == "dense" else hybrid(comm.size)
    records = []
    metrics = hvd.Metrics(shared_tmp_path, records.append, norms_every=2)
    before = runtime.counters()
    net, opt = wrapped("mlp", "sgd", strategy, metrics=metrics)
    path = train_rank(net, opt, comm.rank, STEPS)
    after = runtime.counters()
    opt.remove_hooks()
    assert [(r["rank"], r["step"]) for r in records] == [(comm.rank, i + 1) for i in range(STEPS)]
    for name in ("bytes_sent", "elements_sent", "bytes_received"):
        assert sum(r[name] for r in records) == after[name] - before[name], name
    file = shared_tmp_path / f"metrics-rank{comm.rank:04d}.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == records
    if kind == "hybrid":
        assert all(r["density"] == r["elements_sent"] / 90 and r["encode_seconds"] > 0 for r in records)
        assert [r["blocks"] for r in records] == [0, 0, 1, 1, 1, 2]
        assert [r["block_update_norm"] is not None for r in records] == [r["step"] % 3 == 0 for r in records]
        assert [r["residual_max"] is not None for r in records] == [r["step"] % 2 == 0 for r in records]
    else:
        assert all(r["density"] is None and r["tau"] == [None] for r in records)
    unobserved, opt = wrapped("mlp", "sgd", strategy)
    assert np.array_equal(path, train_rank(unobserved, opt, comm.rank, STEPS))
    opt.remove_hooks()


def test_the_timeline_of_all_ranks(comm, shared_tmp_path):
    folder = shared_tmp_path / "timeline"
    net, opt = wrapped("mlp", "sgd", hybrid(comm.size), timeline=hvd.Timeline(folder))
    train_rank(net, opt, comm.rank, STEPS)
    opt.finalize()
    opt.remove_hooks()
    comm.Barrier()
    events = merge.merge(folder)
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in events} == set(range(comm.size))
    for rank in range(comm.size):
        names = [e["name"] for e in spans if e["pid"] == rank]
        assert names.count("update") == STEPS and names.count("after update") == STEPS
        buckets = sum(b.threshold is not None for b in opt._worker.layout.buckets)
        assert names.count("encode") == names.count("decode") == STEPS * buckets
        assert names.count("broadcast") >= STEPS // 3  # G to the group
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans)
    exchanged = {}
    for e in spans:
        if "sequence" in e.get("args", ()):
            exchanged.setdefault((e["args"]["exchange"], e["args"]["sequence"]), []).append(e)
    shared = [found for found in exchanged.values() if len(found) == comm.size]
    assert len(shared) > STEPS
    for found in shared:  # nowhere done before it has begun everywhere; clocks of processes are compared to about a microsecond
        assert min(e["ts"] + e["dur"] for e in found) >= max(e["ts"] for e in found) - 2
