// What has to be known of all words before one of them is written: their numbers, the cap, the layout of the packed body,
// and which body is the shortest (docs/message-format.md). The tables are short, so one block does it.
#include "cuda/encoder.cuh"

// The share of thread t in a table: consecutive entries.
struct Share { uint64_t begin, end; };

__device__ inline Share share_of(uint64_t entries)
{
    const uint64_t each = parts(entries, LONE_THREADS), begin = least(threadIdx.x * each, entries);
    return {begin, least(begin + each, entries)};
}

// -- numbers -----------------------------------------------------------------------------------------------------------

// Numbers the words of the chunks; returns how many there are. *non_finite: the first such index, on all threads.
__device__ inline uint64_t number_chunks(const Encoder &e, uint64_t *places, unsigned long long *non_finite)
{
    const Share share = share_of(e.chunks);
    uint64_t sum = 0, bad = NONE, all;
    if (threadIdx.x == 0)
        *non_finite = NONE;
#pragma unroll 4
    for (uint64_t c = share.begin; c < share.end; c++) {
        sum += e.counts[c];
        bad = least(bad, e.non_finite[c] == NONE_IN_CHUNK ? NONE : c * CHUNK + e.non_finite[c]);
    }
    __syncthreads();
    if (bad != NONE)
        atomicMin(non_finite, (unsigned long long)bad);
    uint64_t start = block_scan(sum, places, &all);
    for (uint64_t c = share.begin; c < share.end; c++) {
        e.starts[c] = start;
        start += e.counts[c];
    }
    __syncthreads();
    return all;
}

// -- cap: of k candidates keep the m numbered (c + j) mod k, put the others back: r' = (t - q) + q --------------------

__global__ void __launch_bounds__(LONE_THREADS) number_words(Encoder e)
{
    __shared__ uint64_t places[SCAN_PLACES];
    __shared__ unsigned long long non_finite;
    const uint64_t candidates = number_chunks(e, places, &non_finite);
    if (threadIdx.x == 0) {
        e.plan->sent = candidates;
        e.plan->window_start = candidates > e.max_sent ? e.sequence * e.max_sent % candidates : 0;
    }
}

// Keeps some of the words of a chunk, in order and in place: no word moves to where one has still to be read.
__device__ inline void cap_chunk(const Encoder &e, uint64_t chunk, uint64_t *places)
{
    uint16_t *words = e.words + chunk * CHUNK;
    const uint64_t candidates = e.plan->sent, window = e.plan->window_start;
    const uint32_t count = e.counts[chunk];
    uint32_t kept = 0;
    for (uint32_t first = 0; first < count; first += THREADS) {
        const uint32_t i = first + threadIdx.x;
        const uint16_t word = i < count ? words[i] : 0;
        const uint64_t number = e.starts[chunk] + i;
        const uint64_t j = number >= window ? number - window : number + (candidates - window);
        const bool keep = i < count && j < e.max_sent;
        if (i < count && !keep)
            e.residual_out[chunk * CHUNK + (word >> 1)] += word & 1 ? -e.threshold : e.threshold;
        uint64_t all;
        const uint64_t before = block_scan(keep, places, &all);
        if (keep)
            words[kept + before] = word;
        kept += (uint32_t)all;
    }
    __syncthreads();        // all have read the old count
    if (threadIdx.x == 0)
        e.counts[chunk] = kept;
}

__global__ void __launch_bounds__(THREADS) cap_chunks(Encoder e)
{
    __shared__ uint64_t places[SCAN_PLACES];
    if (e.plan->sent <= e.max_sent)
        return;
    for (uint64_t chunk = blockIdx.x; chunk < e.chunks; chunk += gridDim.x)
        cap_chunk(e, chunk, places);
}

// -- which body --------------------------------------------------------------------------------------------------------

// The index after the last element of each block of the packed body.
__device__ inline void note_ends(const Encoder &e, uint64_t sent)
{
    const Share share = share_of(e.chunks);
    for (uint64_t c = share.begin; c < share.end; c++) {
        const uint64_t start = e.starts[c], end = start + e.counts[c];
        for (uint64_t block = start / BLOCK; block * BLOCK < end; block++) {
            const uint64_t last = block * BLOCK + count_of(sent, block) - 1;
            if (last >= start && last < end)
                e.ends[block] = c * CHUNK + (e.words[c * CHUNK + (last - start)] >> 1) + 1;
        }
    }
    __syncthreads();
}

__device__ inline uint64_t bytes_of(const Encoder &e, uint64_t sent, uint64_t block)
{
    const uint64_t base = block == 0 ? 0 : e.ends[block - 1];
    return layout_of(e.ends[block] - base, count_of(sent, block)).bytes;
}

// Where each block begins; returns the length of the packed body.
__device__ inline uint64_t lay_out_blocks(const Encoder &e, uint64_t sent, uint64_t *places)
{
    const uint64_t blocks = parts(sent, BLOCK);
    const Share share = share_of(blocks);
    uint64_t sum = 0, all;
    for (uint64_t b = share.begin; b < share.end; b++)
        sum += up_to_8(bytes_of(e, sent, b));
    uint64_t at = 8 * blocks + block_scan(sum, places, &all);
    for (uint64_t b = share.begin; b < share.end; b++) {
        e.offsets[b] = at;
        at += up_to_8(bytes_of(e, sent, b));
    }
    __syncthreads();
    return blocks == 0 ? 0 : e.offsets[blocks - 1] + bytes_of(e, sent, blocks - 1);
}

__device__ inline void choose_body(const Encoder &e, Plan *plan, uint64_t packed)
{
    const uint64_t words = e.elements <= (uint64_t)1 << 31 ? 4 * plan->sent : NONE, dense = dense_bytes(e.elements);
    if (words <= packed && words <= dense) {
        plan->kind = GTCB_WORDS;
        plan->body_bytes = words;
    } else {
        plan->kind = packed <= dense ? GTCB_PACKED : GTCB_DENSE;
        plan->body_bytes = least(packed, dense);
    }
}

__global__ void __launch_bounds__(LONE_THREADS) plan_message(Encoder e)
{
    __shared__ uint64_t places[SCAN_PLACES];
    __shared__ unsigned long long non_finite;
    let_next_get_ready();
    after_previous();
    const uint64_t sent = number_chunks(e, places, &non_finite);
    note_ends(e, sent);
    const uint64_t packed = lay_out_blocks(e, sent, places);
    if (threadIdx.x != 0)
        return;
    e.plan->sent = sent;
    e.plan->checksum = 0;
    e.plan->blocks_done = 0;
    e.plan->non_finite = non_finite;
    choose_body(e, e.plan, packed);
    if (non_finite != NONE) {       // an announcement
        e.plan->kind = GTCB_WORDS;
        e.plan->sent = e.plan->body_bytes = 0;
    }
}

void launch_plan(const Encoder &e, const gtcb_cuda_launch &launch)
{
    if (e.max_sent < e.elements) {
        GTCB_LAUNCH(number_words, 1, LONE_THREADS, launch.stream, e);
        GTCB_LAUNCH(cap_chunks, (unsigned)least(launch.blocks, e.chunks), THREADS, launch.stream, e);
    }
    GTCB_LAUNCH_EARLY(plan_message, 1, LONE_THREADS, launch.stream, e);
}
