// The body of a message from the staged words, its checksum, and the header (docs/message-format.md, Body 1 to 3).
#include "cuda/encoder.cuh"

// Longest block of a packed body, in 64-bit words and one to spare.
constexpr unsigned BLOCK_WORDS = BLOCK * (64 + 3) / 64 + 1, CHUNK_WORDS = CHUNK / 32;
constexpr unsigned SHARED_WORDS = BLOCK_WORDS > CHUNK_WORDS ? BLOCK_WORDS : CHUNK_WORDS;

struct Bits { unsigned long long words[SHARED_WORDS]; };

__device__ inline uint64_t *body_of(const Encoder &e) { return e.message + GTCB_HEADER_BYTES / 8; }

// Threads may set bits of the same word; which one comes first does not show.
__device__ inline void put_bits(Bits *bits, uint64_t at, unsigned count, uint64_t value)
{
    if (value == 0)
        return;
    const unsigned shift = (unsigned)(at % 64);
    atomicOr(&bits->words[at / 64], (unsigned long long)(value << shift));
    if (shift + count > 64 && value >> (64 - shift) != 0)
        atomicOr(&bits->words[at / 64 + 1], (unsigned long long)(value >> (64 - shift)));
}

__device__ inline void clear(Bits *bits, unsigned words)
{
    for (unsigned i = threadIdx.x; i < words; i += THREADS)
        bits->words[i] = 0;
    __syncthreads();
}

// Writes the first words of `bits` to the body from its word `at` on; returns this thread's part of the checksum.
__device__ inline uint64_t copy_out(const Encoder &e, const Bits *bits, unsigned words, uint64_t at)
{
    uint64_t sum = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < words; i += THREADS) {
        body_of(e)[at + i] = bits->words[i];
        sum += checksum_term(bits->words[i], at + i);
    }
    __syncthreads();
    return sum;
}

// The chunk in which the word of that number is.
__device__ inline uint64_t chunk_of(const Encoder &e, uint64_t number)
{
    uint64_t low = 0, high = e.chunks;      // the last one that begins at or before it
    while (high - low > 1) {
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

struct PackedBlock { uint64_t first, end, base; Layout layout; };      // first, end: numbers of its words

__device__ inline void put_word(const Encoder &e, const PackedBlock &b, uint64_t chunk, uint64_t number, Bits *bits)
{
    const uint64_t i = number - b.first;
    const uint64_t v = e.words[chunk * CHUNK + (number - e.starts[chunk])] + 2 * (chunk * CHUNK - b.base);
    const unsigned l = b.layout.l;
    put_bits(bits, i * l, l, v & (((uint64_t)1 << l) - 1));
    put_bits(bits, 8 * b.layout.lows_bytes + (v >> l) + i, 1, 1);
}

// Words lie chunk by chunk: many to a chunk are shared out to the lanes of a warp, few go to one thread.
__device__ inline void put_words(const Encoder &e, const PackedBlock &b, Bits *bits)
{
    const uint64_t first = chunk_of(e, b.first), chunks = chunk_of(e, b.end - 1) - first + 1;
    const unsigned lanes = chunks <= THREADS / 4 ? WARP : 1;
    for (uint64_t i = threadIdx.x / lanes; i < chunks; i += THREADS / lanes) {
        const uint64_t start = e.starts[first + i], end = least(start + e.counts[first + i], b.end);
        const uint64_t from = start > b.first ? start : b.first;
        for (uint64_t number = from + threadIdx.x % lanes; number < end; number += lanes)
            put_word(e, b, first + i, number, bits);
    }
}

__device__ inline uint64_t write_block(const Encoder &e, uint64_t block, Bits *bits)
{
    const uint64_t count = count_of(e.plan->sent, block), base = block == 0 ? 0 : e.ends[block - 1];
    const uint64_t span = e.ends[block] - base, at = e.offsets[block];
    const PackedBlock b = {block * BLOCK, block * BLOCK + count, base, layout_of(span, count)};
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
    clear(bits, words);
    for (uint32_t i = threadIdx.x; i < e.counts[chunk]; i += THREADS) {
        const uint16_t word = e.words[chunk * CHUNK + i];
        put_bits(bits, 2 * (word >> 1), 2, word & 1 ? 3 : 1);
    }
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

__global__ void __launch_bounds__(THREADS) write_body(Encoder e)
{
    __shared__ Bits bits;
    if (e.plan->body_bytes == 0)
        return;
    const uint64_t sum = e.plan->kind == GTCB_WORDS    ? write_words(e)
                       : e.plan->kind == GTCB_PACKED ? write_packed(e, &bits)
                                                     : write_dense(e, &bits);
    add_up(sum, &e.plan->checksum);
}

__global__ void write_header(Encoder e)
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
    h[7] = plan.checksum;
    uint64_t sum = 0;
    for (unsigned i = 0; i < GTCB_HEADER_BYTES / 8; i++)
        sum += checksum_term(h[i], i);
    h[6] |= (sum >> 32 ^ (sum & 0xFFFFFFFFu)) << 32;
}

void launch_pack(const Encoder &e, const gtcb_cuda_launch &launch)
{
    GTCB_LAUNCH(write_body, launch.blocks, THREADS, launch.stream, e);
    GTCB_LAUNCH(write_header, 1, 1, launch.stream, e);
}
