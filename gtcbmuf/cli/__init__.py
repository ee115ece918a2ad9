"""The command `gtcbmuf`; each subcommand is a module here."""

import argparse
import sys
from collections.abc import Sequence

from gtcbmuf import __version__
from gtcbmuf.cli import bench, checkpoint, doctor, plan, timeline, tune
from gtcbmuf.errors import FileError, SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gtcbmuf", description="Data-parallel training over MPI: GTC, BMUF and hybrid."
    )
    parser.add_argument("--version", action="version", version=f"gtcbmuf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (doctor, plan, bench, tune, checkpoint, timeline):
        command.add_to(commands)
    options = parser.parse_args(argv)
    try:
        return options.run(options)
    except (FileError, SettingsError) as error:
        print(f"gtcbmuf {options.command}: {error}", file=sys.stderr)
        return 2
