/* Messages applied to a tile, one after the other. */
#include "apply.h"

#define AHEAD 64                    /* elements whose lines are on their way while as many others are added */
#define BODY_AHEAD 3072             /* bytes of the next message: two blocks of elements that are sent every 100 */

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

/* The words with low <= v < high, one after the other. */
#define ADD_WITHIN(name, WORD)                                                                                       \
    static void name(float *dense, const WORD *v, size_t count, uint64_t low, uint64_t high, float threshold)       \
    {                                                                                                                \
        const float q[2] = {threshold, -threshold};                                                                  \
        for (size_t i = 0; i < count; i++)                                                                           \
            if (low <= v[i] && v[i] < high)                                                                          \
                dense[v[i] >> 1] += q[v[i] & 1];                                                                     \
    }

ADD_WITHIN(add_within, uint32_t)
ADD_WITHIN(add_wide, uint64_t)

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

static void add_words(const gtcb_variant *v, float *dense, const uint32_t *words, size_t count, float threshold, bool cached)
{
    if (cached)
        v->add(dense, words, count, threshold);
    else
        add_from_memory(v, dense, words, count, threshold);
}

/* -- a part of a block: only that is unpacked, as most blocks of a large bucket lie in more than one tile ----------- */

#define UPPER_WORDS (3 * GTCB_BLOCK / 64 + 2)               /* a block has less than 3 bits of uppers for each element */

typedef struct place { uint64_t bit, element; } place;      /* in the uppers of a block; the first element from there on */

/* Where the elements begin whose v >> l is `upper` or more: behind that many zeros. */
static place place_of(const uint8_t *uppers, const gtcb_layout *y, size_t count, uint64_t upper)
{
    uint64_t bit = 0, left = upper;
    for (uint64_t zeros; left > 0 && bit < y->upper_bits; bit += 64, left -= zeros) {
        uint64_t w = ~gtcb_get64(uppers + bit / 8);
        zeros = gtcb_ones_of(w);
        if (zeros < left)
            continue;
        while (--left > 0)
            w &= w - 1;
        bit += (uint64_t)__builtin_ctzll(w) + 1;
        break;
    }
    return bit < y->upper_bits ? (place){bit, bit - upper} : (place){y->upper_bits, count};
}

/* The elements from `begin` to `end`, and up to 7 before them, of which none has an upper part: so that their low bits begin with a
   byte. Returns how many those are. */
static size_t unpack_part(const gtcb_variant *v, const uint8_t *lows, const uint8_t *uppers, unsigned l, place begin, place end,
                          uint32_t *words)
{
    uint64_t bits[UPPER_WORDS + GTCB_PAD / 8];
    const size_t before = begin.element % 8;            /* <= begin.bit */
    const uint64_t first = begin.bit - before, count = end.bit - first;
    const unsigned shift = first % 8;
    for (uint64_t i = 0; 64 * i < count; i++) {
        const uint8_t *from = uppers + first / 8 + 8 * i;
        bits[i] = gtcb_get64(from) >> shift | (uint64_t)from[8] << 1 << (63 - shift);
    }
    bits[0] |= (1u << before) - 1;
    v->unpack(lows + begin.element / 8 * l, (const uint8_t *)bits, count, before + end.element - begin.element, l, words);
    return before;
}

/* The elements with from <= v < to. Those that share the upper part of a limit are looked at one by one: a crafted message may
   have them in any order. */
static void add_part(const gtcb_variant *v, const uint8_t *lows, const gtcb_layout *y, size_t count, uint64_t from, uint64_t to,
                     float *dense, float threshold, bool cached)
{
    uint32_t words[GTCB_BLOCK + GTCB_SLACK + 8];
    const uint8_t *uppers = lows + y->lows_bytes;
    const uint64_t first = from >> y->l, last = (to - 1) >> y->l, base = first << y->l, last_base = (last - first) << y->l;
    const place begin = place_of(uppers, y, count, first), end = place_of(uppers, y, count, last + 1);
    if (begin.element == end.element)
        return;
    const uint32_t *w = words + unpack_part(v, lows, uppers, y->l, begin, end, words);
    size_t head = 0, tail = end.element - begin.element;
    while (head < tail && (uint64_t)w[head] >> y->l == 0)
        head++;
    while (tail > head && w[tail - 1] >= last_base)
        tail--;
    dense += base / 2;
    add_within(dense, w, head, from - base, to - base, threshold);
    add_words(v, dense, w + head, tail - head, threshold, cached);
    add_within(dense, w + tail, end.element - begin.element - tail, from - base, to - base, threshold);
}

/* -- a block ------------------------------------------------------------------------------------------ */

/* The elements of one block with low <= index < high. */
static void apply_block(const gtcb_variant *v, const gtcb_source *m, const gtcb_cursor *at, gtcb_tile tile)
{
    union { uint32_t usual[GTCB_BLOCK + GTCB_SLACK]; uint64_t wide[GTCB_BLOCK]; } words;
    uint8_t copy[GTCB_BLOCK_BYTES + GTCB_PAD];
    const uint64_t span = span_of(m, at->number);
    const gtcb_layout y = layout_of(m, at->number);
    const size_t count = gtcb_block_count(m->sent, at->number);
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
    } else if (from > 0 || to < 2 * span) {
        add_part(v, lows, &y, count, from, to, dense, m->threshold, tile.cached);
    } else {
        v->unpack(lows, uppers, y.upper_bits, count, y.l, words.usual);
        add_words(v, dense, words.usual, count, m->threshold, tile.cached);
    }
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

void gtcb_ask_for_body(const gtcb_source *m, const gtcb_cursor *at)
{
    const uint64_t end = m->kind == GTCB_PACKED ? gtcb_least(at->offset + BODY_AHEAD, m->body_bytes) : 0;
    for (uint64_t byte = at->offset; byte < end; byte += 64)
        __builtin_prefetch(m->body + byte, 0, 2);
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
