/* What the files with AVX2 loops share; as in avx512.h, functions carry their target. */
#ifndef GTCB_AVX2_H
#define GTCB_AVX2_H

#include <immintrin.h>

#include "variant.h"

#define AVX2 __attribute__((target("avx2,f16c,popcnt")))
#define INLINE AVX2 __attribute__((always_inline)) static inline

INLINE __m128i load128(const void *p) { return _mm_loadu_si128(p); }
INLINE __m256i load256(const void *p) { return _mm256_loadu_si256(p); }
INLINE __m256i iota32(void) { return _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0); }

/* pack_avx2.c */
void gtcb_pack_avx2(const uint32_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits);
void gtcb_pack_narrow_avx2(const uint16_t *words, uint16_t offset, size_t count, unsigned l, uint8_t *lows,
                           uint8_t *uppers, size_t upper_bits);

#endif
