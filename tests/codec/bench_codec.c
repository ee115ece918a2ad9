/* Speed of the codec, one thread, as ratios to a[i] += b[i] (the memory bound of the stage: 12 bytes an element), which
   runs interleaved with it in the same process. Each figure is a median over rounds of the thread's CPU time, so that a busy
   machine disturbs less. Results are checked first.
     bench_codec [variant] [elements] [rounds]                                                        */
#include <math.h>
#include <time.h>

#include "check.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, size_t count)
{
    qsort(x, count, sizeof *x, by_value);
    return x[count / 2];
}

static void *touched(size_t bytes)
{
    void *p = must(aligned_alloc(64, (bytes + 63) / 64 * 64));
    memset(p, 1, bytes);
    return p;
}

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

enum { MAX_ROUNDS = 101, MAX_MESSAGES = 64 };

typedef struct bench {
    const gtcb_variant *v;
    size_t n, rounds;
    float *gradient, *initial, *residual, *other;
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
        b->initial[i] = sign * 0.1f * (float)(x >> 1 & 1);
    }
}

static void encode(const bench *b, const gtcb_variant *v, const float *in, float *out, uint8_t *message, size_t *bytes)
{
    gtcb_segment all = {b->gradient, b->n};
    gtcb_encode_job job = {.segments = &all, .segment_count = 1, .dtype = GTCB_F32, .elements = b->n, .residual_in = in,
                           .residual_out = out, .threshold = 0.5f, .max_sent = GTCB_NO_CAP, .scratch = b->scratch};
    CHECK(gtcb_encode(v, &job, NULL, message, b->capacity, bytes) == GTCB_OK, "encode");
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
    gtcb_decode_add(b->v, &m, 1, b->residual, b->n, NULL);
    CHECK(memcmp(b->residual, b->other, b->n * 4) == 0, "sum");
    free(expected);
}

/* What the memory gives: GB/s of bytes that the program names (a store that first reads its line moves more). */
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
    double add[MAX_ROUNDS], in_place[MAX_ROUNDS], apart[MAX_ROUNDS], time[MAX_ROUNDS], checks[MAX_ROUNDS];
    gtcb_header h;
    for (size_t r = 0; r < b->rounds; r++) {
        memcpy(b->residual, b->initial, b->n * 4);
        double t0 = now();
        add_arrays(b->residual, b->gradient, b->n);
        double t1 = now();
        memcpy(b->residual, b->initial, b->n * 4);
        double t2 = now();
        encode(b, b->v, b->residual, b->residual, b->messages[0], &b->bytes[0]);
        double t3 = now();
        encode(b, b->v, b->initial, b->residual, b->messages[0], &b->bytes[0]);
        double t4 = now();
        CHECK(gtcb_validate(b->v, b->messages[0], b->messages[0] + 64, b->bytes[0] - 64) == GTCB_OK, "valid");
        double t5 = now();
        add[r] = t1 - t0;
        time[r] = t3 - t2;
        in_place[r] = add[r] / (t3 - t2);
        apart[r] = add[r] / (t4 - t3);
        checks[r] = t5 - t4;
    }
    gtcb_read_header(b->messages[0], &h);
    double k = (double)h.sent, p = k / (double)b->n;
    double entropy = -(p * log2(p) + (1 - p) * log2(1 - p)) / p + 1, bits = 8 * (double)b->bytes[0] / k;
    printf("%8.4f%% kind %d  a+=b %6.2f ms  encode %6.2f ms = %5.1f%% of a+=b in place, %5.1f%% apart  validate %.3f ns/sent  "
           "%.3f bits/sent, bound %.3f (+%.1f%%)\n",
           100 * density, h.kind, 1e3 * median(add, b->rounds), 1e3 * median(time, b->rounds),
           100 * median(in_place, b->rounds), 100 * median(apart, b->rounds), 1e9 * median(checks, b->rounds) / k, bits,
           entropy, 100 * (bits / entropy - 1));
}

static void bench_decode(bench *b, double density)
{
    static const size_t counts[] = {1, 4, 16, 64};
    gtcb_message messages[MAX_MESSAGES];
    gtcb_header h;
    printf("%8.4f%% decode_add, ns/sent:", 100 * density);
    for (size_t i = 0; i < MAX_MESSAGES; i++) {
        fill(b, density, 1000 + i);
        encode(b, b->v, b->initial, b->residual, b->messages[i], &b->bytes[i]);
        messages[i] = (gtcb_message){b->messages[i], b->messages[i] + 64};
    }
    for (size_t c = 0; c < 4; c++) {
        double time[MAX_ROUNDS], k = 0;
        for (size_t i = 0; i < counts[c]; i++) {
            gtcb_read_header(b->messages[i], &h);
            k += (double)h.sent;
        }
        size_t rounds = b->rounds < 11 ? b->rounds : 11;
        for (size_t r = 0; r < rounds; r++) {
            memset(b->residual, 0, b->n * 4);
            double t = now();
            gtcb_decode_add(b->v, messages, counts[c], b->residual, b->n, NULL);
            time[r] = now() - t;
        }
        printf("  %.2f (%zu messages)", 1e9 * median(time, rounds) / k, counts[c]);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    static const double densities[] = {0.0001, 0.001, 0.01, 0.1};
    bench b = {.v = argc > 1 ? gtcb_variant_named(argv[1]) : gtcb_variant_best(),
               .n = argc > 2 ? strtoul(argv[2], NULL, 10) : 25000000,
               .rounds = argc > 3 ? strtoul(argv[3], NULL, 10) : 21};
    CHECK(b.v != NULL && gtcb_variant_supported(b.v), "no such variant here");
    CHECK(b.rounds > 0 && b.rounds <= MAX_ROUNDS && b.n > 0, "rounds, elements");
    b.capacity = gtcb_message_capacity(b.n);
    b.gradient = touched(b.n * 4);
    b.initial = touched(b.n * 4);
    b.residual = touched(b.n * 4);
    b.other = touched(b.n * 4);
    b.scratch = touched(gtcb_scratch_words(b.n) * 4);
    for (size_t i = 0; i < MAX_MESSAGES; i++)
        b.messages[i] = must(malloc(b.capacity));
    printf("%s, %zu float32, one thread, median of %zu rounds\n", gtcb_variant_name(b.v), b.n, b.rounds);
    fill(&b, densities[0], 1);
    bench_memory(&b);
    for (size_t i = 0; i < 4; i++) {
        fill(&b, densities[i], 1);
        check_against_scalar(&b);
        bench_encode(&b, densities[i]);
        bench_decode(&b, densities[i]);
    }
    return 0;
}
