"""What the parts of scripts/bench have in common: results that are saved, and shown again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import saved

FORMAT, VERSION = "gtcbmuf benchmark", 1


def choose(text: str, known, what: str) -> list[str]:
    """Names with commas between them, of those that are known."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(known):
        raise SettingsError(f"{what} {', '.join(sorted(unknown))}: there is no such; choose of {','.join(known)}")
    return chosen


def options(add) -> None:
    """add: add_argument of a part's parser."""
    add("--save", type=Path, help="write the results here")
    add("--force", action="store_true", help="replace that file if it exists")
    add("--table", type=Path, help="print the tables of a saved file, and measure nothing")


def command(o, part: str, measure: Callable[..., dict], text: Callable[[dict], str]) -> None:
    """Prints what is measured now, and saves it, or what is in a file."""
    if o.table:
        print(text(load(o.table, part)))
        return
    if o.save:
        saved.check_free(o.save, o.force)
    content = measure(o)
    print(text(content))
    if o.save:
        save(o.save, part, content)


def save(path: Path, part: str, content: dict) -> None:
    saved.write(path, FORMAT, VERSION, {"part": part, **content})


def load(path: Path, part: str) -> dict:
    """SettingsError for what is no file of this part and version."""
    content = saved.read(path, FORMAT, VERSION, "results of scripts/bench", "Measure again.")
    if content.get("part") != part:
        raise SettingsError(f"{path} is of scripts/bench {content.get('part')}, not of {part}")
    return content
