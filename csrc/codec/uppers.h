/* The uppers of a packed block, 16 elements at a time: what the vector variants do alike. */
#ifndef GTCB_UPPERS_H
#define GTCB_UPPERS_H

#include "variant.h"

/* Where the next bits go: `word` is what is in 64-bit word number `at`, which they may still go into. */
typedef struct gtcb_uppers { uint8_t *bytes; uint64_t word, at; } gtcb_uppers;

/* Bits at increasing positions, one after another. The bytes are 0 before the first call. */
static inline void gtcb_put_each(gtcb_uppers *u, const uint16_t *positions, size_t count)
{
    for (size_t i = 0; i < count; i++)
        u->bytes[positions[i] / 8] |= (uint8_t)(1u << positions[i] % 8);
    u->at = positions[count - 1] / 64u;
    u->word = gtcb_get64(u->bytes + 8 * u->at);
}

/* The same for 16, which nearly always lie within 64. `bits` are all of them, each in its place modulo 64. */
static inline void gtcb_put_16(gtcb_uppers *u, const uint16_t *positions, uint64_t bits)
{
    const uint64_t first = positions[0], last = positions[15], here = first / 64, there = last / 64;
    if (last - first < 64) {
        const uint64_t from_first = UINT64_MAX << first % 64;
        const uint64_t begun = (here == u->at ? u->word : 0) | (bits & from_first), next = bits & ~from_first;
        gtcb_put64(u->bytes + 8 * here, begun);
        gtcb_put64(u->bytes + 8 * here + 8, next);
        u->word = there == here ? begun : next;
        u->at = there;
    } else {
        gtcb_put_each(u, positions, 16);
    }
}

#endif
