/* The library's codec under flat functions for ctypes, and what the codecs of others lack: from words (2 * index +
   negative, increasing) to the numbers that they pack well and back, and words into a sum. All buffers are the caller's. */
#include <string.h>

#include "codec/codec.h"
#include "exchange/pool.h"

#define CHUNK 65536

static const gtcb_executor *executor_with(size_t threads)     /* kept for the life of the process */
{
    static gtcb_pool *pools[65];
    if (threads <= 1 || threads > 64 || (pools[threads] == NULL && gtcb_pool_open(threads, &pools[threads]) != GTCB_OK))
        return NULL;
    return gtcb_pool_executor(pools[threads]);
}

const char *bench_best_variant(void) { return gtcb_variant_name(gtcb_variant_best()); }

int bench_encode(const char *variant, const float *gradient, uint64_t n, const float *in, float *out, float threshold,
                 uint32_t *scratch, void *message, size_t capacity, size_t threads, size_t *bytes)
{
    gtcb_segment all = {gradient, n};
    gtcb_encode_job job = {.segments = &all, .segment_count = 1, .dtype = GTCB_F32, .elements = n, .residual_in = in,
                           .residual_out = out, .threshold = threshold, .max_sent = GTCB_NO_CAP, .scratch = scratch};
    return (int)gtcb_encode(gtcb_variant_named(variant), &job, executor_with(threads), message, capacity, bytes);
}

int bench_validate(const char *variant, const uint8_t *message, size_t bytes)
{
    return (int)gtcb_validate(gtcb_variant_named(variant), message, message + GTCB_HEADER_BYTES, bytes - GTCB_HEADER_BYTES);
}

int bench_decode_add(const char *variant, const uint8_t *const *messages, size_t count, float *dense, uint64_t n)
{
    gtcb_message list[64];
    if (count > 64)
        return GTCB_BAD_ARGUMENT;
    for (size_t i = 0; i < count; i++)
        list[i] = (gtcb_message){messages[i], messages[i] + GTCB_HEADER_BYTES};
    return (int)gtcb_decode_add(gtcb_variant_named(variant), list, count, dense, n, NULL);
}

/* -- the floor of packing ----------------------------------------------------------------------------- */

typedef struct sum { float *a; const float *b; size_t n; } sum;

__attribute__((noinline)) static void add_arrays(float *restrict a, const float *restrict b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        a[i] += b[i];
}

static void add_part(void *context, size_t i)
{
    const sum *s = context;
    size_t first = i * CHUNK, left = s->n - first;
    add_arrays(s->a + first, s->b + first, left < CHUNK ? left : CHUNK);
}

void bench_add(float *a, const float *b, size_t n, size_t threads)
{
    sum s = {a, b, n};
    const gtcb_executor *e = executor_with(threads);
    if (e == NULL)
        add_arrays(a, b, n);
    else
        e->run(e->self, add_part, &s, (n + CHUNK - 1) / CHUNK);
}

/* -- around the codecs of others ------------------------------------------------------------------------ */

void bench_add_words(float *dense, const uint32_t *words, size_t count, float threshold)
{
    const float q[2] = {threshold, -threshold};
    for (size_t i = 0; i < count; i++)
        dense[words[i] >> 1] += q[words[i] & 1];
}

void bench_gaps(const uint32_t *words, size_t count, uint32_t *gaps)
{
    for (size_t i = 0; i < count; i++)
        gaps[i] = words[i] - (i > 0 ? words[i - 1] : 0);
}

void bench_sums(const uint32_t *gaps, size_t count, uint32_t *words)
{
    uint32_t at = 0;
    for (size_t i = 0; i < count; i++)
        words[i] = at += gaps[i];
}

void bench_planes(const uint32_t *x, size_t count, uint8_t *planes)      /* all lowest bytes, then all second ones ... */
{
    for (unsigned p = 0; p < 4; p++)
        for (size_t i = 0; i < count; i++)
            planes[p * count + i] = (uint8_t)(x[i] >> 8 * p);
}

void bench_sums_of_planes(const uint8_t *planes, size_t count, uint32_t *words)
{
    uint32_t at = 0;
    for (size_t i = 0; i < count; i++)
        words[i] = at += planes[i] | (uint32_t)planes[count + i] << 8 | (uint32_t)planes[2 * count + i] << 16 |
                         (uint32_t)planes[3 * count + i] << 24;
}

void bench_split(const uint32_t *words, size_t count, uint32_t *indices, uint8_t *signs)     /* (count + 7) / 8 bytes */
{
    memset(signs, 0, (count + 7) / 8);
    for (size_t i = 0; i < count; i++) {
        indices[i] = words[i] >> 1;
        signs[i / 8] |= (uint8_t)((words[i] & 1) << i % 8);
    }
}

void bench_join(const uint32_t *indices, const uint8_t *signs, size_t count, uint32_t *words)
{
    for (size_t i = 0; i < count; i++)
        words[i] = indices[i] << 1 | (signs[i / 8] >> i % 8 & 1);
}
