"""docs/message-format.md, "What a decoder checks" and the sizes it promises."""

import math
import struct

import codecs_under_test as codecs
import numpy as np
import oracle
import pytest
from golden.make_golden import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from gtcbmuf.backends import portable
from gtcbmuf.errors import MessageError

every_codec = pytest.mark.parametrize("codec", codecs.ALL)
other_codec = pytest.mark.parametrize("codec", codecs.BUT_PORTABLE)
GOLDEN = {case.name: case for case in CASES}
DAMAGED = [
    "nothing_sent",
    "words_1",
    "packed_few",
    "packed_1025",
    "dense_all",
    "nan",
    "raw_float64",
]


def stored(name):
    return GOLDEN[name].path.read_bytes()


# -- damage --------------------------------------------------------------------------------------


@every_codec
@pytest.mark.parametrize("name", DAMAGED)
def test_every_flipped_bit_is_found(codec, name):
    message = bytearray(stored(name))
    for bit in range(8 * len(message)):
        message[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError):
            codec.validate(message)
        message[bit // 8] ^= 1 << bit % 8
    codec.validate(message)


@every_codec
@pytest.mark.parametrize("name", DAMAGED)
def test_every_other_length_is_found(codec, name):
    message = stored(name)
    for length in range(len(message)):
        with pytest.raises(MessageError, match=f"^{length} bytes"):
            codec.validate(message[:length])
    with pytest.raises(MessageError, match="length is not 64"):
        codec.validate(message + b"\0")


# -- crafted messages, checksums repaired --------------------------------------------------------


def craft(body=b"", *, kind=1, flags=0, element=0, n=100, sent=0, threshold=1.0):
    return oracle.message(kind, flags, element, n, sent, 5, 6, 7, threshold, body)


def with_byte(message, at, value):
    """A byte of the header changed and the header sealed again."""
    header = message[:at] + bytes([value]) + message[at + 1 : 64]
    return oracle.seal(header) + message[64:]


def words(*numbers):
    return craft(struct.pack(f"<{len(numbers)}I", *numbers), sent=len(numbers))


def packed(change, signs=None, n=100, sent=None):
    """A packed message after `change` of its body, a bytearray.

    By default index 9 (+) and 19 (-): span 20, c 2, l 4; v = 18, 39; after the directory one byte
    of lows, 0x72 (2 and 7), and one of uppers, 0b1010 of 4 bits.
    """
    signs = signs or {9: 1, 19: -1}
    body = bytearray(oracle.packed_body(signs))
    body = change(body) or body
    return craft(bytes(body), kind=2, n=n, sent=len(signs) if sent is None else sent)


def put(at, value):
    def change(body):
        body[at] = value

    return change


def span(block, value):
    return lambda body: body[: 8 * block] + struct.pack("<Q", value) + body[8 * block + 8 :]


MANY = {3 * i + 41: 1 for i in range(1025)}  # block 0: span 3111, its uppers end at byte 595


NAN, INF = float("nan"), float("inf")
HUGE = 2**64 - 1
CRAFTED = [  # what is broken, the message, words of the error
    ("magic", with_byte(craft(), 0, 0), "magic"),
    ("version", with_byte(craft(), 4, 2), "version is 2"),
    ("header checksum", craft()[:52] + b"\1\2\3\4" + craft()[56:], "header checksum"),
    ("kind 0", craft(kind=0), "kind is 0"),
    ("kind 5", craft(kind=5), "kind is 5"),
    ("flag 2", craft(flags=2), "flags are 0x02"),
    ("flag 128", craft(flags=129), "flags are 0x81"),
    ("element of quanta", craft(element=2), "element type is 2"),
    ("element of raw", craft(kind=4, element=0, n=0, threshold=0), "element type is 0"),
    ("element 5", craft(kind=4, element=5, n=0, threshold=0), "element type is 5"),
    ("elements", craft(n=2**60 + 1), "elements is 1152921504606846977"),
    ("threshold 0", craft(threshold=0), "threshold is 0"),
    ("threshold -1", craft(threshold=-1), "threshold is -1"),
    ("threshold NaN", craft(threshold=NAN), "threshold is nan"),
    ("threshold infinite", craft(threshold=INF), "threshold is inf"),
    ("threshold of raw", craft(kind=4, element=1, n=0, threshold=1), "raw message is 1.0"),
    ("threshold -0 of raw", craft(kind=4, element=1, n=0, threshold=-0.0), "raw message is -0.0"),
    ("body checksum", words(2, 6)[:-1] + b"\1", "body checksum"),
    ("body checksum of nothing", oracle.seal(craft()[:56] + b"\1" + bytes(7)), "body checksum"),
    ("NaN with body", craft(bytes(4), flags=1, sent=1), "body bytes is 4"),
    ("NaN beyond", craft(flags=1, sent=100), "non-finite element 100 of only 100"),
    ("NaN packed", craft(kind=2, flags=1), "non-finite flag on kind 2"),
    ("NaN dense", craft(kind=3, flags=1), "non-finite flag on kind 3"),
    ("NaN byte", craft(kind=4, element=1, flags=1, threshold=0), "non-finite flag on kind 4"),
    ("raw bytes", craft(bytes(7), kind=4, element=1, n=6, threshold=0), "body bytes is 7"),
    ("raw float32", craft(bytes(8), kind=4, element=2, n=3, threshold=0), "body bytes is 8"),
    ("raw float64", craft(bytes(8), kind=4, element=3, n=3, threshold=0), "body bytes is 8"),
    ("raw wraps", craft(kind=4, element=3, n=2**61, threshold=0), "elements is"),
    ("words length", craft(bytes(8), sent=1), "body bytes is 8"),
    ("words sent", craft(bytes(404), sent=101), "sent is 101"),
    ("words sent wraps", craft(sent=2**62, n=2**60), "sent is 4611686018427387904"),
    ("words n", craft(n=2**31 + 1), "2147483649 elements, more than 2"),
    ("words order", words(6, 2), "strictly increase"),
    ("words twice", words(6, 6), "strictly increase"),
    ("words both signs", words(6, 7), "strictly increase"),
    ("words beyond", words(2, 200), "last index 100"),
    ("dense length", craft(bytes(24), kind=3), "body bytes is 24"),
    ("dense n wraps", craft(kind=3, n=HUGE), "elements is"),
    ("dense sent", craft(b"\1" + bytes(24), kind=3, sent=2), "not `sent` codes"),
    ("dense sent less", craft(b"\5" + bytes(24), kind=3, sent=1), "not `sent` codes"),
    ("dense code", craft(b"\2" + bytes(24), kind=3, sent=1), "code 2"),
    ("dense fill", craft(b"\1\4", kind=3, n=5, sent=1), "fill after the last code"),
    ("dense fill zeros", craft(b"\1\x10", kind=3, n=5, sent=1), "fill after the last code"),
    ("packed nothing", craft(bytes(8), kind=2), "body bytes is 8"),
    ("packed no body", craft(kind=2, sent=1), "body bytes is 0"),
    ("packed no directory", craft(bytes(15), kind=2, n=9999, sent=1025), "body bytes is 15"),
    ("packed sent", packed(span(0, 20), n=1, sent=2), "sent is 2"),
    ("packed sent huge", craft(bytes(64), kind=2, n=2**60, sent=2**60), "body bytes is 64"),
    ("packed span 0", packed(span(0, 0)), "less than its block's count"),
    ("packed span 1", packed(span(0, 1)), "less than its block's count"),
    ("packed span over n", packed(span(0, 101)), "more than the 100 elements"),
    ("packed span huge", packed(span(0, HUGE)), "more than the 100 elements"),
    ("packed n less", packed(span(0, 20), n=19), "more than the 19 elements"),
    ("packed second span", packed(span(1, 3000), MANY, 3114), "more than the 3114 elements"),
    ("packed spans wrap", packed(span(1, HUGE - 3000), MANY, 3114), "more than the 3114"),
    ("packed short", packed(lambda body: body[:-1]), "the spans of the packed body give"),
    ("packed long", packed(lambda body: body + b"\0"), "the spans of the packed body give"),
    ("packed other span", packed(span(0, 90)), "the spans of the packed body give"),
    ("packed gap", packed(put(595, 1), MANY, 3114), "gap after it"),
    ("packed lows fill", packed(put(8, 0xF2), {9: 1}), "fill after lows"),
    ("packed uppers fill", packed(put(9, 0b11010)), "fill after uppers"),
    ("packed ones less", packed(put(9, 0b1000)), "one 1 for each"),
    ("packed ones more", packed(put(9, 0b1011)), "one 1 for each"),
    ("packed last bit", packed(put(9, 0b0110)), "last bit of uppers"),
    ("packed beyond", packed(put(8, 0x82)), "outside the block"),
    ("packed beyond, not last", packed(lambda body: body[:8] + b"\x78\x0c"), "outside the block"),
]


@every_codec
@pytest.mark.parametrize("message, says", [pytest.param(m, s, id=name) for name, m, s in CRAFTED])
def test_crafted_messages_are_refused(codec, message, says):
    with pytest.raises(MessageError, match=says):
        codec.validate(message)
    with pytest.raises(MessageError, match=says):
        codec.decode_add([message], np.zeros(100, np.float32))


def sound_but_rare():
    far = {0: 1, 5: -1, 2**45: 1, 2**59: -1}
    yield "packed and empty", craft(kind=2)
    yield "packed, empty, beyond words", craft(kind=2, n=2**40)
    yield "packed, wide", craft(oracle.packed_body(far), kind=2, n=2**60, sent=4)
    yield "words, last of 2^31", craft(struct.pack("<I", 2**32 - 1), n=2**31, sent=1)
    yield "not the shortest", craft(bytes(24) + b"\x40", kind=3, sent=1)
    yield "no elements", craft(n=0)
    yield "announced beyond words", craft(flags=1, n=2**40, sent=2**39)
    yield "raw weight", craft(kind=4, element=1, n=0, sent=HUGE, threshold=0)


@every_codec
@pytest.mark.parametrize("message", [pytest.param(m, id=name) for name, m in sound_but_rare()])
def test_rare_but_sound_messages_are_accepted(codec, message):
    fields, _ = oracle.decode(message)
    header = codec.validate(message)
    assert {name: getattr(header, name) for name in fields} == fields


@other_codec
@settings(derandomize=True, deadline=None, max_examples=400, database=None)
@given(
    name=st.sampled_from(["words_1", "packed_few", "packed_1025", "packed_uneven", "dense_fill"]),
    seed=st.integers(0, 2**32 - 1),
    changes=st.integers(1, 3),
    sent=st.sampled_from([0, 0, 0, 1, -1]),
)
def test_codecs_agree_on_damaged_bodies(codec, name, seed, changes, sent):
    """With checksums repaired: the same verdict, and the same effect where it is accepted."""
    rng, message = np.random.default_rng(seed), bytearray(stored(name))
    header = oracle.decode(bytes(message))[0]
    for _ in range(changes):
        at = 64 + int(rng.integers(len(message) - 64))
        message[at] = (
            message[at] ^ 1 << rng.integers(8) if rng.random() < 0.7 else rng.integers(256)
        )
    damaged = oracle.message(
        header["kind"], 0, 0, header["elements"], header["sent"] + sent, 0, 0, 0, 1.0,
        bytes(message[64:]),
    )  # fmt: skip
    ours, theirs = (np.zeros(header["elements"], np.float32) for _ in range(2))
    try:
        portable.decode_add([damaged], ours)
    except MessageError as error:
        with pytest.raises(MessageError) as found:
            codec.decode_add([damaged], theirs)
        assert str(found.value) == str(error)
    else:
        codec.decode_add([damaged], theirs)
        assert ours.tobytes() == theirs.tobytes()


# -- sizes ---------------------------------------------------------------------------------------


def entropy_per_sent(p):
    """Bits that random positions and signs need for each sent element: H(p) / p + 1."""
    return (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / p + 1


@pytest.mark.parametrize("p, limit", [(1e-4, 1.08), (1e-3, 1.08), (1e-2, 1.08), (1e-1, 1.12)])
def test_size_is_near_the_entropy_bound(p, limit):
    n = 4_000_000
    rng = np.random.default_rng(1)
    gradient = np.zeros(n, np.float32)
    gradient[rng.random(n) < p] = 1
    gradient *= rng.choice(np.array([-1, 1], np.float32), n)
    message = portable.encode([gradient], np.zeros(n, np.float32), np.empty(n, np.float32), 1.0)
    header = portable.read_header(message)
    assert header.kind == 2
    bits = 8 * header.body_bytes / header.sent
    assert 1 < bits / entropy_per_sent(header.sent / n) < limit


def positions():
    """(n, increasing indices): even, crowded, one block far from the next."""
    rng = np.random.default_rng(3)
    for n, k in [(5000, 7), (5000, 1024), (60_000, 1025), (60_000, 3000), (200_000, 2048)]:
        yield n, np.sort(rng.choice(n, k, replace=False))
        yield n, np.arange(k) * (n // k) + n // k - 1
        yield n, np.append(np.arange(k - 1), n - 1)
        yield n, np.append(0, np.arange(n - k + 1, n))


@pytest.mark.parametrize("n, indices", [pytest.param(*each, id=str(i)) for i, each in
                                        enumerate(positions())])  # fmt: skip
def test_no_message_is_longer_than_its_bound(n, indices):
    gradient = np.zeros(n, np.float32)
    gradient[indices] = -1
    message = portable.encode([gradient], np.zeros(n, np.float32), np.empty(n, np.float32), 1.0)
    assert len(message) <= portable.bound(n, len(indices)) <= portable.message_capacity(n)
    packed_bytes = len(oracle.packed_body(dict.fromkeys(indices.tolist(), -1)))
    low, blocks = oracle.low_bit_count(n, len(indices)), -(-len(indices) // 1024)
    bits = len(indices) * (low + 1) + -(-2 * n // 2**low)
    assert packed_bytes <= 17 * blocks + -(-bits // 8)


def test_bound_grows_with_what_is_sent():
    for n in (1, 2, 3, 17, 1000, 4097, 20_000):
        bounds = [portable.bound(n, k) for k in range(n + 1)]
        assert bounds == sorted(bounds)
