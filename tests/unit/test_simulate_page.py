"""docs/simulate.md: its example runs."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulate.md"


def test_the_example(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})  # noqa: S102
    slope, density = map(float, capsys.readouterr().out.split())
    assert abs(slope - 3) < 0.1 and 0 < density < 0.9
