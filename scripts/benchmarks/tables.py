"""The results as tables in Markdown. Every figure is a median; of both clocks one is shown."""

from __future__ import annotations

from .unpacking import GBIT, OURS, WORKERS, ahead, total_seconds


def rows(head: list[str], lines: list[list[str]], left: int = 1) -> str:
    """The first `left` columns are words, the others numbers."""
    rule = "|" + "---|" * left + "---:|" * (len(head) - left)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])


def head(content: dict, clock: str) -> str:
    m = content["machine"]
    peers = ", ".join(f"{name} {version or 'missing'}" for name, version in content["packages"].items())
    times = {"cpu": "CPU time, summed over threads", "wall": "wall-clock time"}[clock]
    return (f"{m['cpu']}, {m['cores']} cores, load {m['load']:g} at the start; variant {m['variant']}; {m['compiler']}; "
            f"Python {m['python']}; {peers}.\nMedians of {content['rounds']} rounds, {times}.")  # fmt: skip


def packing(records: list[dict], clock: str) -> str:
    lines = []
    for r in records:
        t = {name: 1e3 * both[clock] for name, both in r["times"].items()}
        lines.append([f"{100 * r['density']:.2f} %", str(r["threads"]), f"{t['add']:.2f}", f"{t['encode']:.2f}",
                      f"{100 * r['of_add'][clock]:.0f} %", f"{t['torch']:.1f}", f"{r['torch'][clock]:.1f}",
                      f"{t['topk']:.0f}", f"{r['topk'][clock]:.0f}"])  # fmt: skip
    columns = ["density", "threads", "a += b [ms]", "encode [ms]", "of a += b", "torch's steps [ms]", "torch / encode",
               "torch.topk [ms]", "topk / encode"]  # fmt: skip
    return rows(columns, lines, 0)


def title(record: dict) -> str:
    return (f"{record['data']}: {record['elements']:,} elements, density {100 * record['density']:.2f} %, "
            f"{record['sent']:,.0f} sent in a message, {record['messages']} messages")  # fmt: skip


def sizes(record: dict, clock: str) -> str:
    """Bits, and nanoseconds for one sent element."""
    lines = []
    for row in record["rows"]:
        ns = lambda what, row=row: f"{1e9 * row[what][clock]:.2f}" if what in row else ""
        call = f"{1e6 * row['call'][clock]:.1f}" if "call" in row else ""
        lines.append([row["name"], f"{8 * row['bytes'] / record['sent']:.2f}", ns("encode"), ns("decode"),
                      ns("decode_add"), call])  # fmt: skip
    columns = ["codec", "bits / sent", "encode [ns]", "decode [ns]", "decode and add [ns]", "of it a call [µs]"]
    return rows(columns, lines)


def three(x: float) -> str:
    """Three digits; never a power of ten."""
    return f"{x:.3g}" if x < 999.5 else f"{x:.0f}"


def totals(record: dict, clock: str) -> str:
    """Milliseconds of an exchange; the least in bold."""
    cells = [(n, gbit) for n in WORKERS for gbit in GBIT]
    times = {row["name"]: [1e3 * total_seconds(n, gbit, row["bytes"], record["sent"], row["decode_add"][clock])
                           for n, gbit in cells] for row in record["rows"]}  # fmt: skip
    least = [min(column) for column in zip(*times.values())]
    lines = [[name, *(f"**{three(t)}**" if t == best else three(t) for t, best in zip(row, least))]
             for name, row in times.items()]
    return rows(["total [ms]", *(f"N {n}, {gbit} Gbit/s" for n, gbit in cells)], lines)


def summary(records: list[dict], clock: str) -> str:
    """All records side by side: bits, and nanoseconds to decode and add, for one sent element."""
    columns = [f"{r['data'].split()[0]} {100 * r['density']:.2g} %" for r in records]
    lines = []
    for row in records[0]["rows"]:
        found = [(r["sent"], next(x for x in r["rows"] if x["name"] == row["name"])) for r in records]
        cells = [f"{8 * x['bytes'] / sent:.2f}, {1e9 * x['decode_add'][clock]:.2f}" for sent, x in found]
        lines.append([row["name"], *cells])
    return rows(["bits, decode and add [ns]", *columns], lines)


def verdict(record: dict, clock: str) -> str:
    """Says plainly who is both smaller and faster; and by how much the library's message is the larger, where it is."""
    found, own = ahead(record, clock), record["rows"][0]
    smaller = {r["name"]: 100 * (1 - r["bytes"] / own["bytes"]) for r in record["rows"] if r["bytes"] < own["bytes"]}
    lines = [f"Smaller: {', '.join(f'{name} by {share:.1f} %' for name, share in smaller.items()) or 'none'}. "
             f"Smaller and faster: {', '.join(found['decode_add']) or 'none'}."]  # fmt: skip
    rest = [name for name in found["decode"] if name not in found["decode_add"]]
    if rest:
        lines.append(f"Smaller, and in unpacking alone faster than {OURS} with checking and adding: {', '.join(rest)}.")
    return " ".join(lines)


def codec(content: dict, clock: str) -> str:
    parts = [head(content, clock)]
    if "c" in content:
        parts.append("```\n" + "\n".join(content["c"]) + "\n```")
    if "packing" in content:
        parts.append(packing(content["packing"], clock))
    for record in content.get("unpacking", []):
        parts += [f"**{title(record)}**", sizes(record, clock), verdict(record, clock), totals(record, clock)]
    if content.get("unpacking"):
        parts.append(summary(content["unpacking"], clock))
        forms = [f"- {row['name']}: {row['how']}" for row in content["unpacking"][0]["rows"]]
        parts.append("\n".join(forms + [f"- {name}: MISSING. {why}" for name, why in content["missing"].items()]))
    return "\n\n".join(parts)
