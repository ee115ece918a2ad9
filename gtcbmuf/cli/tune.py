"""`gtcbmuf tune`: which τ would send what? Advice from saved gradients; nothing is changed.

    gtcbmuf tune gradients.npz --density 0.005
    gtcbmuf tune gradients.npz --kbytes 500

The file has an array [steps, elements] for each parameter; docs/choosing-tau.md shows how to
record one. The steps are replayed through the codec, with residuals.
"""

from __future__ import annotations

import argparse

from gtcbmuf import backends, config
from gtcbmuf.plan import gradients, tune


def add_to(commands) -> None:
    parser = commands.add_parser(
        "tune", help="a threshold τ for a target density or traffic, from saved gradients",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", metavar="GRADIENTS.npz")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--density", type=float, metavar="X",
                        help="share of elements sent in a step (default: 0.005)")  # fmt: skip
    target.add_argument("--kbytes", type=float, metavar="X",
                        help="what a worker's messages may take in a step [1000 bytes]")  # fmt: skip
    parser.add_argument("--dense-below", type=int, default=1024, metavar="N",
                        help="as GTC(dense_below=…) (default: 1024)")  # fmt: skip
    parser.set_defaults(run=run)


def run(options) -> int:
    parameters = gradients.load(options.file)
    settings = config.current()
    codec = backends.choose(settings.backend, variant=settings.variant)
    saved = tune.Gradients(parameters, codec, options.dense_below)
    if options.kbytes is not None:
        best = tune.suggest_for_bytes(saved, 1e3 * options.kbytes)
    else:
        best = tune.suggest_for_density(
            saved, 0.005 if options.density is None else options.density
        )
    best = saved.replay(_rounded(best.threshold))
    _print(saved, best, tune.around(saved, best.threshold))
    _print_parameters(saved, best)
    print(f"\nTry GTC(threshold={best.threshold:g}), or let τ follow: "
          f"GTC(density={best.density:.2g}). This is advice only: how training\nanswers to a τ, "
          "replayed gradients cannot tell (docs/choosing-tau.md).")  # fmt: skip
    return 0


def _rounded(threshold: float) -> float:
    return float(f"{threshold:.3g}")


def _print(saved, best, replays) -> None:
    print(f"replayed {saved.steps} steps of {saved.kept:,} elements, which stand for "
          f"{saved.elements:,}; {saved.dense_elements:,} in small parameters go dense")  # fmt: skip
    if not tune.settled(saved, best.density):
        wanted = 2 / best.density
        print(f"NOTE: at this density an element is sent every {1 / best.density:.0f} steps: "
              f"residuals are still filling.\nRecord {wanted:.0f} steps or more to trust these "
              "numbers; τ would come out larger.")  # fmt: skip
    print("\ndensity and kB of a worker's messages, mean of the second half; residual at the end")
    print(f"  {'τ':>10}{'density':>10}{'kB/step':>10}{'RMS/τ':>8}{'max/τ':>8}{'growth':>8}"
          f"{'never sent':>12}")  # fmt: skip
    for r in replays:
        mark = "  <" if r.threshold == best.threshold else ""
        print(f"  {r.threshold:10.3g}{r.density:10.2g}{r.message_bytes / 1e3:10.1f}{r.rms:8.2f}"
              f"{r.largest:8.2f}{r.growth:8.2f}{r.silent:12.1%}{mark}")  # fmt: skip
    print(
        "growth: the residual's RMS at the end over that at half time. Near 1 it has settled; where "
        "max/τ keeps growing\nbeyond 2, one quantum a step cannot keep up: τ is too small there."
    )


def _print_parameters(saved, best) -> None:
    if len(saved.sparse) == 1:
        return
    print(f"\ndensity of each parameter at τ = {best.threshold:g}")
    width = max(len(p.name) for p in saved.sparse)
    for parameter, density in zip(saved.sparse, best.densities, strict=True):
        print(f"  {parameter.name:{width}}{density:10.2g}")
