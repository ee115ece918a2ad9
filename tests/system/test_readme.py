"""What the README, docs/checkpoints.md and docs/failures.md show is what happens: their marked examples run here as they stand.

A fenced block is marked by a comment on the line before it:

    <!-- file: NAME -->    the block is written to NAME
    <!-- run -->           its lines that begin with "$ " are run, in order, where the files are;
                           what follows each is its output, in which "..." stands for anything
    <!-- run, values differ -->   the same, but of each line only the first word is compared
"""

import re

import pytest
from jobs import ROOT, shell

AS_A_USER = {"PYTHONSAFEPATH": "", "GTCBMUF_REQUIRE_NATIVE": "", "GTCBMUF_TIMEOUT_SECONDS": ""}
MARKED = re.compile(r"<!-- (?P<mark>file: \S+|run|run, values differ) -->\n+```\w*\n(?P<text>.*?)```", re.DOTALL)


def blocks(path):
    return [(found["mark"], found["text"]) for found in MARKED.finditer(path.read_text())]


def commands(text):
    """[(command, expected output)] of a console block."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [tuple(part.partition("\n")[::2]) for part in parts]


def pattern(expected):
    """A regular expression for an output in which "..." stands for anything, spaces for spaces."""
    words = [r"\s+".join(map(re.escape, part.split())) for part in expected.split("...")]
    return re.compile(r"\s*" + r"\s*.*?\s*".join(words) + r"\s*", re.DOTALL)


def first_words(text):
    return [line.split()[0] for line in text.splitlines() if line.strip()]


FAILURES = "docs/failures.md"  # whose commands fail


@pytest.mark.parametrize("page", ["README.md", "docs/checkpoints.md", pytest.param(FAILURES, marks=pytest.mark.slow)])
def test_the_examples_do_what_the_page_shows(page, tmp_path):
    found = blocks(ROOT / page)
    assert {"run"} < {mark for mark, _ in found}, "the page has no marked examples any more"
    for mark, text in found:
        if mark.startswith("file"):
            (tmp_path / mark.removeprefix("file: ")).write_text(text)
            continue
        for command, expected in commands(text):
            status, output, _ = shell(command, tmp_path, timeout=200, **AS_A_USER)
            assert status == 0 or page == FAILURES, f"$ {command}\n{output}"
            if mark == "run":
                same = pattern(expected).fullmatch(output)
            else:
                same = first_words(expected) == first_words(output)
            assert same, f"$ {command}\nshown:\n{expected}\ncame:\n{output}"


def test_the_comparison_can_fail():
    assert pattern("a ... c\nd").fullmatch("a b\n\n c\n  d\n")
    assert not pattern("a ... c\nd").fullmatch("a b c e")
    assert not pattern("a b").fullmatch("a b c")
    assert first_words("a b\n\n c") == ["a", "c"]
    assert commands("$ one\n1\n\n$ two\n") == [("one", "1\n\n"), ("two", "")]
