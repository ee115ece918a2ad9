/* Whole messages: the oracle, every variant and every executor give the same bytes, residuals and sums, for every
   dtype, length, alignment, segmentation and cap; encoded with one variant, decoded with another. */
#include "counting.h"
#include "data.h"
#include "oracle.h"

static uint64_t rng = 11;
static unsigned long seen[5], seen_announcements, seen_caps, cases;

typedef struct bucket {
    gtcb_encode_job job;
    gtcb_segment segments[8];
    void *memory[8], *residual_memory;
    float *residual;
} bucket;

/* Each segment in memory of its own, off by a few elements from any vector's alignment. */
static void make_segments(bucket *b, const void *gradient, size_t n, size_t parts)
{
    const size_t size = dtype_bytes[b->job.dtype];
    size_t done = 0;
    for (size_t i = 0; i < parts; i++) {
        size_t count = i + 1 == parts ? n - done : below(&rng, 4) == 0 ? 0 : below(&rng, n - done + 1);
        size_t shift = below(&rng, 17);
        b->memory[i] = must(malloc((count + shift + (count + shift == 0)) * size));
        b->segments[i].data = (char *)b->memory[i] + shift * size;
        b->segments[i].count = count;
        memcpy((char *)b->memory[i] + shift * size, (const char *)gradient + done * size, count * size);
        done += count;
    }
    b->job.segments = b->segments;
    b->job.segment_count = parts;
}

/* Each target in memory of its own, with an element before and one behind it. */
static void make_targets(gtcb_target *targets, size_t parts, size_t elements, size_t width)
{
    for (size_t i = 0; i < parts; elements -= targets[i++].count) {
        targets[i].count = i + 1 == parts ? elements : below(&rng, 3) ? below(&rng, elements + 1) : 0;
        targets[i].data = (uint8_t *)memset(must(malloc((targets[i].count + 2) * width)), 0x55, (targets[i].count + 2) * width) + width;
    }
}

static uint32_t bits_at(const void *data, size_t i, size_t width)
{
    return width == 2 ? ((const uint16_t *)data)[i] : ((const uint32_t *)data)[i];
}

/* The mean of messages with that sum, into targets cut anywhere, of which the first few elements and all that lies
   beside them are not the messages' to write. */
static void check_mean(const gtcb_variant *v, const gtcb_message *messages, size_t copies, const float *sum, size_t n,
                       gtcb_dtype dtype, const gtcb_executor *executor)
{
    enum { TARGETS = 5 };
    const float divisors[] = {1, 4, 7}, divisor = divisors[below(&rng, 3)];
    const size_t first = below(&rng, 20), width = dtype_bytes[dtype];
    const uint32_t untouched = width == 2 ? 0x5555 : 0x55555555;
    gtcb_target targets[TARGETS];
    make_targets(targets, TARGETS, first + n, width);
    void *scratch = must(malloc(gtcb_mean_scratch_bytes(copies, executor)));
    gtcb_mean_job job = {messages, copies, n, targets, TARGETS, dtype, first, divisor, scratch};
    CHECK(gtcb_decode_mean(v, &job, executor) == GTCB_OK, "mean");
    for (size_t i = 0, at = 0; i < TARGETS; at += targets[i++].count) {
        uint8_t *memory = (uint8_t *)targets[i].data - width;
        CHECK(bits_at(memory, 0, width) == untouched && bits_at(memory, targets[i].count + 1, width) == untouched,
              "%s writes beside a target", under_test->name);
        for (size_t j = 0; j < targets[i].count; j++) {
            volatile float mean = at + j < first ? 0 : sum[at + j - first] / divisor;
            const uint32_t wanted = at + j < first ? untouched : width == 2 ? oracle_bfloat16(mean) : gtcb_float_bits(mean);
            const uint32_t found = bits_at(targets[i].data, j, width);
            CHECK(found == wanted, "%s mean of %zu in %s, element %zu of %zu: %x, not %x", under_test->name, copies, dtype_names[dtype],
                  at + j - first, n, found, wanted);
        }
        free(memory);
    }
    free(scratch);
}

static void check_decode(const uint8_t *message, size_t bytes, size_t n)
{
    size_t shift = below(&rng, 9), dense_shift = below(&rng, 17);
    uint8_t *copy = must(malloc(bytes + shift));         /* exactly sized, at an odd address */
    float *dense = must(malloc((n + dense_shift) * 4)), *expected = must(malloc(n * 4));
    memcpy(copy + shift, message, bytes);
    for (size_t i = 0; i < gtcb_variant_count(); i++) {
        if (!gtcb_variant_at(i)->supported())
            continue;
        const gtcb_variant *v = count_calls_of(i);
        uint8_t *body = copy + shift + 64;
        CHECK(gtcb_validate(v, copy + shift, body, bytes - 64) == GTCB_OK, "%s", under_test->name);
        for (size_t j = 0; j < n; j++)
            expected[j] = dense[dense_shift + j] = j % 3 ? (float)uniform(&rng) : -0.0f;
        gtcb_message both[2] = {{copy + shift, body}, {copy + shift, body}};
        gtcb_status status = gtcb_decode_add(v, both, 2, dense + dense_shift, n, executors[cases % 3]);
        if (message[6] & 1) {
            CHECK(status == GTCB_NON_FINITE, "%d", status);
        } else {
            CHECK(status == GTCB_OK, "%d", status);
            oracle_decode_add(message, expected);
            oracle_decode_add(message, expected);
        }
        CHECK(memcmp(expected, dense + dense_shift, n * 4) == 0, "%s decodes otherwise, n %zu kind %d", under_test->name, n, message[5]);
        if (message[6] & 1)
            continue;
        memset(expected, 0, n * 4);
        oracle_decode_add(message, expected);
        oracle_decode_add(message, expected);
        check_mean(v, both, 2, expected, n, GTCB_F32, executors[cases % 3]);
        check_mean(v, both, 2, expected, n, GTCB_BF16, executors[cases % 3]);
    }
    free(copy);
    free(dense);
    free(expected);
}

static void check_encode(const gtcb_variant *v, const bucket *b, bool in_place, const gtcb_executor *executor,
                         const uint8_t *expected, size_t expected_bytes, const float *expected_residual)
{
    const size_t n = b->job.elements, capacity = gtcb_message_capacity(n), shift = below(&rng, 17);
    float *out = must(malloc((n + shift) * 4));
    uint8_t *message = must(malloc(capacity));
    gtcb_encode_job job = b->job;
    job.scratch = must(malloc(gtcb_scratch_words(n) * 4));
    job.residual_out = out + shift;
    if (in_place) {
        memcpy(out + shift, b->residual, n * 4);
        job.residual_in = job.residual_out;
    }
    size_t bytes = 0;
    gtcb_status status = gtcb_encode(v, &job, executor, message, capacity, &bytes);
    CHECK(status == GTCB_OK, "%s", gtcb_status_text(status));
    CHECK(bytes == expected_bytes && memcmp(message, expected, bytes) == 0,
          "%s: another message, n %zu %s kind %d, %zu bytes; expected kind %d, %zu", under_test->name, n,
          dtype_names[job.dtype], message[5], bytes, expected[5], expected_bytes);
    if ((message[6] & 1) == 0)
        CHECK(memcmp(job.residual_out, expected_residual, n * 4) == 0, "%s: another residual, n %zu %s", under_test->name, n, dtype_names[job.dtype]);
    free(out);
    free(message);
    free(job.scratch);
}

static void check_bucket(size_t n, gtcb_dtype dtype, pattern p, double density, size_t parts, uint64_t cap, size_t bad)
{
    static const float taus[] = {0x1p-3f, 0x1p-9f, 0x1p-126f};
    bucket b = {.job = {.dtype = dtype, .elements = n, .max_sent = cap, .sequence = random64(&rng),
                        .bucket = (uint32_t)random64(&rng), .sender = (uint32_t)random64(&rng)}};
    float tau = taus[below(&rng, dtype == GTCB_F16 ? 2 : 3)];
    b.job.threshold = tau;
    void *gradient = must(malloc(n * dtype_bytes[dtype]));
    size_t shift = below(&rng, 17);
    b.residual_memory = must(malloc((n + shift) * 4));
    b.residual = (float *)b.residual_memory + shift;
    fill(&rng, p, density, tau, n, dtype, gradient, b.residual);
    for (size_t i = 0; i < bad; i++)
        put_gradient(gradient, below(&rng, n), dtype, i % 2 ? (double)NAN : -(double)INFINITY);
    make_segments(&b, gradient, n, parts);

    float *expected_residual = must(malloc(n * 4));
    size_t bytes;
    b.job.residual_in = b.residual;
    b.job.residual_out = expected_residual;
    uint8_t *expected = oracle_encode(&b.job, &bytes);
    gtcb_header h;
    CHECK(gtcb_read_header(expected, &h) == GTCB_OK, "oracle's own header");
    if (h.flags)
        seen_announcements++;
    else
        seen[h.kind]++;
    CHECK((h.flags != 0) == (bad > 0), "announcement");
    CHECK(h.flags || bytes <= gtcb_bound(n, h.sent), "bound: %zu > %" PRIu64, bytes, gtcb_bound(n, h.sent));
    seen_caps += h.sent == cap;

    for (size_t i = 0; i < gtcb_variant_count(); i++)
        if (gtcb_variant_at(i)->supported())
            for (size_t e = 0; e < 3; e++) {
                if (n > 100000 && (e + i + cases) % 3 != 0)
                    continue;
                check_encode(count_calls_of(i), &b, false, executors[e], expected, bytes, expected_residual);
                check_encode(count_calls_of(i), &b, true, executors[e], expected, bytes, expected_residual);
            }
    check_decode(expected, bytes, n);
    cases++;
    free(expected);
    free(expected_residual);
    free(gradient);
    free(b.residual_memory);
    for (size_t i = 0; i < parts; i++)
        free(b.memory[i]);
}

/* Blocks that end around the border of a tile (2^17 elements, as enough of them are sent, in narrow blocks). There are more than 32 tiles,
   so that a task has two of them and goes on from one to the next. */
static void check_tile_borders(void)
{
    const uint64_t n = 34 << 17, k = 630000, last = 18 * 1024 - 1;     /* number of a block's last element */
    uint64_t *numbers = must(malloc(8 * k));
    for (uint64_t end = (1 << 17) - 3; end < (1 << 17) + 3; end++) {
        gtcb_encode_job job = {.elements = n, .threshold = 0.5f};
        size_t bytes;
        for (uint64_t i = 0; i < k; i++)
            numbers[i] = 2 * (7 * i + end - 7 * last) + (i & 1);
        uint8_t *message = oracle_message(&job, numbers, k, &bytes);
        CHECK(message[5] == GTCB_PACKED, "kind");
        check_decode(message, bytes, n);
        cases++;
        free(message);
    }
    free(numbers);
}

/* Other low bits for all elements but those in whose place only some are valid: of those that share their upper bits any may be
   the first, and one may come twice. */
static void scramble(uint8_t *message, uint64_t k)
{
    uint8_t *body = message + 64;
    for (uint64_t block = 0, at = 8 * gtcb_blocks(k); block < gtcb_blocks(k); block++) {
        const uint64_t count = gtcb_block_count(k, block);
        const gtcb_layout y = gtcb_block_layout(gtcb_get64(body + 8 * block), count);
        const uint8_t *uppers = body + at + y.lows_bytes;
        uint64_t last = 0;
        for (uint64_t bit = y.upper_bits; bit-- > 0 && uppers[bit / 8] >> bit % 8 & 1;)
            last++;
        for (uint64_t i = 0; i < (count - last) * y.l / 8; i++)
            body[at + i] = (uint8_t)random64(&rng);
        at = gtcb_align8(at + y.bytes);
    }
}

typedef enum form { SOUND, SCRAMBLED } form;

/* Copies of the message that sends these numbers, decoded by every variant. */
static void check_copies(const uint64_t *numbers, uint64_t k, uint64_t n, size_t copies, form f)
{
    gtcb_encode_job job = {.elements = n, .threshold = 0.5f};
    size_t bytes;
    uint8_t *message = oracle_message(&job, numbers, k, &bytes);
    if (f == SCRAMBLED)
        scramble(message, k);
    float *dense = must(malloc(n * 4)), *expected = must(calloc(n, 4));
    gtcb_message messages[64];
    for (size_t i = 0; i < copies; i++) {
        messages[i] = (gtcb_message){message, message + 64};
        oracle_decode_add(message, expected);
    }
    for (size_t i = 0; i < gtcb_variant_count(); i++)
        if (gtcb_variant_at(i)->supported()) {
            const gtcb_executor *executor = executors[(i + cases) % 3];
            memset(dense, 0, n * 4);
            gtcb_status status = gtcb_decode_add(count_calls_of(i), messages, copies, dense, n, executor);
            CHECK(status == GTCB_OK && memcmp(expected, dense, n * 4) == 0, "%s, %zu messages", under_test->name, copies);
            check_mean(count_calls_of(i), messages, copies, expected, n, (i + cases) % 2 ? GTCB_F32 : GTCB_BF16, executor);
        }
    cases++;
    free(message);
    free(dense);
    free(expected);
}

/* Every step-th element sent, the last or the first one of each step: with a step of 256 elements on both sides of every
   border of a tile, in blocks of half the widest cached tile; with one of 251 blocks that lie in two tiles. 64 messages are
   enough to take the tiles of a cache; two are applied in the widest ones. */
static void check_wide_blocks(size_t copies, bool before, uint64_t step)
{
    const uint64_t k = 34 << 10;
    uint64_t *numbers = must(malloc(8 * k));
    for (uint64_t i = 0; i < k; i++)
        numbers[i] = 2 * (step * i + (before ? step - 1 : 0)) + (i & 1);
    check_copies(numbers, k, k * step, copies, SOUND);
    free(numbers);
}

/* Stretches of any length in which nearly all is sent, or nearly nothing: some tiles are fetched whole, others are not, and
   of those more than one lie together. */
static void check_crowds(size_t copies)
{
    const uint64_t n = (40 << 17) + 12345;
    uint64_t *numbers = must(malloc(8 * n)), k = 0, gap = 2;
    for (uint64_t at = below(&rng, 100); at < n; at += 1 + below(&rng, gap)) {
        numbers[k++] = 2 * at + below(&rng, 2);
        if (below(&rng, gap == 2 ? 100000 : 100) == 0)
            gap = gap == 2 ? 10000 : 2;
    }
    check_copies(numbers, k, n, copies, SOUND);
    free(numbers);
}

/* Random positions, and around the borders of tiles all of them, so that there several share their upper bits. */
static void check_parts(size_t copies, form f)
{
    const uint64_t n = 24 << 17;
    uint64_t *numbers = must(malloc(8 * n)), k = 0;
    for (uint64_t at = 0; at < n; at += (at + 20) % (1 << 17) < 40 ? 1 : 1 + below(&rng, 40) * (k % 9))
        numbers[k++] = 2 * at + below(&rng, 2);
    check_copies(numbers, k, n, copies, f);
    free(numbers);
}

static void check_random_bucket(size_t n, gtcb_dtype dtype)
{
    static const double densities[] = {0, 0.0001, 0.001, 0.01, 0.1, 0.3, 0.6, 1};
    double density = densities[below(&rng, 8)];
    uint64_t cap = below(&rng, 3) == 0 ? 1 + below(&rng, (uint64_t)(density * (double)n) + 2) : GTCB_NO_CAP;
    size_t bad = below(&rng, 8) == 0 ? 1 + below(&rng, 3) : 0;
    check_bucket(n, dtype, (pattern)below(&rng, PATTERNS), density, 1 + below(&rng, 8), cap, bad);
}

int main(int argc, char **argv)
{
    size_t rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    for (size_t round = 0; round < rounds; round++)
        for (unsigned dtype = GTCB_F32; dtype <= GTCB_F64; dtype++) {
            for (size_t n = 1; n <= 300; n++)
                check_random_bucket(n, dtype);
            static const size_t borders[] = {1024, GTCB_CHUNK, 2 * GTCB_CHUNK, 3 * GTCB_CHUNK};
            for (size_t i = 0; i < 4; i++)
                for (size_t d = 0; d <= 34; d += 1 + d / 2 % 5)
                    check_random_bucket(borders[i] - 17 + d, dtype);
            for (size_t i = 0; i < 6; i++)
                check_random_bucket(100000 + below(&rng, 200000), dtype);
            check_random_bucket((1u << 20) + 1 + below(&rng, 100000), dtype);      /* streamed stores, several tiles */
            check_bucket((1u << 20) + 77, dtype, RANDOM, 0.01, 5, GTCB_NO_CAP, 0);
            for (uint64_t m = 1; m <= 3000; m += 1 + m / 3)
                check_bucket(50000, dtype, RANDOM, 0.05, 3, m, 0);
        }
    check_tile_borders();
    for (int before = 0; before < 2; before++) {
        check_wide_blocks(64, before, 256);
        check_wide_blocks(2, before, 256);
        check_wide_blocks(2, before, 251);
    }
    for (form f = SOUND; f <= SCRAMBLED; f++) {
        check_parts(2, f);
        check_parts(64, f);
    }
    for (size_t copies = 1; copies <= 3; copies++)
        for (int i = 0; i < 3; i++)
            check_crowds(copies);
    for (int kind = 1; kind <= 3; kind++)
        CHECK(seen[kind] > 10, "kind %d occurred %lu times", kind, seen[kind]);
    CHECK(seen_announcements > 10 && seen_caps > 10, "announcements %lu, caps %lu", seen_announcements, seen_caps);
    printf("%lu buckets: %lu words, %lu packed, %lu dense, %lu announcements, %lu capped\n", cases, seen[1], seen[2],
           seen[3], seen_announcements, seen_caps);
    check_variants_differ();
    check_all_ran(((1u << LOOPS) - 1) & ~(1u << NON_FINITE_F64));
    return 0;
}
