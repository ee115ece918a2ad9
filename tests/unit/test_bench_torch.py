"""scripts/bench memory and overlap: their formula, tables and timeline, and what they refuse."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench
from benchmarks import files, memory, overlap

MACHINE = {"cores": 2, "load": 1.5}
MEMORY = {
    "machine": MACHINE, "ranks": 4, "layers": 2, "elements": 1000, "density": 0.01,
    "runs": [{"method": "BMUF", "dtype": "bfloat16", "live": 16000, "peak": 24000, "peak_rss": 30000, "torch": [[], []],
              "steps": [[], [], [[8_000_000, "numpy"], [8_000_000, "numpy"], [262_152, "numpy"]]]}],
}  # fmt: skip
RUN = {
    "method": "GTC", "compute": "wait", "layers": 2, "elements": 1000, "density": 0.01, "layer_seconds": 0.04, "batch": 8,
    "rounds": 3, "ranks": 2, "buckets": 2,
    "times": {"plain": [0.1] * 3, "none": [0.11, 0.5, 0.11], "last": [0.12] * 3, "overlap": [0.125, 0.13, 0.125],
              "serial": [0.17] * 3},
    "timeline": {"backward": 80.0, "end": 160.0, "buckets": [
        {"posted": 40.0, "exchanged": 60.0, "waited": 81.0}, {"posted": 80.0, "exchanged": 120.0, "waited": 120.0}]},
}  # fmt: skip
OVERLAP = {"machine": MACHINE, "links": None, "runs": [RUN]}


def test_the_table_of_memory():
    assert memory.table(MEMORY).splitlines()[-1] == (
        "| BMUF | bfloat16 | 8.00 | 12.00 | 15.0 | none | 2 of 8.0 MB, 1 of 0.3 MB |")  # fmt: skip


def test_the_hidden_share_leaves_the_last_bucket_out():
    ms = overlap.medians(RUN)
    assert ms == pytest.approx({"plain": 100, "none": 110, "last": 120, "overlap": 125, "serial": 170})
    assert overlap.hidden(ms) == pytest.approx(0.9)
    assert overlap.hidden({**ms, "overlap": 120}) == 1 and overlap.hidden({**ms, "overlap": 170}) == 0


def test_the_table_of_overlap():
    table = overlap.table(OVERLAP)
    assert table.startswith("2 ranks on one host, 2 cores, load 1.5 at the start")
    assert table.splitlines()[-1] == "| wait | GTC | 100.0 | 110.0 | 120.0 | 125.0 | 170.0 | 50.0 | 5.0 | 90 % |"
    assert overlap.table({**OVERLAP, "links": "1gbit"}).startswith("2 hosts, links of 1gbit")


def test_the_timeline():
    first, last = overlap.timeline(RUN).splitlines()[1:]
    cells = first[27:]
    assert first.startswith("  0    40.0   60.0   81.0  ")
    assert cells.index("=") == 72 * 40 // 160 and cells.rindex("=") == 72 * 60 // 160 and cells.endswith(".")
    assert last[27:] == " " * 36 + "=" * 19


@pytest.mark.parametrize("words, match", [
    (["memory", "--ranks", "3"], "--ranks 3"),
    (["overlap", "--compute", "gpu"], "--compute gpu"),
    (["overlap", "--methods", "GTC,BMUF"], "--methods BMUF"),
    (["overlap", "--links", "fast"], "write it as"),
    (["memory", "--save", "{file}"], "exists"),
    (["overlap", "--save", "{file}"], "exists"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is_measured(words, match, tmp_path):
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(SystemExit, match=match):
        bench.main([word.format(file=tmp_path / "a.json") for word in words])
    assert (tmp_path / "a.json").read_text() == "mine"


def test_a_saved_file_gives_the_same_text(tmp_path, capsys):
    files.save(tmp_path / "a.json", memory.PART, MEMORY)
    bench.main(["memory", "--table", str(tmp_path / "a.json")])
    assert capsys.readouterr().out == memory.table(MEMORY) + "\n"
    files.save(tmp_path / "b.json", overlap.PART, OVERLAP)
    bench.main(["overlap", "--table", str(tmp_path / "b.json")])
    assert capsys.readouterr().out == overlap.text(OVERLAP) + "\n"


def test_the_page_shows_what_was_hidden():
    docs = ROOT / "docs"
    page = (docs / "performance-steps.md").read_text()
    content = files.load(docs / "results" / "overlap.json", overlap.PART)
    assert overlap.table(content) in page and all(overlap.timeline(run) in page for run in content["runs"])
