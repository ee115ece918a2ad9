"""`gtcbmuf timeline merge FOLDER`: one timeline of all ranks, from the files that a run left in FOLDER.

Open it in chrome://tracing or https://ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gtcbmuf.errors import FileError
from gtcbmuf.observe import merge
from gtcbmuf.plan import saved


def add_to(commands) -> None:
    parser = commands.add_parser("timeline", help="what each rank of a run did when")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    command = verbs.add_parser(
        "merge", help="one file of all ranks' timelines",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument("--out", type=Path, metavar="FILE", help="(FOLDER/timeline.json)")
    command.add_argument("--force", action="store_true", help="replace that file if it exists")
    command.set_defaults(run=run)


def run(options) -> int:
    out = options.out or options.folder / "timeline.json"
    events = merge.merge(options.folder)
    saved.check_free(out, options.force)
    try:
        out.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
    except OSError as error:
        raise FileError(f"{out} cannot be written: {error.strerror}") from error
    ranks = {event["pid"] for event in events}
    print(f"{out}: {len(events)} events of {len(ranks)} ranks. Open it in chrome://tracing or https://ui.perfetto.dev")
    return 0
