// A tile of a sum, by one block of threads. Its sums stay in shared memory until all messages have been added, and are
// written once. Of as many messages as there are warps each is marked by one warp, in a plane of its own; then each thread
// takes its words of all planes, in the order of the messages, and adds. So no two threads add to an element, and nothing
// is atomic but the setting of bits. Bodies are sound.
#pragma once

#include "cuda/decoder.cuh"

constexpr unsigned PLANES = THREADS / WARP, TILE = THREADS <= 256 ? 8192 : 4096, CODES = 16, TILE_WORDS = TILE / CODES;

struct Tile {
    float sums[TILE];
    uint32_t planes[PLANES * TILE_WORDS];    // one after the other; codes of two bits, as in a dense body: 0, 1: +τ, 3: -τ
};
static_assert(sizeof(Tile) <= 48 << 10, "what a block can have without asking for it");

struct Sum {
    float *values;
    uint64_t elements;
    bool fresh;                    // from 0 on; else from what is there
    float divisor;
};

struct Range { uint64_t first, end; };       // elements; first: a multiple of TILE

// Where in the sums. Threads that take the same element of different words find it in different banks.
__device__ inline unsigned place_of(unsigned at) { return at ^ (at / CODES % CODES); }

// -- marking a message's part of the tile; by a whole warp ---------------------------------------------------------------

// How many of `count` things in ascending order are before something: those of which is_before(i) is true.
template <class Before> __device__ inline uint64_t count_before(uint64_t count, Before is_before)
{
    uint64_t low = 0, high = count;
    while (low < high) {
        const uint64_t step = parts(high - low, WARP), at = low + lane_of() * step;
        const unsigned before = __popc(__ballot_sync(ALL, at < high && is_before(at)));
        if (before == 0)
            return low;
        high = least(high, low + before * step);
        low += (before - 1) * step + 1;
    }
    return low;
}

__device__ inline void mark(uint32_t *plane, const Range &r, uint64_t element, bool negative)
{
    const unsigned at = (unsigned)(element - r.first);
    atomicOr(&plane[at / CODES], (negative ? 3u : 1u) << 2 * (at % CODES));
}

__device__ inline void mark_words(const Message &m, const Range &r, uint32_t *plane)
{
    const uint32_t *words = (const uint32_t *)m.body;
    uint64_t i = count_before(m.sent, [&](uint64_t j) { return words[j] >> 1 < r.first; });
    for (i += lane_of(); i < m.sent && words[i] >> 1 < r.end; i += WARP)
        mark(plane, r, words[i] >> 1, words[i] & 1);
}

struct BlockAt { uint64_t base, lows; unsigned l; };     // of a packed body; lows: the bit where they begin

// The ones in 32 upper bits: the first of them is bit `at` or later, and element i of the block.
__device__ inline void mark_ones(const Message &m, const BlockAt &b, uint32_t bits, uint64_t at, uint64_t i, const Range &r,
                                 uint32_t *plane)
{
    const uint64_t least_upper = at + (unsigned)__ffs((int)bits) - 1 - i, greatest = at + log2_of(bits) - (i + __popc(bits) - 1);
    if (b.base + (least_upper << (b.l - 1)) >= r.end || b.base + ((greatest + 1) << (b.l - 1)) <= r.first)
        return;
    for (; bits != 0; bits &= bits - 1, i++) {
        const uint64_t upper = at + (unsigned)__ffs((int)bits) - 1 - i;
        const uint64_t v = upper << b.l | get_long_bits(m.body, b.lows + i * b.l, b.l), element = b.base + (v >> 1);
        if (element >= r.first && element < r.end)
            mark(plane, r, element, v & 1);
    }
}

// The uppers say where the elements are: element i is the i-th one of them. A lane takes 32 bits at a time.
__device__ inline void mark_block(const Message &m, uint64_t block, uint64_t base, uint64_t offset, const Range &r, uint32_t *plane)
{
    const Layout y = layout_of(m.body[block], count_of(m.sent, block));
    const BlockAt b = {base, 8 * offset, y.l};
    const uint64_t uppers = b.lows + 8 * y.lows_bytes;
    for (uint64_t from = 0, ones = 0; from < y.upper_bits; from += 32 * WARP) {
        const uint64_t at = from + 32 * lane_of();
        const uint32_t bits = at < y.upper_bits ? get_bits(m.body, uppers + at, (unsigned)least(32, y.upper_bits - at)) : 0;
        const uint64_t up_to = ones + warp_scan(__popc(bits));
        if (bits != 0)
            mark_ones(m, b, bits, at, up_to - __popc(bits), r, plane);
        ones = __shfl_sync(ALL, (unsigned long long)up_to, WARP - 1);
    }
}

__device__ inline void mark_packed(const Decoder &d, unsigned slot, const Message &m, const Range &r, uint32_t *plane)
{
    const uint64_t *bases = d.bases + slot * d.places, *offsets = d.offsets + slot * d.places, blocks = d.found[slot].blocks;
    const uint64_t begun = count_before(blocks, [&](uint64_t b) { return bases[b] <= r.first; });
    for (uint64_t b = begun > 0 ? begun - 1 : 0; b < blocks && bases[b] < r.end; b++)
        mark_block(m, b, bases[b], offsets[b], r, plane);
}

__device__ inline void copy_codes(const Message &m, const Range &r, uint32_t *plane)
{
    const uint32_t *codes = (const uint32_t *)m.body + r.first / CODES;
    for (unsigned i = lane_of(); i * CODES < r.end - r.first; i += WARP)
        plane[i] = codes[i];
}

__device__ inline void mark_message(const Decoder &d, unsigned slot, const Message &m, const Range &r, uint32_t *plane)
{
    if (m.kind == GTCB_WORDS)
        mark_words(m, r, plane);
    else if (m.kind == GTCB_PACKED)
        mark_packed(d, slot, m, r, plane);
    else if (m.sent > 0)
        copy_codes(m, r, plane);
}

// -- adding ------------------------------------------------------------------------------------------------------------------

// And empties the planes.
__device__ inline void add_planes(Tile *tile, const Message *messages, unsigned count)
{
    for (unsigned word = threadIdx.x; word < TILE_WORDS; word += THREADS)
        for (unsigned i = 0; i < count; i++) {
            const float tau = messages[i].threshold;
            uint32_t codes = tile->planes[i * TILE_WORDS + word];
            tile->planes[i * TILE_WORDS + word] = 0;
            for (unsigned shift; codes != 0; codes &= ~(3u << shift)) {
                shift = ((unsigned)__ffs((int)codes) - 1) & ~1u;
                tile->sums[place_of(word * CODES + shift / 2)] += codes >> shift & 2 ? -tau : tau;
            }
        }
}

__device__ inline void clear_planes(Tile *tile)
{
    for (unsigned i = threadIdx.x; i < PLANES * TILE_WORDS; i += THREADS)
        tile->planes[i] = 0;
}

// The planes are empty.
__device__ inline void sum_tile(Tile *tile, const Decoder &d, const Batch &batch, unsigned count, const Sum &s, uint64_t first)
{
    const Range r = {first, least(first + TILE, s.elements)};
    for (unsigned i = threadIdx.x; i < r.end - r.first; i += THREADS)
        tile->sums[place_of(i)] = s.fresh ? 0.0f : s.values[r.first + i];
    for (unsigned at = 0; at < count; at += PLANES) {
        const unsigned now = (unsigned)least(count - at, PLANES), slot = at + warp_of();
        __syncthreads();
        if (warp_of() < now)
            mark_message(d, slot, batch.of[slot], r, tile->planes + warp_of() * TILE_WORDS);
        __syncthreads();
        add_planes(tile, batch.of + at, now);
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < r.end - r.first; i += THREADS) {
        const float sum = tile->sums[place_of(i)];
        s.values[r.first + i] = s.divisor == 1.0f ? sum : sum / s.divisor;
    }
}
