"""Size and unpacking: the library's messages beside what other codecs make of the same positions and signs."""

from __future__ import annotations

import gc

import numpy as np

from gtcbmuf.errors import GtcbmufError

from . import gradients, peers, timing
from .gradients import Messages
from .library import Library, address

OURS = "gtcbmuf"
HOW = "whole messages: header and checksums in the size, and their checking in the time"
WORKERS, GBIT = (8, 32, 128), (1, 10, 100)
COUNT = 8  # messages that are decoded together
NOTHING = 1e30  # a threshold that nothing comes to


def total_seconds(workers: int, gbit: float, message_bytes: float, sent: float, decode: float) -> float:
    """Of one worker's exchange: the messages of the others over its link, and all messages into the sum.

    message_bytes, sent: of one message; decode: seconds for one sent element.
    """
    return (workers - 1) * message_bytes * 8 / (gbit * 1e9) + workers * sent * decode


def measure(library: Library, options) -> list[dict]:
    """A record for each kind of data and each density; everything is checked before it is timed."""
    records = []
    for density in options.densities:
        for kind in options.data:
            if kind == "speech":
                made = gradients.speech(library, density, COUNT, options.hidden, options.steps)
            else:
                made = gradients.random(library, options.elements, density, COUNT)
            gradients.check(library, made)
            records.append(_compare(library, made, options.rounds))
            del made
            gc.collect()
    return records


def _compare(library: Library, made: Messages, rounds: int) -> dict:
    dense = np.zeros(made.elements, np.float32)
    actions = _own_actions(library, made, dense)
    packed, single = {}, np.array([2 * (made.elements // 2)], np.uint32)
    others = peers.present(library, max(map(len, made.words)))
    for peer in others:
        packed[peer.name] = check_peer(peer, made.words)
        actions.update(_actions(library, peer, made, packed[peer.name], dense))
        actions[peer.name, "call"] = _adder(library, peer, [(peer.encode(single), 1, 1.0)], dense)
    samples = timing.interleaved(actions, rounds)
    seconds = timing.medians(samples)
    each = lambda name, what: {clock: s / made.sent for clock, s in seconds[name, what].items()}
    own = {"name": OURS, "how": HOW, "bytes": float(np.mean([len(m) for m in made.messages])),
           "decode_add": each(OURS, "whole"), "validate": each(OURS, "validate"),
           "bucket": seconds[OURS, "encode"],
           "encode": {c: s / len(made.words[-1]) for c, s in
                      timing.difference(samples, (OURS, "encode"), (OURS, "nothing")).items()}}  # fmt: skip
    rows = [own]
    for peer in others:
        size = float(np.mean([peer.size(p) for p in packed[peer.name]]))
        rows.append({"name": peer.name, "how": peer.how, "bytes": size, "call": seconds[peer.name, "call"],
                     **{what: each(peer.name, what) for what in ("encode", "decode", "decode_add")}})  # fmt: skip
    return {"data": made.name, "elements": made.elements, "density": made.density, "messages": len(made.words),
            "sent": made.sent / len(made.words), "rows": rows}  # fmt: skip


def check_peer(peer: peers.Peer, all_words: list[np.ndarray]) -> list:
    """What it makes of the words; GtcbmufError if it does not give them back."""
    packed = [peer.encode(words) for words in all_words]
    for words, one in zip(all_words, packed):
        if not np.array_equal(peer.decode(one, len(words)), words):
            raise GtcbmufError(f"{peer.name} does not give back what it was given")
    return packed


def _own_actions(library: Library, made: Messages, dense: np.ndarray) -> dict:
    add, validate = library.adder(made.messages, dense)
    encoder, out = library.encoder(made.elements), np.ones(made.elements, np.float32)

    def whole():
        validate()
        add()

    def encode(threshold):
        return lambda: encoder.run(made.gradient, made.residual, out, threshold)

    return {(OURS, "whole"): whole, (OURS, "validate"): validate, (OURS, "encode"): encode(made.thresholds[-1]),
            (OURS, "nothing"): encode(NOTHING)}  # fmt: skip


def _actions(library: Library, peer: peers.Peer, made: Messages, packed: list, dense: np.ndarray) -> dict:
    """Each works on all messages, one after the other."""
    all_of = list(zip(packed, map(len, made.words), made.thresholds))

    def encode():
        for words in made.words:
            peer.encode(words)

    def decode():
        for one, count, _ in all_of:
            peer.decode(one, count)

    return {(peer.name, "encode"): encode, (peer.name, "decode"): decode,
            (peer.name, "decode_add"): _adder(library, peer, all_of, dense)}  # fmt: skip


def _adder(library: Library, peer: peers.Peer, all_of: list[tuple], dense: np.ndarray):
    """Decodes and adds; all_of: what was packed, how many words, the threshold."""
    at = address(dense)

    def decode_add():
        for one, count, threshold in all_of:
            words = peer.decode(one, count)  # keeps them alive
            library.add_words(at, address(words), count, threshold)

    return decode_add


def ahead(record: dict, clock: str) -> dict[str, list[str]]:
    """Peers that are smaller and faster than the library, strictly: their calls from Python are not held against them.

    "decode_add": in the whole of unpacking and adding. "decode": even if the library's whole is set against their
    unpacking alone, without the adding.
    """
    own = record["rows"][0]
    found = {"decode_add": [], "decode": []}
    for row in record["rows"][1:]:
        if row["bytes"] >= own["bytes"]:
            continue
        call = row["call"][clock] / record["sent"]
        for what in found:
            if row[what][clock] - call < own["decode_add"][clock]:
                found[what].append(row["name"])
    return found
