"""The results of scripts/gpu_check as Markdown."""

from __future__ import annotations

GOAL, GOAL_UP_TO = 0.85, 0.01


def _table(head: list[str], lines: list[list[str]]) -> str:
    row = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([row(head), "|" + "---|" * len(head), *map(row, lines)])


def _encode(rows) -> str:
    lines = [[f"{r['elements']:,}", f"{100 * r['density']:g} %", f"{r['ms']:.3f}", f"{1e-9 * r['copy_bytes_a_second']:.0f}",
              f"{100 * r['of_copy']:.0f} %", _verdict(r), f"{r['host_us']:.0f}"] for r in rows]  # fmt: skip
    return _table(["elements", "density", "encode [ms]", "copy [GB/s]", "of the copy", f"goal {100 * GOAL:g} %", "host [µs]"], lines)


def _verdict(row) -> str:
    if row["density"] > GOAL_UP_TO:
        return "none"
    return "met" if row["of_copy"] >= GOAL else "missed"


def _peers(rows) -> str:
    lines = [[r["name"], f"{100 * r['density']:g} %", f"{r['ms']:.3f}"] if "ms" in r
             else [r["name"], "", f"missing ({r['missing']})"] for r in rows]  # fmt: skip
    return _table(["step", "density", "ms"], lines)


def training(content: dict) -> str:
    """Of the ranks that share the GPU."""
    if "missing" in content:
        return f"Training: missing ({content['missing']})."
    lines = [[str(r["ranks"]), r["strategy"] + ("" if r["where"] == "on the GPU" else ", by way of the host")
              + (", straight from the GPU" if r["direct"] else ""),
              f"{r['parameters']:,}", f"{r['bytes_a_step']:,.0f}", *(f"{r['ms'][way]:.1f}" for way in ("plain", "serial", "overlap")),
              f"{100 * r['hidden']:.0f} %"] for r in content["rows"]]  # fmt: skip
    head = ["ranks", "strategy", "parameters", "bytes a step and rank", "alone [ms]", "after backward [ms]", "overlapped [ms]", "hidden"]
    parts = ["Training of an LSTM by ranks that share the GPU, over the MPI of this machine; medians over steps, of the slowest rank:",
             _table(head, lines)]  # fmt: skip
    if content["left_out"]:
        parts.append(f"Left out for want of time: {', '.join(content['left_out'])}.")
    return "\n\n".join(parts)


def sanitizer(content: dict) -> str:
    if "missing" in content:
        return f"compute-sanitizer: missing ({content['missing']})."
    return "compute-sanitizer over every kernel: " + ", ".join(
        f"{tool} {'nothing found' if one['sound'] else 'FAILED: ' + ' '.join(one['says'])}" for tool, one in content["tools"].items()) + "."


def ranks(content: dict) -> str:
    return f"Tests of ranks that share the GPU: {content.get('missing') or '; '.join(content['summaries'])}" + " (FAILED)" * content["failed"]


def text(content: dict) -> str:
    parts = [f"Tests: {content['tests']['summary']}"]
    if "ranks" in content:
        parts.append(ranks(content["ranks"]))
    if "sanitizer" in content:
        parts.append(sanitizer(content["sanitizer"]))
    if "wrong" in content:
        return "\n\n".join([*parts, f"A wrong result ended the benchmark: {content['wrong']}"]) + "\n"
    if (b := content.get("benchmark")) is None:
        return "\n\n".join([*parts, "The tests failed, so nothing was measured."]) + "\n"
    major, minor = b["device"]["capability"]
    parts.append(f"{b['device']['name']} (sm_{major}{minor}, {b['device']['multiprocessors']} multiprocessors). "
                 "Medians by CUDA events; every result was compared with the host's codec first.")  # fmt: skip
    if rows := [*b.get("encode", []), *b.get("encode_large", [])]:
        parts.append(_encode(rows))
    if rows := b.get("decode_mean"):
        lines = [[f"{r['elements']:,}", f"{100 * r['density']:g} %", str(r["messages"]), f"{r['ms']:.3f}"] for r in rows]
        parts.append(_table(["elements", "density", "messages", "check and mean [ms]"], lines))
    if row := b.get("block_update"):
        parts.append(f"Block update of {row['elements']:,} elements: {row['ms']:.3f} ms, {100 * row['of_copy']:.0f} % of "
                     "the copy's bandwidth at 24 bytes an element.")  # fmt: skip
    if rows := b.get("peers"):
        parts.append(_peers(rows))
    if "training" in content:
        parts.append(training(content["training"]))
    if b["left_out"]:
        parts.append(f"Left out for want of time: {', '.join(b['left_out'])}.")
    return "\n\n".join(parts) + "\n"
