"""docs/algorithms.md shows what docs/results/sync.jsonl has of cheaper block synchronisation."""

from pathlib import Path

from gtcbmuf.simulate import results

DOCS = Path(__file__).parents[2] / "docs"


def rows(records):
    """Lines of the table: of each strategy and option the runs in order of seed."""
    runs = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        options = [record["sync_dtype"], record["sync_overlap"] and "overlap"]
        name = ", ".join(filter(None, options)) or "none"
        runs.setdefault((record["strategy"], name), []).append(record)
    for (strategy, name), of_seeds in sorted(runs.items()):
        errors = (" ".join(f"{100 * r[split]:.2f}" for r in of_seeds) for split in ("dev", "test"))
        sent = sum(r["bytes_sent_per_worker_and_step"] for r in of_seeds) / len(of_seeds)
        loss = " ".join(f"{r['loss']:.3f}" for r in of_seeds)
        yield f"| {strategy} | {name} | {' | '.join(errors)} | {loss} | {sent / 1e3:.0f} |"


def test_the_page_shows_the_results():
    records = results.read(DOCS / "results" / "sync.jsonl")
    page = (DOCS / "algorithms.md").read_text().splitlines()
    shown = [line for line in page if line.startswith(("| bmuf |", "| hybrid |"))]
    assert shown == list(rows(records)) and len(shown) > 1
