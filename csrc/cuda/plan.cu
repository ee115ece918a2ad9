// What has to be known of all words before one of them is written: their numbers, the cap, the layout of the packed body,
// and which body is the shortest (docs/message-format.md). The tables are short, so one block does it.
#include "cuda/encoder.cuh"

// The share of thread t in a table: consecutive entries.
template <class N> struct Share { N begin, end; };

template <class N> __device__ inline Share<N> share_of(N entries)
{
    const N each = (entries + LONE_THREADS - 1) / LONE_THREADS, begin = (N)least(threadIdx.x * each, entries);
    return {begin, (N)least(begin + each, entries)};
}

// -- numbers -----------------------------------------------------------------------------------------------------------

// Numbers the words of the chunks; returns how many there are. N: a type that holds the bytes of any body. *non_finite: the first such
// index, on all threads. visit(c, start, count, all) is called for each chunk.
template <class N, class Visit>
__device__ inline N number_chunks(const Encoder &e, uint64_t *places, unsigned long long *non_finite, Visit visit)
{
    const Share<N> share = share_of((N)e.chunks);
    N sum = 0, all;
    uint64_t bad = NONE;
    if (threadIdx.x == 0)
        *non_finite = NONE;
    for (N c = share.begin; c < share.end; c++) {
        const uint32_t found = e.non_finite[c];
        sum += e.counts[c];
        if (found != NONE_IN_CHUNK && bad == NONE)
            bad = c * (uint64_t)CHUNK + found;
    }
    N start = block_scan(sum, places, &all);
    if (bad != NONE)
        atomicMin(non_finite, (unsigned long long)bad);
    for (N c = share.begin; c < share.end; c++) {
        const uint32_t count = e.counts[c];
        e.starts[c] = start;
        visit(c, start, count, all);
        start += count;
    }
    __syncthreads();
    return all;
}

// -- cap: of k candidates keep the m numbered (c + j) mod k, put the others back: r' = (t - q) + q --------------------

__global__ void __launch_bounds__(LONE_THREADS) number_words(Encoder e)
{
    __shared__ uint64_t places[SCAN_PLACES];
    __shared__ unsigned long long non_finite;
    const uint64_t candidates = number_chunks<uint64_t>(e, places, &non_finite, [](uint64_t, uint64_t, uint32_t, uint64_t) {});
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
        uint32_t all;
        const uint32_t before = block_scan((uint32_t)keep, places, &all);
        if (keep)
            words[kept + before] = word;
        kept += all;
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

// The index after the last element of each block of the packed body that ends among the chunk's words, start … start + count - 1.
template <class N> __device__ inline void note_ends(const Encoder &e, N chunk, N start, uint32_t count, N sent)
{
    const N end = start + count;
    for (N block = start / BLOCK; block * BLOCK < end; block++) {
        const N last = block * BLOCK + (N)count_of(sent, block) - 1;
        if (last >= start && last < end)
            e.ends[block] = chunk * (uint64_t)CHUNK + (e.words[chunk * (uint64_t)CHUNK + (last - start)] >> 1) + 1;
    }
}

__device__ inline uint64_t bytes_of(const Encoder &e, uint64_t sent, uint64_t block)
{
    const uint64_t base = block == 0 ? 0 : e.ends[block - 1];
    return layout_of(e.ends[block] - base, count_of(sent, block)).bytes;
}

// Where each block begins; returns the length of the packed body, whose last block is not filled up.
template <class N> __device__ inline N lay_out_blocks(const Encoder &e, N sent, uint64_t *places)
{
    const N blocks = (N)parts(sent, BLOCK);
    const Share<N> share = share_of(blocks);
    N sum = 0, all;
    for (N b = share.begin; b < share.end; b++)
        sum += (N)up_to_8(bytes_of(e, sent, b));
    N at = 8 * blocks + block_scan(sum, places, &all);
    for (N b = share.begin; b < share.end; b++) {
        e.offsets[b] = at;
        at += (N)up_to_8(bytes_of(e, sent, b));
    }
    const N last = blocks == 0 ? 0 : (N)bytes_of(e, sent, blocks - 1);
    return 8 * blocks + all - ((N)up_to_8(last) - last);
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

template <class N> __global__ void __launch_bounds__(LONE_THREADS) plan_message(Encoder e)
{
    __shared__ uint64_t places[SCAN_PLACES];
    __shared__ unsigned long long non_finite;
    let_next_get_ready();
    after_previous();
    const N sent = number_chunks<N>(e, places, &non_finite, [&](N c, N start, uint32_t count, N all) { note_ends(e, c, start, count, all); });
    const N packed = lay_out_blocks(e, sent, places);
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
    if (e.elements < (uint64_t)1 << 31)      // a packed body takes less than a byte an element
        GTCB_LAUNCH_EARLY(plan_message<uint32_t>, 1, LONE_THREADS, launch.stream, e);
    else
        GTCB_LAUNCH_EARLY(plan_message<uint64_t>, 1, LONE_THREADS, launch.stream, e);
}
