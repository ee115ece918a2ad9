"""scripts/bench: its formula and tables, what it refuses, the codecs of others where they are installed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import bench
from benchmarks import allreduce, build, codec, counts, exchange, files, gradients, memory, packing, peers, places, tables, timing, unpacking
from benchmarks.library import Library

from gtcbmuf.errors import GtcbmufError, SettingsError

both = lambda seconds: {"cpu": seconds, "wall": 2 * seconds}


def row(name, size, decode, decode_add, call=0.0, **more):
    return {"name": name, "how": f"how {name} is used", "bytes": size, "encode": both(1e-9), "decode": both(decode),
            "decode_add": both(decode_add), "call": both(call), **more}  # fmt: skip


OWN = {"name": "gtcbmuf", "how": "whole", "bytes": 1250.0, "encode": both(2e-9), "decode_add": both(4e-9),
       "validate": both(1e-10)}  # fmt: skip
RECORD = {
    "data": "speech gradients", "elements": 100_000, "density": 0.01, "messages": 8, "sent": 1000.0,
    "rows": [OWN, row("small", 1000.0, 5e-9, 6e-9), row("quick", 1500.0, 1e-9, 2e-9)],
}  # fmt: skip
CONTENT = {
    "machine": {"cpu": "A CPU", "cores": 2, "load": 1.5, "variant": "avx2", "compiler": "gcc 12", "python": "3.11.7"},
    "packages": {"torch": "2.13.0", "blosc2": None}, "rounds": 9, "missing": {"blosc2 lz4": "blosc2 is missing"},
    "c": ["a line"], "unpacking": [RECORD],
    "packing": [{"elements": 10**6, "density": 0.001, "threads": 2, "of_add": both(0.5), "torch": both(8.04),
                 "topk": both(60), "times": {"add": both(0.005), "encode": both(0.006), "torch": both(0.05),
                                             "topk": both(0.4)}}],
}  # fmt: skip


@pytest.mark.parametrize("workers, gbit, expected", [
    (8, 1, 7 * 1250 * 8 / 1e9 + 8 * 1000 * 4e-9),  # 70 µs of link, 32 µs of decoding
    (128, 10, 127e-6 + 512e-6),
    (1, 100, 4e-6),
])  # fmt: skip
def test_the_total_is_the_link_and_all_decodes(workers, gbit, expected):
    assert unpacking.total_seconds(workers, gbit, 1250, 1000, 4e-9) == pytest.approx(expected)


def test_the_table_of_totals_marks_the_least():
    lines = tables.totals(RECORD, "cpu").splitlines()
    assert lines[0].startswith("| total [ms] | N 8, 1 Gbit/s | N 8, 10 Gbit/s")
    assert lines[2].startswith("| gtcbmuf | 0.102 | 0.039 |")  # 0.070 + 0.032; 0.007 + 0.032
    assert lines[3].startswith("| small | 0.104 | 0.0536 |")  # 0.056 + 0.048; 0.0056 + 0.048
    assert lines[4].startswith("| quick | **0.1** | **0.0244** |")


def test_the_tables_of_the_codec():
    text = tables.codec(CONTENT, "cpu")
    assert "A CPU, 2 cores, load 1.5 at the start; variant avx2; gcc 12; Python 3.11.7; torch 2.13.0, " in text
    assert "blosc2 missing.\n" in text
    assert "| 0.10 % | 2 | 5.00 | 6.00 | 50 % | 50.0 | 8.0 | 400 | 60 |" in text
    assert "| small | 8.00 | 1.00 | 5.00 | 6.00 | 0.0 |" in text
    assert "| gtcbmuf | 10.00 | 2.00 |  | 4.00 |  |" in text
    assert "- blosc2 lz4: MISSING. blosc2 is missing" in text and "- small: how small is used" in text
    assert "| small | 8.00 | 2.00 | 10.00 | 12.00 | 0.0 |" in tables.codec(CONTENT, "wall")


@pytest.mark.parametrize("other, ahead", [
    (row("x", 1249, 5e-9, 6e-9), {"decode_add": [], "decode": []}),
    (row("x", 1249, 1e-9, 5e-9), {"decode_add": [], "decode": ["x"]}),  # only without the adding
    (row("x", 1249, 1e-9, 3e-9), {"decode_add": ["x"], "decode": ["x"]}),
    (row("x", 1250, 1e-9, 3e-9), {"decode_add": [], "decode": []}),  # not smaller
    (row("x", 1249, 3e-9, 5e-9, call=2e-6), {"decode_add": ["x"], "decode": ["x"]}),  # 2 ns of it are the call
])  # fmt: skip
def test_who_is_ahead(other, ahead):
    record = {**RECORD, "rows": [OWN, other]}
    assert unpacking.ahead(record, "cpu") == ahead
    said = tables.verdict(record, "cpu")
    assert ("Smaller and faster: x." in said) == bool(ahead["decode_add"])
    assert ("Smaller: none." in said) == (other["bytes"] == 1250)


def test_the_table_of_exchanges_has_medians_of_factors():
    seconds = {"whole": [0.002, 0.004, 0.009], "ring": [0.001, 0.004, 0.003], "mpi": [0.003, 0.002, 0.003],
               "buckets": [0.01, 0.02, 0.09]}  # fmt: skip
    content = {"runs": [{"link": "1gbit", "ranks": 4, "per_host": 1, "records": [{"body": 4000, "seconds": seconds}]}]}
    head, _, row = exchange.table(content).splitlines()
    assert row == "| 1gbit | 4 | 4 | 4.00 | 3.00 | 3.00 | 20.00 | 2.00 | 1.00 | 5.0 |"
    assert head.endswith("| library / ring | MPI / ring | buckets / whole |")


def test_the_table_of_allreduces_has_the_floor_and_medians_of_factors():
    seconds = {"one": [0.03, 0.02, 0.04], "two": [0.03, 0.04, 0.02], "eight": [0.06, 0.02, 0.04], "mpi": [0.1, 0.1, 0.1],
               "nonblocking": [0.06, 0.05, 0.04]}  # fmt: skip
    runs = [{"link": link, "ranks": 4, "per_host": 1, "records": [{"bytes": 2_000_000, "seconds": seconds}]}
            for link in (places.HERE, "1gbit", "100mbit")]  # fmt: skip
    _, _, here, fast, slow = allreduce.table({"runs": runs}).splitlines()
    # 3 MB are sent: 24 ms at 1 Gbit/s; the nonblocking one is MPI's faster
    assert fast == "| 1gbit | 4 | 2 | 24.0 | 30.0 | 30.0 | 40.0 | 100.0 | 50.0 | 1.25 | 0.50 | 1.00 | 1.00 |"
    assert here == "| this machine | 4 | 2 |  | 30.0 | 30.0 | 40.0 | 100.0 | 50.0 |  | 0.50 | 1.00 | 1.00 |"
    assert "| 240.0 |" in slow


@pytest.mark.parametrize("change, match", [
    ({"format": "gtcbmuf plan inputs"}, "something else"),
    ({"version": 0}, "version 0"),
    ({"part": "exchange"}, "of scripts/bench exchange"),
])  # fmt: skip
def test_a_foreign_or_older_file_is_refused(change, match, tmp_path):
    files.save(tmp_path / "a.json", codec.PART, CONTENT)
    assert files.load(tmp_path / "a.json", codec.PART)["unpacking"] == [RECORD]
    (tmp_path / "a.json").write_text(json.dumps({**json.loads((tmp_path / "a.json").read_text()), **change}))
    with pytest.raises(SettingsError, match=match):
        files.load(tmp_path / "a.json", codec.PART)


def test_a_damaged_or_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        files.load(tmp_path / "a.json", codec.PART)
    (tmp_path / "a.json").write_text('{"format": ')
    with pytest.raises(SettingsError, match="damaged"):
        files.load(tmp_path / "a.json", codec.PART)


@pytest.mark.parametrize("words, match", [
    (["--save", "{file}"], "exists"),
    (["--only", "c,exchange"], "--only exchange"),
    (["--data", "speach"], "--data speach"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is_measured(words, match, tmp_path):
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(SystemExit, match=match):
        bench.main(["codec", *(word.format(file=tmp_path / "a.json") for word in words)])
    assert (tmp_path / "a.json").read_text() == "mine"


def test_actions_take_turns_and_slow_ones_end_early():
    calls = []
    actions = {name: lambda name=name: calls.append(name) for name in "ab"}
    samples = timing.interleaved(actions, 3, before=lambda: calls.append("-"), only_in={"b": 1})
    assert "".join(calls) == "-a-b-a-a"
    assert len(samples["a"]["cpu"]) == len(samples["a"]["wall"]) == 3 and len(samples["b"]["cpu"]) == 1


def test_medians_are_of_pairs():
    samples = {"a": {c: [1.0, 4.0, 9.0] for c in timing.CLOCKS}, "b": {c: [1.0, 2.0, 3.0] for c in timing.CLOCKS}}
    assert timing.medians(samples)["a"] == {"cpu": 4.0, "wall": 4.0}
    assert timing.ratio(samples, "a", "b") == {"cpu": 2.0, "wall": 2.0}
    assert timing.difference(samples, "a", "b") == {"cpu": 2.0, "wall": 2.0}


def test_the_page_has_the_memory_that_was_measured():
    docs = build.ROOT / "docs"
    shown = (docs / "performance-exchange.md").read_text()
    assert memory.table(files.load(docs / "results" / "memory.json", memory.PART)).strip() in shown


def test_the_page_has_the_tables_of_the_saved_results():
    results = build.ROOT / "docs" / "results"
    printed = [counts.table(counts.load()["counts"], None)]
    printed += [tables.codec(files.load(results / f"codec-{name}.json", codec.PART), clock)
                for name, clock in (("packing", "wall"), ("peers", "cpu"))]  # fmt: skip
    rows = [line for line in (build.ROOT / "docs" / "performance-codec.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 40
    assert not set(rows) - set("\n".join(printed).splitlines()), "made by scripts/bench codec --table, and counts"


# -- with a compiler ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    try:
        build.compiler()
    except SettingsError as error:
        pytest.skip(str(error))
    return Library(str(tmp_path_factory.mktemp("bench")))


def some_words(count, gap, seed=0):
    rng = np.random.default_rng(seed)
    indices = np.cumsum(rng.geometric(1 / gap, count)).astype(np.uint32)
    return 2 * indices + rng.integers(0, 2, count, np.uint32)


@pytest.mark.parametrize("kind", peers.PEERS, ids=lambda kind: kind.name)
def test_every_peer_gives_back_positions_and_signs(kind, library):
    if kind.name in peers.missing():
        pytest.skip(f"needs {kind.package}, which scripts/bench codec installs")
    peer = kind(library, 5000)
    for words in (some_words(5000, 100), some_words(4097, 1.5), some_words(300, 300_000), some_words(1, 50)):
        [packed] = unpacking.check_peer(peer, [words])
        assert 0 < peer.size(packed) <= 16 * len(words) + 64
    broken = lambda packed, count: np.zeros(count, np.uint32)
    peer.decode = broken
    with pytest.raises(GtcbmufError, match="give back"):
        unpacking.check_peer(peer, [some_words(10, 5)])


def test_a_peer_that_is_missing_is_said_to_be(library, monkeypatch):
    real = peers.import_module

    def without(name):
        if name == "zstandard":
            raise ImportError("No module named 'zstandard'")
        return real(name)

    monkeypatch.setattr(peers, "import_module", without)
    assert "pip install zstandard" in peers.missing()["zstd"]
    assert "zstd" not in {peer.name for peer in peers.present(library, 10)}


def test_messages_are_held_to_the_definition(library):
    made = gradients.random(library, 50_000, 0.01, 3)
    gradients.check(library, made)
    assert 0.005 < made.density < 0.02 and len(made.messages) == 3
    made.words[1] = made.words[1] ^ np.uint32(1)  # other signs
    with pytest.raises(GtcbmufError, match="another sum"):
        gradients.check(library, made)


def test_gradients_of_the_speech_task(library):
    made = gradients.speech(library, 0.01, 4, hidden=16, steps=4, workers=2)
    gradients.check(library, made)
    assert len(made.messages) == 4 and made.elements > 10_000 and made.sent > 0
    assert np.array_equal(gradients.reached(made.gradient, made.residual, made.thresholds[-1]), made.words[-1])


def test_a_small_run_has_every_section(tmp_path, library, capsys):
    file = tmp_path / "a.json"
    bench.main(["codec", "--elements", "40000", "--rounds", "2", "--packing-densities", "0.01", "--densities", "0.01",
                "--hidden", "16", "--steps", "3", "--save", str(file)])  # fmt: skip
    printed = capsys.readouterr().out
    content = files.load(file, codec.PART)
    assert content["machine"]["variant"] == library.variant and content["c"][0].startswith(library.variant)
    assert [r["threads"] for r in content["packing"]] == [1, 2]
    assert [r["data"] for r in content["unpacking"]] == ["speech gradients", "random positions"]
    present = {kind.name for kind in peers.PEERS} - set(content["missing"])
    assert {r["name"] for r in content["unpacking"][0]["rows"]} == present | {"gtcbmuf"}
    bench.main(["codec", "--table", str(file)])
    assert capsys.readouterr().out == printed


def test_packing_notices_a_wrong_message(library):
    bucket = packing.Bucket(10_000, 0.01)
    encoder = library.encoder(10_000)
    encode = lambda: encoder.run(bucket.gradient, bucket.residual, bucket.residual, packing.THRESHOLD)
    packing._check(library, bucket, encode)
    bucket.words = bucket.words[:-1]
    with pytest.raises(GtcbmufError, match="do not agree"):
        packing._check(library, bucket, encode)
