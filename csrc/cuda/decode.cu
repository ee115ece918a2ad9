// dense[i] += q, one kernel a message: the stream keeps the order of the messages, and within a sound message every
// element comes once. A plain load, addition and store: atomic additions in global memory flush subnormals to zero.
#include "cuda/decoder.cuh"

__device__ inline void add(float *dense, uint64_t element, bool negative, float threshold)
{
    dense[element] += negative ? -threshold : threshold;
}

__device__ inline void add_words(const Message &m, float *dense)
{
    const uint32_t *words = (const uint32_t *)m.body;
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < m.sent; i += (uint64_t)gridDim.x * THREADS)
        add(dense, words[i] >> 1, words[i] & 1, m.threshold);
}

// The uppers say where the elements are: element i is the i-th one of them.
__device__ inline void add_block(const Message &m, uint64_t block, uint64_t base, uint64_t offset, float *dense,
                                 uint16_t *ones, uint64_t *places)
{
    const uint64_t count = count_of(m.sent, block);
    const Layout y = layout_of(m.body[block], count);
    const uint64_t lows = 8 * offset, uppers = lows + 8 * y.lows_bytes;
    uint32_t bits = upper_bits_of_thread(m.body, uppers, y);
    uint64_t all, i = block_scan(__popc(bits), places, &all);
    for (; bits != 0 && i < BLOCK; bits &= bits - 1)
        ones[i++] = (uint16_t)(32 * threadIdx.x + __ffs((int)bits) - 1);
    __syncthreads();
    for (i = threadIdx.x; i < count; i += THREADS) {
        const uint64_t v = (uint64_t)(ones[i] - i) << y.l | get_long_bits(m.body, lows + i * y.l, y.l);
        add(dense, base + (v >> 1), v & 1, m.threshold);
    }
    __syncthreads();
}

__device__ inline void add_packed(const Decoder &d, unsigned slot, const Message &m, float *dense, uint16_t *ones, uint64_t *places)
{
    const uint64_t *bases = d.bases + slot * d.places, *offsets = d.offsets + slot * d.places;
    for (uint64_t b = blockIdx.x; b < d.found[slot].blocks; b += gridDim.x)
        add_block(m, b, bases[b], offsets[b], dense, ones, places);
}

// A thread takes a byte: four codes.
__device__ inline void add_codes(const Message &m, float *dense)
{
    const uint8_t *codes = (const uint8_t *)m.body;
    for (uint64_t at = blockIdx.x * (uint64_t)THREADS + threadIdx.x; at < m.body_bytes; at += (uint64_t)gridDim.x * THREADS)
        for (unsigned byte = codes[at], i = 0; byte != 0; byte >>= 2, i++)
            if ((byte & 3) != 0)            // adding 0 would turn -0 into +0
                add(dense, 4 * at + i, (byte & 3) != 1, m.threshold);
}

__global__ void __launch_bounds__(THREADS) add_message(Decoder d, unsigned slot, Message m, float *dense,
                                                       const uint32_t *verdicts, uint64_t verdict_count)
{
    __shared__ uint16_t ones[BLOCK];
    __shared__ uint64_t places[SCAN_PLACES];
    bool refused = false;
    for (uint64_t i = threadIdx.x; verdicts != nullptr && i < verdict_count; i += THREADS)
        refused |= verdicts[i] != GTCB_OK;
    if (__syncthreads_or(refused))
        return;
    if (m.kind == GTCB_WORDS)
        add_words(m, dense);
    else if (m.kind == GTCB_PACKED)
        add_packed(d, slot, m, dense, ones, places);
    else
        add_codes(m, dense);
}

gtcb_status gtcb_cuda_decode_add(const gtcb_cuda_message *messages, size_t count, float *dense, uint64_t elements,
                                 const uint32_t *verdicts, void *scratch, const gtcb_cuda_launch *launch)
{
    if ((dense == nullptr && elements > 0) || !decoder_is_sound(scratch, launch))
        return GTCB_BAD_ARGUMENT;
    const gtcb_status status = check_messages(messages, count, elements);
    if (status != GTCB_OK)
        return status;
    const Decoder d = lay_out_decoder(scratch, elements);
    for (size_t first = 0; first < count; first += BATCH) {
        const size_t now = least(count - first, BATCH);
        const Batch batch = read_messages(messages + first, now);
        launch_locate(d, batch, now, *launch);
        for (size_t i = 0; i < now; i++)
            if (batch.of[i].sent > 0)
                GTCB_LAUNCH(add_message, launch->blocks, THREADS, launch->stream, d, (unsigned)i, batch.of[i], dense, verdicts, count);
    }
    return launched();
}
