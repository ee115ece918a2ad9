"""Measure the library, beside what it competes with. Each part is a module in scripts/benchmarks."""

from __future__ import annotations

import argparse
import sys

from benchmarks import allreduce, blocks, codec, counts, exchange, memory, observe, overlap

from gtcbmuf.errors import GtcbmufError

# name: (what it measures, its options, what runs it)
PARTS = {
    "allreduce": ("sums in one bucket and in several, beside MPI's own", allreduce.options, allreduce.run),
    "blocks": ("the end of a hybrid's block, in several forms, between hosts", blocks.options, blocks.run),
    "codec": ("packing, unpacking and size, beside other codecs", codec.options, codec.run),
    "counts": ("instructions of the codec, against the reference", counts.options, counts.run),
    "exchange": ("allgathers, beside a bare ring and MPI's own", exchange.options, exchange.run),
    "memory": ("what the torch wrappers keep and allocate", memory.options, memory.run),
    "observe": ("what metrics and timeline cost a step", observe.options, observe.run),
    "overlap": ("how much of the exchange is hidden behind backward", overlap.options, overlap.run),
}


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parts = parser.add_subparsers(metavar="PART", required=True)
    for name, (text, options, run) in PARTS.items():
        part = parts.add_parser(name, help=text, description=text)
        options(part.add_argument)
        part.set_defaults(run=run)
    return parser.parse_args(argv)


def main(argv=None):
    options = parse(argv)
    try:
        options.run(options)
    except GtcbmufError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
