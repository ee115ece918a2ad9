// The body of a message from the staged words, its checksum, and the header (docs/message-format.md, Body 1 to 3).
#include "cuda/encoder.cuh"

// Longest block of a packed body, in 64-bit words and one to spare.
constexpr unsigned BLOCK_WORDS = BLOCK * (64 + 3) / 64 + 1, CHUNK_WORDS = CHUNK / 32;
constexpr unsigned SHARED_WORDS = BLOCK_WORDS > CHUNK_WORDS ? BLOCK_WORDS : CHUNK_WORDS;

struct Bits { uint32_t halves[2 * SHARED_WORDS]; };      // of 64-bit words: shared memory has atomic operations on 32 bits only

__device__ inline uint64_t *body_of(const Encoder &e) { return e.message + GTCB_HEADER_BYTES / 8; }

__device__ inline uint64_t word_at(const Bits *bits, unsigned i) { return bits->halves[2 * i] | (uint64_t)bits->halves[2 * i + 1] << 32; }

__device__ inline void clear(Bits *bits, unsigned words)
{
    for (unsigned i = threadIdx.x; i < 2 * words; i += THREADS)
        bits->halves[i] = 0;
    __syncthreads();
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

// The chunk in which the word of that number is; it is one of low … last.
__device__ inline uint64_t chunk_of(const Encoder &e, uint64_t number, uint64_t low, uint64_t last)
{
    for (uint64_t high = last + 1; high - low > 1;) {        // the last one that begins at or before it
        const uint64_t middle = low + (high - low) / 2;
        if (e.starts[middle] <= number)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// -- Body 1: words ------------------------------------------------------------------------------------------------------

__device__ inline uint64_t word_numbered(const Encoder &e, uint64_t number)
{
    const uint64_t chunk = chunk_of(e, number, 0, e.chunks - 1);
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

__device__ inline uint64_t chunk_before(uint64_t element) { return element == 0 ? 0 : (element - 1) / CHUNK; }

// A thread takes words in a row.
__device__ inline void put_words(const Encoder &e, const PackedBlock &b, Bits *bits)
{
    constexpr unsigned EACH = BLOCK / THREADS;
    const unsigned l = b.layout.l;
    Writer lows(bits), uppers(bits);
    uint64_t chunk = b.first_chunk, start = 0, end = 0;
    for (uint64_t i = EACH * threadIdx.x; i < least(EACH * (threadIdx.x + 1), b.count); i++) {
        const uint64_t number = b.first + i;
        if (number >= end) {             // often it is in the next chunk
            const uint64_t next = least(chunk + 1, b.last_chunk), after = e.starts[next] + e.counts[next];
            chunk = i > EACH * threadIdx.x && number < after ? next : chunk_of(e, number, chunk, b.last_chunk);
            start = e.starts[chunk];
            end = start + e.counts[chunk];
        }
        const uint64_t v = e.words[chunk * CHUNK + (number - start)] + 2 * (chunk * CHUNK - b.base);
        lows.put(i * l, v & (((uint64_t)1 << l) - 1));
        uppers.put(8 * b.layout.lows_bytes + (v >> l) + i, 1);
    }
    lows.flush();
    uppers.flush();
}

__device__ inline uint64_t write_block(const Encoder &e, uint64_t block, Bits *bits)
{
    const uint64_t count = count_of(e.plan->sent, block), base = block == 0 ? 0 : e.ends[block - 1];
    const uint64_t span = e.ends[block] - base, at = e.offsets[block];
    const PackedBlock b = {block * BLOCK, count, base, chunk_before(base), chunk_before(base + span), layout_of(span, count)};
    const unsigned words = (unsigned)(up_to_8(b.layout.bytes) / 8);
    clear(bits, words);
    put_words(e, b, bits);
    uint64_t sum = copy_out(e, bits, words, at / 8);
    if (threadIdx.x == 0) {
        body_of(e)[block] = span;
        sum += checksum_term(span, block);
    }
    return sum;
}

__device__ inline uint64_t write_packed(const Encoder &e, Bits *bits)
{
    const uint64_t blocks = parts(e.plan->sent, BLOCK);
    uint64_t sum = 0;
    for (uint64_t block = blockIdx.x; block < blocks; block += gridDim.x)
        sum += write_block(e, block, bits);
    return sum;
}

// -- Body 3: dense ------------------------------------------------------------------------------------------------------

__device__ inline uint64_t write_codes(const Encoder &e, uint64_t chunk, Bits *bits)
{
    const unsigned elements = (unsigned)least(e.elements - chunk * CHUNK, CHUNK);
    const unsigned words = (elements + 31) / 32;
    const uint32_t count = e.counts[chunk], each = (count + THREADS - 1) / THREADS;
    Writer codes(bits);
    clear(bits, words);
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
    __shared__ Bits bits;
    after_previous();
    const uint64_t sum = e.plan->kind == GTCB_WORDS    ? write_words(e)
                       : e.plan->kind == GTCB_PACKED ? write_packed(e, &bits)
                                                     : write_dense(e, &bits);
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
