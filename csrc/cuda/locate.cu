// Where the blocks of packed bodies are: sums over their directories, whose sums are checked on the way.
#include "cuda/decoder.cuh"

Decoder lay_out_decoder(void *scratch, uint64_t elements, size_t messages)
{
    const uint64_t slots = least(messages, BATCH);
    Decoder d;
    d.places = parts(elements, BLOCK);
    d.tiles = parts(elements, TILE);
    d.found = (Found *)scratch;
    d.bases = (uint64_t *)(d.found + slots);
    d.offsets = d.bases + slots * d.places;
    d.starts = d.offsets + slots * d.places;
    d.entries = (uint16_t *)(d.starts + slots * (d.tiles + 1));
    return d;
}

static bool is_expanded(const gtcb_header &h) { return h.kind != GTCB_DENSE && h.sent > 0; }

// A message has at most one for each element, so any finds room.
static uint64_t entries_at_once(uint64_t elements) { return 2 * elements; }

// A power of two of entries, if there is less to expand than finds room at once: what is sent differs from step to step, and the
// caller's memory should not grow with each that sends a little more than all before.
size_t gtcb_cuda_decode_scratch_bytes(const gtcb_cuda_message *messages, size_t count, uint64_t elements)
{
    const uint64_t slots = least(count, BATCH), tables = 2 * parts(elements, BLOCK) + parts(elements, TILE) + 1;
    uint64_t sent = 0, entries = 1;
    for (size_t i = 0; i < count; i++) {
        gtcb_header h;
        if (gtcb_read_header(messages[i].header, &h) == GTCB_OK && is_expanded(h))
            sent += least(h.sent, elements);
    }
    while (entries < least(sent, entries_at_once(elements)))
        entries *= 2;
    return slots * (sizeof(Found) + tables * sizeof(uint64_t)) + least(entries, entries_at_once(elements)) * sizeof(uint16_t);
}

gtcb_status check_messages(const gtcb_cuda_message *messages, size_t count, uint64_t elements)
{
    if (elements > MAX_ELEMENTS || (messages == nullptr && count > 0))
        return GTCB_BAD_ARGUMENT;
    for (size_t i = 0; i < count; i++) {
        gtcb_header h;
        const gtcb_status status = gtcb_read_header(messages[i].header, &h);
        if (status != GTCB_OK)
            return status;
        if (h.kind == GTCB_RAW)
            return GTCB_MISMATCH;
        if (h.flags & GTCB_FLAG_NON_FINITE)
            return GTCB_NON_FINITE;
        if (h.elements != elements)
            return GTCB_MISMATCH;
        if (h.body_bytes > 0 && (messages[i].body == nullptr || (uintptr_t)messages[i].body % 8 != 0))
            return GTCB_BAD_ARGUMENT;
    }
    return GTCB_OK;
}

size_t count_at_once(const gtcb_cuda_message *messages, size_t count, uint64_t elements)
{
    uint64_t entries = 0;
    size_t i = 0;
    for (; i < least(count, BATCH); i++) {
        gtcb_header h;
        gtcb_read_header(messages[i].header, &h);
        entries += is_expanded(h) ? h.sent : 0;
        if (entries > entries_at_once(elements))
            break;
    }
    return i;
}

Batch read_messages(const gtcb_cuda_message *messages, size_t count)
{
    Batch batch = {};
    for (size_t i = 0; i < count; i++) {
        gtcb_header h = {};
        gtcb_read_header(messages[i].header, &h);
        batch.of[i] = {(const uint64_t *)messages[i].body, h.elements, h.sent, h.body_bytes, h.body_checksum, batch.entries, h.threshold,
                       h.kind};
        if (is_expanded(h)) {
            batch.expanded |= (uint64_t)1 << i;
            batch.entries += h.sent;
        }
        batch.dense |= (uint64_t)(h.kind == GTCB_DENSE && h.sent > 0) << i;
    }
    return batch;
}

__device__ inline uint64_t span_at(const Message &m, uint64_t block) { return m.body[block]; }

__device__ inline bool span_is_sound(const Message &m, uint64_t block)
{
    return span_at(m, block) >= count_of(m.sent, block) && span_at(m, block) <= m.elements;
}

__device__ inline uint64_t bytes_at(const Message &m, uint64_t block)
{
    return layout_of(span_at(m, block), count_of(m.sent, block)).bytes;
}

// One block of threads for each message.
__global__ void __launch_bounds__(LONE_THREADS) locate(Decoder d, Batch batch)
{
    __shared__ uint64_t places[SCAN_PLACES];
    const Message m = batch.of[blockIdx.x];
    Found *found = d.found + blockIdx.x;
    const uint64_t blocks = m.kind == GTCB_PACKED ? parts(m.sent, BLOCK) : 0;
    const bool fits = blocks <= m.body_bytes / 8 && blocks <= d.places;
    if (threadIdx.x == 0)
        *found = {0, 0, 0, !fits};
    if (!fits || blocks == 0)
        return;
    const uint64_t each = parts(blocks, LONE_THREADS), begin = least(threadIdx.x * each, blocks), end = least(begin + each, blocks);
    uint64_t spans = 0, bytes = 0, all_spans, all_bytes;
    bool bad = false;
    for (uint64_t b = begin; b < end && !bad; b++) {
        bad = !span_is_sound(m, b);
        spans = least(spans + span_at(m, b), m.elements + 1);       // so that no sum overflows
        bytes += bad ? 0 : up_to_8(bytes_at(m, b));
    }
    uint64_t base = block_scan(spans, places, &all_spans), at = 8 * blocks + block_scan(bytes, places, &all_bytes);
    if (__syncthreads_or(bad || all_spans > m.elements)) {
        if (threadIdx.x == 0)
            found->bad = 1;
        return;
    }
    for (uint64_t b = begin; b < end; b++) {
        d.bases[blockIdx.x * d.places + b] = base;
        d.offsets[blockIdx.x * d.places + b] = at;
        base += span_at(m, b);
        if (b + 1 == blocks) {      // the last block is not filled up to a word
            const bool whole = at + bytes_at(m, b) == m.body_bytes;
            found->bad = !whole;
            found->blocks = whole ? blocks : 0;
        }
        at += up_to_8(bytes_at(m, b));
    }
}

void launch_locate(const Decoder &decoder, const Batch &batch, size_t count, const gtcb_cuda_launch &launch)
{
    GTCB_LAUNCH(locate, (unsigned)count, LONE_THREADS, launch.stream, decoder, batch);
}
