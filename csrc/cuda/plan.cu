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

// A thread takes its chunks in groups, so that the loads of a group are under way together.
constexpr unsigned GROUP = 4;

// Of chunks first, first + 1, ...; what lies behind the thread's share has no words.
template <class N> struct Group { N first, starts[GROUP]; uint32_t counts[GROUP]; };

template <class N> __device__ inline void load_group(const uint32_t *table, N first, N end, uint32_t none, uint32_t *group)
{
#pragma unroll
    for (unsigned i = 0; i < GROUP; i++)
        group[i] = first + i < end ? table[first + i] : none;
}

// The number of words in the thread's share; *bad: its first index that is not finite, or NONE.
template <class N> __device__ inline N count_words(const Encoder &e, Share<N> share, uint64_t *bad)
{
    N sum = 0;
    *bad = NONE;
    for (N c = share.begin; c < share.end; c += GROUP) {
        uint32_t counts[GROUP], found[GROUP];
        load_group(e.counts, c, share.end, 0, counts);
        load_group(e.non_finite, c, share.end, NONE_IN_CHUNK, found);
#pragma unroll
        for (unsigned i = 0; i < GROUP; i++) {
            sum += counts[i];
            if (found[i] != NONE_IN_CHUNK && *bad == NONE)
                *bad = (c + i) * (uint64_t)CHUNK + found[i];
        }
    }
    return sum;
}

// Numbers the words of the chunks; returns how many there are. N: a type that holds the bytes of any body. *non_finite: the first such
// index, on all threads. visit(group, all) is called for each group of chunks.
template <class N, class Visit>
__device__ inline N number_chunks(const Encoder &e, uint64_t *places, unsigned long long *non_finite, Visit visit)
{
    const Share<N> share = share_of((N)e.chunks);
    uint64_t bad;
    N all;
    if (threadIdx.x == 0)
        *non_finite = NONE;
    N start = block_scan(count_words(e, share, &bad), places, &all);
    if (bad != NONE)
        atomicMin(non_finite, (unsigned long long)bad);
    for (N c = share.begin; c < share.end; c += GROUP) {
        Group<N> group;
        group.first = c;
        load_group(e.counts, c, share.end, 0, group.counts);
#pragma unroll
        for (unsigned i = 0; i < GROUP; i++) {
            group.starts[i] = start;
            if (c + i < share.end)
                e.starts[c + i] = start;
            start += group.counts[i];
        }
        visit(group, all);
    }
    __syncthreads();
    return all;
}

// -- cap: of k candidates keep the m numbered (c + j) mod k, put the others back: r' = (t - q) + q --------------------

__global__ void __launch_bounds__(LONE_THREADS) number_words(Encoder e)
{
    __shared__ uint64_t places[SCAN_PLACES];
    __shared__ unsigned long long non_finite;
    const uint64_t candidates = number_chunks<uint64_t>(e, places, &non_finite, [](const Group<uint64_t> &, uint64_t) {});
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

// The index after the last element of each block of the packed body that ends among a group's words. In each round every chunk has the
// next block that reaches into it; all words of a round are loaded before one is noted.
template <class N> __device__ inline void note_ends(const Encoder &e, const Group<N> &group, N sent)
{
    bool more = true;
    for (N round = 0; more; round++) {
        N after[GROUP];
        bool here[GROUP];
        uint16_t last[GROUP];
        more = false;
#pragma unroll
        for (unsigned i = 0; i < GROUP; i++) {
            const N start = group.starts[i], end = start + group.counts[i], begin = (start / BLOCK + round) * BLOCK;
            after[i] = (N)least(begin + BLOCK, sent);
            here[i] = start < end && begin < end && after[i] <= end;
            last[i] = here[i] ? e.words[(group.first + i) * (uint64_t)CHUNK + (after[i] - 1 - start)] : 0;
            more |= after[i] < end;
        }
#pragma unroll
        for (unsigned i = 0; i < GROUP; i++)
            if (here[i])
                e.ends[(after[i] - 1) / BLOCK] = (group.first + i) * (uint64_t)CHUNK + (last[i] >> 1) + 1;
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
    N at = 8 * blocks;
    for (N first = 0; first < blocks; first += LONE_THREADS) {
        const N block = first + threadIdx.x, bytes = block < blocks ? (N)bytes_of(e, sent, block) : 0;
        N all;
        const N before = block_scan(block + 1 < blocks ? (N)up_to_8(bytes) : bytes, places, &all);
        if (block < blocks)
            e.offsets[block] = at + before;
        at += all;
    }
    return at;
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
    const N sent = number_chunks<N>(e, places, &non_finite, [&](const Group<N> &group, N all) { note_ends(e, group, all); });
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
