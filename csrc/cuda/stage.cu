// Accumulate, threshold, residual, compaction, in one pass over the bucket (docs/message-format.md). A block of threads
// takes a chunk; in each round a thread takes four elements, so that loads are of 16 bytes where the arrays allow it.
#include "cuda/encoder.cuh"

constexpr unsigned ROUNDS = CHUNK / (4 * THREADS), WARPS = THREADS / WARP;
constexpr unsigned COUNTS_PER_LANE = ROUNDS * WARPS / WARP;
constexpr unsigned SEGMENTS_AT_ONCE = 64;        // of the table, as an argument of a kernel

struct SegmentsAtOnce { Segment of[SEGMENTS_AT_ONCE]; };

__global__ void note_segments(SegmentsAtOnce part, Segment *table, unsigned count)
{
    if (threadIdx.x < count)
        table[threadIdx.x] = part.of[threadIdx.x];
}

// -- one element -----------------------------------------------------------------------------------------------------

__device__ inline float from_bfloat16(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }

__device__ inline float from_float16(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31)                                         // NaN, infinity
        return __uint_as_float(sign | 0x7F800000u | fraction << 13);
    if (exponent != 0)
        return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    return __uint_as_float(sign | __float_as_uint((float)fraction * 0x1p-24f));     // denormal or zero; exact
}

template <gtcb_dtype D> struct Gradient;
template <> struct Gradient<GTCB_F32> {
    using type = float;
    static __device__ float sum(float r, float g) { return r + g; }
};
template <> struct Gradient<GTCB_F64> {
    using type = double;
    static __device__ float sum(float r, double g) { return (float)((double)r + g); }
};
template <> struct Gradient<GTCB_BF16> {
    using type = uint16_t;
    static __device__ float sum(float r, uint16_t g) { return r + from_bfloat16(g); }
};
template <> struct Gradient<GTCB_F16> {
    using type = uint16_t;
    static __device__ float sum(float r, uint16_t g) { return r + from_float16(g); }
};

__device__ inline bool finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// -- four elements of one thread ---------------------------------------------------------------------------------------

template <class T> struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four { T of[4]; };

// Segment in which the bucket's element lies: the last one that begins at or before it and is not empty.
__device__ inline uint64_t segment_of(const Encoder &e, uint64_t element)
{
    uint64_t low = 0, high = e.segment_count;
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (e.segments[middle].start <= element)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// Gradients and residuals of the elements first … first + count - 1, count <= 4. *segment: one at or before theirs.
template <class T> __device__ void load(const Encoder &e, uint64_t first, unsigned count, uint64_t *segment, T *g, float *r)
{
    while (e.segments[*segment + 1].start <= first)
        ++*segment;
    const Segment s = e.segments[*segment];
    const T *from = (const T *)s.data + (first - s.start);
    const bool whole = count == 4 && e.segments[*segment + 1].start >= first + 4;
    if (whole && (uintptr_t)from % sizeof(Four<T>) == 0) {
        const Four<T> four = *(const Four<T> *)from;
        for (unsigned j = 0; j < 4; j++)
            g[j] = four.of[j];
    } else {
        uint64_t at = *segment;
        for (unsigned j = 0; j < count; j++) {
            while (e.segments[at + 1].start <= first + j)
                at++;
            g[j] = ((const T *)e.segments[at].data)[first + j - e.segments[at].start];
        }
    }
    if (count == 4 && e.aligned) {
        const Four<float> four = *(const Four<float> *)(e.residual_in + first);
        for (unsigned j = 0; j < 4; j++)
            r[j] = four.of[j];
    } else {
        for (unsigned j = 0; j < count; j++)
            r[j] = e.residual_in[first + j];
    }
}

__device__ inline void store(const Encoder &e, uint64_t first, unsigned count, const float *r)
{
    if (count == 4 && e.aligned) {
        Four<float> four;
        for (unsigned j = 0; j < 4; j++)
            four.of[j] = r[j];
        *(Four<float> *)(e.residual_out + first) = four;
    } else {
        for (unsigned j = 0; j < count; j++)
            e.residual_out[first + j] = r[j];
    }
}

// -- a chunk -------------------------------------------------------------------------------------------------------------

struct Shared {
    uint32_t counts[ROUNDS * WARPS];     // words of each round and warp; then of all before them
    uint32_t non_finite, sent;
};

// What a thread remembers of a round: bits 0-3 sent, 4-7 negative, from 8 on the words of the warp's lanes before it.
struct Hits { uint32_t packed; };

template <gtcb_dtype D> __device__ Hits stage_four(const Encoder &e, uint64_t first, unsigned at, unsigned count,
                                                   uint64_t *segment, Shared *shared)
{
    typename Gradient<D>::type g[4];
    float r[4], tau = e.threshold;
    uint32_t sent = 0, negative = 0;
    if (count > 0) {
        load(e, first + at, count, segment, g, r);
        for (unsigned j = 0; j < 4; j++) {
            if (j >= count)
                break;
            const float t = Gradient<D>::sum(r[j], g[j]);
            const float q = t >= tau ? tau : t <= -tau ? -tau : 0.0f;
            if (!finite(t))
                atomicMin(&shared->non_finite, at + j);         // the least one, whatever the order
            sent |= (uint32_t)(q != 0.0f) << j;
            negative |= (uint32_t)(q < 0.0f) << j;
            r[j] = t - q;
        }
        store(e, first + at, count, r);
    }
    uint32_t before = 0;
    if (__ballot_sync(ALL, sent != 0) != 0) {
        const uint32_t lanes_before = (1u << lane_of()) - 1;
        for (unsigned j = 0; j < 4; j++)
            before += __popc(__ballot_sync(ALL, sent >> j & 1) & lanes_before);
    }
    return {sent | negative << 4 | before << 8};
}

// Numbers the words of all rounds and warps; sets shared->sent. By the first warp.
__device__ inline void number_rounds(Shared *shared)
{
    uint32_t own[COUNTS_PER_LANE], sum = 0;
    for (unsigned i = 0; i < COUNTS_PER_LANE; i++) {
        own[i] = shared->counts[lane_of() * COUNTS_PER_LANE + i];
        sum += own[i];
    }
    const uint32_t inclusive = (uint32_t)warp_scan(sum);
    uint32_t before = inclusive - sum;
    for (unsigned i = 0; i < COUNTS_PER_LANE; i++) {
        shared->counts[lane_of() * COUNTS_PER_LANE + i] = before;
        before += own[i];
    }
    if (lane_of() == WARP - 1)
        shared->sent = inclusive;
}

template <gtcb_dtype D> __device__ void stage_chunk(const Encoder &e, uint64_t chunk, Shared *shared)
{
    const uint64_t first = chunk * CHUNK;
    const unsigned count = (unsigned)least(e.elements - first, CHUNK);
    uint64_t segment = segment_of(e, first);
    Hits hits[ROUNDS];
    if (threadIdx.x == 0)
        shared->non_finite = NONE_IN_CHUNK;
    __syncthreads();
#pragma unroll
    for (unsigned round = 0; round < ROUNDS; round++) {
        const unsigned at = 4 * (round * THREADS + threadIdx.x);
        hits[round] = stage_four<D>(e, first, at, at >= count ? 0 : (unsigned)least(count - at, 4), &segment, shared);
        if (lane_of() == WARP - 1)
            shared->counts[round * WARPS + warp_of()] = (hits[round].packed >> 8) + __popc(hits[round].packed & 15);
    }
    __syncthreads();
    if (warp_of() == 0)
        number_rounds(shared);
    __syncthreads();
#pragma unroll
    for (unsigned round = 0; round < ROUNDS; round++) {
        const uint32_t packed = hits[round].packed;
        uint32_t place = shared->counts[round * WARPS + warp_of()] + (packed >> 8);
        for (unsigned j = 0; j < 4; j++)
            if (packed >> j & 1)
                e.words[first + place++] = (uint16_t)(2 * (4 * (round * THREADS + threadIdx.x) + j) + (packed >> (4 + j) & 1));
    }
    if (threadIdx.x == 0) {
        e.counts[chunk] = shared->sent;
        e.non_finite[chunk] = shared->non_finite;
    }
}

template <gtcb_dtype D> __device__ void stage_all(const Encoder &e, Shared *shared)
{
    for (uint64_t chunk = blockIdx.x; chunk < e.chunks; chunk += gridDim.x)
        stage_chunk<D>(e, chunk, shared);
}

// Four blocks to a multiprocessor (64 registers a thread), so that enough loads are under way.
__global__ void __launch_bounds__(THREADS, THREADS <= 256 ? 4 : 1) stage_chunks(Encoder e)
{
    __shared__ Shared shared;
    switch (e.dtype) {
    case GTCB_BF16: return stage_all<GTCB_BF16>(e, &shared);
    case GTCB_F16: return stage_all<GTCB_F16>(e, &shared);
    case GTCB_F64: return stage_all<GTCB_F64>(e, &shared);
    default: return stage_all<GTCB_F32>(e, &shared);
    }
}

void launch_stage(const Encoder &e, const gtcb_segment *segments, const gtcb_cuda_launch &launch)
{
    uint64_t start = 0;
    for (uint64_t first = 0; first <= e.segment_count; first += SEGMENTS_AT_ONCE) {
        SegmentsAtOnce part = {};
        const unsigned count = (unsigned)least(e.segment_count + 1 - first, SEGMENTS_AT_ONCE);
        for (unsigned i = 0; i < count; i++) {
            const bool end = first + i == e.segment_count;
            part.of[i] = {end ? nullptr : segments[first + i].data, start};
            start += end ? 0 : segments[first + i].count;
        }
        GTCB_LAUNCH(note_segments, 1, SEGMENTS_AT_ONCE, launch.stream, part, e.segments + first, count);
    }
    const unsigned blocks = (unsigned)least(launch.blocks, e.chunks);
    GTCB_LAUNCH(stage_chunks, blocks, THREADS, launch.stream, e);
}
