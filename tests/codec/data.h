/* Buckets for the tests: gradients of any dtype with a chosen share of elements that reach the threshold. */
#ifndef DATA_H
#define DATA_H

#include <math.h>

#include "check.h"

static const size_t dtype_bytes[] = {4, 2, 2, 8};
static const char *const dtype_names[] = {"float32", "bfloat16", "float16", "float64"};

/* Rounded towards zero, which keeps 0 <= |x| < tau and, tau being a power of two, |x| >= tau. */
static inline void put_gradient(void *data, size_t i, gtcb_dtype dtype, double x)
{
    float f = (float)x;
    uint32_t bits = gtcb_float_bits(f);
    if (dtype == GTCB_F32)
        ((float *)data)[i] = f;
    else if (dtype == GTCB_F64)
        ((double *)data)[i] = x;
    else if (dtype == GTCB_BF16)
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    else {
        int exponent = (int)(bits >> 23 & 255) - 112;
        uint32_t fraction = bits & 0x7FFFFF, h;
        if (exponent == 143)
            h = 0x7C00u | (fraction ? 0x200u : 0);      /* NaN, infinity */
        else if (exponent >= 31)
            h = 0x7BFF;
        else if (exponent > 0)
            h = (uint32_t)exponent << 10 | fraction >> 13;
        else
            h = exponent < -10 ? 0 : (fraction | 0x800000) >> (14 - exponent);
        ((uint16_t *)data)[i] = (uint16_t)(h | (bits >> 16 & 0x8000));
    }
}

typedef enum pattern { RANDOM, CLUSTERED, SPECIAL, PATTERNS } pattern;

static inline double special(uint64_t *rng, float tau)
{
    const float values[] = {0.0f, -0.0f, tau, -tau, nextafterf(tau, 0), nextafterf(-tau, 0), nextafterf(tau, 9),
                            nextafterf(-tau, -9), FLT_MIN, -FLT_MIN, 0x1p-149f, -0x1p-149f, 3 * tau, -2 * tau,
                            tau / 2, -tau / 2, 1e4f, -1e4f};
    return (double)values[below(rng, sizeof values / sizeof values[0])];
}

static inline void fill(uint64_t *rng, pattern p, double density, float tau, size_t n, gtcb_dtype dtype,
                        void *gradient, float *residual)
{
    bool in_run = false;
    for (size_t i = 0; i < n; i++) {
        if (p == CLUSTERED && below(rng, 50) == 0)
            in_run = uniform(rng) < density;
        bool hit = p == CLUSTERED ? in_run : uniform(rng) < density;
        double sign = below(rng, 2) ? 1.0 : -1.0;
        double g = (double)tau * sign * (hit ? 1 + 3 * uniform(rng) : 0.5 * uniform(rng));
        double r = (double)tau * sign * 0.4 * uniform(rng);
        if (p == SPECIAL && uniform(rng) < 0.5) {
            g = special(rng, tau);
            r = below(rng, 2) ? 0.0 : below(rng, 2) ? special(rng, tau) : (double)tau - g;
        }
        put_gradient(gradient, i, dtype, g);
        residual[i] = (float)r;
    }
}

#endif
