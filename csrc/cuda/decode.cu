// Sums and means of messages: each message is expanded, then all are added up tile by tile. Every element is read at most once, and
// written once, for all of them.
#include "cuda/tile.cuh"

constexpr unsigned TILES = DECODE_THREADS / WARP;            // of a block of threads
static_assert(TILES * sizeof(Tile) <= 48 << 10, "what a block can have without asking for it");

__global__ void __launch_bounds__(DECODE_THREADS) sum_messages(Decoder d, Batch batch, unsigned count, Sum s,
                                                               const uint32_t *verdicts, uint64_t verdict_count)
{
    __shared__ Tile tiles[TILES];
    if (one_is_refused(verdicts, verdict_count))
        return;
    const uint64_t tile = blockIdx.x * (uint64_t)TILES + warp_of();
    if (tile < d.tiles)
        sum_tile(&tiles[warp_of()], d, batch, count, s, tile);
}

// More messages than a batch has, or whose entries find room at once: the sum so far is read again.
static gtcb_status sum_all(const gtcb_cuda_message *messages, size_t count, Sum s, const uint32_t *verdicts, void *scratch,
                           const gtcb_cuda_launch *launch)
{
    if ((s.values == nullptr && s.elements > 0) || !(s.divisor > 0.0f) || !decoder_is_sound(scratch, launch))
        return GTCB_BAD_ARGUMENT;
    const gtcb_status status = check_messages(messages, count, s.elements);
    if (status != GTCB_OK || s.elements == 0)
        return status;
    const Decoder d = lay_out_decoder(scratch, s.elements, count);
    const unsigned blocks = (unsigned)parts(d.tiles, TILES);
    const float divisor = s.divisor;
    for (size_t first = 0, now; first < count; first += now, s.fresh = false) {
        now = count_at_once(messages + first, count - first, s.elements);
        const Batch batch = read_messages(messages + first, now);
        s.divisor = first + now == count ? divisor : 1.0f;
        launch_locate(d, batch, now, *launch);
        launch_expand(d, batch, now, verdicts, count, *launch);
        GTCB_LAUNCH(sum_messages, blocks, DECODE_THREADS, launch->stream, d, batch, (unsigned)now, s, verdicts, count);
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
