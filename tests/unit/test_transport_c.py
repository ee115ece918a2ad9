"""The transport's batches over a table of functions that only note what they are asked (tests/transport)."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CC", "cc"))


@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="this machine has no C compiler")
def test_turns(tmp_path):
    sources = [ROOT / "tests/transport/test_turns.c", ROOT / "csrc/transport/batch.c"]
    flags = ["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    program = tmp_path / "turns"
    line = [*COMPILER, *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", program]
    subprocess.run(line, check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout == "turns ok\n", done.stderr
