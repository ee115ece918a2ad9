// What a decoder checks before it writes anything (docs/message-format.md, checks 1 to 4), for bodies on the device. The
// headers are checked on the host. Counts and checksums are sums, and `bad` is only ever set: no order shows.
#include "cuda/decoder.cuh"

// -- every body: its checksum --------------------------------------------------------------------------------------------

__device__ inline uint64_t word_of(const Message &m, uint64_t i)        // the last one filled up with zeros
{
    const uint64_t left = m.body_bytes - 8 * i;
    return left >= 8 ? m.body[i] : m.body[i] & (((uint64_t)1 << 8 * left) - 1);
}

struct Team { unsigned block, blocks; };        // this block of threads among those that look at the same message

__device__ inline uint64_t thread_of(const Team &t) { return t.block * (uint64_t)THREADS + threadIdx.x; }
__device__ inline uint64_t threads_of(const Team &t) { return t.blocks * (uint64_t)THREADS; }

__device__ inline uint64_t sum_up(const Message &m, const Team &team)
{
    uint64_t sum = 0;
    for (uint64_t i = thread_of(team); 8 * i < m.body_bytes; i += threads_of(team))
        sum += checksum_term(word_of(m, i), i);
    return sum;
}

// -- words, dense --------------------------------------------------------------------------------------------------------

__device__ inline bool words_are_bad(const Message &m, const Team &team)
{
    const uint32_t *words = (const uint32_t *)m.body;
    bool bad = false;
    for (uint64_t i = thread_of(team); i < m.sent; i += threads_of(team))
        bad |= words[i] >> 1 >= m.elements || (i > 0 && words[i - 1] >> 1 >= words[i] >> 1);
    return bad;
}

// Counts the codes that are not 0.
__device__ inline bool codes_are_bad(const Message &m, const Team &team, uint64_t *count)
{
    const uint64_t low = 0x5555555555555555ull;         // the lower bit of each code
    bool bad = false;
    for (uint64_t i = thread_of(team); 8 * i < m.body_bytes; i += threads_of(team)) {
        const uint64_t w = word_of(m, i), used = 2 * m.elements - 64 * i;
        bad |= (w >> 1 & ~w & low) != 0 || (used < 64 && w >> used != 0);
        *count += __popcll(w & low);
    }
    return bad;
}

// -- packed --------------------------------------------------------------------------------------------------------------

__device__ inline bool bit_is_set(const uint64_t *body, uint64_t at) { return get_bits(body, at, 1) != 0; }

// The bits from `end` to the next multiple of `to`, 8 or 64.
__device__ inline bool fill_is_zero(const uint64_t *body, uint64_t end, uint64_t to)
{
    const unsigned fill = (unsigned)((to - end % to) % to);
    return fill == 0 || get_long_bits(body, end, fill) == 0;
}

// Only elements with the last upper value, a run of ones at the end, can lie beyond the block.
__device__ inline bool run_is_bad(const Message &m, uint64_t lows, uint64_t uppers, uint64_t span, uint64_t count, const Layout &y)
{
    const uint64_t last_upper = (span - 1) >> (y.l - 1), greatest = 2 * span - 1;
    for (uint64_t i = 0; i < count && bit_is_set(m.body, uppers + y.upper_bits - 1 - i); i++)
        if ((last_upper << y.l | get_long_bits(m.body, lows + (count - 1 - i) * y.l, y.l)) > greatest)
            return true;
    return false;
}

__device__ inline bool block_is_bad(const Message &m, uint64_t block, uint64_t blocks, uint64_t offset, uint64_t *places)
{
    const uint64_t span = m.body[block], count = count_of(m.sent, block);
    const Layout y = layout_of(span, count);
    const uint64_t lows = 8 * offset, uppers = lows + 8 * y.lows_bytes, end = uppers + y.upper_bits;
    uint32_t ones;
    block_scan((uint32_t)__popc(upper_bits_of_thread(m.body, uppers, y)), places, &ones);
    if (threadIdx.x != 0)
        return false;
    return ones != count || !bit_is_set(m.body, end - 1) || !fill_is_zero(m.body, lows + count * y.l, 8) ||
           !fill_is_zero(m.body, end, block + 1 < blocks ? 64 : 8) || run_is_bad(m, lows, uppers, span, count, y);
}

__device__ inline bool packed_is_bad(const Decoder &d, unsigned slot, const Message &m, const Team &team, uint64_t *places)
{
    const uint64_t blocks = d.found[slot].blocks;
    bool bad = false;
    for (uint64_t b = team.block; b < blocks; b += team.blocks)
        bad |= block_is_bad(m, b, blocks, d.offsets[slot * d.places + b], places);
    return bad;
}

// -- all -----------------------------------------------------------------------------------------------------------------

// As many blocks of threads for each message.
__global__ void __launch_bounds__(THREADS) inspect(Decoder d, Batch batch, unsigned blocks_each)
{
    __shared__ uint64_t places[SCAN_PLACES];
    const unsigned slot = blockIdx.x / blocks_each;
    const Team team = {blockIdx.x % blocks_each, blocks_each};
    const Message m = batch.of[slot];
    Found *found = d.found + slot;
    uint64_t codes = 0;
    const bool bad = m.kind == GTCB_WORDS    ? words_are_bad(m, team)
                   : m.kind == GTCB_PACKED ? packed_is_bad(d, slot, m, team, places)
                                             : codes_are_bad(m, team, &codes);
    if (bad)
        atomicOr(&found->bad, 1u);
    __syncthreads();
    add_up(codes, &found->codes);
    add_up(sum_up(m, team), &found->checksum);
}

__global__ void judge(Decoder d, Batch batch, uint32_t *verdicts)
{
    const Message &m = batch.of[threadIdx.x];
    const Found &found = d.found[threadIdx.x];
    const bool bad = found.bad || (m.kind == GTCB_DENSE && m.body_bytes > 0 && found.codes != m.sent);
    verdicts[threadIdx.x] = found.checksum != m.body_checksum ? GTCB_BAD_CHECKSUM : bad ? GTCB_BAD_BODY : GTCB_OK;
}

gtcb_status gtcb_cuda_validate(const gtcb_cuda_message *messages, size_t count, uint64_t elements, uint32_t *verdicts,
                               void *scratch, const gtcb_cuda_launch *launch)
{
    if (verdicts == nullptr || !decoder_is_sound(scratch, launch))
        return GTCB_BAD_ARGUMENT;
    const gtcb_status status = check_messages(messages, count, elements);
    if (status != GTCB_OK)
        return status;
    const Decoder d = lay_out_decoder(scratch, elements, count);
    for (size_t first = 0; first < count; first += BATCH) {
        const size_t now = least(count - first, BATCH);
        const Batch batch = read_messages(messages + first, now);
        launch_locate(d, batch, now, *launch);
        const unsigned blocks_each = (unsigned)parts(launch->blocks, now);
        GTCB_LAUNCH(inspect, blocks_each * (unsigned)now, THREADS, launch->stream, d, batch, blocks_each);
        GTCB_LAUNCH(judge, 1, (unsigned)now, launch->stream, d, batch, verdicts + first);
    }
    return launched();
}
