/* Packing with AVX-512, 32 elements at a time. */
#include "variant.h"

#ifdef GTCB_X86
#include "avx512.h"
#include "uppers.h"

/* -- lows ---------------------------------------------------------------------------------------------- */

/* Eight 64-bit lanes of `width` bits each become `width` bytes; lane j is to begin at bit width * j: shifted to its place
   in the first byte, its bytes are copied. An output byte has bits of at most two lanes, as width is 4 or at least 8: the
   one that the `first` bit of the byte belongs to, and the `last` one that begins in it (often the same one). */
typedef struct places { __m512i shifts, first, last; } places;

INLINE places places_of(unsigned width)
{
    uint8_t first[64 + 16], last[64 + 16];
    uint64_t shifts[8];
    GTCB_UNROLL         /* or it becomes scatters */
    for (uint64_t j = 0; j < 8; j++) {
        const uint64_t byte = width * j / 8, bit = width * j % 8;
        const uint64_t bytes = UINT64_C(0x0706050403020100) + UINT64_C(0x0808080808080808) * j;
        shifts[j] = bit;
        gtcb_put64(last + byte, bytes);         /* later lanes overwrite */
        gtcb_put64(first + byte + (bit > 0), bytes + (bit > 0) * UINT64_C(0x0101010101010101));
    }
    return (places){_mm512_loadu_si512(shifts), _mm512_loadu_si512(first), _mm512_loadu_si512(last)};
}

INLINE void put_lanes(const places *p, __m512i lanes, uint8_t *out)
{
    lanes = _mm512_sllv_epi64(lanes, p->shifts);
    _mm512_storeu_si512(out, _mm512_or_si512(_mm512_permutexvar_epi8(p->first, lanes), _mm512_permutexvar_epi8(p->last, lanes)));
}

/* The upper half of each 64-bit lane is moved to bit `width`, where the lower half ends. */
INLINE __m512i join_halves(__m512i x, __m128i width)
{
    __m512i upper = _mm512_sll_epi64(_mm512_srli_epi64(x, 32), width);
    return _mm512_ternarylogic_epi64(x, _mm512_set1_epi64(UINT32_MAX), upper, 0xEA);    /* x & lower half | upper */
}

/* -- uppers -------------------------------------------------------------------------------------------- */

/* May clear up to 63 bytes more. */
INLINE void clear(uint8_t *bits, size_t count)
{
    for (size_t byte = 0; 8 * byte < count; byte += 64)
        _mm512_storeu_si512(bits + byte, _mm512_setzero_si512());
}

/* Bits at the positions in 16-bit lanes, of which the first `count` count. */
INLINE void put_uppers(gtcb_uppers *u, __m512i p, size_t count)
{
    const __m512i one = _mm512_set1_epi64(1);
    uint16_t positions[32];
    _mm512_storeu_si512(positions, p);
    if (count < 32) {
        gtcb_put_each(u, positions, count);
        return;
    }
    __m512i a = _mm512_rolv_epi64(one, p);      /* rotations are modulo 64, whatever is above a position */
    __m512i b = _mm512_rolv_epi64(one, _mm512_srli_epi64(p, 16));
    __m512i c = _mm512_rolv_epi64(one, _mm512_srli_epi64(p, 32));
    __m512i d = _mm512_rolv_epi64(one, _mm512_srli_epi64(p, 48));
    __m512i bits = _mm512_or_si512(_mm512_ternarylogic_epi64(a, b, c, 0xFE), d);        /* a | b | c | d */
    bits = _mm512_or_si512(bits, _mm512_permutex_epi64(bits, 0x4E));
    bits = _mm512_or_si512(bits, _mm512_shuffle_epi32(bits, 0x4E));
    gtcb_put_16(u, positions, (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(bits)));
    gtcb_put_16(u, positions + 16, (uint64_t)_mm_cvtsi128_si64(_mm512_extracti64x2_epi64(bits, 2)));
}

/* -- blocks -------------------------------------------------------------------------------------------- */

/* Four low parts become one of 4 * l bits in each 64-bit lane: of 32 elements in all. */
AVX512 void gtcb_pack_narrow_avx512(const uint16_t *words, uint16_t offset, size_t count, unsigned l, uint8_t *lows,
                                    uint8_t *uppers, size_t upper_bits)
{
    if (l > 14) {       /* a block of one or two elements */
        gtcb_scalar.pack_narrow(words, offset, count, l, lows, uppers, upper_bits);
        return;
    }
    const places fours = places_of(4 * l);
    const __m512i mask = _mm512_set1_epi16((short)((1 << l) - 1)), by_pairs = _mm512_set1_epi32(1 << (16 + l) | 1);
    const __m512i offsets = _mm512_set1_epi16((short)offset);
    const __m128i l_bits = _mm_cvtsi32_si128((int)l), pair_bits = _mm_cvtsi32_si128(2 * (int)l);
    __m512i i_of = iota16();
    gtcb_uppers u = {uppers, 0, 0};
    clear(uppers, upper_bits);
    for (size_t i = 0; i < count; i += 32, lows += 4 * l) {
        const __mmask32 lanes = first_lanes32(count - i);
        __m512i v = _mm512_maskz_add_epi16(lanes, _mm512_maskz_loadu_epi16(lanes, words + i), offsets);
        __m512i pairs = _mm512_madd_epi16(_mm512_and_si512(v, mask), by_pairs);
        put_lanes(&fours, join_halves(pairs, pair_bits), lows);
        put_uppers(&u, _mm512_add_epi16(_mm512_srl_epi16(v, l_bits), i_of), count - i);
        i_of = _mm512_add_epi16(i_of, _mm512_set1_epi16(32));
    }
}

/* Two low parts become one of 2 * l bits in each 64-bit lane: of 16 elements in all. */
AVX512 void gtcb_pack_avx512(const uint32_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits)
{
    if (l < 4 || l > 25) {      /* a narrow block; gaps above 2^24 */
        gtcb_scalar.pack(v, count, l, lows, uppers, upper_bits);
        return;
    }
    const places pairs = places_of(2 * l);
    const __m512i mask = _mm512_set1_epi32((int)((1u << l) - 1)), evens = _mm512_slli_epi16(iota16(), 1);
    const __m128i l_bits = _mm_cvtsi32_si128((int)l);
    __m512i i_of = iota16();
    gtcb_uppers u = {uppers, 0, 0};
    clear(uppers, upper_bits);
    for (size_t i = 0; i < count; i += 32, lows += 4 * l) {
        __m512i low = _mm512_maskz_loadu_epi32(first_lanes(count - i), v + i), high = _mm512_setzero_si512();
        put_lanes(&pairs, join_halves(_mm512_and_si512(low, mask), l_bits), lows);
        if (count - i > 16) {
            high = _mm512_maskz_loadu_epi32(first_lanes(count - i - 16), v + i + 16);
            put_lanes(&pairs, join_halves(_mm512_and_si512(high, mask), l_bits), lows + 2 * l);
        }
        /* an upper part is less than twice the elements of a block: 16 bits */
        __m512i upper = _mm512_permutex2var_epi16(_mm512_srl_epi32(low, l_bits), evens, _mm512_srl_epi32(high, l_bits));
        put_uppers(&u, _mm512_add_epi16(upper, i_of), count - i);
        i_of = _mm512_add_epi16(i_of, _mm512_set1_epi16(32));
    }
}
#endif
