// Sums and means of messages, tile by tile: every element is read at most once, and written once, for all of them.
#include "cuda/tile.cuh"

__global__ void __launch_bounds__(THREADS) sum_messages(Decoder d, Batch batch, unsigned count, Sum s,
                                                        const uint32_t *verdicts, uint64_t verdict_count)
{
    __shared__ Tile tile;
    bool refused = false;
    for (uint64_t i = threadIdx.x; verdicts != nullptr && i < verdict_count; i += THREADS)
        refused |= verdicts[i] != GTCB_OK;
    if (__syncthreads_or(refused))
        return;
    clear_planes(&tile);
    sum_tile(&tile, d, batch, count, s, blockIdx.x * (uint64_t)TILE);
}

// A tile to a block: how many run at once depends on the shared memory of the device. More messages than a batch has: the sum so
// far is read again.
static gtcb_status sum_all(const gtcb_cuda_message *messages, size_t count, Sum s, const uint32_t *verdicts, void *scratch,
                           const gtcb_cuda_launch *launch)
{
    if ((s.values == nullptr && s.elements > 0) || !(s.divisor > 0.0f) || !decoder_is_sound(scratch, launch))
        return GTCB_BAD_ARGUMENT;
    const gtcb_status status = check_messages(messages, count, s.elements);
    if (status != GTCB_OK || s.elements == 0)
        return status;
    const Decoder d = lay_out_decoder(scratch, s.elements, count);
    const unsigned blocks = (unsigned)parts(s.elements, TILE);
    const float divisor = s.divisor;
    for (size_t first = 0, now; first == 0 || first < count; first += now, s.fresh = false) {
        now = least(count - first, BATCH);
        s.divisor = first + now == count ? divisor : 1.0f;
        const Batch batch = read_messages(messages + first, now);
        launch_locate(d, batch, now, *launch);
        GTCB_LAUNCH(sum_messages, blocks, THREADS, launch->stream, d, batch, (unsigned)now, s, verdicts, count);
    }
    return launched();
}

gtcb_status gtcb_cuda_decode_add(const gtcb_cuda_message *messages, size_t count, float *dense, uint64_t elements,
                                 const uint32_t *verdicts, void *scratch, const gtcb_cuda_launch *launch)
{
    return count == 0 ? GTCB_OK : sum_all(messages, count, {dense, elements, false, 1.0f}, verdicts, scratch, launch);
}

gtcb_status gtcb_cuda_decode_mean(const gtcb_cuda_message *messages, size_t count, float *mean, uint64_t elements, float divisor,
                                  const uint32_t *verdicts, void *scratch, const gtcb_cuda_launch *launch)
{
    return count == 0 ? GTCB_BAD_ARGUMENT : sum_all(messages, count, {mean, elements, true, divisor}, verdicts, scratch, launch);
}
