"""Instructions of the codec, counted by valgrind, against the reference in tests/codec/instructions.json.

More than the margin above it is a slow-down. If that is meant, or the codec has become faster, make a new one:
scripts/bench counts --write.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benchmarks import build, counts

from gtcbmuf.errors import SettingsError

REFERENCE = {"compiler": "gcc (Debian 12.2.0-14+deb12u1) 12.2.0", "counts": {"encode, avx2, 1 %": 5.0}}


def test_no_more_instructions_than_the_reference_allows():
    if counts.needs():
        pytest.skip(f"needs {counts.needs()}")
    reference = counts.load()
    margin, reason = counts.judge(reference, build.compiler_line())
    if margin is None:
        pytest.skip(f"needs {reason}")
    found = counts.count()
    print(reason, counts.table(found, reference["counts"]), sep="\n")
    assert not counts.slower(reference["counts"], found, margin), f"with {reason}"


@pytest.mark.parametrize("name, value, said", [
    ("which", lambda tool: None, "valgrind"),
    ("machine", lambda: "aarch64", "x86-64"),
])  # fmt: skip
def test_what_is_missing_is_said(name, value, said, monkeypatch):
    monkeypatch.setattr(counts.platform if name == "machine" else counts.shutil, name, value)
    assert said in counts.needs()
    with pytest.raises(SettingsError, match="needs "):
        counts.count()


@pytest.mark.parametrize("line, expected", [
    ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", ("gcc", "12")),
    ("gcc (GCC) 13.2.1 20231205 (Red Hat 13.2.1-6)", ("gcc", "13")),
    ("x86_64-conda-linux-gnu-cc (conda-forge gcc 14.1.0-0) 14.1.0", ("gcc", "14")),
    ("Debian clang version 14.0.6", ("clang", "14")),
    ("tcc", ("gcc", "unknown")),
])  # fmt: skip
def test_compilers_are_told_apart(line, expected):
    assert counts.family(line) == expected


@pytest.mark.parametrize("line, margin, reason", [
    ("gcc (Debian 12.4.0-1) 12.4.0", 0.03, "3%"),
    ("gcc (GCC) 13.2.1 20231205", 0.1, "gcc 12, here is gcc 13"),
    ("Debian clang version 14.0.6", None, "here is clang 14"),
])  # fmt: skip
def test_the_margin_is_of_the_compiler(line, margin, reason):
    found = counts.judge(REFERENCE, line)
    assert found[0] == margin and reason in found[1]


@pytest.mark.parametrize("found, problems", [
    ({"encode, avx2, 1 %": 5.14}, 0),
    ({"encode, avx2, 1 %": 4.0}, 0),
    ({"encode, avx2, 1 %": 5.16}, 1),
    ({"encode, avx2, 1 %": 5.0, "encode, avx2, 3 %": 1.0}, 1),  # unknown to the reference
    ({"encode, scalar, 1 %": 9.0}, 1),  # no avx2 on this processor; scalar is unknown
    ({"validate, avx2, 1 %": 1.0}, 2),  # encode was not counted, validate is unknown
])  # fmt: skip
def test_what_is_slower(found, problems):
    assert len(counts.slower(REFERENCE["counts"], found, 0.03)) == problems


def test_counts_are_put_to_their_labels():
    dumps = ["desc: Trigger: Client Request: b\nsummary: 0\ntotals: 30\n",
             "desc: Trigger: Program termination\ntotals: 9\n",
             "desc: Trigger: Client Request: a\ntotals: 100\n"]  # fmt: skip
    assert counts.parse(dumps, "a\t50\nb\t10\n") == {"a": 2.0, "b": 3.0}
    with pytest.raises(SettingsError, match="no counts of 'c'"):
        counts.parse(dumps, "c\t1\n")


def test_a_written_reference_is_read_and_another_file_refused(tmp_path):
    counts.write({"encode, avx2, 1 %": 4.123456}, tmp_path / "a.json")
    assert counts.load(tmp_path / "a.json")["counts"] == {"encode, avx2, 1 %": 4.1235}
    (tmp_path / "b.json").write_text('{"format": "another", "version": 1}')
    for name in "b.json", "missing.json":
        with pytest.raises(SettingsError, match="counts --write"):
            counts.load(tmp_path / name)
