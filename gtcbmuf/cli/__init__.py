"""The command `gtcbmuf`; each subcommand is a module here."""

import argparse
from collections.abc import Sequence

from gtcbmuf import __version__
from gtcbmuf.cli import doctor


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gtcbmuf", description="Data-parallel training over MPI: GTC, BMUF and hybrid."
    )
    parser.add_argument("--version", action="version", version=f"gtcbmuf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor.add_to(commands)
    options = parser.parse_args(argv)
    return options.run(options)
