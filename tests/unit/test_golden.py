"""The stored messages hold the format in place: oracle, portable and native give their bytes."""

import numpy as np
import pytest
from golden.make_golden import CASES, residual_digest, stored_digests

from gtcbmuf.backends import native_is_built, portable

BACKENDS = ["portable", "native"]


def backend(name):
    if name == "portable":
        return portable
    if not native_is_built():
        pytest.skip("the extension gtcbmuf._core is not built")
    from gtcbmuf.backends import native

    return native


def encode(codec, case):
    """(message, new residual or None) from a codec, with the oracle's names for the arguments."""
    gradient, residual = case.inputs()
    options = dict(case.options)
    if case.threshold is None:
        return codec.raw(gradient, **options), None
    options["max_sent"] = options.pop("cap", None)
    out = np.empty_like(residual)
    # Three segments: borders between tensors must not show.
    third = len(gradient) // 3
    segments = [gradient[:third], gradient[third : 2 * third], gradient[2 * third :]]
    message = codec.encode(segments, residual, out, case.threshold, **options)
    return message, None if codec.read_header(message).non_finite else out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_oracle_still_gives_the_stored_bytes(case):
    message, residual = case.from_oracle()
    assert message == case.path.read_bytes()
    assert residual_digest(residual) == stored_digests()[case.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_codec_gives_the_stored_bytes(name, case):
    message, residual = encode(backend(name), case)
    assert bytes(message) == case.path.read_bytes()
    assert residual_digest(residual) == stored_digests()[case.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_codec_accepts_the_stored_bytes(name, case):
    message = case.path.read_bytes()
    header = backend(name).validate(message)
    assert header == backend(name).read_header(message)
    assert header.body_bytes == len(message) - 64


def test_no_file_is_left_over():
    stored = {path.name for path in CASES[0].path.parent.glob("*.bin")}
    assert stored == {case.path.name for case in CASES}
