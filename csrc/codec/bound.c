/* How long a message can be (docs/message-format.md, "Which body" and "Bound"). */
#include "variant.h"

uint64_t gtcb_message_capacity(uint64_t elements) { return GTCB_HEADER_BYTES + gtcb_dense_bytes(elements); }

static uint64_t packed_bound(uint64_t elements, uint64_t sent)
{
    uint64_t blocks = gtcb_blocks(sent);
    unsigned l = gtcb_low_bits(elements, sent);
    uint64_t uppers = (2 * elements + (UINT64_C(1) << l) - 1) >> l;
    return 8 * blocks + (sent * (l + 1) + uppers + 7) / 8 + 9 * blocks;
}

uint64_t gtcb_bound(uint64_t elements, uint64_t sent)
{
    if (sent > elements)
        sent = elements;
    if (sent == 0)
        return GTCB_HEADER_BYTES;
    uint64_t least = gtcb_dense_bytes(elements), packed = packed_bound(elements, sent);
    if (packed < least)
        least = packed;
    if (elements <= GTCB_WORDS_MAX && 4 * sent < least)
        least = 4 * sent;
    return GTCB_HEADER_BYTES + least;
}

uint64_t gtcb_max_sent(uint64_t elements, uint64_t cap_bytes)
{
    uint64_t fits = 0, too_many = elements + 1;     /* the bound never falls as more is sent */
    while (too_many - fits > 1) {
        uint64_t middle = fits + (too_many - fits) / 2;
        if (gtcb_bound(elements, middle) <= cap_bytes)
            fits = middle;
        else
            too_many = middle;
    }
    return fits;
}
