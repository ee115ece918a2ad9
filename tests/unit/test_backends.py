"""Every codec against the oracle, and against portable where the oracle is too slow."""

import math

import codecs_under_test as codecs
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtcbmuf.backends import portable
from gtcbmuf.errors import MessageError, MismatchError, NonFiniteError

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=150, database=None)
every_codec = pytest.mark.parametrize("codec", codecs.ALL)


def corners(tau):
    """Floats around which something changes: +-tau and its neighbours, zeros, denormals, limits."""
    tau = np.float32(tau)
    near = [tau, np.nextafter(tau, np.float32(0)), np.nextafter(tau, np.float32(np.inf)), tau / 2]
    some = np.array([*near, 0, 1e-45, 1e-39, 1.2e-38, 3.4e38], np.float32)
    return np.concatenate([some, -some])


def as_dtype(values, dtype):
    """Gradient array as the codecs take it; bfloat16 by cutting bits off."""
    with np.errstate(over="ignore"):
        if dtype == "bfloat16":
            return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return np.asarray(values).astype(dtype)


@st.composite
def jobs(draw):
    """Arguments of encode: random buckets with corners strewn in, sometimes NaN or infinite."""
    n = draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tau = draw(st.sampled_from([1.0, 0.3, 2e-3, 1e-45, 1e38, 8.0]))
    spread = draw(st.sampled_from([0.1, 0.4, 1.0, 10.0])) * min(tau, 1e37)
    gradient, residual = rng.normal(0, spread, n), rng.normal(0, spread / 2, n).astype(np.float32)
    strewn = rng.random(n) < draw(st.sampled_from([0, 0.1, 1]))
    gradient[strewn] = rng.choice(corners(tau), strewn.sum())
    residual[strewn] = rng.choice(corners(tau), strewn.sum())
    if draw(st.integers(0, 9)) == 0:
        gradient[rng.integers(n)] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e39]))
    dtype = draw(st.sampled_from(["float32", "float64", "float16", "bfloat16"]))
    return {
        "gradient": as_dtype(gradient, dtype), "residual": residual, "tau": tau, "dtype": dtype,
        "cap": draw(st.one_of(st.none(), st.integers(1, 40))),
        "sequence": draw(st.one_of(st.integers(0, 50), st.integers(0, 2**64 - 1))),
        "cuts": sorted(draw(st.lists(st.integers(0, n), max_size=3))),
    }  # fmt: skip


def encode(codec, job, in_place=False):
    """(message, new residual or None) of a codec."""
    residual = job["residual"].copy()
    out = residual if in_place else np.full_like(residual, 7)
    message = codec.encode(
        np.split(job["gradient"], job["cuts"]), residual, out, job["tau"], max_sent=job["cap"],
        sequence=job["sequence"], bucket=3, sender=2, dtype=job["dtype"],
    )  # fmt: skip
    if not in_place:
        assert np.array_equal(residual.view(np.uint32), job["residual"].view(np.uint32))
    return bytes(message), None if message[6] else out.tobytes()


@every_codec
@DETERMINISTIC
@given(job=jobs())
def test_encode_is_the_oracle_s(codec, job):
    message, residual = oracle.encode(
        job["gradient"], job["residual"], job["tau"], dtype=job["dtype"], cap=job["cap"],
        sequence=job["sequence"], bucket=3, sender=2,
    )  # fmt: skip
    expected = message, None if residual is None else residual.tobytes()
    assert encode(codec, job) == expected
    assert encode(codec, job, in_place=True) == expected


@every_codec
@DETERMINISTIC
@given(job=jobs(), seed=st.integers(0, 2**32 - 1), count=st.integers(0, 4))
def test_decode_add_is_the_oracle_s(codec, job, seed, count):
    rng, n = np.random.default_rng(seed), len(job["gradient"])
    dense = rng.choice(np.append(corners(job["tau"]), rng.normal(size=20).astype("f")), n)
    messages = []
    for sender in range(count):
        gradient = rng.normal(0, rng.choice([0.1, 0.5, 1]), n).astype(np.float32)
        zeros = np.zeros(n, np.float32)
        messages.append(oracle.encode(gradient, zeros, 0.3 + sender, sender=sender)[0])
    expected = oracle.decode_add(messages, dense)
    codec.decode_add(messages, dense)
    assert dense.tobytes() == expected.tobytes()


def large_cases():
    """(n, sent or density, dtype, cap, cuts): block borders, chunk borders, all bodies."""
    for sent in (1023, 1024, 1025, 2048, 2049, 5000):
        yield 100_000, sent, "float32", None, []
    for n in (32_767, 32_768, 32_769, 65_536, 131_073):
        yield n, 0.01, "float32", None, [n // 3, n // 3, n // 3 + 1]
    for density in (0, 1e-4, 1e-3, 0.1, 0.5, 1):
        yield 200_003, density, "float32", None, [5, 40_000, 100_001]
    for dtype in ("float16", "bfloat16", "float64"):
        yield 70_001, 0.02, dtype, None, [33, 50_000]
    for cap in (1, 1023, 1024, 1025, 3000):
        yield 100_000, 0.05, "float32", cap, []


def large_job(n, sent, dtype, cap, cuts):
    rng = np.random.default_rng(n + int(1000 * sent))
    gradient = rng.normal(0, 0.1, n).clip(-0.9, 0.9)
    count = sent if isinstance(sent, int) and sent > 1 else int(sent * n)
    places = rng.choice(n, count, replace=False)
    gradient[places] = rng.choice([-1.5, 1.25], count)
    residual = np.zeros(n, np.float32) if isinstance(sent, int) else rng.normal(0, 0.02, n)
    return {
        "gradient": as_dtype(gradient, dtype), "residual": residual.astype(np.float32), "tau": 1.0,
        "dtype": dtype, "cap": cap, "sequence": 12345, "cuts": cuts,
    }  # fmt: skip


@pytest.mark.parametrize("codec", codecs.BUT_PORTABLE + codecs.THREADED)
@pytest.mark.parametrize("case", list(large_cases()), ids=str)
def test_large_buckets_are_portable_s(codec, case):
    job = large_job(*case)
    message, residual = encode(portable, job)
    assert encode(codec, job) == (message, residual)
    assert portable.validate(message) == codec.validate(message)
    ours, theirs = (np.linspace(-1, 1, case[0], dtype=np.float32) for _ in range(2))
    portable.decode_add([message] * 3, ours)
    codec.decode_add([message] * 3, theirs)
    assert ours.tobytes() == theirs.tobytes()


def test_large_cases_have_the_bodies_they_are_for():
    kinds = {encode(portable, large_job(*case))[0][5] for case in large_cases()}
    assert kinds == {1, 2, 3}
    assert portable.read_header(encode(portable, large_job(*next(large_cases())))[0]).sent == 1023


@every_codec
@DETERMINISTIC
@given(
    n=st.integers(0, 70),
    dtype=st.sampled_from(["uint8", "float32", "float64", "uint16"]),
    bad=st.one_of(st.none(), st.integers(0, 69)),
    weight=st.sampled_from([0, 1, 17, 2**64 - 1]),
)
def test_raw_is_the_oracle_s(codec, n, dtype, bad, weight):
    array = (np.random.default_rng(n).normal(size=n) * 50).astype(dtype)
    if bad is not None and bad < n and dtype != "uint8":
        bits = dtype == "uint16"  # of bfloat16
        array[bad], array[-1] = (0xFFC1, 0x7F80) if bits else (np.nan, np.inf)
    options = {"weight": weight, "sequence": 2**40, "bucket": 5, "sender": 6}
    message = codec.raw(array, **options)
    assert bytes(message) == oracle.raw(array, **options)
    header = codec.validate(message)
    if not header.non_finite:
        assert header.sent == weight
        assert message[64:].view(array.dtype).tobytes() == array.tobytes()


@every_codec
def test_messages_may_be_any_buffer(codec):
    gradient = np.zeros(50, np.float32)
    gradient[::7] = -2
    message, _ = oracle.encode(gradient, np.zeros(50, np.float32), 1.0)
    read_only = np.frombuffer(message, np.uint8)
    unaligned = np.frombuffer(b"x" + message, np.uint8)[1:]
    forms = [message, bytearray(message), memoryview(message), read_only, unaligned]
    dense = np.zeros(50, np.float32)
    codec.decode_add(forms, dense)
    assert np.array_equal(dense, len(forms) * np.sign(gradient))


@every_codec
def test_nothing_is_written_unless_all_messages_are_sound(codec):
    def sent(n, value=2.0, sender=0):
        ones = np.full(n, value, np.float32)
        return oracle.encode(ones, np.zeros(n, np.float32), 1.0, bucket=8, sender=sender)[0]

    good, broken = sent(40), bytearray(sent(40))
    broken[70] ^= 1
    raw = oracle.raw(np.zeros(40, np.float32))
    dense = np.zeros(40, np.float32)
    for bad, error, says in [
        (broken, MessageError, "body checksum"),
        (sent(41), MismatchError, "41 elements, dense has 40"),
        (raw, MismatchError, "raw message"),
        (sent(40, np.nan, 7), NonFiniteError, "rank 7: element 0 of bucket 8 is NaN"),
    ]:
        with pytest.raises(error, match=says):
            codec.decode_add([good, bad], dense)
        assert not dense.any()


def test_a_sum_is_conserved_over_1000_steps():
    """What came in is what was sent plus what is held back, to the rounding of the sums.

    Each step rounds t = r + g and r' = t - q once, by at most 2^-24 of the largest |t|: so
    |sum(g) - sum(q) - r| <= 2 * steps * 2^-24 * max |t|, element by element.
    """
    n, steps, tau = 500, 1000, 0.7
    rng = np.random.default_rng(5)
    residual, sent, largest = np.zeros(n, np.float32), np.zeros(n), 0.0
    gradients = rng.normal(0, 0.5, (steps, n)).astype(np.float32)
    for step, gradient in enumerate(gradients):
        largest = max(largest, float(np.abs(residual + gradient).max()))
        message = portable.encode(
            [gradient], residual, residual, tau, max_sent=60 + step % 40, sequence=step
        )
        quanta = np.zeros(n, np.float32)
        portable.decode_add([message], quanta)
        sent += quanta  # float64; multiples of tau below 2^10: exact
    came = np.array([math.fsum(column) for column in gradients.T.tolist()])
    assert np.abs(came - sent - residual).max() <= 2 * steps * 2**-24 * largest
    assert np.abs(sent).max() > 10 * tau


@every_codec
@DETERMINISTIC
@given(n=st.one_of(st.integers(1, 3000), st.integers(1, 2**33)), part=st.floats(0, 1))
def test_bounds_are_the_oracle_s(codec, n, part):
    k = int(n * part**3)
    assert codec.bound(n, k) == oracle.bound(n, k)
    assert codec.message_capacity(n) == 64 + -(-n // 4)
    cap = oracle.bound(n, k)
    m = codec.max_sent(n, cap)
    assert k <= m <= n and oracle.bound(n, m) <= cap
    assert m == n or oracle.bound(n, m + 1) > cap
    assert codec.max_sent(n, 63) == 0


@every_codec
@pytest.mark.parametrize("first", [0, 4])
def test_checksums_are_those_of_the_format(codec, first):
    """Of any length, and from an address that is no word's, as parameters of a model have."""
    data = np.random.default_rng(1).integers(0, 256, 300, np.uint8)
    for length in (0, 1, 4, 7, 8, 63, 64, 65, 100, 256):
        part = data[first : first + length]
        assert codec.checksum(part) == oracle.checksum(part.tobytes())
