"""Checkpoints on disk: a folder, complete or not there, whose files are what was written.

No framework in here, and bytes only: gtcbmuf.torch says what is in the files (docs/checkpoints.md).
"""

from gtcbmuf.checkpoint.folder import (
    SHARED,
    TREE,
    begin,
    check,
    publish,
    rank_file,
    read,
    sweep,
    write,
)
from gtcbmuf.checkpoint.manifest import Manifest, exists, load
from gtcbmuf.checkpoint.together import together

__all__ = [
    "SHARED",
    "TREE",
    "Manifest",
    "begin",
    "check",
    "exists",
    "load",
    "publish",
    "rank_file",
    "read",
    "sweep",
    "together",
    "write",
]
