"""The demo's figure: what each way of training costs in samples and in traffic."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Told apart by lightness, marker and line as well as by hue: for grey prints and colour blindness.
_STYLES = (
    ("#000000", "o", "-"), ("#0072b2", "s", "-"), ("#d55e00", "^", "-"),
    ("#009e73", "D", "--"), ("#cc79a7", "v", "--"), ("#e69f00", "P", ":"),
)  # fmt: skip


def plot_records(records: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw error against samples and against bytes sent, one line a record, into a PNG.

    Each record holds
        strategy    its name, for the legend
        samples     sequences seen by all workers together at each evaluation, ascending
        error       frame error rate (0 to 1) at each evaluation
        bytes_sent_per_worker   bytes sent by one worker until each evaluation; 0 throughout where
                    nothing is sent: such a run has no place on a logarithmic axis, and is drawn
                    as a level at its last error
    Raises ValueError when a record's lists differ in length or are empty.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, nor looked for
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, PercentFormatter

    for record in records:
        _check(record)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 4.5), sharey=True, layout="constrained"
    )
    for number, record in enumerate(records):
        colour, marker, line = _STYLES[number % len(_STYLES)]
        style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5}
        error, sent = record["error"], record["bytes_sent_per_worker"]
        left.plot(record["samples"], error, label=record["strategy"], **style)
        if any(sent):
            points = [(b, e) for b, e in zip(sent, error, strict=True) if b > 0]
            right.plot(*zip(*points, strict=True), **style)
        else:
            right.axhline(error[-1], color=colour, linestyle=":", linewidth=1.5)
            right.annotate(f"{record['strategy']}, nothing sent: final error", (0.02, error[-1]),
                           xycoords=("axes fraction", "data"), ha="left", va="top",
                           xytext=(0, -3), textcoords="offset points", fontsize=8, color=colour)
    left.set(xlabel="training sequences, all workers together (0.6 s of speech each)",
             ylabel="frame error rate")
    right.set(xlabel="bytes sent by each worker (logarithmic)", xscale="log")
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.xaxis.set_major_formatter(EngFormatter(unit="B"))
    left.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _check(record: Mapping[str, Any]) -> None:
    lengths = {name: len(record[name]) for name in ("samples", "error", "bytes_sent_per_worker")}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"record '{record['strategy']}': the lists must be equally long and not "
                         f"empty, their lengths are {lengths}")
