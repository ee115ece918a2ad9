"""The file of results: one line a run, versioned; damaged files are refused and kept."""

import json
import multiprocessing

import pytest

from gtcbmuf.errors import FileError
from gtcbmuf.simulate import results

ONE, TWO = {"method": "gtc", "error": 0.25}, {"method": "bmuf", "course": [1, 2.5, None]}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.jsonl"


def test_what_is_appended_is_read(file):
    assert results.read(file) == []
    results.append(file, ONE)
    results.append(file, TWO)
    assert results.read(file) == [ONE, TWO]
    lines = file.read_text().splitlines()
    assert [json.loads(line)["version"] for line in lines] == [1, 1]


@pytest.mark.parametrize("bad, match", [
    ('{"version": 2, "method": "gtc"}\n', "line 2 has version 2, this library reads 1"),
    ('{"method": "gtc"}\n', "line 2 is damaged, or not a result"),
    ("not JSON\n", "line 2 is damaged"),
    ("[1, 2]\n", "line 2 is damaged"),
    ("3\n", "line 2 is damaged"),
    ("\n", "line 2 is damaged"),
    ('{"version": 1, "method"', "last line, 2, is cut off"),
    ("\udcff\n", "line 2 is damaged"),
])  # fmt: skip
def test_a_bad_line_is_named_and_nothing_is_written(file, bad, match):
    results.append(file, ONE)
    with open(file, "ab") as out:
        out.write(bad.encode(errors="surrogateescape"))
    before = file.read_bytes()
    for use in (lambda: results.read(file), lambda: results.append(file, TWO)):
        with pytest.raises(FileError, match=match) as caught:
            use()
        assert str(file) in str(caught.value)
    assert file.read_bytes() == before


def test_a_record_that_is_not_json_is_not_written(file):
    results.append(file, ONE)
    for bad in ({"error": float("nan")}, {"error": object()}):
        with pytest.raises((ValueError, TypeError)):
            results.append(file, bad)
    assert results.read(file) == [ONE]


def write_many(file, who):
    for i in range(30):
        results.append(file, {"who": who, "i": i, "long": "x" * 5000})


def test_processes_that_append_at_the_same_time(file):
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=write_many, args=(file, who)) for who in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    found = results.read(file)
    assert sorted((r["who"], r["i"]) for r in found) == [
        (w, i) for w in range(3) for i in range(30)
    ]
