/* Messages whose blocks have chosen spans: around the widest that is packed in 16 bits, in one chunk or in two, full or not,
   with their elements spread or crowded. Every variant and every executor gives the oracle's bytes. */
#include "counting.h"
#include "oracle.h"

enum { LIMIT = 1 << 15, LONGEST = 4 * LIMIT };      /* the widest span of 16 bits */

typedef enum shape { SPREAD, CROWDED_FIRST, CROWDED_LAST, SHAPES } shape;

static uint64_t rng = 5;
static unsigned long messages;

typedef struct numbers { uint64_t of[3 * GTCB_BLOCK], count, end; } numbers;     /* 2 * index + negative; end: of the last block */

/* One more block of that span, of which the last element is the last one. */
static void add_block(numbers *x, uint64_t count, uint64_t span, shape s)
{
    const uint64_t base = x->end;
    for (uint64_t i = 0, free = span - count, skipped = 0; i < count; i++) {
        if (s == SPREAD && free > skipped)      /* what the rest can take, about its share on average */
            skipped += below(&rng, 2 * (free - skipped) / (count - i) + 1);
        if (s == CROWDED_LAST && i == 1)
            skipped = free;
        if (i + 1 == count || skipped > free)
            skipped = free;
        x->of[x->count++] = 2 * (base + i + skipped) + below(&rng, 2);
    }
    x->end = base + span;
}

static void check_message(const numbers *x)
{
    static float gradient[LONGEST], residual[LONGEST], expected[LONGEST];
    const size_t n = x->end + below(&rng, 70), capacity = gtcb_message_capacity(n);
    gtcb_segment all = {gradient, n};
    gtcb_encode_job job = {.segments = &all, .segment_count = 1, .dtype = GTCB_F32, .elements = n, .threshold = 0.5f,
                           .residual_in = residual, .residual_out = residual, .max_sent = GTCB_NO_CAP,
                           .scratch = must(malloc(gtcb_scratch_words(n) * 4))};
    for (size_t i = 0; i < n; i++)
        expected[i] = gradient[i] = 0.25f;
    for (size_t j = 0; j < x->count; j++)
        gradient[x->of[j] / 2] = x->of[j] & 1 ? -0.75f : 0.75f;
    for (size_t j = 0; j < x->count; j++)
        expected[x->of[j] / 2] = x->of[j] & 1 ? -0.25f : 0.25f;
    size_t expected_bytes, bytes;
    uint8_t *wanted = oracle_message(&job, x->of, x->count, &expected_bytes), *message = must(malloc(capacity));
    CHECK(wanted[5] == GTCB_PACKED, "kind %d", wanted[5]);
    for (size_t i = 0; i < gtcb_variant_count(); i++)
        for (size_t e = 0; e < 3 && gtcb_variant_at(i)->supported(); e++) {
            memset(residual, 0, sizeof residual);
            gtcb_status status = gtcb_encode(count_calls_of(i), &job, executors[e], message, capacity, &bytes);
            CHECK(status == GTCB_OK, "%s", gtcb_status_text(status));
            CHECK(bytes == expected_bytes && memcmp(message, wanted, bytes) == 0, "%s: another message, %zu elements of %zu, %zu bytes; expected %zu",
                  under_test->name, (size_t)x->count, n, bytes, expected_bytes);
            CHECK(memcmp(residual, expected, n * 4) == 0, "%s: another residual", under_test->name);
        }
    messages++;
    free(wanted);
    free(message);
    free(job.scratch);
}

int main(void)
{
    static const uint64_t spans[] = {1024, 1025, 10240, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 40};
    static const uint64_t leads[] = {4000, 9000, LIMIT - 1, LIMIT, LIMIT + 1};        /* where the block lies in its chunk */
    static const uint64_t tails[] = {0, 1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 1023};
    static numbers x;
    check_variants_differ();
    for (size_t s = 0; s < sizeof spans / sizeof *spans; s++)
        for (size_t lead = 0; lead < sizeof leads / sizeof *leads; lead++)
            for (size_t t = 0; t < sizeof tails / sizeof *tails; t++)
                for (shape p = SPREAD; p < SHAPES; p++) {
                    x.count = x.end = 0;
                    add_block(&x, GTCB_BLOCK, leads[lead], SPREAD);
                    add_block(&x, GTCB_BLOCK, spans[s], p);
                    if (tails[t] > 0)
                        add_block(&x, tails[t], t % 2 ? LIMIT - below(&rng, 3) + 1 : tails[t] + below(&rng, 9), (p + t) % SHAPES);
                    check_message(&x);
                }
    printf("%lu messages\n", messages);
    check_all_ran(1u << STAGE | 1u << WIDEN | 1u << PACK | 1u << PACK_NARROW);
    return 0;
}
