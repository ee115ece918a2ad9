/* What a decoder checks before it writes anything (docs/message-format.md, checks 1 to 4). */
#include "variant.h"

static bool words_are_valid(const uint8_t *body, uint64_t elements, uint64_t sent)
{
    uint64_t least = 0;     /* the next word's index */
    for (uint64_t i = 0; i < sent; i++) {
        uint64_t index = gtcb_get32(body + 4 * i) >> 1;
        if (index < least)
            return false;
        least = index + 1;
    }
    return least <= elements;
}

/* `count` bits from bit `from` on; count <= 63, and none of them outside the body. */
static uint64_t get_bits(const uint8_t *bytes, uint64_t from, unsigned count)
{
    uint64_t value = 0;
    for (unsigned done = 0; done < count;) {
        unsigned skip = (unsigned)((from + done) % 8), take = 8 - skip;
        if (take > count - done)
            take = count - done;
        value |= ((uint64_t)bytes[(from + done) / 8] >> skip & ((1u << take) - 1)) << done;
        done += take;
    }
    return value;
}

static bool bit_at(const uint8_t *bytes, uint64_t bit) { return bytes[bit / 8] >> bit % 8 & 1; }

/* The bits from `end` to the end of its byte. */
static bool fill_is_zero(const uint8_t *bytes, uint64_t end) { return end % 8 == 0 || bytes[end / 8] >> end % 8 == 0; }

static bool block_is_valid(const gtcb_variant *v, const uint8_t *block, uint64_t span, uint64_t count, gtcb_layout y)
{
    const uint8_t *uppers = block + y.lows_bytes;
    if (!fill_is_zero(block, count * y.l) || !fill_is_zero(uppers, y.upper_bits))
        return false;
    if (!bit_at(uppers, y.upper_bits - 1) || v->ones(uppers, (y.upper_bits + 7) / 8) != count)
        return false;
    /* Only elements with the last upper value, a run of ones at the end, can lie beyond the block. */
    const uint64_t last_upper = (span - 1) >> (y.l - 1), greatest = 2 * span - 1;
    for (uint64_t i = 0; i < count && bit_at(uppers, y.upper_bits - 1 - i); i++)
        if ((last_upper << y.l | get_bits(block, (count - 1 - i) * y.l, y.l)) > greatest)
            return false;
    return true;
}

static bool packed_is_valid(const gtcb_variant *v, const uint8_t *body, uint64_t body_bytes, uint64_t elements, uint64_t sent)
{
    const uint64_t blocks = gtcb_blocks(sent);
    if (blocks > body_bytes / 8)
        return false;
    uint64_t left = elements, at = 8 * blocks;
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t span = gtcb_get64(body + 8 * b), count = gtcb_block_count(sent, b);
        if (span < count || span > left)
            return false;
        left -= span;
        for (; at % 8 != 0; at++)       /* the gap after the block before; that block ended inside the body */
            if (at >= body_bytes || body[at] != 0)
                return false;
        gtcb_layout y = gtcb_block_layout(span, count);
        if (y.bytes > body_bytes - at || !block_is_valid(v, body + at, span, count, y))
            return false;
        at += y.bytes;
    }
    return at == body_bytes;
}

static bool codes_are_valid(const gtcb_variant *v, const uint8_t *body, uint64_t body_bytes, uint64_t elements, uint64_t sent)
{
    return v->count_codes(body, body_bytes) == sent && fill_is_zero(body, 2 * elements);
}

gtcb_status gtcb_validate(const gtcb_variant *v, const void *header_bytes, const void *body, size_t body_bytes)
{
    gtcb_header h;
    if (v == NULL || header_bytes == NULL || (body == NULL && body_bytes > 0))
        return GTCB_BAD_ARGUMENT;
    gtcb_status status = gtcb_read_header(header_bytes, &h);
    if (status != GTCB_OK)
        return status;
    if (body_bytes != h.body_bytes)
        return body_bytes < h.body_bytes ? GTCB_TRUNCATED : GTCB_BAD_BODY;
    if (v->checksum(body, body_bytes, 0) != h.body_checksum)
        return GTCB_BAD_CHECKSUM;
    if (body_bytes == 0 || h.kind == GTCB_RAW)
        return GTCB_OK;
    bool valid = h.kind == GTCB_WORDS    ? words_are_valid(body, h.elements, h.sent)
               : h.kind == GTCB_PACKED ? packed_is_valid(v, body, body_bytes, h.elements, h.sent)
                                       : codes_are_valid(v, body, body_bytes, h.elements, h.sent);
    return valid ? GTCB_OK : GTCB_BAD_BODY;
}
