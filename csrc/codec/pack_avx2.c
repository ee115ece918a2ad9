/* Packing with AVX2, 16 elements at a time. */
#include "variant.h"

#ifdef GTCB_X86
#include "avx2.h"
#include "uppers.h"

INLINE __m256i iota16(void) { return _mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

/* The upper half of each 64-bit lane is moved to bit `width`, where the lower half ends. */
INLINE __m256i join_halves(__m256i x, __m128i width)
{
    __m256i upper = _mm256_sll_epi64(_mm256_srli_epi64(x, 32), width);
    return _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi64x(UINT32_MAX)), upper);
}

/* Two values become one of 2 * l bits, and four if 4 * l <= 56; those are appended to the bytes. */
AVX2 static void pack_lows(const uint32_t *v, size_t count, unsigned l, uint8_t *lows)
{
    uint64_t pairs[GTCB_BLOCK / 2 + 8];
    const __m256i mask = _mm256_set1_epi32((int)((1u << l) - 1));
    const __m128i l_bits = _mm_cvtsi32_si128((int)l);
    for (size_t i = 0; i < count; i += 8) {
        __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(count - i)), iota32());
        __m256i x = _mm256_and_si256(_mm256_maskload_epi32((const int *)(v + i), there), mask);
        _mm256_storeu_si256((__m256i *)(pairs + i / 2), join_halves(x, l_bits));
    }
    const size_t step = l <= 14 ? 2 : 1;
    const unsigned width = l <= 14 ? 4 * l : 2 * l;
    uint64_t waiting = 0;
    unsigned bits = 0;      /* fewer than 8 */
    for (size_t i = 0; 2 * i < count; i += step) {
        waiting |= (step == 2 ? pairs[i] | pairs[i + 1] << 2 * l : pairs[i]) << bits;
        gtcb_put64(lows, waiting);
        bits += width;
        lows += bits / 8;
        waiting >>= bits / 8 * 8;
        bits %= 8;
    }
}

INLINE uint64_t or_lanes(__m256i x)
{
    __m128i half = _mm_or_si128(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return (uint64_t)_mm_cvtsi128_si64(_mm_or_si128(half, _mm_unpackhi_epi64(half, half)));
}

/* Bits at the positions in 16-bit lanes, of which the first `count` count. */
INLINE void put_uppers(gtcb_uppers *u, __m256i p, size_t count)
{
    const __m256i one = _mm256_set1_epi64x(1), place = _mm256_set1_epi64x(63);
    uint16_t positions[16];
    _mm256_storeu_si256((__m256i *)positions, p);
    if (count < 16) {
        gtcb_put_each(u, positions, count);
        return;
    }
    __m256i a = _mm256_sllv_epi64(one, _mm256_and_si256(p, place));
    __m256i b = _mm256_sllv_epi64(one, _mm256_and_si256(_mm256_srli_epi64(p, 16), place));
    __m256i c = _mm256_sllv_epi64(one, _mm256_and_si256(_mm256_srli_epi64(p, 32), place));
    __m256i d = _mm256_sllv_epi64(one, _mm256_and_si256(_mm256_srli_epi64(p, 48), place));
    gtcb_put_16(u, positions, or_lanes(_mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d))));
}

/* Four low parts become one of 4 * l bits in each 64-bit lane, and two of those l bytes. */
AVX2 void gtcb_pack_narrow_avx2(const uint16_t *words, uint16_t offset, size_t count, unsigned l, uint8_t *lows,
                                uint8_t *uppers, size_t upper_bits)
{
    if (l > 14) {       /* a block of one or two elements */
        gtcb_scalar.pack_narrow(words, offset, count, l, lows, uppers, upper_bits);
        return;
    }
    const long long width = 4 * l;
    const __m256i mask = _mm256_set1_epi16((short)((1 << l) - 1)), by_pairs = _mm256_set1_epi32(1 << (16 + l) | 1);
    const __m256i offsets = _mm256_set1_epi16((short)offset), even = _mm256_set_epi64x(0, -1, 0, -1);
    /* of the odd lane, what goes beside the even one, and what into the next 64 bits */
    const __m256i beside = _mm256_set_epi64x(64, width, 64, width), next = _mm256_set_epi64x(64 - width, 64, 64 - width, 64);
    const __m128i l_bits = _mm_cvtsi32_si128((int)l), pair_bits = _mm_cvtsi32_si128(2 * (int)l);
    __m256i i_of = iota16();
    gtcb_uppers u = {uppers, 0, 0};
    memset(uppers, 0, upper_bits / 8 + 16);
    for (size_t i = 0; i < count; i += 16, lows += 2 * l) {
        __m256i there = _mm256_cmpgt_epi16(_mm256_set1_epi16((short)(count - i)), iota16());
        __m256i v = _mm256_and_si256(_mm256_add_epi16(load256(words + i), offsets), there);
        __m256i fours = join_halves(_mm256_madd_epi16(_mm256_and_si256(v, mask), by_pairs), pair_bits);
        __m256i odd = _mm256_unpackhi_epi64(fours, fours);
        odd = _mm256_or_si256(_mm256_sllv_epi64(odd, beside), _mm256_srlv_epi64(odd, next));
        __m256i eights = _mm256_or_si256(_mm256_and_si256(fours, even), odd);
        _mm_storeu_si128((__m128i *)lows, _mm256_castsi256_si128(eights));
        _mm_storeu_si128((__m128i *)(lows + l), _mm256_extracti128_si256(eights, 1));
        put_uppers(&u, _mm256_add_epi16(_mm256_srl_epi16(v, l_bits), i_of), count - i);
        i_of = _mm256_add_epi16(i_of, _mm256_set1_epi16(16));
    }
}

AVX2 void gtcb_pack_avx2(const uint32_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits)
{
    if (l > 25) {       /* gaps above 2^24 */
        gtcb_scalar.pack(v, count, l, lows, uppers, upper_bits);
        return;
    }
    const __m128i l_bits = _mm_cvtsi32_si128((int)l);
    __m256i i_of = iota16();
    gtcb_uppers u = {uppers, 0, 0};
    pack_lows(v, count, l, lows);
    memset(uppers, 0, upper_bits / 8 + 16);
    for (size_t i = 0; i < count; i += 16) {
        __m256i low = _mm256_srl_epi32(load256(v + i), l_bits), high = _mm256_srl_epi32(load256(v + i + 8), l_bits);
        /* an upper part is less than twice the elements of a block: 16 bits */
        __m256i upper = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);
        put_uppers(&u, _mm256_add_epi16(upper, i_of), count - i);
        i_of = _mm256_add_epi16(i_of, _mm256_set1_epi16(16));
    }
}
#endif
