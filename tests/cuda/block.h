/* BMUF's block update, emulated, beside its equation. */
#ifndef BLOCK_H
#define BLOCK_H

#include "../../csrc/cuda/cuda.h"
#include "bucket.h"

/* Δ = η·Δ + ζ·G;  W = W + Δ;  start = W + η·Δ: each operation rounded by itself, which `volatile` makes sure of. */
#define COMPARE_BLOCK(T, code, n, nesterov_)                                                                       \
    do {                                                                                                           \
        T *g = must(malloc(sizeof(T) * n)), *delta = must(malloc(sizeof(T) * n)), *w = must(malloc(sizeof(T) * n)); \
        T *g0 = must(malloc(sizeof(T) * n)), *delta0 = must(malloc(sizeof(T) * n)), *w0 = must(malloc(sizeof(T) * n)); \
        const T eta = (T)0.9, zeta = (T)1.1;                                                                       \
        for (size_t i = 0; i < n; i++) {                                                                           \
            g0[i] = g[i] = (T)(uniform(&rng) - 0.5);                                                               \
            delta0[i] = delta[i] = (T)(uniform(&rng) - 0.5);                                                       \
            w0[i] = w[i] = (T)(uniform(&rng) - 0.5);                                                               \
        }                                                                                                          \
        const gtcb_cuda_block block = {code, n, g, delta, w, g, (double)eta, (double)zeta, nesterov_};             \
        CHECK(gtcb_cuda_block_update(&block, &(gtcb_cuda_launch){NULL, 1 + (unsigned)below(&rng, 5)}) == GTCB_OK, "block update"); \
        for (size_t i = 0; i < n; i++) {                                                                           \
            volatile T a = eta * delta0[i], b = zeta * g0[i], d = a + b, x = w0[i] + d, c = eta * d, s = c + x;    \
            CHECK(delta[i] == d && w[i] == x && g[i] == (nesterov_ ? s : x), "element %zu of %zu", i, (size_t)n);  \
        }                                                                                                          \
        free(g), free(delta), free(w), free(g0), free(delta0), free(w0);                                           \
    } while (0)

static void compare_blocks(void)
{
    static const size_t sizes[] = {1, 31, 256, 1000, 5003};
    for (size_t size = 0; size < 5; size++) {
        COMPARE_BLOCK(float, GTCB_F32, sizes[size], size % 2 == 0);
        COMPARE_BLOCK(double, GTCB_F64, sizes[size], size % 2 == 1);
    }
}

#endif
