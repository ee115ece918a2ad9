"""docs/block-sync.md shows what its results have of cheaper block synchronisation: accuracy and time."""

import sys
from pathlib import Path

from gtcbmuf.simulate import results

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = DOCS / "block-sync.md"
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import blocks, files


def rows(records):
    """Lines of the table: of each strategy and option the runs in order of seed."""
    runs = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        options = [record.get("sync_dtype"), record.get("sync_overlap") and "overlap"]
        name = ", ".join(filter(None, options)) or "none"
        runs.setdefault((record["strategy"], name), []).append(record)
    for (strategy, name), of_seeds in sorted(runs.items()):
        errors = (" ".join(f"{100 * r[split]:.2f}" for r in of_seeds) for split in ("dev", "test"))
        sent = sum(r["bytes_sent_per_worker_and_step"] for r in of_seeds) / len(of_seeds)
        loss = " ".join(f"{r['loss']:.3f}" for r in of_seeds)
        yield f"| {strategy} | {name} | {' | '.join(errors)} | {loss} | {sent / 1e3:.0f} |"


def test_the_page_shows_what_options_cost_in_accuracy():
    records = results.read(DOCS / "results" / "sync.jsonl")
    page = PAGE.read_text().splitlines()
    shown = [line for line in page if line.startswith(("| bmuf |", "| hybrid |"))]
    assert shown == list(rows(records)) and len(shown) > 1


def test_the_page_shows_what_options_gain_in_time():
    table = blocks.table(files.load(DOCS / "results" / "blocks.json", blocks.PART))
    assert table in PAGE.read_text() and len(table.splitlines()) > 30


def test_a_factor_is_counted_round_by_round():
    rounds = lambda *seconds: [{"seconds": s, "card_bytes": 2e6} for s in seconds]
    run = {"link": "1gbit", "per_host": 1, "ranks": 4, "records": [
        {"elements": 3_400_000, "forms": {"leader": rounds(0.2, 0.4, 0.9), "sharded": rounds(0.1, 0.4, 0.3)}}]}  # fmt: skip
    assert blocks.table({"runs": [run]}).splitlines()[2:] == [
        "| 1gbit | 4 | 3.4 | leader | 400 ± 350 | 1.0 | 2.0 |", "| 1gbit | 4 | 3.4 | sharded | 300 ± 150 | 2.0 | 2.0 |"]
