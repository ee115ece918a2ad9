"""States of a run on disk: one file, complete or not there, refused if it is not what it should be.

An .npz with the arrays a0, a1, … and `text`, JSON in UTF-8: {format, version, facts, state}, in
which {"array": i} stands for array i. An array that is in a state in several places is stored once.
Nothing in it is executed when it is read.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gtcbmuf.errors import FileError

FORMAT, VERSION = "gtcbmuf simulation", 1


def save(path: str | Path, facts: dict[str, Any], state: dict[str, Any]) -> None:
    """Under another name first, so that a run killed in here leaves the file of before."""
    path = Path(path)
    arrays: dict[int, tuple[int, np.ndarray]] = {}  # by identity
    packed = {"format": FORMAT, "version": VERSION, "facts": facts, "state": _pack(state, arrays)}
    text = np.frombuffer(json.dumps(packed).encode(), np.uint8)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, text=text, **{f"a{i}": array for i, array in arrays.values()})
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: str | Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The state; FileError if the file is damaged, of another version or of other facts."""
    try:
        with np.load(path, allow_pickle=False) as file:
            packed = json.loads(file["text"].tobytes())
            _check(path, packed, facts)
            return _unpack(packed["state"], file)
    except FileError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise FileError(
            f"{path} is damaged, or no saved simulation ({error}). Remove it to begin anew."
        ) from error


def _check(path, packed: dict[str, Any], facts: dict[str, Any]) -> None:
    if packed["format"] != FORMAT:
        raise FileError(f"{path} is not a saved simulation but {packed['format']!r}.")
    if packed["version"] != VERSION:
        raise FileError(
            f"{path} has version {packed['version']}, this library reads {VERSION}. Go on with the "
            "library that wrote it, or name another file."
        )
    here = json.loads(json.dumps(facts))
    for what in here | packed["facts"]:
        found = packed["facts"].get(what)
        if found != here.get(what):
            raise FileError(
                f"{path} is of another run: its {what} is {found}, here it is {here.get(what)}. "
                "Name another file, or remove it."
            )


def _pack(value: Any, arrays: dict[int, tuple[int, np.ndarray]]) -> Any:
    if isinstance(value, dict):
        return {key: _pack(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        number, _ = arrays.setdefault(id(value), (len(arrays), value))
        return {"array": number}
    return value


def _unpack(value: Any, file) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return file[f"a{value['array']}"]
        return {key: _unpack(item, file) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, file) for item in value]
    return value
