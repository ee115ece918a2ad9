/* Messages applied to a tile, one after the other. */
#include "apply.h"

#define AHEAD 64                    /* elements whose lines are on their way while as many others are added */

gtcb_source gtcb_source_of(const gtcb_message *message)
{
    gtcb_header h;
    gtcb_read_header(message->header, &h);
    return (gtcb_source){message->body, h.body_bytes, h.sent, h.threshold, (gtcb_kind)h.kind};
}

/* -- packed ------------------------------------------------------------------------------------------- */

static uint64_t span_of(const gtcb_source *m, uint64_t block) { return gtcb_get64(m->body + 8 * block); }

static gtcb_layout layout_of(const gtcb_source *m, uint64_t block)
{
    return gtcb_block_layout(span_of(m, block), gtcb_block_count(m->sent, block));
}

static void next_block(const gtcb_source *m, gtcb_cursor *at)
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

static void ask_for(const float *dense, const uint32_t *words, size_t count)
{
    GTCB_UNROLL
    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(dense + (words[i] >> 1), 1, 2);  /* to the second level: the first has too few misses under way */
}

/* Elements that are in no cache. The lines of the next few are asked for before these are added. */
static void add_from_memory(const gtcb_variant *v, float *dense, const uint32_t *words, size_t count, float threshold)
{
    ask_for(dense, words, gtcb_least(AHEAD, count));
    for (size_t i = 0, next; i < count; i = next) {
        next = gtcb_least(i + AHEAD, count);
        ask_for(dense, words + next, gtcb_least(AHEAD, count - next));
        v->add(dense, words + i, next - i, threshold);
    }
}

/* The elements of one block with low <= index < high. */
static void apply_block(const gtcb_variant *v, const gtcb_source *m, const gtcb_cursor *at, gtcb_tile tile)
{
    union { uint32_t usual[GTCB_BLOCK + GTCB_SLACK]; uint64_t wide[GTCB_BLOCK]; } words;
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
    const uint64_t from = tile.low > at->base ? 2 * (tile.low - at->base) : 0, to = 2 * gtcb_least(tile.high - at->base, span);
    float *dense = tile.data + (ptrdiff_t)(at->base - tile.low);    /* of the block's first element: it may lie before the tile */
    if (gtcb_is_wide(span)) {
        gtcb_unpack_wide(lows, uppers, y.upper_bits, count, y.l, words.wide);
        add_wide(dense, words.wide, count, from, to, m->threshold);
        return;
    }
    v->unpack(lows, uppers, y.upper_bits, count, y.l, words.usual);
    if (from > 0 || to < 2 * span)
        count = v->keep(words.usual, count, (uint32_t)from, (uint32_t)to);
    if (tile.cached)
        v->add(dense, words.usual, count, m->threshold);
    else
        add_from_memory(v, dense, words.usual, count, m->threshold);
}

static void apply_packed(const gtcb_variant *v, const gtcb_source *m, gtcb_cursor *at, gtcb_tile tile)
{
    const uint64_t blocks = gtcb_blocks(m->sent);
    while (at->number < blocks && at->base < tile.high) {
        apply_block(v, m, at, tile);
        if (at->base + span_of(m, at->number) > tile.high)
            return;                 /* the next tile wants the rest of it */
        next_block(m, at);
    }
}

/* -- words, dense ------------------------------------------------------------------------------------------- */

static uint64_t word_of(const gtcb_source *m, uint64_t i) { return gtcb_get32(m->body + 4 * i); }

static void apply_words(const gtcb_source *m, gtcb_cursor *at, gtcb_tile tile)
{
    const float q[2] = {m->threshold, -m->threshold};
    for (uint64_t w; at->number < m->sent && (w = word_of(m, at->number)) >> 1 < tile.high; at->number++)
        tile.data[(w >> 1) - tile.low] += q[w & 1];
}

/* -- any ------------------------------------------------------------------------------------------------------ */

gtcb_cursor gtcb_start_of(const gtcb_source *m)
{
    return (gtcb_cursor){.offset = m->kind == GTCB_PACKED ? 8 * gtcb_blocks(m->sent) : 0};
}

void gtcb_advance(const gtcb_source *m, gtcb_cursor *at, uint64_t low)
{
    if (m->kind == GTCB_PACKED)
        while (at->number < gtcb_blocks(m->sent) && at->base + span_of(m, at->number) <= low)
            next_block(m, at);
    else if (m->kind == GTCB_WORDS)
        while (at->number < m->sent && word_of(m, at->number) >> 1 < low)
            at->number++;
}

uint64_t gtcb_pass(const gtcb_source *m, gtcb_cursor *at, uint64_t low, uint64_t high)
{
    if (m->kind != GTCB_PACKED)
        return m->kind == GTCB_DENSE ? high - low : 0;
    double sent = 0;
    for (const uint64_t blocks = gtcb_blocks(m->sent); at->number < blocks && at->base < high; next_block(m, at)) {
        const uint64_t end = at->base + span_of(m, at->number);
        const uint64_t inside = gtcb_least(end, high) - (at->base > low ? at->base : low);
        sent += (double)gtcb_block_count(m->sent, at->number) * (double)inside / (double)span_of(m, at->number);
        if (end > high)
            break;                  /* the next tile has the rest of it */
    }
    return (uint64_t)sent;
}

void gtcb_apply(const gtcb_variant *v, const gtcb_source *m, gtcb_cursor *at, gtcb_tile tile)
{
    if (m->kind == GTCB_PACKED)
        apply_packed(v, m, at, tile);
    else if (m->kind == GTCB_WORDS)
        apply_words(m, at, tile);
    else
        v->add_codes(tile.data, m->body + tile.low / 4, tile.high - tile.low, m->threshold);
}
