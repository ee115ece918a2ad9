// Accumulate, threshold, residual, compaction, in one pass over the bucket (docs/message-format.md). A block of threads
// takes a chunk; in each round a thread takes four elements, so that loads are of 16 bytes where the arrays allow it.
#include "cuda/gradients.cuh"

constexpr unsigned ROUNDS = CHUNK / (4 * THREADS), WARPS = THREADS / WARP;
constexpr unsigned COUNTS_PER_LANE = ROUNDS * WARPS / WARP;

// -- the table of segments: few of them are an argument of the kernel, more are brought to scratch memory -------------------

constexpr unsigned FEW = 64;

struct FewSegments { Segment of[FEW]; };

__global__ void note_segments(FewSegments part, Segment *table, unsigned count)
{
    if (threadIdx.x < count)
        table[threadIdx.x] = part.of[threadIdx.x];
}

// *first: number of the first one of this part; *start: where in the bucket it begins. Returns how many there are.
static unsigned next_segments(const Encoder &e, const gtcb_segment *segments, uint64_t *first, uint64_t *start, FewSegments *part)
{
    unsigned count = 0;
    for (; count < FEW && *first <= e.segment_count; ++count, ++*first) {
        const bool end = *first == e.segment_count;
        part->of[count] = {end ? nullptr : segments[*first].data, *start};
        *start += end ? 0 : segments[*first].count;
    }
    return count;
}

// -- a round: four elements of each thread -------------------------------------------------------------------------------

// What a thread remembers of a round: bits 0-3 sent, 4-7 negative, from 8 on the words of the warp's lanes before it.
using Hits = uint16_t;

struct Shared {
    Hits hits[ROUNDS][THREADS];
    uint32_t counts[ROUNDS * WARPS];     // words of each round and warp; then of all before them
    uint32_t non_finite, sent;
};

// t = r + g; q = ±τ where |t| >= τ, else 0; r = t - q. Bits 0-3: sent; 4-7: negative. `at`: index in the chunk.
template <gtcb_dtype D, class T> __device__ inline uint32_t threshold_four(const T *g, float *r, float tau, unsigned count, unsigned at,
                                                                           uint32_t *non_finite)
{
    uint32_t sent = 0, negative = 0, bad = 0;
#pragma unroll
    for (unsigned j = 0; j < 4; j++) {
        const float t = Gradient<D>::sum(r[j], g[j]);
        const float q = t >= tau ? tau : t <= -tau ? -tau : 0.0f;
        bad |= (uint32_t)!finite(t) << j;
        sent |= (uint32_t)(q != 0.0f) << j;
        negative |= (uint32_t)(q < 0.0f) << j;
        r[j] = t - q;
    }
    const uint32_t there = (1u << count) - 1;
    if (bad & there)
        atomicMin(non_finite, at + (unsigned)__ffs((int)(bad & there)) - 1);     // the least one, whatever the order
    return (sent & there) | (negative & there) << 4;
}

// Numbers the thread's words among those of its warp. By whole warps.
__device__ inline void note_hits(Shared *shared, unsigned round, uint32_t found)
{
    uint32_t before = 0;
    if (__ballot_sync(ALL, found != 0) != 0) {
        const uint32_t lanes_before = (1u << lane_of()) - 1;
        for (unsigned j = 0; j < 4; j++)
            before += __popc(__ballot_sync(ALL, found >> j & 1) & lanes_before);
    }
    shared->hits[round][threadIdx.x] = (Hits)(found | before << 8);
    if (lane_of() == WARP - 1)
        shared->counts[round * WARPS + warp_of()] = before + __popc(found & 15);
}

__device__ inline unsigned place_in_chunk(unsigned round) { return 4 * (round * THREADS + threadIdx.x); }

// A chunk that is whole, in one segment, and aligned, as nearly all are. Loads of several rounds are under way at once.
template <gtcb_dtype D, class T> __device__ void stage_plain(const Encoder &e, uint64_t first, const T *gradient, Shared *shared)
{
    constexpr unsigned AHEAD = sizeof(T) > 4 ? 2 : 4;
    static_assert(ROUNDS % AHEAD == 0, "whole groups of rounds");
#pragma unroll 1
    for (unsigned round = 0; round < ROUNDS; round += AHEAD) {
        Four<T> g[AHEAD];
        Four<float> r[AHEAD];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            g[i] = *(const Four<T> *)(gradient + place_in_chunk(round + i));
            r[i] = *(const Four<float> *)(e.residual_in + first + place_in_chunk(round + i));
        }
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const unsigned at = place_in_chunk(round + i);
            const uint32_t found = threshold_four<D>(g[i].of, r[i].of, e.threshold, 4, at, &shared->non_finite);
            store_four(e.residual_out + first + at, r[i].of);
            note_hits(shared, round + i, found);
        }
    }
}

template <gtcb_dtype D, class T> __device__ void stage_any(const Encoder &e, const Segment *segments, uint64_t first, unsigned count,
                                                           uint64_t segment, Shared *shared)
{
#pragma unroll 1
    for (unsigned round = 0; round < ROUNDS; round++) {
        const unsigned at = place_in_chunk(round), here = at >= count ? 0 : (unsigned)least(count - at, 4);
        T g[4] = {};
        float r[4] = {};
        uint32_t found = 0;
        if (here > 0) {
            load(e, segments, first + at, here, &segment, g, r);
            found = threshold_four<D>(g, r, e.threshold, here, at, &shared->non_finite);
            store(e, first + at, here, r);
        }
        note_hits(shared, round, found);
    }
}

// -- a chunk -------------------------------------------------------------------------------------------------------------

// Numbers the words of all rounds and warps; sets shared->sent. By the first warp.
__device__ inline void number_rounds(Shared *shared)
{
    uint32_t own[COUNTS_PER_LANE], sum = 0;
    for (unsigned i = 0; i < COUNTS_PER_LANE; i++) {
        own[i] = shared->counts[lane_of() * COUNTS_PER_LANE + i];
        sum += own[i];
    }
    const uint32_t inclusive = warp_scan(sum);
    uint32_t before = inclusive - sum;
    for (unsigned i = 0; i < COUNTS_PER_LANE; i++) {
        shared->counts[lane_of() * COUNTS_PER_LANE + i] = before;
        before += own[i];
    }
    if (lane_of() == WARP - 1)
        shared->sent = inclusive;
}

__device__ inline void write_staged(const Encoder &e, uint64_t first, const Shared *shared)
{
#pragma unroll 1
    for (unsigned round = 0; round < ROUNDS; round++) {
        const uint32_t hits = shared->hits[round][threadIdx.x];
        uint32_t place = shared->counts[round * WARPS + warp_of()] + (hits >> 8);
        for (uint32_t left = hits & 15; left != 0; left &= left - 1) {
            const unsigned j = (unsigned)__ffs((int)left) - 1;
            e.words[first + place++] = (uint16_t)(2 * (place_in_chunk(round) + j) + (hits >> (4 + j) & 1));
        }
    }
}

template <gtcb_dtype D> __device__ void stage_chunk(const Encoder &e, const Segment *segments, Shared *shared)
{
    using T = typename Gradient<D>::type;
    const uint64_t chunk = blockIdx.x, first = chunk * CHUNK, segment = segment_of(segments, e.segment_count, first);
    const unsigned count = (unsigned)least(e.elements - first, CHUNK);
    const T *gradient = (const T *)segments[segment].data + (first - segments[segment].start);
    const bool whole = count == CHUNK && segments[segment + 1].start >= first + CHUNK;
    if (threadIdx.x == 0)
        shared->non_finite = NONE_IN_CHUNK;
    __syncthreads();
    if (whole && e.aligned && (uintptr_t)gradient % sizeof(Four<T>) == 0)
        stage_plain<D>(e, first, gradient, shared);
    else
        stage_any<D, T>(e, segments, first, count, segment, shared);
    __syncthreads();
    if (warp_of() == 0)
        number_rounds(shared);
    __syncthreads();
    write_staged(e, first, shared);
    if (threadIdx.x == 0) {
        e.counts[chunk] = shared->sent;
        e.non_finite[chunk] = shared->non_finite;
    }
}

// Four blocks to a multiprocessor (64 registers a thread), so that enough loads are under way.
__global__ void __launch_bounds__(THREADS, THREADS <= 256 ? 4 : 1) stage_chunks(Encoder e, const __grid_constant__ FewSegments few)
{
    __shared__ Shared shared;
    let_next_get_ready();
    const Segment *segments = e.segment_count < FEW ? few.of : e.segments;
    switch (e.dtype) {
    case GTCB_BF16: return stage_chunk<GTCB_BF16>(e, segments, &shared);
    case GTCB_F16: return stage_chunk<GTCB_F16>(e, segments, &shared);
    case GTCB_F64: return stage_chunk<GTCB_F64>(e, segments, &shared);
    default: return stage_chunk<GTCB_F32>(e, segments, &shared);
    }
}

void launch_stage(const Encoder &e, const gtcb_segment *segments, const gtcb_cuda_launch &launch)
{
    FewSegments part = {};
    uint64_t first = 0, start = 0;
    const bool few = e.segment_count < FEW;
    for (Segment *table = e.segments; first <= e.segment_count;) {
        const unsigned count = next_segments(e, segments, &first, &start, &part);
        if (!few)
            GTCB_LAUNCH(note_segments, 1, FEW, launch.stream, part, table, count);
        table += count;
    }
    GTCB_LAUNCH(stage_chunks, (unsigned)e.chunks, THREADS, launch.stream, e, part);
}
