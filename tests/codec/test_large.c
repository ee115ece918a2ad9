/* Buckets of 2^31 and more elements: the last words body, blocks wider than 32 bits, indices above 2^31. Little memory
   is behind the 8 GB arrays: what is only read is zero pages, the residual is one small file mapped over and over. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "counting.h"
#include "oracle.h"

#define WINDOW (UINT64_C(1) << 26)

static void *zeros(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED, "mmap");
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void *one_file_over_and_over(size_t bytes)
{
    int file = memfd_create("window", 0);
    CHECK(file >= 0 && ftruncate(file, (off_t)WINDOW) == 0, "memfd");
    char *p = zeros(bytes + WINDOW);
    for (size_t at = 0; at < bytes; at += WINDOW)
        CHECK(mmap(p + at, WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, 0) != MAP_FAILED, "mmap");
    close(file);
    return p;
}

/* With all variants, or the best one only: a pass over the bucket takes a second or two. */
static void check(bool all_variants, uint64_t n, const uint64_t *numbers, size_t k, int expected_kind, float *gradient, const float *residual_in,
                  float *residual_out)
{
    const size_t capacity = gtcb_message_capacity(n), scratch_bytes = gtcb_scratch_words(n) * 4;
    gtcb_segment all = {gradient, n};
    gtcb_encode_job job = {.segments = &all, .segment_count = 1, .dtype = GTCB_F32, .elements = n, .residual_in = residual_in,
                           .residual_out = residual_out, .threshold = 0.5f, .max_sent = GTCB_NO_CAP, .sequence = 5,
                           .scratch = zeros(scratch_bytes)};
    uint8_t *message = zeros(capacity);
    float *dense = zeros(n * 4);
    size_t expected_bytes, bytes = 0;
    for (size_t i = 0; i < k; i++)
        gradient[numbers[i] / 2] = numbers[i] & 1 ? -0.75f : 0.5f;
    uint8_t *expected = oracle_message(&job, numbers, k, &expected_bytes);
    CHECK(expected[5] == expected_kind, "kind %d", expected[5]);
    for (size_t i = 0; i < gtcb_variant_count(); i++) {
        if (!gtcb_variant_at(i)->supported() || (!all_variants && gtcb_variant_at(i) != gtcb_variant_best()))
            continue;
        const gtcb_variant *v = count_calls_of(i);
        CHECK(gtcb_encode(v, &job, i % 2 ? NULL : &threaded, message, capacity, &bytes) == GTCB_OK, "encode");
        CHECK(bytes == expected_bytes && memcmp(message, expected, bytes) == 0, "%s: another message, %zu bytes, expected %zu",
              under_test->name, bytes, expected_bytes);
        CHECK(gtcb_validate(v, message, message + 64, bytes - 64) == GTCB_OK, "validate");
        gtcb_message m = {message, message + 64};
        CHECK(gtcb_decode_add(v, &m, 1, dense, n, &reversed) == GTCB_OK, "decode");
        for (size_t j = 0; j < k; j++) {
            CHECK(dense[numbers[j] / 2] == (numbers[j] & 1 ? -0.5f : 0.5f), "%s: element %" PRIu64, under_test->name, numbers[j] / 2);
            dense[numbers[j] / 2] = 0;
        }
        for (size_t j = 0; j < k; j++)      /* nothing beside them */
            for (uint64_t at = numbers[j] / 2 < 100 ? 0 : numbers[j] / 2 - 100; at < n && at < numbers[j] / 2 + 100; at++)
                CHECK(dense[at] == 0, "%s: element %" PRIu64 " beside", under_test->name, at);
    }
    for (size_t i = 0; i < k; i++)
        gradient[numbers[i] / 2] = 0;
    free(expected);
    munmap(job.scratch, scratch_bytes);
    munmap(message, capacity);
    munmap(dense, n * 4);
}

int main(void)
{
    const uint64_t words_max = UINT64_C(1) << 31, n = words_max + 5000011;
    static uint64_t numbers[6000];
    uint64_t rng = 3;
    float *gradient = zeros(n * 4);
    const float *residual_in = zeros(n * 4);
    float *residual_out = one_file_over_and_over(n * 4);

    uint64_t ends[] = {1, 2 * words_max - 1};       /* the greatest word there is */
    check(false, words_max, ends, 2, GTCB_WORDS, gradient, residual_in, residual_out);

    uint64_t last[] = {2 * (n - 1) + 1};            /* one wide block, l = 33 */
    check(false, n, last, 1, GTCB_PACKED, gradient, residual_in, residual_out);

    for (size_t i = 0; i < 1000; i++)               /* a wide block, then narrow ones at bases above 2^31 */
        numbers[i] = i * 4000 + below(&rng, 2000);
    for (size_t i = 1000; i < 6000; i++)
        numbers[i] = 2 * words_max + (i - 1000) * 2000 + below(&rng, 2000);
    check(true, n, numbers, 6000, GTCB_PACKED, gradient, residual_in, residual_out);
    check(false, n, numbers, 0, GTCB_PACKED, gradient, residual_in, residual_out);
    check_all_ran(1u << STAGE | 1u << PACK | 1u << UNPACK);
    return 0;
}
