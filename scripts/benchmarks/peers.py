"""The codecs of others, each in the form that suits it best: words to bytes and back.

Words are 2 * index + negative, increasing, uint32. That nothing is checked and no number of elements sent is to the good of
the others. What is around a codec (gaps, sums, planes, signs) is C with preallocated buffers (glue.c); buffers of a codec
itself are kept where it lets them be. All run on one thread.
"""

from __future__ import annotations

import array
from importlib import import_module

import numpy as np

from .library import Library, address


class Peer:
    """encode(words) gives what would be sent, size(packed) its bytes; decode(packed, count) a view on the words."""

    name = how = ""
    package: str | None = None  # to be imported; None: needs none

    def __init__(self, library: Library, most: int):
        """most: the longest words that will come."""
        self.library, self.most = library, most
        self.module = import_module(self.package) if self.package else None
        self.gaps, self.words = (np.ones(most + 4096, np.uint32) for _ in range(2))
        self.prepare()

    def prepare(self):
        pass

    def size(self, packed) -> int:
        return len(packed)


class Raw(Peer):
    name, how = "raw words", "the words as they are; decoding is nothing"

    def encode(self, words):
        packed = np.empty_like(words)
        packed[:] = words
        return packed

    def size(self, packed):
        return packed.nbytes

    def decode(self, packed, count):
        return packed[:count]


class FastPFor(Peer):
    package, codec = "pyfastpfor", "simdfastpfor128"
    name, how = codec, "gaps between neighbouring words (its prefixSum1)"

    def prepare(self):
        self.pfor = self.module.getCodec(self.codec)
        self.packed = np.ones(self.most + self.most // 4 + 4096, np.uint32)

    def differences(self, words):
        self.library.gaps(address(words), len(words), address(self.gaps))

    def sum_up(self, count):
        self.module.prefixSum1(self.words, count)

    def encode(self, words):
        self.differences(words)
        size = self.pfor.encodeArray(self.gaps, len(words), self.packed, len(self.packed))
        return self.packed[:size].copy()

    def size(self, packed):
        return packed.nbytes

    def decode(self, packed, count):
        self.pfor.decodeArray(packed, len(packed), self.words, count)
        self.sum_up(count)
        return self.words[:count]


class BinaryPacking(FastPFor):
    codec = name = "simdbinarypacking"


class _Four(FastPFor):
    how = "gaps to the fourth word before (its delta4 and prefixSum4): 2 bits more, vector sums"

    def differences(self, words):
        self.gaps[: len(words)] = words
        self.module.delta4(self.gaps, len(words))

    def sum_up(self, count):
        self.module.prefixSum4(self.words, count)


class FastPForFour(_Four):
    codec, name = "simdfastpfor128", "simdfastpfor128, by four"


class BinaryPackingFour(_Four):
    codec, name = "simdbinarypacking", "simdbinarypacking, by four"


class Blosc(Peer):
    package, codec, level = "blosc2", "LZ4", 5
    name, how = "blosc2 lz4", "gaps between words; bit shuffle, level 5"

    def prepare(self):
        b = self.module
        b.set_nthreads(1)
        self.settings = {"typesize": 4, "codec": getattr(b.Codec, self.codec), "clevel": self.level,
                         "filters": [b.Filter.BITSHUFFLE], "filters_meta": [0], "nthreads": 1}  # fmt: skip

    def encode(self, words):
        self.library.gaps(address(words), len(words), address(self.gaps))
        return self.module.compress2(self.gaps[: len(words)], **self.settings)

    def decode(self, packed, count):
        self.module.decompress2(packed, dst=self.gaps[:count], nthreads=1)
        self.library.sums(address(self.gaps), count, address(self.words))
        return self.words[:count]


class BloscZstd(Blosc):
    codec, name = "ZSTD", "blosc2 zstd"


class Roaring(Peer):
    package = "pyroaring"
    name, how = "Roaring, words", "a bitmap of the words, run-optimized"

    def bitmap(self, numbers):
        values = array.array("I")
        values.frombytes(numbers.view(np.uint8))
        made = self.module.BitMap(values)
        made.run_optimize()
        return made.serialize()

    def numbers(self, packed):
        return np.frombuffer(self.module.BitMap.deserialize(packed).to_array(), np.uint32)

    def encode(self, words):
        return self.bitmap(words)

    def decode(self, packed, count):
        return self.numbers(packed)


class RoaringSigns(Roaring):
    name, how = "Roaring, indices", "a bitmap of the indices, run-optimized, and a bit for each sign"

    def prepare(self):
        self.signs = np.ones(self.most // 8 + 1, np.uint8)

    def encode(self, words):
        count = len(words)
        self.library.split(address(words), count, address(self.gaps), address(self.signs))
        return self.bitmap(self.gaps[:count]), self.signs[: (count + 7) // 8].copy()

    def size(self, packed):
        return len(packed[0]) + len(packed[1])

    def decode(self, packed, count):
        indices = self.numbers(packed[0])
        self.library.join(address(indices), address(packed[1]), count, address(self.words))
        return self.words[:count]


class Zstandard(Peer):
    package, level = "zstandard", 3
    name, how = "zstd", "gaps between words, in four planes of bytes; level 3"

    def prepare(self):
        self.compressor = self.module.ZstdCompressor(level=self.level)
        self.decompressor = self.module.ZstdDecompressor()
        self.planes = np.ones(4 * self.most, np.uint8)

    def encode(self, words):
        count = len(words)
        self.library.gaps(address(words), count, address(self.gaps))
        self.library.planes(address(self.gaps), count, address(self.planes))
        return self.compressor.compress(self.planes[: 4 * count])

    def decode(self, packed, count):
        planes = np.frombuffer(self.decompressor.decompress(packed), np.uint8)
        self.library.sums_of_planes(address(planes), count, address(self.words))
        return self.words[:count]


PEERS = (Raw, FastPFor, FastPForFour, BinaryPacking, BinaryPackingFour, Blosc, BloscZstd, Roaring, RoaringSigns,
         Zstandard)  # fmt: skip


def missing() -> dict[str, str]:
    """Why a peer cannot be had here, by its name."""
    reasons = {}
    for kind in PEERS:
        try:
            import_module(kind.package or "array")
        except ImportError as error:
            reasons[kind.name] = f"{kind.package} is missing: pip install {kind.package} ({error})"
    return reasons


def present(library: Library, most: int) -> list[Peer]:
    lacking = missing()
    return [kind(library, most) for kind in PEERS if kind.name not in lacking]
