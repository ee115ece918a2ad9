"""docs/owners.md shows what docs/results has of the owner-sharded exchange."""

import sys
from pathlib import Path

import pytest

from gtcbmuf.simulate import results

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import simulate_cluster

DOCS = ROOT / "docs"
SAME = ("workers", "samples", "threshold", "scale", "momentum", "learning_rate", "clip", "warm_up", "final", "hidden", "alone", "data")


def page():
    return (DOCS / "owners.md").read_text().splitlines()


def shown(lines):
    lines, all_lines = list(lines), page()
    return any(all_lines[at : at + len(lines)] == lines for at in range(len(all_lines)))


def row(name, record, entry):
    errors = " | ".join(f"{100 * entry[split]:.2f}" for split in ("dev", "test", "unseen"))
    return f"| {record['workers']} | {record['seed']} | {entry['minibatches']:,} | {name} | {errors} |"


def rows(owners, plain):
    """At each evaluation plain GTC with the same settings and seed, then by way of owners."""
    for record in sorted(owners, key=lambda r: (r["workers"], r["seed"])):
        same = next(p for p in plain if p["seed"] == record["seed"] and all(p[k] == record[k] for k in SAME))
        for entry in record["course"]:
            yield row("all", same, next(e for e in same["course"] if e["minibatches"] == entry["minibatches"]))
            yield row("owners", record, entry)


def test_accuracy_beside_the_plain_exchange():
    owners = results.read(DOCS / "results" / "owners.jsonl")
    plain = [r for r in results.read(DOCS / "results" / "accuracy.jsonl") if r["strategy"] == "gtc"]
    assert owners and all(r["exchange"] == "owners" for r in owners)
    assert shown(rows(owners, plain))


def test_what_was_tried_for_the_second_threshold():
    for record in results.read(DOCS / "results" / "owners-factor.jsonl"):
        errors = " | ".join(f"{100 * record[split]:.2f}" for split in ("dev", "test"))
        kilobytes = record["bytes_sent_per_worker_and_step"] / 1e3
        assert shown([f"| {record['second_threshold']} | {errors} | {record['loss']:.3f} | {kilobytes:.0f} |"])


@pytest.mark.parametrize("per_host", [1, 8])
def test_the_simulated_crossover(per_host):
    content = simulate_cluster.load(DOCS / "results" / f"owners-cluster-{per_host}.json")
    assert shown(simulate_cluster.table(content).splitlines())
