/* The loops of codec_scalar.c with AVX2 and F16C; those that pack are in pack_avx2.c. Heads and tails that do not fill a
   vector are left to the scalar loops. */
#include "variant.h"

#ifdef GTCB_X86
#include <cpuid.h>

#include "avx2.h"

static bool supported(void)
{
    unsigned a, b, c = 0, d;        /* clang's __builtin_cpu_supports does not know f16c */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & bit_F16C) != 0;
}

/* -- compress: row m of the table moves the words whose bit is set in m to the front ------------------- */

#define RANK(m, i) __builtin_popcount((m) & ((1 << (i)) - 1))
#define MOVE(m, i, half) ((m) >> (i) & 1 && RANK(m, i) / 4 == (half) ? (UINT64_C(0x0100) + 0x0202 * (i)) << 16 * (RANK(m, i) % 4) : 0)
#define HALF(m, half) MOVE(m, 0, half) | MOVE(m, 1, half) | MOVE(m, 2, half) | MOVE(m, 3, half) | \
                      MOVE(m, 4, half) | MOVE(m, 5, half) | MOVE(m, 6, half) | MOVE(m, 7, half)
#define ROW(m) {HALF(m, 0), HALF(m, 1)}
#define ROWS4(m) ROW(m), ROW(m + 1), ROW(m + 2), ROW(m + 3)
#define ROWS16(m) ROWS4(m), ROWS4(m + 4), ROWS4(m + 8), ROWS4(m + 12)
#define ROWS64(m) ROWS16(m), ROWS16(m + 16), ROWS16(m + 32), ROWS16(m + 48)
static const uint64_t moves[256][2] = {ROWS64(0), ROWS64(64), ROWS64(128), ROWS64(192)};

INLINE __m128i compress8(unsigned mask, __m128i words) { return _mm_shuffle_epi8(words, load128(moves[mask])); }
INLINE __m128i iota16(void) { return _mm_set_epi16(7, 6, 5, 4, 3, 2, 1, 0); }

/* -- stage --------------------------------------------------------------------------------------------- */

INLINE __m128 sum_double(__m128 r, const double *g)
{
    return _mm256_cvtpd_ps(_mm256_add_pd(_mm256_cvtps_pd(r), _mm256_loadu_pd(g)));
}

INLINE __m256 sum8(const gtcb_piece *p, size_t i, gtcb_dtype dtype)
{
    __m256 r = _mm256_loadu_ps(p->residual_in + i);
    if (dtype == GTCB_F32)
        return _mm256_add_ps(r, _mm256_loadu_ps((const float *)p->gradient + i));
    if (dtype == GTCB_F64) {
        const double *g = (const double *)p->gradient + i;
        return _mm256_set_m128(sum_double(_mm256_extractf128_ps(r, 1), g + 4), sum_double(_mm256_castps256_ps128(r), g));
    }
    __m128i g = load128((const uint16_t *)p->gradient + i);
    if (dtype == GTCB_F16)
        return _mm256_add_ps(r, _mm256_cvtph_ps(g));
    return _mm256_add_ps(r, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(g), 16)));
}

/* The comparison is true for NaN too; `worst` is the greatest |t| as an integer, see codec_avx512.c. */
INLINE size_t stage8(const gtcb_piece *p, size_t i, uint16_t *words, __m256i *worst, gtcb_dtype dtype, bool stream)
{
    const __m256 sign = _mm256_set1_ps(-0.0f), tau = _mm256_set1_ps(p->threshold);
    __m256 t = sum8(p, i, dtype), magnitude = _mm256_andnot_ps(sign, t);
    __m256 sent = _mm256_cmp_ps(magnitude, tau, _CMP_NLT_UQ);
    __m256 q = _mm256_and_ps(sent, _mm256_or_ps(_mm256_and_ps(t, sign), tau));      /* +0 if not sent: t - 0 is t */
    __m256 left = _mm256_sub_ps(t, q);
    *worst = _mm256_max_epi32(*worst, _mm256_castps_si256(magnitude));
    if (stream)
        _mm256_stream_ps(p->residual_out + i, left);
    else
        _mm256_storeu_ps(p->residual_out + i, left);
    __m256i signs = _mm256_srli_epi32(_mm256_castps_si256(t), 31);
    __m128i odd = _mm_packs_epi32(_mm256_castsi256_si128(signs), _mm256_extracti128_si256(signs, 1));
    __m128i even = _mm_add_epi16(_mm_slli_epi16(iota16(), 1), _mm_set1_epi16((short)(2 * (p->first + i))));
    unsigned mask = (unsigned)_mm256_movemask_ps(sent);
    _mm_storeu_si128((__m128i *)words, compress8(mask, _mm_or_si128(even, odd)));
    return (size_t)_mm_popcnt_u32(mask);
}

AVX2 static size_t stage_few(const gtcb_piece *p, size_t first, size_t count, uint16_t *words, bool *non_finite)
{
    static const size_t bytes_of[] = {[GTCB_F32] = 4, [GTCB_BF16] = 2, [GTCB_F16] = 2, [GTCB_F64] = 8};
    gtcb_piece few = *p;
    few.gradient = (const uint8_t *)p->gradient + first * bytes_of[p->dtype];
    few.residual_in += first;
    few.residual_out += first;
    few.first += (uint32_t)first;
    few.count = count;
    return gtcb_scalar.stage(&few, words, non_finite);
}

INLINE size_t stage_as(const gtcb_piece *piece, uint16_t *words, bool *non_finite, gtcb_dtype dtype, bool stream)
{
    const gtcb_piece copy = *piece, *p = &copy;     /* which no store to the arrays can change: so it stays in registers */
    __m256i worst = _mm256_setzero_si256();
    const size_t misaligned = (uintptr_t)p->residual_out / 4 % 8;
    size_t i = misaligned > 0 ? 8 - misaligned : 0;
    if (i > p->count)
        i = p->count;
    size_t sent = stage_few(piece, 0, i, words, non_finite);
    for (; i + 8 <= p->count; i += 8)
        sent += stage8(p, i, words + sent, &worst, dtype, stream);
    sent += stage_few(piece, i, p->count - i, words + sent, non_finite);
    if (stream)
        _mm_sfence();
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi32(worst, _mm256_set1_epi32(0x7F7FFFFF))) != 0)
        *non_finite = true;
    return sent;
}

AVX2 static size_t stage(const gtcb_piece *p, uint16_t *words, bool *non_finite)
{
    switch (p->dtype) {
    case GTCB_BF16: return p->stream ? stage_as(p, words, non_finite, GTCB_BF16, true) : stage_as(p, words, non_finite, GTCB_BF16, false);
    case GTCB_F16: return p->stream ? stage_as(p, words, non_finite, GTCB_F16, true) : stage_as(p, words, non_finite, GTCB_F16, false);
    case GTCB_F64: return p->stream ? stage_as(p, words, non_finite, GTCB_F64, true) : stage_as(p, words, non_finite, GTCB_F64, false);
    default: return p->stream ? stage_as(p, words, non_finite, GTCB_F32, true) : stage_as(p, words, non_finite, GTCB_F32, false);
    }
}

AVX2 static size_t non_finite_f32(const float *values, size_t count)
{
    const __m256i exponent = _mm256_set1_epi32(0x7F800000);
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i bad = _mm256_cmpeq_epi32(_mm256_and_si256(load256(values + i), exponent), exponent);
        if (_mm256_movemask_epi8(bad) != 0)
            break;
    }
    size_t at = gtcb_scalar.non_finite_f32(values + i, count - i);
    return at == GTCB_NONE ? GTCB_NONE : i + at;
}

AVX2 static size_t non_finite_f64(const double *values, size_t count)
{
    const __m256i exponent = _mm256_set1_epi64x(0x7FF0000000000000);
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        __m256i bad = _mm256_cmpeq_epi64(_mm256_and_si256(load256(values + i), exponent), exponent);
        if (_mm256_movemask_epi8(bad) != 0)
            break;
    }
    size_t at = gtcb_scalar.non_finite_f64(values + i, count - i);
    return at == GTCB_NONE ? GTCB_NONE : i + at;
}

AVX2 static void widen(const uint16_t *words, size_t count, uint32_t offset, uint32_t *out)
{
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i v = _mm256_add_epi32(_mm256_cvtepu16_epi32(load128(words + i)), _mm256_set1_epi32((int)offset));
        _mm256_storeu_si256((__m256i *)(out + i), v);
    }
    gtcb_scalar.widen(words + i, count - i, offset, out + i);
}

/* -- unpack, apply ------------------------------------------------------------------------------------------ */

AVX2 static void unpack(const uint8_t *lows, const uint8_t *uppers, size_t upper_bits, size_t count, unsigned l, uint32_t *v)
{
    if (l > 25) {
        gtcb_scalar.unpack(lows, uppers, upper_bits, count, l, v);
        return;
    }
    uint16_t positions[GTCB_BLOCK + 64];        /* of the ones */
    size_t found = 0;
    __m128i here = iota16();
    for (size_t byte = 0; 8 * byte < upper_bits; byte++) {
        _mm_storeu_si128((__m128i *)(positions + found), compress8(uppers[byte], here));
        found += (size_t)_mm_popcnt_u32(uppers[byte]);
        here = _mm_add_epi16(here, _mm_set1_epi16(8));
    }
    /* The low bits of 8 elements are l bytes. Four of them lie in 16 bytes: the second four begin in byte l / 2. */
    const int half = 4 * (int)l % 8, length = (int)l;
    const __m256i bit_of = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_set_epi32(3, 2, 1, 0, 3, 2, 1, 0), _mm256_set1_epi32(length)),
                                            _mm256_set_epi32(half, half, half, half, 0, 0, 0, 0));
    const __m256i byte_of = _mm256_mullo_epi32(_mm256_srli_epi32(bit_of, 3), _mm256_set1_epi32(0x01010101));
    const __m256i bytes = _mm256_add_epi32(byte_of, _mm256_set1_epi32(0x03020100));
    const __m256i shifts = _mm256_and_si256(bit_of, _mm256_set1_epi32(7)), mask = _mm256_set1_epi32((int)((1u << l) - 1));
    const __m128i l_bits = _mm_cvtsi32_si128(length);
    __m256i i_of = iota32();
    for (size_t i = 0; i < count; i += 8, lows += l) {
        __m256i x = _mm256_set_m128i(load128(lows + l / 2), load128(lows));
        __m256i low = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(x, bytes), shifts), mask);
        __m256i upper = _mm256_sub_epi32(_mm256_cvtepu16_epi32(load128(positions + i)), i_of);
        _mm256_storeu_si256((__m256i *)(v + i), _mm256_or_si256(low, _mm256_sll_epi32(upper, l_bits)));
        i_of = _mm256_add_epi32(i_of, _mm256_set1_epi32(8));
    }
}

AVX2 static void add_each(float *dense, const uint32_t *v, size_t count, float threshold)
{
    gtcb_add_each(dense, v, count, threshold);
}

AVX2 static void add_codes(float *dense, const uint8_t *codes, size_t count, float threshold)
{
    const __m256 tau = _mm256_set1_ps(threshold), minus_tau = _mm256_set1_ps(-threshold);
    const __m256i low_bit = _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_slli_epi32(iota32(), 1));
    const __m256i high_bit = _mm256_slli_epi32(low_bit, 1);
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i all = _mm256_set1_epi32(gtcb_get16(codes + i / 4));
        __m256i sent = _mm256_cmpeq_epi32(_mm256_and_si256(all, low_bit), low_bit);
        __m256i negative = _mm256_cmpeq_epi32(_mm256_and_si256(all, high_bit), high_bit);
        __m256 x = _mm256_loadu_ps(dense + i), q = _mm256_blendv_ps(tau, minus_tau, _mm256_castsi256_ps(negative));
        _mm256_storeu_ps(dense + i, _mm256_blendv_ps(x, _mm256_add_ps(x, q), _mm256_castsi256_ps(sent)));
    }
    gtcb_scalar.add_codes(dense + i, codes + i / 4, count - i, threshold);
}

/* -- checks -------------------------------------------------------------------------------------------------- */

AVX2 static uint64_t checksum(const void *data, size_t bytes, uint64_t first)
{
    const uint64_t step = UINT64_C(0x9E3779B97F4A7C15);
    const uint8_t *p = data;
    __m256i key = _mm256_set_epi64x((long long)((first + 4) * step), (long long)((first + 3) * step),
                                    (long long)((first + 2) * step), (long long)((first + 1) * step));
    const __m256i next = _mm256_set1_epi64x((long long)(4 * step));
    __m256i words = _mm256_setzero_si256(), products = _mm256_setzero_si256();
    size_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        __m256i w = load256(p + at), x = _mm256_xor_si256(w, key);
        words = _mm256_add_epi64(words, w);
        products = _mm256_add_epi64(products, _mm256_mul_epu32(x, _mm256_srli_epi64(x, 32)));
        key = _mm256_add_epi64(key, next);
    }
    uint64_t lanes[4], sum = gtcb_scalar.checksum(p + at, bytes - at, first + at / 8);
    words = _mm256_add_epi64(words, _mm256_slli_epi64(words, 32));
    _mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi64(words, products));
    for (int i = 0; i < 4; i++)
        sum += lanes[i];
    return sum;
}

AVX2 static size_t ones(const uint8_t *bits, size_t bytes) { return gtcb_count_ones(bits, bytes); }
AVX2 static size_t count_codes(const uint8_t *codes, size_t bytes) { return gtcb_count_sent_codes(codes, bytes); }

const gtcb_variant gtcb_avx2 = {
    .name = "avx2", .supported = supported,
    .stage = stage, .non_finite_f32 = non_finite_f32, .non_finite_f64 = non_finite_f64,
    .widen = widen, .pack = gtcb_pack_avx2, .pack_narrow = gtcb_pack_narrow_avx2, .unpack = unpack,
    .add = add_each, .add_codes = add_codes, .divide = gtcb_divide_avx2,
    .checksum = checksum, .ones = ones, .count_codes = count_codes,
};
#endif
