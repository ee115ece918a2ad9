"""Results of runs in a file of JSON lines: one line a run, each with the version of its fields."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from gtcbmuf.errors import FileError

VERSION = 1


def read(path: str | Path) -> list[dict[str, Any]]:
    """All records, without their version; none if there is no file.

    FileError, naming the line, if one is damaged or of another version.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return _parse(path, data)


def append(path: str | Path, record: dict[str, Any]) -> None:
    """Adds one line, if all lines before it are sound (else FileError, and nothing is written).

    Several processes may append to one file.
    """
    line = json.dumps({"version": VERSION, **record}, allow_nan=False) + "\n"
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        file.seek(0)
        _parse(path, file.read())
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _parse(path, data: bytes) -> list[dict[str, Any]]:
    *lines, rest = data.split(b"\n")
    if rest:
        raise FileError(f"{path}: the last line, {len(lines) + 1}, is cut off. Remove it.")
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        version = record.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FileError(
            f"{path}: line {number} is damaged, or not a result ({error}). Mend or remove it, or "
            "name another file."
        ) from None
    if version != VERSION:
        raise FileError(
            f"{path}: line {number} has version {version}, this library reads {VERSION}. Name "
            "another file."
        )
    return record
