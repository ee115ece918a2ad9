"""JSON files of what was measured: written whole, read only if they are of this format and version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gtcbmuf.errors import SettingsError


def check_free(path: str | Path, force: bool) -> None:
    """SettingsError if a file is there already, or cannot be; to be asked before long work."""
    if not Path(path).parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {Path(path).parent}; make it first.")
    if Path(path).exists() and not force:
        raise SettingsError(f"{path} exists; name another file, or add --force to replace it.")


def write(path: str | Path, form: str, version: int, content: dict[str, Any]) -> None:
    """All of it or nothing: what was there stays until the new file is complete. SettingsError if it cannot be."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps({"format": form, "version": version, **content}, indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}).") from None


def read(path: str | Path, form: str, version: int, what: str, again: str) -> dict[str, Any]:
    """The content, format and version with it.

    SettingsError for a file that is not there, damaged, something else than `what`, or of another
    version; `again`: the cure.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}). {again}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON, or damaged ({error}). {again}") from None
    if not isinstance(content, dict) or content.get("format") != form:
        raise SettingsError(f"{path} holds something else than {what}. {again}")
    if content.get("version") != version:
        raise SettingsError(f"{path} is of version {content.get('version')}; this is version {version}. {again}")
    return content
