"""Files of results: written whole, read only if they are of this version."""

from __future__ import annotations

import json
from pathlib import Path

from gtcbmuf.errors import SettingsError

FORMAT, VERSION = "gtcbmuf benchmark", 1


def save(path: Path, part: str, content: dict) -> None:
    kept = path.with_name(path.name + ".part")
    kept.write_text(json.dumps({"format": FORMAT, "version": VERSION, "part": part, **content}, indent=1) + "\n")
    kept.replace(path)


def load(path: Path, part: str) -> dict:
    """SettingsError for what is no file of this part and version."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON, or damaged ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SettingsError(f"{path} holds something else than results of scripts/bench")
    if content.get("version") != VERSION:
        raise SettingsError(f"{path} is of version {content.get('version')}; this is version {VERSION}: measure again")
    if content.get("part") != part:
        raise SettingsError(f"{path} is of scripts/bench {content.get('part')}, not of {part}")
    return content
