/* The loops of codec_scalar.c with AVX-512 (F, BW, VL, DQ, VBMI, VBMI2); those that pack are in pack_avx512.c. */
#include "variant.h"

#ifdef GTCB_X86
#include "avx512.h"

static bool supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

/* -- stage ------------------------------------------------------------------------------------------- */

INLINE __m512d add_double(__m256 r, const double *g, __mmask8 lanes)
{
    return _mm512_add_pd(_mm512_cvtps_pd(r), _mm512_maskz_loadu_pd(lanes, g));
}

/* t of 16 elements, 0 where there is none. */
INLINE __m512 sum16(const gtcb_piece *p, size_t i, __mmask16 lanes, gtcb_dtype dtype)
{
    __m512 r = _mm512_maskz_loadu_ps(lanes, p->residual_in + i);
    if (dtype == GTCB_F32)
        return _mm512_add_ps(r, _mm512_maskz_loadu_ps(lanes, (const float *)p->gradient + i));
    if (dtype == GTCB_F64) {
        const double *g = (const double *)p->gradient + i;
        __m256 low = _mm512_cvtpd_ps(add_double(_mm512_castps512_ps256(r), g, (__mmask8)lanes));
        if (lanes >> 8 == 0)        /* do not form an address beyond the array */
            return _mm512_zextps256_ps512(low);
        __m256 high = _mm512_cvtpd_ps(add_double(_mm512_extractf32x8_ps(r, 1), g + 8, (__mmask8)(lanes >> 8)));
        return _mm512_insertf32x8(_mm512_zextps256_ps512(low), high, 1);
    }
    __m256i g = _mm256_maskz_loadu_epi16(lanes, (const uint16_t *)p->gradient + i);
    if (dtype == GTCB_F16)
        return _mm512_add_ps(r, _mm512_cvtph_ps(g));
    return _mm512_add_ps(r, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(g), 16)));
}

/* Stores r' and returns which are sent. The comparison is true for NaN too, so a non-finite t shows in `worst`, the
   greatest |t| as an integer, which orders as |t| does and puts infinity and NaN above all. */
INLINE __mmask16 threshold16(const gtcb_piece *p, size_t i, __mmask16 lanes, __m512 t, __m512i *worst, bool stream)
{
    const __m512i sign = _mm512_set1_epi32((int)0x80000000u);
    const __m512 tau = _mm512_set1_ps(p->threshold);
    __m512 magnitude = _mm512_abs_ps(t);
    __mmask16 sent = _mm512_cmp_ps_mask(magnitude, tau, _CMP_NLT_UQ);
    __m512 q = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(t), sign, _mm512_castps_si512(tau), 0xEA));
    t = _mm512_mask_sub_ps(t, sent, t, q);      /* 0xEA above: t & sign | tau */
    *worst = _mm512_max_epu32(*worst, _mm512_castps_si512(magnitude));
    if (stream)
        _mm512_stream_ps(p->residual_out + i, t);
    else if (lanes == 0xFFFF)
        _mm512_storeu_ps(p->residual_out + i, t);
    else
        _mm512_mask_storeu_ps(p->residual_out + i, lanes, t);
    return sent;
}

/* 32 elements, or as many as there are lanes; returns how many are sent. */
INLINE size_t stage32(const gtcb_piece *p, size_t i, __mmask32 lanes, uint16_t *words, __m512i *worst,
                      gtcb_dtype dtype, bool stream)
{
    const __m512i tops = _mm512_add_epi16(_mm512_slli_epi16(iota16(), 1), _mm512_set1_epi16(1));
    const __mmask16 low = (__mmask16)lanes, high = (__mmask16)(lanes >> 16);
    __m512 t0 = sum16(p, i, low, dtype), t1 = _mm512_setzero_ps();
    __mmask32 sent = threshold16(p, i, low, t0, worst, stream);
    if (high != 0) {
        t1 = sum16(p, i + 16, high, dtype);
        sent |= (__mmask32)threshold16(p, i + 16, high, t1, worst, stream) << 16;
    }
    /* the upper halves of the 32 floats, then their signs, under 2 * index */
    __m512i signs = _mm512_srli_epi16(_mm512_permutex2var_epi16(_mm512_castps_si512(t0), tops, _mm512_castps_si512(t1)), 15);
    __m512i even = _mm512_add_epi16(_mm512_slli_epi16(iota16(), 1), _mm512_set1_epi16((short)(2 * (p->first + i))));
    sent &= lanes;
    const size_t count = (size_t)_mm_popcnt_u32(sent);
    __m512i compressed = _mm512_maskz_compress_epi16(sent, _mm512_or_si512(even, signs));
    _mm_storeu_si128((__m128i *)words, _mm512_castsi512_si128(compressed));
    if (count > 8)      /* seldom: and a store of 64 bytes nearly always crosses a cache line */
        _mm512_storeu_si512(words, compressed);
    return count;
}

INLINE size_t stage_as(const gtcb_piece *piece, uint16_t *words, bool *non_finite, gtcb_dtype dtype, bool stream)
{
    const gtcb_piece copy = *piece, *p = &copy;     /* which no store to the arrays can change: so it stays in registers */
    __m512i worst = _mm512_setzero_si512();
    const size_t misaligned = (uintptr_t)p->residual_out / 4 % 16;      /* stores that cross lines are slow */
    size_t i = misaligned > 0 ? 16 - misaligned : 0, sent = 0;
    if (i > p->count)
        i = p->count;
    if (i > 0)
        sent = stage32(p, 0, _bzhi_u32(UINT32_MAX, (unsigned)i), words, &worst, dtype, false);
    for (; i + 32 <= p->count; i += 32)
        sent += stage32(p, i, UINT32_MAX, words + sent, &worst, dtype, stream);
    if (i < p->count)
        sent += stage32(p, i, _bzhi_u32(UINT32_MAX, (unsigned)(p->count - i)), words + sent, &worst, dtype, false);
    if (stream)
        _mm_sfence();       /* before other threads may read what was stored past the caches */
    if (_mm512_cmpge_epu32_mask(worst, _mm512_set1_epi32(0x7F800000)) != 0)
        *non_finite = true;
    return sent;
}

AVX512 static size_t stage(const gtcb_piece *p, uint16_t *words, bool *non_finite)
{
    switch (p->dtype) {
    case GTCB_BF16: return p->stream ? stage_as(p, words, non_finite, GTCB_BF16, true) : stage_as(p, words, non_finite, GTCB_BF16, false);
    case GTCB_F16: return p->stream ? stage_as(p, words, non_finite, GTCB_F16, true) : stage_as(p, words, non_finite, GTCB_F16, false);
    case GTCB_F64: return p->stream ? stage_as(p, words, non_finite, GTCB_F64, true) : stage_as(p, words, non_finite, GTCB_F64, false);
    default: return p->stream ? stage_as(p, words, non_finite, GTCB_F32, true) : stage_as(p, words, non_finite, GTCB_F32, false);
    }
}

AVX512 static size_t non_finite_f32(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i += 16) {
        __m512 x = _mm512_abs_ps(_mm512_maskz_loadu_ps(first_lanes(count - i), values + i));
        __mmask16 bad = _mm512_cmpge_epu32_mask(_mm512_castps_si512(x), _mm512_set1_epi32(0x7F800000));
        if (bad != 0)
            return i + (size_t)__builtin_ctz(bad);
    }
    return GTCB_NONE;
}

AVX512 static size_t non_finite_f64(const double *values, size_t count)
{
    for (size_t i = 0; i < count; i += 8) {
        __m512d x = _mm512_abs_pd(_mm512_maskz_loadu_pd((__mmask8)first_lanes(count - i), values + i));
        __mmask8 bad = _mm512_cmpge_epu64_mask(_mm512_castpd_si512(x), _mm512_set1_epi64(0x7FF0000000000000));
        if (bad != 0)
            return i + (size_t)__builtin_ctz(bad);
    }
    return GTCB_NONE;
}

AVX512 static void widen(const uint16_t *words, size_t count, uint32_t offset, uint32_t *out)
{
    for (size_t i = 0; i < count; i += 16) {
        __m256i w = _mm256_maskz_loadu_epi16(first_lanes(count - i), words + i);
        _mm512_storeu_si512(out + i, _mm512_add_epi32(_mm512_cvtepu16_epi32(w), _mm512_set1_epi32((int)offset)));
    }
}

/* -- unpack, apply --------------------------------------------------------------------------------------- */

AVX512 static void unpack(const uint8_t *lows, const uint8_t *uppers, size_t upper_bits, size_t count, unsigned l, uint32_t *v)
{
    if (l > 25) {
        gtcb_scalar.unpack(lows, uppers, upper_bits, count, l, v);
        return;
    }
    uint16_t positions[GTCB_BLOCK + 64];        /* of the ones; those beyond the last bit are not used */
    size_t found = 0;
    __m512i here = iota16();
    for (size_t bit = 0; bit < upper_bits; bit += 32) {
        const __mmask32 bits = gtcb_get32(uppers + bit / 8);
        _mm512_storeu_si512(positions + found, _mm512_maskz_compress_epi16(bits, here));
        found += (size_t)_mm_popcnt_u32(bits);
        here = _mm512_add_epi16(here, _mm512_set1_epi16(32));
    }
    /* The low bits of 16 elements are 2 * l bytes; lane j's begin at bit l * j. */
    const __m512i bit_of = _mm512_mullo_epi32(iota32(), _mm512_set1_epi32((int)l));
    const __m512i byte_of = _mm512_mullo_epi32(_mm512_srli_epi32(bit_of, 3), _mm512_set1_epi32(0x01010101));
    const __m512i bytes = _mm512_add_epi32(byte_of, _mm512_set1_epi32(0x03020100));
    const __m512i shifts = _mm512_and_si512(bit_of, _mm512_set1_epi32(7)), mask = _mm512_set1_epi32((int)((1u << l) - 1));
    const __m128i l_bits = _mm_cvtsi32_si128((int)l);
    __m512i i_of = iota32();
    for (size_t i = 0; i < count; i += 16, lows += 2 * l) {
        __m512i low = _mm512_srlv_epi32(_mm512_permutexvar_epi8(bytes, _mm512_loadu_si512(lows)), shifts);
        __m512i position = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(positions + i)));
        __m512i upper = _mm512_sll_epi32(_mm512_sub_epi32(position, i_of), l_bits);
        _mm512_storeu_si512(v + i, _mm512_ternarylogic_epi32(low, mask, upper, 0xEA));      /* low & mask | upper */
        i_of = _mm512_add_epi32(i_of, _mm512_set1_epi32(16));
    }
}

AVX512 static void add_each(float *dense, const uint32_t *v, size_t count, float threshold)
{
    gtcb_add_each(dense, v, count, threshold);
}

AVX512 static void add_codes(float *dense, const uint8_t *codes, size_t count, float threshold)
{
    const __m512 tau = _mm512_set1_ps(threshold), minus_tau = _mm512_set1_ps(-threshold);
    const __m512i low_bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_slli_epi32(iota32(), 1));
    const __m512i high_bit = _mm512_slli_epi32(low_bit, 1);
    for (size_t i = 0; i < count; i += 16) {
        const uint32_t c = count - i >= 16 ? gtcb_get32(codes + i / 4) : (uint32_t)gtcb_get_tail(codes + i / 4, (count - i + 3) / 4);
        const __m512i all = _mm512_set1_epi32((int)c);
        __mmask16 sent = _mm512_mask_test_epi32_mask(first_lanes(count - i), all, low_bit);
        __m512 q = _mm512_mask_blend_ps(_mm512_test_epi32_mask(all, high_bit), tau, minus_tau);
        __m512 x = _mm512_maskz_loadu_ps(sent, dense + i);
        _mm512_mask_storeu_ps(dense + i, sent, _mm512_add_ps(x, q));
    }
}

/* -- checks ------------------------------------------------------------------------------------------------ */

INLINE __m512i product(__m512i w, __m512i key)      /* (x mod 2^32) * (x >> 32) */
{
    __m512i x = _mm512_xor_si512(w, key);
    return _mm512_mul_epu32(x, _mm512_srli_epi64(x, 32));
}

INLINE uint64_t sum_lanes(__m512i x)    /* modulo 2^64; _mm512_reduce_add_epi64 adds signed numbers */
{
    uint64_t lanes[8], sum = 0;
    _mm512_storeu_si512(lanes, x);
    for (int i = 0; i < 8; i++)
        sum += lanes[i];
    return sum;
}

AVX512 static uint64_t checksum(const void *data, size_t bytes, uint64_t first)
{
    const uint64_t step = UINT64_C(0x9E3779B97F4A7C15);
    const uint8_t *p = data;
    const __m512i lanes = _mm512_set_epi64(8, 7, 6, 5, 4, 3, 2, 1), next = _mm512_set1_epi64((long long)(8 * step));
    __m512i key = _mm512_mullo_epi64(_mm512_add_epi64(lanes, _mm512_set1_epi64((long long)first)), _mm512_set1_epi64((long long)step));
    __m512i words = _mm512_setzero_si512(), products = _mm512_setzero_si512();
    size_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
        __m512i w = _mm512_loadu_si512(p + at);
        words = _mm512_add_epi64(words, w);
        products = _mm512_add_epi64(products, product(w, key));
        key = _mm512_add_epi64(key, next);
    }
    if (at < bytes) {
        __m512i w = _mm512_maskz_loadu_epi8(_bzhi_u64(UINT64_MAX, (unsigned)(bytes - at)), p + at);
        __mmask8 there = (__mmask8)_bzhi_u32(0xFF, (unsigned)(bytes - at + 7) / 8);
        words = _mm512_add_epi64(words, w);
        products = _mm512_mask_add_epi64(products, there, products, product(w, key));
    }
    uint64_t w = sum_lanes(words);
    return w + (w << 32) + sum_lanes(products);
}

AVX512 static size_t ones(const uint8_t *bits, size_t bytes) { return gtcb_count_ones(bits, bytes); }
AVX512 static size_t count_codes(const uint8_t *codes, size_t bytes) { return gtcb_count_sent_codes(codes, bytes); }

const gtcb_variant gtcb_avx512 = {
    .name = "avx512", .supported = supported,
    .stage = stage, .non_finite_f32 = non_finite_f32, .non_finite_f64 = non_finite_f64,
    .widen = widen, .pack = gtcb_pack_avx512, .pack_narrow = gtcb_pack_narrow_avx512, .unpack = unpack,
    .add = add_each, .add_codes = add_codes, .divide = gtcb_divide_avx2,
    .checksum = checksum, .ones = ones, .count_codes = count_codes,
};
#endif
