/* What bench_codec compares with: loops that move the same bytes and do next to nothing, cut into tasks for the same
   threads. */
#ifndef BENCH_FLOORS_H
#define BENCH_FLOORS_H

#include <time.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "check.h"

static clockid_t clock_of_rounds = CLOCK_THREAD_CPUTIME_ID;

static inline double now(void)
{
    struct timespec t;
    clock_gettime(clock_of_rounds, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double median(double *x, size_t count)
{
    qsort(x, count, sizeof *x, by_value);
    return x[count / 2];
}

/* In huge pages where the system gives them, as NumPy asks for arrays of this size. */
static inline void *touched(size_t bytes)
{
    const size_t page = (size_t)1 << 21;
    void *p = must(aligned_alloc(page, (bytes + page - 1) / page * page));
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    memset(p, 1, bytes);
    return p;
}

/* -- the loops -------------------------------------------------------------------------------------- */

__attribute__((noinline)) static void add_arrays(float *restrict a, const float *restrict b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        a[i] += b[i];
}

__attribute__((noinline)) static void triad(float *restrict a, const float *restrict b, const float *restrict c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        a[i] = b[i] + 3.0f * c[i];
}

/* c = a + b past the caches, where the processor can: a plain store reads its line first. */
__attribute__((noinline)) static void sum_arrays(float *restrict c, const float *restrict a, const float *restrict b, size_t n)
{
    size_t i = 0;
#ifdef __SSE2__
    for (; i + 4 <= n; i += 4)
        _mm_stream_ps(c + i, _mm_add_ps(_mm_loadu_ps(a + i), _mm_loadu_ps(b + i)));
    _mm_sfence();
#endif
    for (; i < n; i++)
        c[i] = a[i] + b[i];
}

__attribute__((noinline)) static void add_number(float *a, float x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        a[i] += x;
}

/* a = 0 past the caches, where the processor can. */
__attribute__((noinline)) static void clear_array(float *a, size_t n)
{
    size_t i = 0;
#ifdef __SSE2__
    for (; i + 4 <= n; i += 4)
        _mm_stream_ps(a + i, _mm_setzero_ps());
    _mm_sfence();
#endif
    for (; i < n; i++)
        a[i] = 0;
}

__attribute__((noinline)) static void divide_array(float *a, float by, size_t n)
{
    for (size_t i = 0; i < n; i++)
        a[i] /= by;
}

/* -- on the threads of an executor ------------------------------------------------------------------- */

#define FLOOR_TASK 32768            /* elements, as the codec cuts a bucket */
#define FLOOR_WINDOW 4096           /* floats that stay in a first level cache */

typedef struct floor_job {
    float *c;
    const float *a, *b;
    size_t n;
    const gtcb_message *messages;
    const size_t *bytes;
    size_t touches, tasks;
} floor_job;

static inline size_t floor_count(const floor_job *j, size_t i)
{
    return j->n - i * FLOOR_TASK < FLOOR_TASK ? j->n - i * FLOOR_TASK : FLOOR_TASK;
}

static void add_task(void *context, size_t i)
{
    const floor_job *j = context;
    add_arrays(j->c + i * FLOOR_TASK, j->b + i * FLOOR_TASK, floor_count(j, i));
}

static void sum_task(void *context, size_t i)
{
    const floor_job *j = context;
    sum_arrays(j->c + i * FLOOR_TASK, j->a + i * FLOOR_TASK, j->b + i * FLOOR_TASK, floor_count(j, i));
}

static void number_task(void *context, size_t i)
{
    const floor_job *j = context;
    add_number(j->c + i * FLOOR_TASK, 0.5f, floor_count(j, i));
}

static void clear_task(void *context, size_t i)
{
    const floor_job *j = context;
    clear_array(j->c + i * FLOOR_TASK, floor_count(j, i));
}

static void divide_task(void *context, size_t i)
{
    const floor_job *j = context;
    divide_array(j->c + i * FLOOR_TASK, 8, floor_count(j, i));
}

static void copy_task(void *context, size_t i)
{
    const floor_job *j = context;
    memcpy(j->c + i * FLOOR_TASK, j->a + i * FLOOR_TASK, floor_count(j, i) * sizeof(float));
}

static void read_task(void *context, size_t i)
{
    const floor_job *j = context;
    const uint8_t *p = j->messages[i].header;
    uint64_t sum = 0;
    for (size_t at = 0; at + 8 <= j->bytes[i]; at += 8)
        sum += gtcb_get64(p + at);
    __asm__ volatile("" : : "r"(sum));
}

static void touch_task(void *context, size_t i)
{
    const floor_job *j = context;
    float window[FLOOR_WINDOW];
    uint32_t places[GTCB_BLOCK];
    uint64_t seed = i;
    memset(window, 0, sizeof window);
    for (size_t k = 0; k < GTCB_BLOCK; k++)
        places[k] = (uint32_t)below(&seed, 2 * FLOOR_WINDOW);
    for (size_t left = j->touches / j->tasks; left > 0; left -= left < GTCB_BLOCK ? left : GTCB_BLOCK)
        gtcb_add_each(window, places, left < GTCB_BLOCK ? left : GTCB_BLOCK, 0.5f);
    __asm__ volatile("" : : "r"(window) : "memory");
}

static inline void floor_in_place(const gtcb_executor *e, float *a, const float *b, size_t n)
{
    floor_job j = {.c = a, .b = b, .n = n};
    gtcb_run(e, add_task, &j, (n + FLOOR_TASK - 1) / FLOOR_TASK);
}

static inline void floor_apart(const gtcb_executor *e, float *c, const float *a, const float *b, size_t n)
{
    floor_job j = {.c = c, .a = a, .b = b, .n = n};
    gtcb_run(e, sum_task, &j, (n + FLOOR_TASK - 1) / FLOOR_TASK);
}

static inline void read_and_touch(const gtcb_executor *e, const gtcb_message *messages, const size_t *bytes, size_t count, size_t sent)
{
    floor_job j = {.messages = messages, .bytes = bytes, .touches = sent, .tasks = 8};
    gtcb_run(e, read_task, &j, count);
    gtcb_run(e, touch_task, &j, j.tasks);
}

/* The sum is passed once, the messages are read once, and every sent element is added once to a number in the cache. */
static inline void floor_decode(const gtcb_executor *e, float *dense, size_t n, const gtcb_message *messages,
                                const size_t *bytes, size_t count, size_t sent)
{
    floor_job j = {.c = dense, .n = n};
    gtcb_run(e, number_task, &j, (n + FLOOR_TASK - 1) / FLOOR_TASK);
    read_and_touch(e, messages, bytes, count, sent);
}

/* The same where the sum is not there before: it is written only. */
static inline void floor_mean(const gtcb_executor *e, float *mean, size_t n, const gtcb_message *messages,
                              const size_t *bytes, size_t count, size_t sent)
{
    floor_job j = {.c = mean, .n = n};
    gtcb_run(e, clear_task, &j, (n + FLOOR_TASK - 1) / FLOOR_TASK);
    read_and_touch(e, messages, bytes, count, sent);
}

/* What decode_mean does, in passes of their own. */
static inline void mean_in_passes(const gtcb_executor *e, const gtcb_variant *v, float *sum, float *mean, size_t n,
                                  const gtcb_message *messages, size_t count)
{
    floor_job clear = {.c = sum, .n = n}, copy = {.c = mean, .a = sum, .n = n};
    const size_t tasks = (n + FLOOR_TASK - 1) / FLOOR_TASK;
    gtcb_run(e, clear_task, &clear, tasks);
    gtcb_decode_add(v, messages, count, sum, n, e);
    gtcb_run(e, divide_task, &clear, tasks);
    gtcb_run(e, copy_task, &copy, tasks);
}

#endif
