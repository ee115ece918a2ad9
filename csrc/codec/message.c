/* Headers (docs/message-format.md, "Header" and "Checksums") and raw messages. */
#include "variant.h"

enum { MAGIC = 0, VERSION = 4, KIND = 5, FLAGS = 6, ELEMENT = 7, ELEMENTS = 8, SENT = 16, BODY_BYTES = 24,
       SEQUENCE = 32, BUCKET = 40, SENDER = 44, THRESHOLD = 48, HEADER_CHECKSUM = 52, BODY_CHECKSUM = 56 };

static const uint8_t magic[4] = {'G', 'T', 'C', 'B'};

static uint32_t header_checksum(const uint8_t header[GTCB_HEADER_BYTES])
{
    uint8_t copy[GTCB_HEADER_BYTES];
    memcpy(copy, header, sizeof copy);
    memset(copy + HEADER_CHECKSUM, 0, 4);
    uint64_t s = gtcb_scalar.checksum(copy, sizeof copy, 0);
    return (uint32_t)(s >> 32) ^ (uint32_t)s;
}

void gtcb_write_header(const gtcb_header *h, uint8_t out[GTCB_HEADER_BYTES])
{
    memcpy(out + MAGIC, magic, sizeof magic);
    out[VERSION] = 1;
    out[KIND] = h->kind;
    out[FLAGS] = h->flags;
    out[ELEMENT] = h->element;
    gtcb_put64(out + ELEMENTS, h->elements);
    gtcb_put64(out + SENT, h->sent);
    gtcb_put64(out + BODY_BYTES, h->body_bytes);
    gtcb_put64(out + SEQUENCE, h->sequence);
    gtcb_put32(out + BUCKET, h->bucket);
    gtcb_put32(out + SENDER, h->sender);
    gtcb_put32(out + THRESHOLD, gtcb_float_bits(h->threshold));
    gtcb_put64(out + BODY_CHECKSUM, h->body_checksum);
    gtcb_put32(out + HEADER_CHECKSUM, header_checksum(out));
}

size_t gtcb_raw_bytes(unsigned element)
{
    static const uint8_t bytes[] = {[GTCB_BYTES] = 1, [GTCB_FLOAT32] = 4, [GTCB_FLOAT64] = 8, [GTCB_BFLOAT16] = 2};
    return element < sizeof bytes ? bytes[element] : 0;
}

static bool raw_agrees(const gtcb_header *h)
{
    bool announces = h->flags & GTCB_FLAG_NON_FINITE;
    if (gtcb_raw_bytes(h->element) == 0 || gtcb_float_bits(h->threshold) != 0)
        return false;
    if (announces)
        return h->element != GTCB_BYTES && h->body_bytes == 0 && h->sent < h->elements;
    return h->body_bytes == h->elements * gtcb_raw_bytes(h->element);
}

static bool quanta_agree(const gtcb_header *h)
{
    bool announces = h->flags & GTCB_FLAG_NON_FINITE;
    if (h->element != GTCB_QUANTA || !(h->threshold > 0.0f && h->threshold <= FLT_MAX))
        return false;
    if (announces)
        return h->kind == GTCB_WORDS && h->body_bytes == 0 && h->sent < h->elements;
    if (h->sent > h->elements)
        return false;
    switch (h->kind) {
    case GTCB_WORDS: return h->elements <= GTCB_WORDS_MAX && h->body_bytes == 4 * h->sent;
    case GTCB_PACKED: return (h->sent == 0) == (h->body_bytes == 0);     /* the length is in the body */
    default: return h->body_bytes == gtcb_dense_bytes(h->elements);
    }
}

gtcb_status gtcb_read_header(const void *bytes, gtcb_header *out)
{
    const uint8_t *p = bytes;
    if (p == NULL || out == NULL)
        return GTCB_BAD_ARGUMENT;
    if (memcmp(p + MAGIC, magic, sizeof magic) != 0)
        return GTCB_BAD_MAGIC;
    if (p[VERSION] != 1)
        return GTCB_BAD_VERSION;
    if (gtcb_get32(p + HEADER_CHECKSUM) != header_checksum(p))
        return GTCB_BAD_HEADER;
    gtcb_header h = {
        .kind = p[KIND], .flags = p[FLAGS], .element = p[ELEMENT],
        .elements = gtcb_get64(p + ELEMENTS), .sent = gtcb_get64(p + SENT), .body_bytes = gtcb_get64(p + BODY_BYTES),
        .sequence = gtcb_get64(p + SEQUENCE), .bucket = gtcb_get32(p + BUCKET), .sender = gtcb_get32(p + SENDER),
        .threshold = gtcb_from_bits(gtcb_get32(p + THRESHOLD)), .body_checksum = gtcb_get64(p + BODY_CHECKSUM),
    };
    if (h.kind < GTCB_WORDS || h.kind > GTCB_RAW || (h.flags & ~GTCB_FLAG_NON_FINITE) != 0 ||
        h.elements > GTCB_MAX_ELEMENTS || (h.body_bytes == 0 && h.body_checksum != 0))
        return GTCB_BAD_HEADER;
    if (!(h.kind == GTCB_RAW ? raw_agrees(&h) : quanta_agree(&h)))
        return GTCB_BAD_HEADER;
    *out = h;
    return GTCB_OK;
}

/* Of bfloat16: the upper halves of float32. */
static size_t non_finite_bf16(const uint16_t *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if ((values[i] & 0x7F80) == 0x7F80)
            return i;
    return GTCB_NONE;
}

static size_t first_non_finite(const gtcb_variant *v, gtcb_element element, const void *body, size_t first, size_t count)
{
    size_t i = element == GTCB_FLOAT32 ? v->non_finite_f32((const float *)body + first, count)
             : element == GTCB_FLOAT64 ? v->non_finite_f64((const double *)body + first, count)
             : element == GTCB_BFLOAT16 ? non_finite_bf16((const uint16_t *)body + first, count) : GTCB_NONE;
    return i == GTCB_NONE ? GTCB_NONE : first + i;
}

gtcb_status gtcb_write_raw_header(const gtcb_variant *v, gtcb_element element, const void *body, uint64_t elements,
                                  uint64_t weight, uint64_t sequence, uint32_t bucket, uint32_t sender,
                                  void *header_out)
{
    if (v == NULL || header_out == NULL || (body == NULL && elements > 0) || elements > GTCB_MAX_ELEMENTS ||
        gtcb_raw_bytes(element) == 0)
        return GTCB_BAD_ARGUMENT;
    gtcb_header h = { .kind = GTCB_RAW, .element = (uint8_t)element, .elements = elements, .sent = weight,
                      .body_bytes = elements * gtcb_raw_bytes(element), .sequence = sequence,
                      .bucket = bucket, .sender = sender };
    const size_t tile = 32768;      /* scanned and summed while it is in the cache */
    for (size_t at = 0; at < elements; at += tile) {
        size_t count = elements - at < tile ? elements - at : tile, bytes = count * gtcb_raw_bytes(element);
        size_t bad = first_non_finite(v, element, body, at, count), before = at * gtcb_raw_bytes(element);
        if (bad != GTCB_NONE) {
            h.flags = GTCB_FLAG_NON_FINITE;
            h.sent = bad;
            h.body_bytes = h.body_checksum = 0;
            break;
        }
        h.body_checksum += v->checksum((const uint8_t *)body + before, bytes, before / 8);
    }
    gtcb_write_header(&h, header_out);
    return GTCB_OK;
}
