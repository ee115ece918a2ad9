/* What the C tests of the codec share: a check that stops with file and line, random numbers, executors. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/codec/variant.h"

#define CHECK(condition, ...)                                                              \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: not true: %s: ", __FILE__, __LINE__, #condition);      \
            fprintf(stderr, __VA_ARGS__);                                                  \
            fprintf(stderr, "\n");                                                         \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

static inline void *must(void *p)
{
    CHECK(p != NULL, "out of memory");
    return p;
}

/* -- random numbers: splitmix64 ------------------------------------------------------------------- */

static inline uint64_t random64(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static inline uint64_t below(uint64_t *state, uint64_t limit) { return random64(state) % limit; }
static inline double uniform(uint64_t *state) { return (double)(random64(state) >> 11) * 0x1p-53; }

/* The bfloat16 next to a float that is no NaN, by the distances to those on both sides; halfway the even one. */
static inline uint16_t oracle_bfloat16(float x)
{
    uint32_t sign = gtcb_float_bits(x) >> 31 << 31, low = (gtcb_float_bits(x) & ~sign) >> 16;
    double value = (double)gtcb_from_bits(gtcb_float_bits(x) & ~sign), below_it = (double)gtcb_from_bits(low << 16);
    double above_it = low == 0x7F7F ? 0x1p128 : (double)gtcb_from_bits((low + 1) << 16);
    bool up = low < 0x7F80 && (above_it - value < value - below_it || (above_it - value == value - below_it && low % 2));
    return (uint16_t)(sign >> 16 | (low + up));
}

/* -- executors ------------------------------------------------------------------------------------- */

static inline void run_reversed(void *self, void (*task)(void *, size_t), void *context, size_t count)
{
    (void)self;
    while (count-- > 0)
        task(context, count);
}

typedef struct crowd { void (*task)(void *, size_t); void *context; size_t count; atomic_size_t next; } crowd;

static inline void *crowd_member(void *p)
{
    crowd *c = p;
    for (size_t i; (i = atomic_fetch_add(&c->next, 1)) < c->count;)
        c->task(c->context, i);
    return NULL;
}

static inline void run_threaded(void *self, void (*task)(void *, size_t), void *context, size_t count)
{
    (void)self;
    crowd c = {task, context, count, 0};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, crowd_member, &c) == 0, "no thread");
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

static const gtcb_executor reversed = {run_reversed, NULL, 3}, threaded = {run_threaded, NULL, 4};
static const gtcb_executor *const executors[] = {NULL, &reversed, &threaded};

#endif
