// The numbers of a message, unpacked once for all tiles: entries of 16 bits, and where those of each tile begin. A block of threads
// takes 1,024 elements of a message at a time: a block of a packed body, or as many words.
#include "cuda/decoder.cuh"

constexpr uint64_t MOST_BLOCKS = 1 << 16;                   // of threads to a message; they share out what is more
constexpr unsigned EACH = BLOCK / DECODE_THREADS;           // elements of a thread

struct Piece {                     // of a message; of its elements those in begin .. end - 1, and there are `count` of them
    uint64_t first, count;
    uint64_t begin, end;
};

struct Unpacked {                  // in shared memory
    uint16_t uppers[BLOCK];
    uint32_t tiles[BLOCK];         // of the elements of a piece
    uint64_t places[SCAN_PLACES];
};

// Element i of the piece; number: 2 * index + negative.
__device__ inline void put(const Decoder &d, const Message &m, const Piece &p, Unpacked *u, unsigned i, uint64_t number)
{
    u->tiles[i] = (uint32_t)(number / (2 * TILE));
    d.entries[m.first_entry + p.first + i] = (uint16_t)(number % (2 * TILE));
}

__device__ inline Piece expand_words(const Decoder &d, const Message &m, uint64_t block, Unpacked *u)
{
    const uint32_t *words = (const uint32_t *)m.body + block * BLOCK;
    Piece p = {block * BLOCK, count_of(m.sent, block), 0, 0};
    for (unsigned i = threadIdx.x; i < p.count; i += DECODE_THREADS)
        put(d, m, p, u, i, words[i]);
    p.begin = block == 0 ? 0 : (words[-1] >> 1) + 1;
    p.end = (words[p.count - 1] >> 1) + 1;
    return p;
}

// The uppers say where the elements are: element i is the i-th one of them.
__device__ inline Piece expand_packed(const Decoder &d, unsigned slot, const Message &m, uint64_t block, Unpacked *u)
{
    const uint64_t place = slot * d.places + block, base = d.bases[place], span = m.body[block];
    const Piece p = {block * BLOCK, count_of(m.sent, block), base, base + span};
    const Layout y = layout_of(span, p.count);
    const uint64_t *body = m.body + d.offsets[place] / 8;
    uint32_t bits = upper_bits_of_thread(body, 8 * y.lows_bytes, y);
    uint64_t lows[EACH];                                    // loaded before anything waits
    uint32_t all;
    #pragma unroll
    for (unsigned j = 0; j < EACH; j++)
        lows[j] = get_long_bits(body, least(threadIdx.x + j * DECODE_THREADS, p.count - 1) * y.l, y.l);
    unsigned i = block_scan((uint32_t)__popc(bits), u->places, &all);
    for (; bits != 0 && i < p.count; bits &= bits - 1, i++)
        u->uppers[i] = (uint16_t)(32 * threadIdx.x + (unsigned)__ffs((int)bits) - 1 - i);
    __syncthreads();
    #pragma unroll
    for (unsigned j = 0; j < EACH; j++)
        if ((i = threadIdx.x + j * DECODE_THREADS) < p.count)
            put(d, m, p, u, i, 2 * base + ((uint64_t)u->uppers[i] << y.l | lows[j]));
    return p;
}

__device__ inline unsigned count_before(uint64_t tile, const uint32_t *tiles, unsigned count)
{
    unsigned low = 0, high = count;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (tiles[middle] < tile)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Of the tiles that begin within the piece, or behind it if it is the message's last.
__device__ inline void write_starts(const Decoder &d, unsigned slot, const Message &m, const Piece &p, const Unpacked *u)
{
    uint64_t *starts = d.starts + slot * (d.tiles + 1);
    const uint64_t end = p.first + p.count == m.sent ? d.tiles + 1 : least(parts(p.end, TILE), d.tiles + 1);
    for (uint64_t tile = parts(p.begin, TILE) + threadIdx.x; tile < end; tile += DECODE_THREADS)
        starts[tile] = m.first_entry + p.first + count_before(tile, u->tiles, (unsigned)p.count);
}

// Bodies are sound; of others the entries are some, but nothing beside the tables is read or written.
__global__ void __launch_bounds__(DECODE_THREADS) expand(Decoder d, Batch batch, unsigned blocks_each, const uint32_t *verdicts,
                                                         uint64_t verdict_count)
{
    __shared__ Unpacked unpacked;
    const unsigned slot = blockIdx.x / blocks_each;
    const Message m = batch.of[slot];
    if (!(batch.expanded >> slot & 1) || one_is_refused(verdicts, verdict_count))
        return;
    const uint64_t blocks = m.kind == GTCB_PACKED ? d.found[slot].blocks : parts(m.sent, BLOCK);
    for (uint64_t block = blockIdx.x % blocks_each; block < blocks; block += blocks_each) {
        const Piece p = m.kind == GTCB_PACKED ? expand_packed(d, slot, m, block, &unpacked) : expand_words(d, m, block, &unpacked);
        __syncthreads();
        write_starts(d, slot, m, p, &unpacked);
        __syncthreads();
    }
}

void launch_expand(const Decoder &decoder, const Batch &batch, size_t count, const uint32_t *verdicts, uint64_t verdict_count,
                   const gtcb_cuda_launch &launch)
{
    uint64_t most = 0;
    for (size_t i = 0; i < count; i++)
        if (batch.expanded >> i & 1 && batch.of[i].sent > most)
            most = batch.of[i].sent;
    if (most == 0)
        return;
    const unsigned blocks_each = (unsigned)least(parts(most, BLOCK), MOST_BLOCKS);
    GTCB_LAUNCH(expand, blocks_each * (unsigned)count, DECODE_THREADS, launch.stream, decoder, batch, blocks_each, verdicts, verdict_count);
}
