// A tile of a sum, by one warp. Its sums stay in shared memory until all messages have been added, one after the other, and are
// written once. The elements of a message are distinct, so no two lanes add to the same one, and nothing is atomic.
#pragma once

#include "cuda/decoder.cuh"

constexpr unsigned AHEAD = 8;                               // messages whose entries are loaded before the first is added
constexpr unsigned CODES = 16;                              // in a word of a dense body
static_assert(BATCH % WARP == 0 && WARP % AHEAD == 0, "groups of messages are whole");

struct alignas(16) Tile { float sums[TILE]; };

struct Sum {
    float *values;
    uint64_t elements;
    bool fresh;                    // from 0 on; else from what is there
    float divisor;
};

// A message's elements in the tile: entries first .. first + count - 1.
struct Part { uint64_t first; unsigned count; };

// Each lane looks at another message. The bounds hold for any body.
__device__ inline Part part_of(const Decoder &d, const Batch &batch, unsigned slot, uint64_t tile)
{
    if (!(batch.expanded >> slot & 1))
        return {0, 0};
    const uint64_t *starts = d.starts + slot * (d.tiles + 1) + tile;
    const uint64_t first = least(starts[0], batch.entries), end = least(starts[1], batch.entries);
    return {first, end > first ? (unsigned)(end - first) : 0};
}

__device__ inline Part part_in_lane(const Part &mine, unsigned lane)
{
    return {__shfl_sync(ALL, (unsigned long long)mine.first, lane), (unsigned)__shfl_sync(ALL, mine.count, lane)};
}

// -- adding --------------------------------------------------------------------------------------------------------------

__device__ inline void add_entry(Tile *t, unsigned entry, float tau) { t->sums[entry / 2 % TILE] += entry & 1 ? -tau : tau; }

// Those behind the first 32.
__device__ inline void add_rest(Tile *t, const Decoder &d, const Part &p, float tau)
{
    constexpr unsigned AT_ONCE = 4;
    for (unsigned i = WARP + lane_of(); i < p.count; i += AT_ONCE * WARP) {
        unsigned entries[AT_ONCE];
        #pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++)
            entries[j] = i + j * WARP < p.count ? d.entries[p.first + i + j * WARP] : 0;
        #pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++)
            if (i + j * WARP < p.count)
                add_entry(t, entries[j], tau);
    }
}

// 0: nothing, 1: +τ, 3: -τ. A lane loads every 32nd word, and adds every 32nd element: so no two lanes are in the same bank.
__device__ inline void add_codes(Tile *t, const Message &m, uint64_t first, unsigned elements)
{
    const uint32_t *words = (const uint32_t *)m.body + first / CODES;
    for (unsigned at = 0; at < elements; at += CODES * WARP) {
        const uint32_t mine = at + CODES * lane_of() < elements ? words[at / CODES + lane_of()] : 0;
        #pragma unroll 4
        for (unsigned i = 0; i < CODES; i++) {
            const uint32_t word = (uint32_t)__shfl_sync(ALL, mine, i * WARP / CODES + lane_of() / CODES);
            const unsigned code = word >> 2 * (lane_of() % CODES) & 3;
            if (code != 0)
                t->sums[at + i * WARP + lane_of()] += code & 2 ? -m.threshold : m.threshold;
        }
    }
}

// The messages of a group, of which lane i of `mine` knows the part of message i; `more`: bit i: more than 32 entries, or a dense body.
__device__ inline void add_group(Tile *t, const Decoder &d, const Batch &batch, const Part &mine, unsigned slot, uint32_t more,
                                 uint64_t tile, unsigned elements)
{
    Part of[AHEAD];
    unsigned entries[AHEAD];
    #pragma unroll
    for (unsigned i = 0; i < AHEAD; i++) {
        of[i] = part_in_lane(mine, slot % WARP + i);
        entries[i] = lane_of() < of[i].count ? d.entries[of[i].first + lane_of()] : 0;
    }
    #pragma unroll
    for (unsigned i = 0; i < AHEAD; i++) {
        const Message &m = batch.of[slot + i];
        if (lane_of() < of[i].count)
            add_entry(t, entries[i], m.threshold);
        if (more >> (slot % WARP + i) & 1) {
            if (batch.dense >> (slot + i) & 1)
                add_codes(t, m, tile * TILE, elements);
            else
                add_rest(t, d, of[i], m.threshold);
        }
        __syncwarp();
    }
}

__device__ inline void add_messages(Tile *t, const Decoder &d, const Batch &batch, unsigned count, uint64_t tile, unsigned elements)
{
    for (unsigned first = 0; first < count; first += WARP) {
        const Part mine = part_of(d, batch, first + lane_of(), tile);
        const uint32_t more = __ballot_sync(ALL, mine.count > WARP || (batch.dense >> (first + lane_of()) & 1));
        for (unsigned slot = first; slot < least(first + WARP, count); slot += AHEAD)
            add_group(t, d, batch, mine, slot, more, tile, elements);
    }
}

// -- the whole tile ------------------------------------------------------------------------------------------------------

__device__ inline float divided(const Sum &s, float sum) { return s.divisor == 1.0f ? sum : sum / s.divisor; }

// Four at a time where `values` can be written so; what is written is not read again soon.
__device__ inline void write_sums(const Tile &t, const Sum &s, float *values, unsigned elements)
{
    const unsigned whole = (uintptr_t)values % sizeof(float4) == 0 ? elements / 4 * 4 : 0;
    for (unsigned i = 4 * lane_of(); i < whole; i += 4 * WARP) {
        const float4 four = *(const float4 *)(t.sums + i);
        __stcs((float4 *)(values + i), make_float4(divided(s, four.x), divided(s, four.y), divided(s, four.z), divided(s, four.w)));
    }
    for (unsigned i = whole + lane_of(); i < elements; i += WARP)
        values[i] = divided(s, t.sums[i]);
}

__device__ inline void sum_tile(Tile *t, const Decoder &d, const Batch &batch, unsigned count, const Sum &s, uint64_t tile)
{
    float *values = s.values + tile * TILE;
    const unsigned elements = (unsigned)least(TILE, s.elements - tile * TILE);
    #pragma unroll 8
    for (unsigned i = lane_of(); i < elements; i += WARP)
        t->sums[i] = s.fresh ? 0.0f : values[i];
    __syncwarp();
    add_messages(t, d, batch, count, tile, elements);
    write_sums(*t, s, values, elements);
}
