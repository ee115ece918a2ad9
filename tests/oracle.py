"""What the codec and the strategies must do, written as differently from them as we could.

Messages: bits are strings of '0' and '1' in stream order (LSB first), numbers are Python's big
integers, floats are single float32 operations in plain loops. Follows docs/message-format.md and
nothing else; it must not import the library. Slow on purpose: a few thousand elements.
Training runs: oracle_training.py.
"""

import math
import struct

import numpy as np

F = np.float32
RAW_TYPES = {"uint8": (1, "B"), "float32": (2, "f"), "float64": (3, "d"), "uint16": (4, "H")}  # bfloat16


# -- accumulate, threshold, residual -------------------------------------------------------------


def widen(value, dtype):
    """One gradient element, exactly, as float32 (float64 stays); bfloat16 comes as 16 bits."""
    if dtype == "bfloat16":
        return F(struct.unpack("<f", b"\0\0" + struct.pack("<H", int(value)))[0])
    return np.float64(value) if dtype == "float64" else F(value)


def accumulate(gradient, residual, threshold, dtype, cap=None, sequence=0):
    """Returns (signs, new residual, first non-finite index or None).

    signs: {index: +1 or -1} of what is sent; the residual a list of float32.
    """
    tau, signs, rest = F(threshold), {}, []
    with np.errstate(all="ignore"):
        for i, (g, r) in enumerate(zip(gradient, residual, strict=True)):
            t = F(np.float64(r) + widen(g, dtype)) if dtype == "float64" else F(r) + widen(g, dtype)
            if not np.isfinite(t):
                return None, None, i
            if t >= tau:
                signs[i] = 1
                t = t - tau
            elif t <= -tau:
                signs[i] = -1
                t = t + tau
            rest.append(t)
    if cap is not None and len(signs) > cap:
        candidates = sorted(signs)
        window = (sequence * cap) % 2**64 % len(candidates)
        kept = {candidates[(window + j) % len(candidates)] for j in range(cap)}
        for i in candidates:
            if i not in kept:
                rest[i] = rest[i] + tau if signs.pop(i) > 0 else rest[i] - tau
    return signs, rest, None


# -- bits ----------------------------------------------------------------------------------------


def bits_of(number, count):
    """`count` bits of a number, LSB first."""
    return "".join("1" if number >> j & 1 else "0" for j in range(count))


def to_bytes(bits):
    """Bits, LSB first, filled up with zeros to whole bytes."""
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))


def to_bits(data):
    return "".join(bits_of(byte, 8) for byte in data)


def to_number(bits):
    return int(bits[::-1], 2) if bits else 0


# -- bodies --------------------------------------------------------------------------------------


def words_body(signs):
    return b"".join(struct.pack("<I", 2 * i + (signs[i] < 0)) for i in sorted(signs))


def low_bit_count(span, count):
    """l: the largest with 2^l <= floor(2 * span / count)."""
    low = 0
    while 2 ** (low + 1) <= 2 * span // count:
        low += 1
    return low


def packed_body(signs):
    """Directory, then each block's bytes from a multiple of 8 on."""
    order = sorted(signs)
    directory, rest, base = b"", b"", 0
    for at in range(0, len(order), 1024):
        block = order[at : at + 1024]
        span = block[-1] + 1 - base
        directory += struct.pack("<Q", span)
        rest += b"\0" * (-len(rest) % 8)  # the directory is whole words, so this aligns, too
        rest += packed_block([2 * (i - base) + (signs[i] < 0) for i in block], span)
        base += span
    return directory + rest


def packed_block(values, span):
    """Uppers in unary: as many 0 as the upper part grows, then a 1."""
    low = low_bit_count(span, len(values))
    lows = uppers = ""
    before = 0
    for v in values:
        lows += bits_of(v % 2**low, low)
        uppers += "0" * (v // 2**low - before) + "1"
        before = v // 2**low
    return to_bytes(lows) + to_bytes(uppers)


def dense_body(signs, n):
    codes = {1: "10", -1: "11", 0: "00"}  # 1 and 3, LSB first
    return to_bytes("".join(codes[signs.get(i, 0)] for i in range(n)))


# -- messages ------------------------------------------------------------------------------------


def checksum(data):
    data = data + b"\0" * (-len(data) % 8)
    total = 0
    for i in range(len(data) // 8):
        word = int.from_bytes(data[8 * i : 8 * i + 8], "little")
        mixed = word ^ (i + 1) * 0x9E3779B97F4A7C15 % 2**64
        total += word + word * 2**32 + mixed % 2**32 * (mixed // 2**32)
    return total % 2**64


def message(kind, flags, element, n, sent, sequence, bucket, sender, threshold, body):
    """Header and body; threshold as the 4 bytes of the field or a number."""
    tau = threshold if isinstance(threshold, bytes) else struct.pack("<f", threshold)
    front = b"GTCB" + bytes([1, kind, flags, element])
    front += struct.pack("<QQQQ", n, sent, len(body), sequence) + struct.pack("<II", bucket, sender)
    back = struct.pack("<Q", checksum(body))
    return seal(front + tau + b"\0\0\0\0" + back) + body


def seal(header):
    """The 64 bytes with their header checksum."""
    s = checksum(header[:52] + b"\0\0\0\0" + header[56:])
    return header[:52] + struct.pack("<I", s // 2**32 ^ s % 2**32) + header[56:]


def encode(
    gradient, residual, threshold, *, dtype="float32", cap=None, sequence=0, bucket=0, sender=0
):
    """Returns (message, new residual as float32 array, or None if a sum is not finite)."""
    n, context = len(gradient), (sequence, bucket, sender, float(F(threshold)))
    signs, rest, bad = accumulate(gradient, residual, threshold, dtype, cap, sequence)
    if bad is not None:
        return message(1, 1, 0, n, bad, *context, b""), None
    kind, body = shortest(signs, n)
    return message(kind, 0, 0, n, len(signs), *context, body), np.array(rest, F)


def shortest(signs, n):
    """(kind, body): the shortest, of equal ones the lowest kind."""
    bodies = [(1, words_body(signs))] if n <= 2**31 else []
    bodies += [(2, packed_body(signs)), (3, dense_body(signs, n))]
    return min(bodies, key=lambda each: len(each[1]))  # min takes the first of equal ones


def raw(array, *, weight=1, sequence=0, bucket=0, sender=0):
    element, code = RAW_TYPES[array.dtype.name]
    for i, value in enumerate(array.tolist()):
        if not math.isfinite(widen(value, "bfloat16") if code == "H" else value):
            return message(4, 1, element, len(array), i, sequence, bucket, sender, 0, b"")
    body = struct.pack(f"<{len(array)}{code}", *array.tolist())
    return message(4, 0, element, len(array), weight, sequence, bucket, sender, 0, body)


# -- decoding a sound message --------------------------------------------------------------------


def decode(data):
    """(fields of the header as a dict, signs); signs is None for raw and non-finite messages."""
    names = ("elements", "sent", "body_bytes", "sequence")
    fields = dict(zip(names, struct.unpack("<4Q", data[8:40]), strict=True))
    fields.update(kind=data[5], flags=data[6], element=data[7])
    fields["bucket"], fields["sender"] = struct.unpack("<2I", data[40:48])
    fields["threshold"] = struct.unpack("<f", data[48:52])[0]
    fields["body_checksum"] = int.from_bytes(data[56:64], "little")
    body = data[64:]
    assert data[:5] == b"GTCB\1" and data == seal(data[:64]) + body
    assert len(body) == fields["body_bytes"] and checksum(body) == fields["body_checksum"]
    if fields["flags"] or fields["kind"] == 4:
        return fields, None
    readers = {1: read_words, 2: read_packed, 3: read_dense}
    signs = readers[fields["kind"]](body, fields["sent"])
    assert len(signs) == fields["sent"] and all(0 <= i < fields["elements"] for i in signs)
    return fields, signs


def sign(number):
    return -1 if number % 2 else 1


def read_words(body, sent):
    return {w // 2: sign(w) for (w,) in struct.iter_unpack("<I", body)}


def read_packed(body, sent):
    signs, base = {}, 0
    blocks = -(-sent // 1024)
    at = 8 * blocks
    for b in range(blocks):
        span = int.from_bytes(body[8 * b : 8 * b + 8], "little")
        count = min(1024, sent - 1024 * b)
        low = low_bit_count(span, count)
        at += -at % 8
        lows = to_bits(body[at : at + -(-count * low // 8)])
        at += -(-count * low // 8)
        uppers = to_bits(body[at : at + -(-(count + (2 * (span - 1) >> low)) // 8)])
        at += len(uppers) // 8
        upper = element = 0
        for bit in uppers:  # unary again: 0 counts up, 1 is an element
            if bit == "0":
                upper += 1
                continue
            v = upper * 2**low + to_number(lows[element * low : element * low + low])
            signs[base + v // 2] = sign(v)
            element += 1
        base += span
    assert at == len(body)
    return signs


def read_dense(body, sent):
    bits = to_bits(body)
    codes = {at // 2: bits[at : at + 2] for at in range(0, len(bits), 2)}
    return {i: {"10": 1, "11": -1}[code] for i, code in codes.items() if code != "00"}


def decode_add(messages, dense):
    """dense (float32) plus the messages, one element after another; returns a new array."""
    out = [F(x) for x in dense]
    for data in messages:
        fields, signs = decode(data)
        for i in sorted(signs):
            out[i] = out[i] + F(fields["threshold"]) * F(signs[i])
    return np.array(out, F)


def bound(n, k):
    """Longest message: as the page's formula says."""
    if k == 0:
        return 64
    low, blocks = low_bit_count(n, k), -(-k // 1024)
    bits = k * (low + 1) + -(-2 * n // 2**low)
    lengths = [8 * blocks + -(-bits // 8) + 9 * blocks, -(-n // 4)]
    return 64 + min(lengths + ([4 * k] if n <= 2**31 else []))
