// The body of a message from the staged words, its checksum, and the header (docs/message-format.md, Body 1 to 3).
#include "cuda/encoder.cuh"

// Longest block of a packed body, in 64-bit words and one to spare.
constexpr unsigned BLOCK_WORDS = BLOCK * (64 + 3) / 64 + 1, CHUNK_WORDS = CHUNK / 32;
constexpr unsigned SHARED_WORDS = BLOCK_WORDS > CHUNK_WORDS ? BLOCK_WORDS : CHUNK_WORDS;

struct Bits { uint32_t halves[2 * SHARED_WORDS]; };      // of 64-bit words: shared memory has atomic operations on 32 bits only

__device__ inline uint64_t *body_of(const Encoder &e) { return e.message + GTCB_HEADER_BYTES / 8; }

__device__ inline uint64_t word_at(const Bits *bits, unsigned i) { return bits->halves[2 * i] | (uint64_t)bits->halves[2 * i + 1] << 32; }

__device__ inline void clear(uint32_t *memory, unsigned entries)
{
    for (unsigned i = threadIdx.x; i < entries; i += THREADS)
        memory[i] = 0;
}

// Puts values of one thread, each behind the one before, and touches shared memory once for each half that they lie in. Threads may
// set bits of the same half; which one comes first does not show.
struct Writer {
    Bits *bits;
    uint64_t half = 0;
    uint32_t pending = 0;

    __device__ explicit Writer(Bits *to) : bits(to) {}
    __device__ void put(uint64_t at, uint64_t value)
    {
        for (unsigned taken; value != 0; value >>= taken, at += taken) {
            if (at / 32 != half) {
                flush();
                half = at / 32;
            }
            pending |= (uint32_t)(value << at % 32);
            taken = 32 - (unsigned)(at % 32);
        }
    }
    __device__ void flush()
    {
        if (pending != 0)
            atomicOr(&bits->halves[half], pending);
        pending = 0;
    }
};

// Writes the first words of `bits` to the body from its word `at` on; returns this thread's part of the checksum.
__device__ inline uint64_t copy_out(const Encoder &e, const Bits *bits, unsigned words, uint64_t at)
{
    uint64_t sum = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < words; i += THREADS) {
        const uint64_t word = word_at(bits, i);
        body_of(e)[at + i] = word;
        sum += checksum_term(word, at + i);
    }
    __syncthreads();
    return sum;
}

// -- Body 1: words ------------------------------------------------------------------------------------------------------

// The chunk in which the word of that number is.
__device__ inline uint64_t chunk_of(const Encoder &e, uint64_t number)
{
    uint64_t low = 0;
    for (uint64_t high = e.chunks; high - low > 1;) {        // the last one that begins at or before it
        const uint64_t middle = low + (high - low) / 2;
        if (e.starts[middle] <= number)
            low = middle;
        else
            high = middle;
    }
    return low;
}

__device__ inline uint64_t word_numbered(const Encoder &e, uint64_t number)
{
    const uint64_t chunk = chunk_of(e, number);
    return 2 * chunk * CHUNK + e.words[chunk * CHUNK + (number - e.starts[chunk])];
}

__device__ inline uint64_t write_words(const Encoder &e)
{
    const uint64_t sent = e.plan->sent;
    uint64_t sum = 0;
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; 2 * i < sent; i += gridDim.x * (uint64_t)THREADS) {
        const uint64_t high = 2 * i + 1 < sent ? word_numbered(e, 2 * i + 1) : 0;
        const uint64_t both = word_numbered(e, 2 * i) | high << 32;
        body_of(e)[i] = both;
        sum += checksum_term(both, i);
    }
    return sum;
}

// -- Body 2: packed -----------------------------------------------------------------------------------------------------

struct PackedBlock {
    uint64_t first, count, base;             // number of its first word; index after the last element before it
    uint64_t first_chunk, last_chunk;        // where its words are
    Layout layout;
};

struct Packing {                             // of one block, in shared memory
    Bits bits;
    alignas(16) uint32_t begins[BLOCK];      // at the first word of each chunk: which one, counted from first_chunk; else 0
    uint32_t of_warps[THREADS / WARP];
};

constexpr unsigned EACH = BLOCK / THREADS;   // words in a row, of a thread

__device__ inline uint64_t chunk_before(uint64_t element) { return element == 0 ? 0 : (element - 1) / CHUNK; }

// Chunks say where their words begin, so that no word has to search. first_chunk need not: where nothing else is said the word is there.
// last_chunk has a word of the block, so none begins behind it.
__device__ inline void note_chunks(const Encoder &e, const PackedBlock &b, uint32_t *begins)
{
    for (uint64_t chunk = b.first_chunk + 1 + threadIdx.x; chunk <= b.last_chunk; chunk += THREADS) {
        const uint64_t start = e.starts[chunk];
        if (e.counts[chunk] > 0)
            begins[start - b.first] = (uint32_t)(chunk - b.first_chunk);
    }
}

// The chunks of the thread's words, counted from first_chunk.
__device__ inline void find_chunks(Packing *p, uint32_t *chunks)
{
    uint32_t latest = 0;
#pragma unroll
    for (unsigned j = 0; j < EACH; j++)
        chunks[j] = latest = most(latest, p->begins[EACH * threadIdx.x + j]);
    const uint32_t before = most_before(latest, p->of_warps);
#pragma unroll
    for (unsigned j = 0; j < EACH; j++)
        chunks[j] = most(chunks[j], before);
}

// Loads before it uses: of all its words the starts of their chunks, then the words. Where there are no more, the last one again: a
// condition would keep loads apart.
__device__ inline void put_words(const Encoder &e, const PackedBlock &b, Packing *p)
{
    const unsigned own = EACH * threadIdx.x, l = b.layout.l;
    uint32_t chunks[EACH];
    uint64_t starts[EACH];
    uint16_t words[EACH];
    Writer lows(&p->bits), uppers(&p->bits);
    find_chunks(p, chunks);
#pragma unroll
    for (unsigned j = 0; j < EACH; j++)
        starts[j] = e.starts[b.first_chunk + chunks[j]];
#pragma unroll
    for (unsigned j = 0; j < EACH; j++)
        words[j] = e.words[(b.first_chunk + chunks[j]) * CHUNK + (b.first + least(own + j, b.count - 1) - starts[j])];
#pragma unroll
    for (unsigned j = 0; j < EACH; j++) {
        if (own + j >= b.count)
            break;
        const uint64_t i = own + j, v = words[j] + 2 * ((b.first_chunk + chunks[j]) * CHUNK - b.base);
        lows.put(i * l, v & (((uint64_t)1 << l) - 1));
        uppers.put(8 * b.layout.lows_bytes + (v >> l) + i, 1);
    }
    lows.flush();
    uppers.flush();
}

__device__ inline uint64_t write_block(const Encoder &e, uint64_t block, Packing *p)
{
    const uint64_t count = count_of(e.plan->sent, block), base = block == 0 ? 0 : e.ends[block - 1];
    const uint64_t span = e.ends[block] - base, at = e.offsets[block];
    const PackedBlock b = {block * BLOCK, count, base, chunk_before(base), chunk_before(base + span), layout_of(span, count)};
    const unsigned words = (unsigned)(up_to_8(b.layout.bytes) / 8);
    clear(p->bits.halves, 2 * words);
    clear(p->begins, BLOCK);
    __syncthreads();
    note_chunks(e, b, p->begins);
    __syncthreads();
    put_words(e, b, p);
    uint64_t sum = copy_out(e, &p->bits, words, at / 8);
    if (threadIdx.x == 0) {
        body_of(e)[block] = span;
        sum += checksum_term(span, block);
    }
    return sum;
}

__device__ inline uint64_t write_packed(const Encoder &e, Packing *p)
{
    const uint64_t blocks = parts(e.plan->sent, BLOCK);
    uint64_t sum = 0;
    for (uint64_t block = blockIdx.x; block < blocks; block += gridDim.x)
        sum += write_block(e, block, p);
    return sum;
}

// -- Body 3: dense ------------------------------------------------------------------------------------------------------

__device__ inline uint64_t write_codes(const Encoder &e, uint64_t chunk, Bits *bits)
{
    const unsigned elements = (unsigned)least(e.elements - chunk * CHUNK, CHUNK);
    const unsigned words = (elements + 31) / 32;
    const uint32_t count = e.counts[chunk], each = (count + THREADS - 1) / THREADS;
    Writer codes(bits);
    clear(bits->halves, 2 * words);
    __syncthreads();
    for (uint32_t i = each * threadIdx.x; i < least(each * (threadIdx.x + 1), count); i++) {
        const uint16_t word = e.words[chunk * CHUNK + i];
        codes.put(2 * (word >> 1), word & 1 ? 3 : 1);
    }
    codes.flush();
    return copy_out(e, bits, words, chunk * CHUNK_WORDS);
}

__device__ inline uint64_t write_dense(const Encoder &e, Bits *bits)
{
    uint64_t sum = 0;
    for (uint64_t chunk = blockIdx.x; chunk < e.chunks; chunk += gridDim.x)
        sum += write_codes(e, chunk, bits);
    return sum;
}

// -- all ----------------------------------------------------------------------------------------------------------------

__device__ inline void write_header(const Encoder &e)
{
    const Plan plan = *e.plan;
    const bool announces = plan.non_finite != NONE;
    const uint64_t flags = announces ? GTCB_FLAG_NON_FINITE : 0;
    uint64_t *h = e.message;
    h[0] = 0x42435447u | (uint64_t)1 << 32 | (uint64_t)plan.kind << 40 | flags << 48 | (uint64_t)GTCB_QUANTA << 56;
    h[1] = e.elements;
    h[2] = announces ? plan.non_finite : plan.sent;
    h[3] = plan.body_bytes;
    h[4] = e.sequence;
    h[5] = e.bucket | (uint64_t)e.sender << 32;
    h[6] = __float_as_uint(e.threshold);
    h[7] = atomicAdd((unsigned long long *)&e.plan->checksum, 0ull);        // what all blocks have added
    uint64_t sum = 0;
    for (unsigned i = 0; i < GTCB_HEADER_BYTES / 8; i++)
        sum += checksum_term(h[i], i);
    h[6] |= (sum >> 32 ^ (sum & 0xFFFFFFFFu)) << 32;
}

// The block that ends last writes the header.
__global__ void __launch_bounds__(THREADS) write_message(Encoder e)
{
    __shared__ Packing shared;
    after_previous();
    const uint64_t sum = e.plan->kind == GTCB_WORDS    ? write_words(e)
                       : e.plan->kind == GTCB_PACKED ? write_packed(e, &shared)
                                                     : write_dense(e, &shared.bits);
    add_up(sum, &e.plan->checksum);
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    __threadfence();
    if (atomicAdd(&e.plan->blocks_done, 1u) + 1 == gridDim.x)
        write_header(e);
}

void launch_pack(const Encoder &e, const gtcb_cuda_launch &launch)
{
    GTCB_LAUNCH_EARLY(write_message, launch.blocks, THREADS, launch.stream, e);
}
