"""docs/reproduction.md shows what its results give: every table on it, as its command prints it."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import accuracy_table
import compare_links
import simulate_cluster
from benchmarks import allreduce, exchange, files

from gtcbmuf.simulate import results

PAGE = (ROOT / "docs" / "reproduction.md").read_text().splitlines()
RESULTS = ROOT / "docs" / "results"


def shown(text: str, page=PAGE) -> bool:
    """Whether the lines of a table follow each other on the page."""
    lines = [line.rstrip() for line in text.splitlines()]
    return any(page[at : at + len(lines)] == lines for at in range(len(page)))


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_the_accuracy_tables(split):
    found = accuracy_table.tasks(results.read(RESULTS / "accuracy.jsonl"))
    assert {task[1] for task in found} == {200_000, 400_000}
    for records in found.values():
        assert shown(accuracy_table.table(accuracy_table.cells(records, split)))


def test_the_settings_of_the_cells():
    found = accuracy_table.tasks(results.read(RESULTS / "accuracy.jsonl"))
    for task, records in found.items():
        if task[1] == 200_000:
            assert shown(accuracy_table.settings(accuracy_table.cells(records)))


@pytest.mark.parametrize("script, name", [
    (compare_links, "links"), (simulate_cluster, "cluster"), (simulate_cluster, "cluster-1024"),
])  # fmt: skip
def test_the_tables_of_speed(script, name):
    assert shown(script.table(script.load(RESULTS / f"{name}.json")))


@pytest.mark.parametrize("part", [exchange, allreduce])
def test_the_tables_of_exchanges(part):
    page = (ROOT / "docs" / "performance-exchange.md").read_text().splitlines()
    assert shown(part.table(files.load(RESULTS / f"{part.PART}.json", part.PART)), page)
