/* The body of a message from the staged words (docs/message-format.md, "Which body" and Body 1 to 3). Every task
   writes its own bytes and adds up their part of the checksum while they are in the cache. */
#include "variant.h"

typedef struct packer {
    const gtcb_staged *staged;
    uint8_t *body;
    uint64_t body_bytes;
} packer;

static const uint16_t *words_of(const gtcb_staged *s, size_t chunk) { return s->words + chunk * GTCB_PLACE; }

/* -- which body -------------------------------------------------------------------------------------- */

/* The word of the last element of a block; *chunk is one at or before its chunk, and becomes it. */
static const uint16_t *last_word(const gtcb_staged *s, uint64_t block, size_t *chunk)
{
    const uint64_t number = block * GTCB_BLOCK + gtcb_block_count(s->sent, block) - 1;
    while (number >= s->chunks[*chunk].start + s->chunks[*chunk].count)
        ++*chunk;
    return words_of(s, *chunk) + (number - s->chunks[*chunk].start);
}

/* The exact length of a packed body; notes where each group of blocks begins. */
static uint64_t lay_out_blocks(const gtcb_staged *s)
{
    const uint64_t blocks = gtcb_blocks(s->sent), ahead = 16;
    uint64_t at = 8 * blocks, base = 0, asked = 0;
    size_t chunk = 0, asked_chunk = 0;
    for (uint64_t b = 0; b < blocks; b++) {
        for (; asked < blocks && asked < b + ahead; asked++)        /* one word in each of many cache lines */
            __builtin_prefetch(last_word(s, asked, &asked_chunk));
        at = gtcb_align8(at);
        if (b % GTCB_GROUP == 0)
            s->groups[b / GTCB_GROUP] = (gtcb_group){.offset = at, .base = base};
        uint64_t count = gtcb_block_count(s->sent, b);
        const uint16_t word = *last_word(s, b, &chunk);
        uint64_t end = (uint64_t)chunk * GTCB_CHUNK + (word >> 1) + 1;
        at += gtcb_block_layout(end - base, count).bytes;
        base = end;
    }
    return at;
}

gtcb_kind gtcb_choose_body(const gtcb_staged *s, uint64_t *body_bytes)
{
    uint64_t words = s->elements <= GTCB_WORDS_MAX ? 4 * s->sent : UINT64_MAX;
    uint64_t packed = lay_out_blocks(s), dense = gtcb_dense_bytes(s->elements);
    if (words <= packed && words <= dense) {
        *body_bytes = words;
        return GTCB_WORDS;
    }
    *body_bytes = packed <= dense ? packed : dense;
    return packed <= dense ? GTCB_PACKED : GTCB_DENSE;
}

/* -- Body 1: words -------------------------------------------------------------------------------------- */

static void write_words(void *context, size_t c)
{
    const packer *p = context;
    const gtcb_chunk *chunk = &p->staged->chunks[c];
    const uint16_t *words = words_of(p->staged, c);
    uint8_t *out = p->body + 4 * chunk->start;
    for (uint32_t i = 0; i < chunk->count; i++)
        gtcb_put32(out + 4 * i, (uint32_t)(2 * c * GTCB_CHUNK + words[i]));
}

/* -- Body 2: packed -------------------------------------------------------------------------------------- */

/* A walk over the staged words. */
typedef struct reader { size_t chunk; uint32_t word; } reader;

static reader seek(const gtcb_staged *s, uint64_t number)
{
    size_t low = 0, high = s->chunk_count;      /* the last chunk that begins at or before it */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (s->chunks[middle].start <= number)
            low = middle;
        else
            high = middle;
    }
    return (reader){low, (uint32_t)(number - s->chunks[low].start)};
}

/* The next run of words in one chunk, at most `limit`. */
static size_t next_run(const gtcb_staged *s, reader *r, size_t limit, const uint16_t **words, uint64_t *first_index)
{
    while (r->word == s->chunks[r->chunk].count) {
        r->chunk++;
        r->word = 0;
    }
    size_t left = s->chunks[r->chunk].count - r->word, run = left < limit ? left : limit;
    *words = words_of(s, r->chunk) + r->word;
    *first_index = (uint64_t)r->chunk * GTCB_CHUNK;
    r->word += (uint32_t)run;
    return run;
}

/* v = 2 * (index - base) + negative; in 32 bits modulo 2^32, which is exact if the block is not wide. */
static void gather(const gtcb_staged *s, reader r, size_t count, uint64_t base, uint32_t *v)
{
    const uint16_t *words;
    uint64_t first;
    for (size_t done = 0, run; done < count; done += run) {
        run = next_run(s, &r, count - done, &words, &first);
        s->variant->widen(words, run, (uint32_t)(2 * (first - base)), v + done);
    }
}

/* In 16 bits, which is exact if the block is narrow. */
static void gather_narrow(const gtcb_staged *s, reader r, size_t count, uint64_t base, uint16_t *v)
{
    const uint16_t *words;
    uint64_t first;
    for (size_t done = 0, run; done < count; done += run) {
        run = next_run(s, &r, count - done, &words, &first);
        for (size_t i = 0; i < run; i++)
            v[done + i] = (uint16_t)(words[i] + 2 * (first - base));
    }
}

static void gather_wide(const gtcb_staged *s, reader r, size_t count, uint64_t base, uint64_t *v)
{
    const uint16_t *words;
    uint64_t first;
    for (size_t done = 0, run; done < count; done += run) {
        run = next_run(s, &r, count - done, &words, &first);
        for (size_t i = 0; i < run; i++)
            v[done + i] = words[i] + 2 * (first - base);
    }
}

/* Writes one block to out, which has room for GTCB_BLOCK_BYTES and the pad; returns its layout, *span its span. */
static gtcb_layout pack_block(const gtcb_staged *s, reader *r, size_t count, uint64_t base, uint8_t *out, uint64_t *span)
{
    union {
        uint16_t narrow[GTCB_BLOCK + GTCB_SLACK];
        uint32_t usual[GTCB_BLOCK + GTCB_SLACK];
        uint64_t wide[GTCB_BLOCK];
    } v;
    uint8_t uppers[GTCB_BLOCK * 3 / 8 + GTCB_PAD];
    const reader start = *r;
    const uint16_t *words = NULL;
    uint64_t first = 0;
    size_t run = 0;
    for (size_t done = 0; done < count; done += run) {
        run = next_run(s, r, count - done, &words, &first);
        *span = first + (words[run - 1] >> 1) + 1 - base;
    }
    gtcb_layout y = gtcb_block_layout(*span, count);
    if (gtcb_is_narrow(*span)) {
        uint16_t offset = (uint16_t)(2 * (first - base));
        if (run < count) {      /* in several chunks; most are packed from where they lie */
            gather_narrow(s, start, count, base, v.narrow);
            words = v.narrow;
            offset = 0;
        }
        s->variant->pack_narrow(words, offset, count, y.l, out, uppers, y.upper_bits);
    } else if (gtcb_is_wide(*span)) {
        gather_wide(s, start, count, base, v.wide);
        gtcb_pack_wide(v.wide, count, y.l, out, uppers, y.upper_bits);
    } else {
        gather(s, start, count, base, v.usual);
        s->variant->pack(v.usual, count, y.l, out, uppers, y.upper_bits);
    }
    memcpy(out + y.lows_bytes, uppers, y.bytes - y.lows_bytes);
    return y;
}

/* The words were written chunk by chunk, each in a place of its own: too short runs for the processor to foresee. */
static void prefetch_block(const gtcb_staged *s, reader *r, uint64_t block)
{
    const uint16_t *words;
    uint64_t first;
    if (block >= gtcb_blocks(s->sent))
        return;
    const size_t count = gtcb_block_count(s->sent, block);
    for (size_t done = 0, run; done < count; done += run) {
        run = next_run(s, r, count - done, &words, &first);
        for (size_t i = 0; i < run; i += 64 / sizeof *words)
            __builtin_prefetch(words + i);
    }
}

static void write_group(void *context, size_t g)
{
    const packer *p = context;
    const gtcb_staged *s = p->staged;
    gtcb_group *group = &s->groups[g];
    const uint64_t blocks = gtcb_blocks(s->sent), first = (uint64_t)g * GTCB_GROUP;
    const uint64_t last = blocks - first < GTCB_GROUP ? blocks : first + GTCB_GROUP;
    uint64_t at = group->offset, base = group->base, sum = 0, span = 0;
    const uint64_t lead = 2;
    reader r = seek(s, first * GTCB_BLOCK), ahead = r;
    for (uint64_t b = first; b < first + lead; b++)
        prefetch_block(s, &ahead, b);
    for (uint64_t b = first; b < last; b++) {
        prefetch_block(s, &ahead, b + lead);
        uint8_t block[GTCB_BLOCK_BYTES + GTCB_PAD];
        gtcb_layout y = pack_block(s, &r, gtcb_block_count(s->sent, b), base, block, &span);
        uint64_t next = b + 1 < blocks ? gtcb_align8(at + y.bytes) : p->body_bytes;
        memset(block + y.bytes, 0, next - at - y.bytes);
        memcpy(p->body + at, block, next - at);
        gtcb_put64(p->body + 8 * b, span);
        sum += s->variant->checksum(block, next - at, at / 8);
        at = next;
        base += span;
    }
    group->checksum = sum + s->variant->checksum(p->body + 8 * first, 8 * (last - first), first);
}

/* -- Body 3: dense ---------------------------------------------------------------------------------------- */

static void write_codes(void *context, size_t c)
{
    const packer *p = context;
    gtcb_chunk *chunk = &p->staged->chunks[c];
    const uint16_t *words = words_of(p->staged, c);
    const uint64_t first = (uint64_t)c * (GTCB_CHUNK / 4), left = p->body_bytes - first;
    const size_t bytes = left < GTCB_CHUNK / 4 ? left : GTCB_CHUNK / 4;
    uint8_t *out = p->body + first;
    memset(out, 0, bytes);
    for (uint32_t i = 0; i < chunk->count; i++) {
        unsigned index = words[i] >> 1, code = words[i] & 1 ? 3 : 1;
        out[index / 4] |= (uint8_t)(code << index % 4 * 2);
    }
    chunk->checksum = p->staged->variant->checksum(out, bytes, first / 8);
}

/* -- all ---------------------------------------------------------------------------------------------------- */

uint64_t gtcb_write_body(const gtcb_staged *s, gtcb_kind kind, uint64_t body_bytes, uint8_t *body)
{
    packer p = {s, body, body_bytes};
    uint64_t sum = 0;
    if (kind == GTCB_WORDS) {
        gtcb_run(s->executor, write_words, &p, s->sent > 0 ? s->chunk_count : 0);
        sum = s->variant->checksum(body, body_bytes, 0);
    } else if (kind == GTCB_PACKED) {
        size_t groups = (size_t)((gtcb_blocks(s->sent) + GTCB_GROUP - 1) / GTCB_GROUP);
        gtcb_run(s->executor, write_group, &p, groups);
        for (size_t g = 0; g < groups; g++)
            sum += s->groups[g].checksum;
    } else {
        gtcb_run(s->executor, write_codes, &p, s->chunk_count);
        for (size_t c = 0; c < s->chunk_count; c++)
            sum += s->chunks[c].checksum;
    }
    return sum;
}
