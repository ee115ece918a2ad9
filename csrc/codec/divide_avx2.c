/* Division for both x86 variants: it waits for memory, so that wider vectors gain nothing. */
#include "variant.h"

#ifdef GTCB_X86
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

AVX2 __attribute__((always_inline)) static inline void divide_as(const float *sum, size_t count, float by, float *out, bool exact, bool stream)
{
    const __m256 b = _mm256_set1_ps(by);
    for (size_t i = 0; i < count; i += 8) {
        __m256 x = _mm256_loadu_ps(sum + i), y = exact ? _mm256_mul_ps(x, b) : _mm256_div_ps(x, b);
        if (stream)
            _mm256_stream_ps(out + i, y);
        else
            _mm256_storeu_ps(out + i, y);
    }
}

/* The middle begins where a vector of `out` does. */
AVX2 void gtcb_divide_avx2(const float *sum, size_t count, float divisor, float *out, bool stream)
{
    const size_t misaligned = (uintptr_t)out / 4 % 8, before = misaligned > 0 ? 8 - misaligned : 0;
    const size_t head = before < count ? before : count, middle = (count - head) / 8 * 8;
    const bool exact = gtcb_has_exact_reciprocal(divisor);
    const float by = exact ? 1 / divisor : divisor;
    gtcb_scalar.divide(sum, head, divisor, out, false);
    sum += head;
    out += head;
    if (stream) {
        exact ? divide_as(sum, middle, by, out, true, true) : divide_as(sum, middle, by, out, false, true);
        _mm_sfence();
    } else {
        exact ? divide_as(sum, middle, by, out, true, false) : divide_as(sum, middle, by, out, false, false);
    }
    gtcb_scalar.divide(sum + middle, count - head - middle, divisor, out + middle, false);
}
#endif
