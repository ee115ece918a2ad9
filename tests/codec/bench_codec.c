/* Speed of the codec as ratios to what the memory allows, which is measured interleaved with it in the same process
   (bench_floors.h). Each figure is a median over rounds: of the thread's CPU time, so that a busy machine disturbs less,
   or of the time on the wall where several threads share the work. Results are checked first.
     cc -O3 -std=gnu11 -ffp-contract=off -pthread -Icsrc tests/codec/bench_codec.c csrc/codec/?*.c csrc/exchange/pool.c -lm
     bench_codec [variant] [elements] [rounds] [threads]                                                        */
#include <math.h>

#include "bench_floors.h"
#include "exchange/pool.h"

enum { MAX_ROUNDS = 101, MAX_MESSAGES = 64 };

typedef struct bench {
    const gtcb_variant *v;
    const gtcb_executor *executor;
    size_t n, rounds;
    float *gradient, *initial, *residual, *other;
    uint16_t *halves;               /* the gradient as bfloat16 */
    uint32_t *scratch;
    uint8_t *messages[MAX_MESSAGES];
    size_t bytes[MAX_MESSAGES], capacity;
} bench;

static void fill(bench *b, double density, uint64_t seed)
{
    for (size_t i = 0; i < b->n; i++) {
        uint64_t x = random64(&seed);
        double u = (double)(x >> 11) * 0x1p-53;
        float sign = x & 1 ? 1.0f : -1.0f;
        b->gradient[i] = sign * (u < density ? 0.6f : 0.3f * (float)u);
        b->halves[i] = (uint16_t)(gtcb_float_bits(b->gradient[i]) >> 16);
        b->initial[i] = sign * 0.1f * (float)(x >> 1 & 1);
    }
}

static void encode_as(const bench *b, gtcb_dtype dtype, size_t n, const gtcb_variant *v, const float *in, float *out,
                      uint8_t *message, size_t *bytes)
{
    gtcb_segment all = {dtype == GTCB_BF16 ? (const void *)b->halves : b->gradient, n};
    gtcb_encode_job job = {.segments = &all, .segment_count = 1, .dtype = dtype, .elements = n, .residual_in = in,
                           .residual_out = out, .threshold = 0.5f, .max_sent = GTCB_NO_CAP, .scratch = b->scratch};
    CHECK(gtcb_encode(v, &job, b->executor, message, b->capacity, bytes) == GTCB_OK, "encode");
}

static void encode(const bench *b, const gtcb_variant *v, const float *in, float *out, uint8_t *message, size_t *bytes)
{
    encode_as(b, GTCB_F32, b->n, v, in, out, message, bytes);
}

static void check_against_scalar(bench *b)
{
    uint8_t *expected = must(malloc(b->capacity));
    size_t expected_bytes;
    encode(b, &gtcb_scalar, b->initial, b->other, expected, &expected_bytes);
    encode(b, b->v, b->initial, b->residual, b->messages[0], &b->bytes[0]);
    CHECK(b->bytes[0] == expected_bytes && memcmp(b->messages[0], expected, expected_bytes) == 0, "message");
    CHECK(memcmp(b->residual, b->other, b->n * 4) == 0, "residual");
    memcpy(b->other, b->residual, b->n * 4);
    gtcb_message m = {expected, expected + 64};
    gtcb_decode_add(&gtcb_scalar, &m, 1, b->other, b->n, NULL);
    gtcb_decode_add(b->v, &m, 1, b->residual, b->n, b->executor);
    CHECK(memcmp(b->residual, b->other, b->n * 4) == 0, "sum");
    free(expected);
}

/* What the memory gives one thread: GB/s of bytes that the program names (a store that first reads its line moves more). */
static void bench_memory(bench *b)
{
    double copy[MAX_ROUNDS], sum[MAX_ROUNDS], add[MAX_ROUNDS];
    for (size_t r = 0; r < b->rounds; r++) {
        double t0 = now();
        memcpy(b->residual, b->initial, b->n * 4);
        double t1 = now();
        triad(b->residual, b->initial, b->gradient, b->n);
        double t2 = now();
        add_arrays(b->residual, b->gradient, b->n);
        double t3 = now();
        copy[r] = t1 - t0;
        sum[r] = t2 - t1;
        add[r] = t3 - t2;
    }
    double bytes = 4e-9 * (double)b->n;
    printf("memory, GB/s: copy %.1f  triad %.1f  a+=b %.1f\n", 2 * bytes / median(copy, b->rounds),
           3 * bytes / median(sum, b->rounds), 3 * bytes / median(add, b->rounds));
}

static void bench_encode(bench *b, double density)
{
    double add[MAX_ROUNDS], in_place[MAX_ROUNDS], apart[MAX_ROUNDS], own[MAX_ROUNDS], time[MAX_ROUNDS], checks[MAX_ROUNDS];
    gtcb_header h;
    for (size_t r = 0; r < b->rounds; r++) {
        memcpy(b->residual, b->initial, b->n * 4);
        double t0 = now();
        floor_in_place(b->executor, b->residual, b->gradient, b->n);
        double t1 = now();
        floor_apart(b->executor, b->residual, b->initial, b->gradient, b->n);
        double t2 = now();
        memcpy(b->residual, b->initial, b->n * 4);
        double t3 = now();
        encode(b, b->v, b->residual, b->residual, b->messages[0], &b->bytes[0]);
        double t4 = now();
        encode(b, b->v, b->initial, b->residual, b->messages[0], &b->bytes[0]);
        double t5 = now();
        CHECK(gtcb_validate(b->v, b->messages[0], b->messages[0] + 64, b->bytes[0] - 64) == GTCB_OK, "valid");
        double t6 = now();
        add[r] = t1 - t0;
        time[r] = t4 - t3;
        in_place[r] = add[r] / time[r];
        apart[r] = add[r] / (t5 - t4);
        own[r] = (t2 - t1) / (t5 - t4);
        checks[r] = t6 - t5;
    }
    gtcb_read_header(b->messages[0], &h);
    double k = (double)h.sent, p = k / (double)b->n;
    double entropy = -(p * log2(p) + (1 - p) * log2(1 - p)) / p + 1, bits = 8 * (double)b->bytes[0] / k;
    printf("%8.4f%% kind %d  a+=b %6.2f ms  encode %6.2f ms = %5.1f%% of a+=b in place, %5.1f%% apart = %5.1f%% of c=a+b  "
           "validate %.3f ns/sent  %.3f bits/sent, bound %.3f (+%.1f%%)\n",
           100 * density, h.kind, 1e3 * median(add, b->rounds), 1e3 * median(time, b->rounds),
           100 * median(in_place, b->rounds), 100 * median(apart, b->rounds), 100 * median(own, b->rounds),
           1e9 * median(checks, b->rounds) / k, bits, entropy, 100 * (bits / entropy - 1));
}

/* bfloat16 names 10 bytes an element: 2 of the gradient and 8 of the residuals, where float32 has 12. */
static void bench_bfloat16(bench *b, double density)
{
    double in_place[MAX_ROUNDS], apart[MAX_ROUNDS], own[MAX_ROUNDS];
    for (size_t r = 0; r < b->rounds; r++) {
        memcpy(b->residual, b->initial, b->n * 4);
        double t0 = now();
        floor_in_place(b->executor, b->residual, b->gradient, b->n);
        double t1 = now();
        floor_apart(b->executor, b->residual, b->initial, b->gradient, b->n);
        double t2 = now();
        memcpy(b->residual, b->initial, b->n * 4);
        double t3 = now();
        encode_as(b, GTCB_BF16, b->n, b->v, b->residual, b->residual, b->messages[0], &b->bytes[0]);
        double t4 = now();
        encode_as(b, GTCB_BF16, b->n, b->v, b->initial, b->residual, b->messages[0], &b->bytes[0]);
        double t5 = now();
        in_place[r] = (t1 - t0) / (t4 - t3);
        apart[r] = (t1 - t0) / (t5 - t4);
        own[r] = (t2 - t1) / (t5 - t4);
    }
    const double share = 100 * 10 / 12.0;
    printf("%8.4f%% bfloat16: encode %5.1f%% of 10/12 of a+=b in place, %5.1f%% apart = %5.1f%% of 10/12 of c=a+b\n",
           100 * density, share * median(in_place, b->rounds), share * median(apart, b->rounds), share * median(own, b->rounds));
}

/* A bucket that stays in the caches, against its share of the time that a+=b takes in memory, and against a+=b there. */
static void bench_small(bench *b, double density)
{
    enum { SMALL = 1 << 16, TIMES = 20 };
    double share[MAX_ROUNDS], cached[MAX_ROUNDS], time[MAX_ROUNDS];
    if (b->n < SMALL)
        return;
    for (size_t r = 0; r < b->rounds; r++) {
        double t0 = now();
        floor_in_place(b->executor, b->residual, b->gradient, b->n);
        double t1 = now();
        for (size_t i = 0; i < TIMES; i++)
            floor_in_place(b->executor, b->residual, b->gradient, SMALL);
        double t2 = now();
        for (size_t i = 0; i < TIMES; i++)
            encode_as(b, GTCB_F32, SMALL, b->v, b->initial, b->residual, b->messages[0], &b->bytes[0]);
        double t3 = now();
        time[r] = (t3 - t2) / TIMES;
        share[r] = time[r] / ((t1 - t0) * SMALL / (double)b->n);
        cached[r] = (t3 - t2) / (t2 - t1);
    }
    printf("%8.4f%% %d elements apart: %.1f us = %.2f of their share of a+=b in memory, %.2f of a+=b in the caches\n",
           100 * density, SMALL, 1e6 * median(time, b->rounds), median(share, b->rounds), median(cached, b->rounds));
}

static const size_t counts[] = {1, 4, 8, 16, 64};
enum { COUNTS = sizeof counts / sizeof *counts };

static void fill_messages(bench *b, double density, gtcb_message *messages, size_t sent[COUNTS])
{
    gtcb_header h;
    uint64_t k = 0;
    for (size_t i = 0, c = 0; i < MAX_MESSAGES; i++) {
        fill(b, density, 1000 + i);
        encode(b, b->v, b->initial, b->residual, b->messages[i], &b->bytes[i]);
        messages[i] = (gtcb_message){b->messages[i], b->messages[i] + 64};
        gtcb_read_header(b->messages[i], &h);
        k += h.sent;
        if (i + 1 == counts[c])
            sent[c++] = k;
    }
}

static void bench_decode(bench *b, double density, const gtcb_message *messages, const size_t sent[COUNTS])
{
    const size_t rounds = b->rounds < 11 ? b->rounds : 11;
    printf("%8.4f%% decode_add, ns/sent:", 100 * density);
    for (size_t c = 0; c < COUNTS; c++) {
        double time[MAX_ROUNDS], ratio[MAX_ROUNDS];
        for (size_t r = 0; r < rounds; r++) {
            memset(b->residual, 0, b->n * 4);
            double t0 = now();
            gtcb_decode_add(b->v, messages, counts[c], b->residual, b->n, b->executor);
            double t1 = now();
            floor_decode(b->executor, b->residual, b->n, messages, b->bytes, counts[c], sent[c]);
            time[r] = t1 - t0;
            ratio[r] = time[r] / (now() - t1);
        }
        printf("  %.2f = %.2f floors (%zu messages)", 1e9 * median(time, rounds) / (double)sent[c], median(ratio, rounds), counts[c]);
    }
    printf("\n");
}

/* Against its floor, and against clearing, decode_add, a division and a copy. */
static void bench_mean(bench *b, double density, const gtcb_message *messages, const size_t sent[COUNTS])
{
    const size_t rounds = b->rounds < 11 ? b->rounds : 11;
    gtcb_target target = {b->other, b->n};
    printf("%8.4f%% decode_mean, ms:", 100 * density);
    for (size_t c = 0; c < COUNTS; c++) {
        double time[MAX_ROUNDS], ratio[MAX_ROUNDS], passes[MAX_ROUNDS];
        gtcb_mean_job job = {messages, counts[c], b->n, &target, 1, GTCB_F32, 0, 8, touched(gtcb_mean_scratch_bytes(counts[c], b->executor))};
        for (size_t r = 0; r < rounds; r++) {
            double t0 = now();
            mean_in_passes(b->executor, b->v, b->residual, b->gradient, b->n, messages, counts[c]);
            double t1 = now();
            CHECK(gtcb_decode_mean(b->v, &job, b->executor) == GTCB_OK, "mean");
            double t2 = now();
            CHECK(r > 0 || memcmp(b->other, b->gradient, b->n * 4) == 0, "another mean");
            double t3 = now();
            floor_mean(b->executor, b->residual, b->n, messages, b->bytes, counts[c], sent[c]);
            time[r] = t2 - t1;
            ratio[r] = (t2 - t1) / (now() - t3);
            passes[r] = (t1 - t0) / (t2 - t1);
        }
        printf("  %.2f = %.2f floors, in passes %.2f times (%zu messages)", 1e3 * median(time, rounds), median(ratio, rounds),
               median(passes, rounds), counts[c]);
        free(job.scratch);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    static const double densities[] = {0.0001, 0.001, 0.01, 0.1};
    bench b = {.v = argc > 1 ? gtcb_variant_named(argv[1]) : gtcb_variant_best(),
               .n = argc > 2 ? strtoul(argv[2], NULL, 10) : 25000000,
               .rounds = argc > 3 ? strtoul(argv[3], NULL, 10) : 21};
    gtcb_message messages[MAX_MESSAGES];
    size_t sent[COUNTS];
    const size_t threads = argc > 4 ? strtoul(argv[4], NULL, 10) : 1;
    gtcb_pool *pool;
    CHECK(b.v != NULL && gtcb_variant_supported(b.v), "no such variant here");
    CHECK(b.rounds > 0 && b.rounds <= MAX_ROUNDS && b.n > 0 && threads > 0, "rounds, elements, threads");
    CHECK(gtcb_pool_open(threads, &pool) == GTCB_OK, "no threads");
    b.executor = gtcb_pool_executor(pool);
    clock_of_rounds = threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    b.capacity = gtcb_message_capacity(b.n);
    b.gradient = touched(b.n * 4);
    b.initial = touched(b.n * 4);
    b.residual = touched(b.n * 4);
    b.other = touched(b.n * 4);
    b.halves = touched(b.n * 2);
    b.scratch = touched(gtcb_scratch_words(b.n) * 4);
    for (size_t i = 0; i < MAX_MESSAGES; i++)
        b.messages[i] = must(malloc(b.capacity));
    printf("%s, %zu float32, %zu thread%s, median of %zu rounds\n", gtcb_variant_name(b.v), b.n, threads,
           threads == 1 ? "" : "s", b.rounds);
    fill(&b, densities[0], 1);
    bench_memory(&b);
    for (size_t i = 0; i < 4; i++) {
        fill(&b, densities[i], 1);
        check_against_scalar(&b);
        bench_encode(&b, densities[i]);
        bench_bfloat16(&b, densities[i]);
        bench_small(&b, densities[i]);
        fill_messages(&b, densities[i], messages, sent);
        bench_decode(&b, densities[i], messages, sent);
        bench_mean(&b, densities[i], messages, sent);
    }
    gtcb_pool_close(pool);
    return 0;
}
