/* Division for both x86 variants: it waits for memory, so that wider vectors gain nothing. */
#include "variant.h"

#ifdef GTCB_X86
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

#define INLINE AVX2 __attribute__((always_inline)) static inline

INLINE __m256 quotients(const float *sum, __m256 by, bool exact)
{
    const __m256 x = _mm256_loadu_ps(sum);
    return exact ? _mm256_mul_ps(x, by) : _mm256_div_ps(x, by);
}

/* As bfloat16, each in 32 bits: gtcb_to_bfloat16 but for NaNs. */
INLINE __m256i rounded(__m256 x)
{
    const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
}

/* A vector of `out`; AVX2 packs within each half. */
INLINE __m256i vector_of(const float *sum, __m256 by, bool exact, bool narrow)
{
    const __m256 x = quotients(sum, by, exact);
    return narrow ? _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(x), rounded(quotients(sum + 8, by, exact))), 0xD8)
                  : _mm256_castps_si256(x);
}

INLINE void divide_vectors(const float *sum, __m256i *out, size_t vectors, float by, bool exact, bool narrow, bool stream)
{
    const __m256 b = _mm256_set1_ps(by);
    for (size_t i = 0; i < vectors; i++) {
        const __m256i v = vector_of(sum + i * (narrow ? 16 : 8), b, exact, narrow);
        if (stream)
            _mm256_stream_si256(out + i, v);
        else
            _mm256_storeu_si256(out + i, v);
    }
}

INLINE void divide_by(const float *sum, __m256i *out, size_t vectors, float divisor, bool narrow, bool stream)
{
    if (gtcb_has_exact_reciprocal(divisor))
        divide_vectors(sum, out, vectors, 1 / divisor, true, narrow, stream);
    else
        divide_vectors(sum, out, vectors, divisor, false, narrow, stream);
    if (stream)
        _mm_sfence();
}

/* The middle begins where a vector of `out` does. */
AVX2 void gtcb_divide_avx2(const float *sum, size_t count, float divisor, gtcb_dtype dtype, void *out, bool stream)
{
    const bool narrow = dtype == GTCB_BF16;
    const size_t width = narrow ? 2 : 4, lanes = 32 / width, misaligned = (uintptr_t)out / width % lanes;
    const size_t before = misaligned > 0 ? lanes - misaligned : 0, head = before < count ? before : count;
    const size_t vectors = (count - head) / lanes, done = head + vectors * lanes;
    uint8_t *bytes = out;
    __m256i *middle = (__m256i *)(bytes + head * width);
    gtcb_scalar.divide(sum, head, divisor, dtype, out, false);
    if (narrow)
        stream ? divide_by(sum + head, middle, vectors, divisor, true, true) : divide_by(sum + head, middle, vectors, divisor, true, false);
    else
        stream ? divide_by(sum + head, middle, vectors, divisor, false, true) : divide_by(sum + head, middle, vectors, divisor, false, false);
    gtcb_scalar.divide(sum + done, count - done, divisor, dtype, bytes + done * width, false);
}
#endif
