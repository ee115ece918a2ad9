/* What the files with AVX-512 loops share. Functions carry their target, so that the files need no compiler flag, and
   nothing outside runs an instruction the processor may not have. */
#ifndef GTCB_AVX512_H
#define GTCB_AVX512_H

#include <immintrin.h>

#include "variant.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,popcnt,bmi,bmi2")))
#define INLINE AVX512 __attribute__((always_inline)) static inline

INLINE __m512i iota32(void) { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

INLINE __m512i iota16(void)
{
    return _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16,
                            15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

/* The first `count` of 16 or 32 lanes, or all. */
INLINE __mmask16 first_lanes(size_t count) { return (__mmask16)_bzhi_u32(0xFFFF, (unsigned)(count < 16 ? count : 16)); }
INLINE __mmask32 first_lanes32(size_t count) { return _bzhi_u32(UINT32_MAX, (unsigned)(count < 32 ? count : 32)); }

/* pack_avx512.c */
void gtcb_pack_avx512(const uint32_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits);
void gtcb_pack_narrow_avx512(const uint16_t *words, uint16_t offset, size_t count, unsigned l, uint8_t *lows,
                             uint8_t *uppers, size_t upper_bits);

#endif
