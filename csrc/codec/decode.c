/* dense[i] += q for every element of every message. The elements are cut into ranges, one task each, and a range
   into tiles that stay in a cache while all messages are applied to them in the order given; so each element sees
   its messages in that order, whatever the cut and whatever the order of the tasks. */
#include "variant.h"

#define BATCH 64                    /* messages whose places are remembered at once, on the stack */
#define MAX_RANGES 32
#define CACHED_TILE (UINT64_C(1) << 17)     /* half a megabyte stays in a second level cache */
#define MAX_TILE (UINT64_C(1) << 21)
#define LINE 16                     /* floats in a cache line */
#define AHEAD 64                    /* elements whose lines are on their way while as many others are added */

/* Where a message goes on. */
typedef struct cursor {
    uint64_t number;                /* words: the next word; packed: the next block */
    uint64_t offset, base;          /* packed: where that block is in the body, and its first index */
} cursor;

typedef struct source {             /* a message */
    const uint8_t *body;
    uint64_t body_bytes, sent;
    float threshold;
    gtcb_kind kind;
} source;

typedef struct decoder {
    const gtcb_variant *variant;
    float *dense;
    uint64_t elements, range, tile;
    bool warm;                      /* fetch a tile in order before its elements are added in no order */
    size_t ranges, count;           /* of messages in this batch */
    source sources[BATCH];
    cursor cursors[BATCH][MAX_RANGES];
} decoder;

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* -- packed ------------------------------------------------------------------------------------------- */

static uint64_t span_of(const source *m, uint64_t block) { return gtcb_get64(m->body + 8 * block); }

static gtcb_layout layout_of(const source *m, uint64_t block)
{
    return gtcb_block_layout(span_of(m, block), gtcb_block_count(m->sent, block));
}

static void next_block(const source *m, cursor *at)
{
    at->offset = gtcb_align8(at->offset + layout_of(m, at->number).bytes);
    at->base += span_of(m, at->number);
    at->number++;
}

static void add_wide(float *dense, const uint64_t *v, size_t count, uint64_t low, uint64_t high, float threshold)
{
    const float q[2] = {threshold, -threshold};
    for (size_t i = 0; i < count; i++)
        if (low <= v[i] && v[i] < high)
            dense[v[i] >> 1] += q[v[i] & 1];
}

static void ask_for(const float *dense, const uint32_t *v, size_t count)
{
    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(dense + (v[i] >> 1), 1, 2);      /* to the second level: the first has too few misses under way */
}

/* Elements that are in no cache. The lines of the next few are asked for before these are added. */
static void add_from_memory(const decoder *d, float *dense, const uint32_t *v, size_t count, float threshold)
{
    ask_for(dense, v, least(AHEAD, count));
    for (size_t i = 0, next; i < count; i = next) {
        next = least(i + AHEAD, count);
        ask_for(dense, v + next, least(AHEAD, count - next));
        d->variant->add(dense, v + i, next - i, threshold);
    }
}

/* The elements of one block with low <= index < high. */
static void apply_block(const decoder *d, const source *m, const cursor *at, uint64_t low, uint64_t high)
{
    union { uint32_t narrow[GTCB_BLOCK + GTCB_SLACK]; uint64_t wide[GTCB_BLOCK]; } v;
    uint8_t copy[GTCB_BLOCK_BYTES + GTCB_PAD];
    const uint64_t span = span_of(m, at->number);
    const gtcb_layout y = layout_of(m, at->number);
    size_t count = gtcb_block_count(m->sent, at->number);
    const uint8_t *lows = m->body + at->offset;
    if (m->body_bytes - at->offset < y.bytes + GTCB_PAD) {      /* never read beyond the body */
        memcpy(copy, lows, y.bytes);
        memset(copy + y.bytes, 0, GTCB_PAD);
        lows = copy;
    }
    const uint8_t *uppers = lows + y.lows_bytes;
    const uint64_t from = low > at->base ? 2 * (low - at->base) : 0, to = 2 * least(high - at->base, span);
    float *dense = d->dense + at->base;
    if (gtcb_is_wide(span)) {
        gtcb_unpack_wide(lows, uppers, y.upper_bits, count, y.l, v.wide);
        add_wide(dense, v.wide, count, from, to, m->threshold);
        return;
    }
    d->variant->unpack(lows, uppers, y.upper_bits, count, y.l, v.narrow);
    if (from > 0 || to < 2 * span)
        count = d->variant->keep(v.narrow, count, (uint32_t)from, (uint32_t)to);
    if (d->warm)
        d->variant->add(dense, v.narrow, count, m->threshold);
    else
        add_from_memory(d, dense, v.narrow, count, m->threshold);
}

static void apply_packed(const decoder *d, const source *m, cursor *at, uint64_t low, uint64_t high)
{
    const uint64_t blocks = gtcb_blocks(m->sent);
    while (at->number < blocks && at->base < high) {
        apply_block(d, m, at, low, high);
        if (at->base + span_of(m, at->number) > high)
            return;                 /* the next tile wants the rest of it */
        next_block(m, at);
    }
}

/* -- words, dense ------------------------------------------------------------------------------------------- */

static uint64_t word_of(const source *m, uint64_t i) { return gtcb_get32(m->body + 4 * i); }

static void apply_words(const decoder *d, const source *m, cursor *at, uint64_t high)
{
    const float q[2] = {m->threshold, -m->threshold};
    for (uint64_t w; at->number < m->sent && (w = word_of(m, at->number)) >> 1 < high; at->number++)
        d->dense[w >> 1] += q[w & 1];
}

/* -- tiles, ranges, batches --------------------------------------------------------------------------------- */

/* In order, because only then the processor fetches at full bandwidth; with loads, as prefetches do not set off the
   prefetcher. */
static void fetch(const float *dense, uint64_t count)
{
    for (uint64_t i = 0; i < count; i += LINE)
        (void)*(const volatile float *)(dense + i);
}

static void apply_range(void *context, size_t r)
{
    const decoder *d = context;
    const uint64_t first = r * d->range, end = least(first + d->range, d->elements);
    cursor at[BATCH];
    for (size_t i = 0; i < d->count; i++)
        at[i] = d->cursors[i][r];
    for (uint64_t low = first; low < end; low += d->tile) {
        const uint64_t high = least(low + d->tile, end);
        if (d->warm)
            fetch(d->dense + low, high - low);
        for (size_t i = 0; i < d->count; i++) {
            const source *m = &d->sources[i];
            if (m->kind == GTCB_PACKED)
                apply_packed(d, m, &at[i], low, high);
            else if (m->kind == GTCB_WORDS)
                apply_words(d, m, &at[i], high);
            else
                d->variant->add_codes(d->dense + low, m->body + low / 4, high - low, m->threshold);
        }
    }
}

/* For each range, where message i reaches it. */
static void place_cursors(void *context, size_t i)
{
    decoder *d = context;
    const source *m = &d->sources[i];
    const uint64_t blocks = gtcb_blocks(m->sent);
    cursor at = {.offset = m->kind == GTCB_PACKED ? 8 * blocks : 0};
    for (size_t r = 0; r < d->ranges; r++) {
        const uint64_t first = r * d->range;
        if (m->kind == GTCB_PACKED)
            while (at.number < blocks && at.base + span_of(m, at.number) <= first)
                next_block(m, &at);
        else if (m->kind == GTCB_WORDS)
            while (at.number < m->sent && word_of(m, at.number) >> 1 < first)
                at.number++;
        d->cursors[i][r] = at;
    }
}

/* With two elements or more for each cache line, the whole tile is fetched in order, at full bandwidth, and is one that
   fits a cache; twice as wide where the messages' blocks are, as a block that lies in two tiles is unpacked twice. With
   fewer, each element's line is fetched alone, and the tile is as wide as it may be. */
static void cut(decoder *d, uint64_t sent, uint64_t messages)
{
    const uint64_t batches = (messages + BATCH - 1) / BATCH;
    d->warm = sent / batches > d->elements / (LINE / 2);
    d->tile = MAX_TILE;
    if (d->warm)
        d->tile = sent / messages <= d->elements / (2 * CACHED_TILE / GTCB_BLOCK) ? 2 * CACHED_TILE : CACHED_TILE;
    const uint64_t tiles = (d->elements + d->tile - 1) / d->tile;
    d->range = (tiles + MAX_RANGES - 1) / MAX_RANGES * d->tile;
    d->ranges = (size_t)((d->elements + d->range - 1) / d->range);
}

gtcb_status gtcb_decode_add(const gtcb_variant *v, const gtcb_message *messages, size_t count,
                            float *dense, uint64_t elements, const gtcb_executor *executor)
{
    if (v == NULL || (messages == NULL && count > 0) || (dense == NULL && elements > 0))
        return GTCB_BAD_ARGUMENT;
    gtcb_header h;
    uint64_t sent = 0;
    for (size_t i = 0; i < count; i++) {
        gtcb_status status = gtcb_read_header(messages[i].header, &h);
        if (status != GTCB_OK)
            return status;
        if (h.kind == GTCB_RAW)
            return GTCB_MISMATCH;
        if (h.flags & GTCB_FLAG_NON_FINITE)
            return GTCB_NON_FINITE;
        if (h.elements != elements)
            return GTCB_MISMATCH;
        if (messages[i].body == NULL && h.body_bytes > 0)
            return GTCB_BAD_ARGUMENT;
        sent += h.sent;
    }
    if (sent == 0)
        return GTCB_OK;

    decoder d = {.variant = v, .dense = dense, .elements = elements};
    cut(&d, sent, count);
    for (size_t first = 0; first < count; first += d.count) {
        d.count = least(count - first, BATCH);
        for (size_t i = 0; i < d.count; i++) {
            gtcb_read_header(messages[first + i].header, &h);
            d.sources[i] = (source){messages[first + i].body, h.body_bytes, h.sent, h.threshold, (gtcb_kind)h.kind};
        }
        gtcb_run(executor, place_cursors, &d, d.count);
        gtcb_run(executor, apply_range, &d, d.ranges);
    }
    return GTCB_OK;
}
