/* Blocks whose span is above 2^31: v needs more than 32 bits. Only buckets of more than 2^31 elements have them,
   and a thousand elements of such a block cost more in cache misses than in arithmetic, so there is one loop for
   all variants. It is the definition of codec_scalar.c in 64 bits. */
#include "variant.h"

void gtcb_pack_wide(const uint64_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits)
{
    memset(lows, 0, (count * l + 7) / 8);
    memset(uppers, 0, (upper_bits + 7) / 8);
    for (size_t i = 0; i < count; i++) {
        size_t upper = (size_t)(v[i] >> l) + i;
        uppers[upper / 8] |= (uint8_t)(1u << upper % 8);
        for (size_t j = 0; j < l; j++)
            lows[(i * l + j) / 8] |= (uint8_t)((v[i] >> j & 1) << (i * l + j) % 8);
    }
}

void gtcb_unpack_wide(const uint8_t *lows, const uint8_t *uppers, size_t upper_bits, size_t count, unsigned l, uint64_t *v)
{
    size_t i = 0;
    for (size_t bit = 0; bit < upper_bits && i < count; bit++)
        if (uppers[bit / 8] >> bit % 8 & 1) {
            v[i] = (uint64_t)(bit - i) << l;
            for (size_t j = 0; j < l; j++)
                v[i] |= (uint64_t)(lows[(i * l + j) / 8] >> (i * l + j) % 8 & 1) << j;
            i++;
        }
}
