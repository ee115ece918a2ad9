"""A run that must be complete fails when a test is left out for no allowed reason (tests/conftest.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"
ALLOWED = """
import pytest
def test_old_cpu(): pytest.skip("this CPU has no AVX-512")
def test_alone(): pytest.skip("needs at least 2 ranks")
def test_known(): pytest.xfail("known")
def test_it(): pass
"""
BAD = """
import pytest
def test_lazy(): pytest.skip("not today")
def test_missing(): pytest.importorskip("no_such_module")
"""


def run(folder, required, **files):
    shutil.copy(CONFTEST, folder)
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder],
                          env={**os.environ, "GTCBMUF_REQUIRE_NATIVE": required}, check=False,
                          cwd=folder, text=True, capture_output=True, timeout=100)  # fmt: skip
    return done.returncode, done.stdout.count("FAILED: skipped")


def test_what_a_machine_lacks_may_be_skipped(tmp_path):
    assert run(tmp_path, "1", allowed=ALLOWED) == (0, 0)


def test_nothing_else_may(tmp_path):
    whole = "import pytest\npytest.importorskip('no_such_module')\n"
    assert run(tmp_path, "1", allowed=ALLOWED, bad=BAD, whole=whole) == (1, 3)
    assert run(tmp_path, "0", allowed=ALLOWED, bad=BAD, whole=whole) == (0, 0)
