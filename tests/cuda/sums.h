/* Sums and means of messages, emulated, beside the scalar codec. */
#ifndef SUMS_H
#define SUMS_H

#include "../../csrc/cuda/cuda.h"
#include "bucket.h"

#define MESSAGES 80

static bool same_floats(const float *a, const float *b, size_t n) { return memcmp(a, b, 4 * n) == 0; }

static void compare_sums(const encoded *messages, size_t count, size_t n)
{
    gtcb_message scalar[MESSAGES];
    gtcb_cuda_message cuda[MESSAGES];
    uint32_t verdicts[MESSAGES];
    array expected = exact(4 * n, 4), found = exact(4 * n, 4 << 2 * below(&rng, 2));
    const gtcb_cuda_launch launch = {NULL, 1 + (unsigned)below(&rng, 6)};
    for (size_t i = 0; i < n; i++)
        ((float *)expected.data)[i] = i % 3 == 0 ? -0.0f : i % 3 == 1 ? 0x1p-149f : (float)uniform(&rng);
    memcpy(found.data, expected.data, 4 * n);
    for (size_t i = 0; i < count; i++) {
        scalar[i] = (gtcb_message){messages[i].message.data, (uint8_t *)messages[i].message.data + GTCB_HEADER_BYTES};
        cuda[i] = (gtcb_cuda_message){scalar[i].header, scalar[i].body};
    }
    array scratch = exact(gtcb_cuda_decode_scratch_bytes(cuda, count, n), 16);
    CHECK(gtcb_decode_add(&gtcb_scalar, scalar, count, expected.data, n, NULL) == GTCB_OK, "scalar");
    CHECK(gtcb_cuda_validate(cuda, count, n, verdicts, scratch.data, &launch) == GTCB_OK, "validate");
    verdicts[count - 1] ^= 1;        /* one is refused: nothing is written */
    array before = exact(4 * n, 4);
    memcpy(before.data, found.data, 4 * n);
    CHECK(gtcb_cuda_decode_add(cuda, count, found.data, n, verdicts, scratch.data, &launch) == GTCB_OK, "cuda");
    CHECK(same_floats(found.data, before.data, n), "written in spite of a verdict");
    verdicts[count - 1] ^= 1;
    CHECK(gtcb_cuda_decode_add(cuda, count, found.data, n, below(&rng, 2) ? verdicts : NULL, scratch.data, &launch) == GTCB_OK, "cuda");
    CHECK(same_floats(found.data, expected.data, n), "another sum of %zu messages of %zu elements", count, n);

    const float divisor = (float)(1 + below(&rng, 70));
    memset(expected.data, 0, 4 * n);
    CHECK(gtcb_decode_add(&gtcb_scalar, scalar, count, expected.data, n, NULL) == GTCB_OK, "scalar");
    for (size_t i = 0; i < n; i++)
        ((float *)expected.data)[i] /= divisor;
    memset(found.data, 0xFF, 4 * n);        /* NaN: what was there is not read */
    CHECK(gtcb_cuda_decode_mean(cuda, count, found.data, n, divisor, verdicts, scratch.data, &launch) == GTCB_OK, "cuda");
    CHECK(same_floats(found.data, expected.data, n), "another mean of %zu messages of %zu elements", count, n);
    drop(before);
    drop(expected);
    drop(found);
    drop(scratch);
}

/* A body that nobody has checked: its sum is whatever it is, but nothing behind the arrays is touched. */
static void add_unchecked(const void *header, const void *body, size_t n)
{
    const gtcb_cuda_message m[] = {{header, body}, {header, body}};
    array sum = exact(4 * n, 16), scratch = exact(gtcb_cuda_decode_scratch_bytes(m, 2, n), 16);
    memset(sum.data, 0, 4 * n);
    CHECK(gtcb_cuda_decode_add(m, 2, sum.data, n, NULL, scratch.data, &(gtcb_cuda_launch){NULL, 1}) == GTCB_OK, "not checked");
    drop(sum);
    drop(scratch);
}

/* -- which messages -------------------------------------------------------------------------------------------------------- */

/* Messages of all kinds, and more than go into one kernel, across the borders of tiles. */
static void compare_all_kinds(size_t n)
{
    static const double densities[] = {0.0003, 0.02, 0.2, 0.9, 0, 0.005};
    static const size_t counts[] = {1, 2, 8, 64, 71};
    encoded of[6], messages[MESSAGES];
    for (unsigned i = 0; i < 6; i++) {
        bucket b = make(n, (gtcb_dtype)(i % 4), RANDOM, densities[i], 3);
        of[i] = encode_scalar(&b);
        drop_bucket(&b);
    }
    for (size_t c = 0; c < 5; c++) {
        for (size_t i = 0; i < counts[c]; i++)
            messages[i] = of[below(&rng, 6)];
        compare_sums(messages, counts[c], n);
    }
    for (unsigned i = 0; i < 6; i++)
        drop_encoded(&of[i]);
}

/* The elements from..end-1, of n, each with that probability; as words, which an encoder chooses for few elements only. */
static encoded in_words(size_t n, size_t from, size_t end, double density)
{
    encoded e = {.message = exact(GTCB_HEADER_BYTES + ((4 * n + 7) & ~7ull), 16), .residual = exact(4, 4)};
    uint32_t *words = (uint32_t *)((uint8_t *)e.message.data + GTCB_HEADER_BYTES);
    gtcb_header h = {.kind = GTCB_WORDS, .elements = n, .threshold = TAU};
    for (size_t i = from; i < end && i < n; i++)
        if (uniform(&rng) < density)
            words[h.sent++] = (uint32_t)(2 * i + below(&rng, 2));
    h.body_bytes = 4 * h.sent;
    h.body_checksum = gtcb_checksum(&gtcb_scalar, words, h.body_bytes);
    gtcb_write_header(&h, e.message.data);
    return e;
}

/* Likewise, but every so many elements only, and as an encoder writes it. */
static encoded as_chosen(size_t n, size_t from, size_t end, size_t every, double density)
{
    bucket b = make(n, GTCB_F32, RANDOM, density, 1);
    for (size_t i = 0; i < n; i++)
        if (i < from || i >= end || i % every != 0)
            ((float *)b.pieces[0].data)[i] = ((float *)b.residual.data)[i] = 0;
    encoded e = encode_scalar(&b);
    drop_bucket(&b);
    return e;
}

/* Tiles in which a message has nothing: the first, the last, some between, all. Bodies of several thousand words. Blocks whose last
   element is a tile's first. Messages whose entries fill the scratch memory to the last place (twice as many as there are elements), in
   which one more needs another turn. */
static void compare_corners(size_t n)
{
    encoded of[] = {as_chosen(n, 0, n, 1, 0), as_chosen(n, n - 1, n, 1, 1), as_chosen(n, 0, 1, 1, 1), as_chosen(n, n / 2, n, 1, 0.2),
                    as_chosen(n, n / 3, n / 2, 1, 0.1), in_words(n, 0, n, 1), in_words(n, 0, n, 0.3), in_words(n, n - 5, n, 1),
                    in_words(n, 0, 2048, 1), in_words(n, 0, 0, 1), as_chosen(n, 0, n, 1, 0.1), in_words(n, 1, n, 1),
                    as_chosen(n, 4, n, 4, 1)};
    const size_t kinds_of = sizeof of / sizeof of[0];
    encoded messages[MESSAGES];
    for (size_t i = 0; i < kinds_of; i++)
        compare_sums(&of[i], 1, n);
    for (size_t i = 0; i < 5; i++)
        messages[i] = of[5];                /* n words: two at once */
    compare_sums(messages, 5, n);
    compare_sums(messages, 2, n);
    messages[2] = of[2];                    /* and one element more */
    compare_sums(messages, 3, n);
    for (unsigned rounds = 0; rounds < 3; rounds++) {
        for (size_t i = 0; i < 70; i++)
            messages[i] = of[below(&rng, kinds_of)];
        compare_sums(messages, rounds == 0 ? 70 : 1 + below(&rng, 70), n);
    }
    for (size_t i = 0; i < kinds_of; i++)
        drop_encoded(&of[i]);
}

static void compare_many(void)
{
    compare_all_kinds(2 * 8192 + 1 + below(&rng, 5));
    compare_corners(3 * 2048 + 1 + below(&rng, 2047));     /* 2048: TILE */
    compare_corners(4 * 2048);
    compare_corners(4);
}

#endif
