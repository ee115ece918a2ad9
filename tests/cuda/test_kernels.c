/* The kernels, emulated, beside the scalar codec: the same messages, residuals, verdicts and sums, for every dtype, grid
   and order of threads. Each array ends where memory ends (nothing behind it can be touched unnoticed).
       test_kernels [rounds] [seed] */
#define _GNU_SOURCE
#include "../../csrc/cuda/cuda.h"
#include "block.h"
#include "bucket.h"
#include "sums.h"

void emulation_order(unsigned order);       /* emulation.cpp */

static unsigned long cases, kinds[5], capped, announced, refused;

/* -- encode --------------------------------------------------------------------------------------------------------------- */

static encoded encode_cuda(const bucket *b, bool in_place, unsigned blocks)
{
    gtcb_encode_job job = b->job;
    const size_t n = job.elements;
    encoded out = {.message = exact(gtcb_cuda_message_bytes(n), 16), .residual = exact(4 * n, below(&rng, 2) ? 16 : 4)};
    array scratch = exact(gtcb_cuda_scratch_bytes(n, job.segment_count), 16);
    job.scratch = scratch.data;
    job.residual_out = out.residual.data;
    if (in_place) {
        memcpy(out.residual.data, job.residual_in, 4 * n);
        job.residual_in = out.residual.data;
    }
    CHECK(gtcb_cuda_encode(&job, out.message.data, &(gtcb_cuda_launch){NULL, blocks}) == GTCB_OK, "cuda");
    gtcb_header h;
    CHECK(gtcb_read_header(out.message.data, &h) == GTCB_OK, "no sound header");
    out.bytes = GTCB_HEADER_BYTES + h.body_bytes;
    drop(scratch);
    return out;
}

static void compare(const bucket *b, const encoded *expected)
{
    static const unsigned grids[] = {1, 2, 5, 64};
    for (unsigned i = 0; i < 3; i++) {
        const unsigned blocks = grids[below(&rng, 4)];
        emulation_order(i == 2 ? 2 + (unsigned)below(&rng, 100) : i);
        encoded found = encode_cuda(b, i == 1, blocks);
        const size_t n = b->job.elements;
        CHECK(found.bytes == expected->bytes && memcmp(found.message.data, expected->message.data, found.bytes) == 0,
              "another message of %zu %s in %zu segments, %u blocks: %zu bytes, expected %zu", n, dtype_names[b->job.dtype],
              b->job.segment_count, blocks, found.bytes, expected->bytes);
        const uint8_t *m = expected->message.data;
        if (!(m[6] & GTCB_FLAG_NON_FINITE))
            CHECK(memcmp(found.residual.data, expected->residual.data, 4 * n) == 0, "another residual of %zu %s", n,
                  dtype_names[b->job.dtype]);
        drop_encoded(&found);
    }
}

static void count_case(const bucket *b, const encoded *e)
{
    gtcb_header h;
    gtcb_read_header(e->message.data, &h);
    cases++;
    kinds[h.kind]++;
    announced += h.flags & GTCB_FLAG_NON_FINITE;
    capped += h.sent == b->job.max_sent;
}

/* -- decode --------------------------------------------------------------------------------------------------------------- */

static uint32_t verdict(const void *header, const void *body, uint64_t elements, unsigned blocks)
{
    const gtcb_cuda_message m = {header, body};
    array scratch = exact(gtcb_cuda_decode_scratch_bytes(&m, 1, elements), 16);
    uint32_t found = 99;
    gtcb_status status = gtcb_cuda_validate(&m, 1, elements, &found, scratch.data, &(gtcb_cuda_launch){NULL, blocks});
    CHECK(status == GTCB_OK, "validate: %s", gtcb_status_text(status));
    drop(scratch);
    return found;
}

/* A body that is changed here and there, with the checksum of what it became. */
static void compare_verdicts(const encoded *e, uint64_t elements)
{
    gtcb_header h;
    gtcb_read_header(e->message.data, &h);
    if (h.body_bytes == 0)
        return;
    array body = exact((h.body_bytes + 7) & ~7ull, 8);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t header[GTCB_HEADER_BYTES], *bytes = body.data;
        memcpy(body.data, (uint8_t *)e->message.data + GTCB_HEADER_BYTES, h.body_bytes);
        for (uint64_t edits = i == 0 ? 0 : 1 + below(&rng, 2); edits > 0; edits--) {
            uint64_t at = below(&rng, below(&rng, 2) ? h.body_bytes : h.body_bytes < 40 ? h.body_bytes : 40);
            if (below(&rng, 4) == 0)
                at = h.body_bytes - 1;
            bytes[at] = (uint8_t)(below(&rng, 2) ? random64(&rng) : bytes[at] ^ 1u << below(&rng, 8));
        }
        if (h.kind == GTCB_PACKED && i % 4 == 1) {      /* a block that is a little wider, and perhaps than the bucket */
            memcpy(body.data, (uint8_t *)e->message.data + GTCB_HEADER_BYTES, h.body_bytes);
            bytes[8 * (i == 1 ? gtcb_blocks(h.sent) - 1 : below(&rng, gtcb_blocks(h.sent)))] += 1;
        }
        gtcb_header edited = h;
        if (below(&rng, 8) != 0)
            edited.body_checksum = gtcb_checksum(&gtcb_scalar, body.data, h.body_bytes);
        gtcb_write_header(&edited, header);
        const gtcb_status expected = gtcb_validate(&gtcb_scalar, header, body.data, h.body_bytes);
        const uint32_t found = verdict(header, body.data, elements, 1 + (unsigned)below(&rng, 4));
        CHECK(found == expected, "kind %u: verdict %u, expected %u", h.kind, found, expected);
        refused += expected != GTCB_OK;
        add_unchecked(header, body.data, elements);
    }
    drop(body);
}

/* -- all -------------------------------------------------------------------------------------------------------------------- */

static void one_case(size_t n, gtcb_dtype dtype, pattern p, double density)
{
    encoded messages[20];
    const size_t count = 1 + below(&rng, below(&rng, 4) == 0 ? 12 : 2);
    for (size_t i = 0; i < count; i++) {
        bucket b = make(n, dtype, p, i == 0 ? density : density * 3 * uniform(&rng), below(&rng, 3) == 0 ? 150 : 1 + below(&rng, 4));
        if (i == 0 && below(&rng, 3) == 0) {
            b.job.max_sent = 1 + below(&rng, (uint64_t)(density * (double)n) + 2);
        } else if (i == 0 && below(&rng, 8) == 0) {
            encoded bad;
            for (unsigned j = 0; j < 3; j++)
                ((float *)b.residual.data)[below(&rng, n)] = j == 0 ? NAN : INFINITY;
            bad = encode_scalar(&b);
            compare(&b, &bad);
            count_case(&b, &bad);
            drop_encoded(&bad);
            fill(&rng, p, density, TAU, n, dtype, b.gradient.data, b.residual.data);
        }
        messages[i] = encode_scalar(&b);
        if (i == 0) {
            compare(&b, &messages[0]);
            compare_verdicts(&messages[0], n);
        }
        count_case(&b, &messages[i]);
        drop_bucket(&b);
    }
    compare_sums(messages, count, n);
    for (size_t i = 0; i < count; i++)
        drop_encoded(&messages[i]);
}

/* -- arguments ------------------------------------------------------------------------------------------------------------- */

static void refuse_arguments(void)
{
    static float values[16] __attribute__((aligned(16)));
    static uint8_t memory[1 << 17] __attribute__((aligned(16))), message[256] __attribute__((aligned(16)));
    const gtcb_segment segment = {values, 8};
    const gtcb_cuda_launch one = {NULL, 1}, none = {NULL, 0};
    gtcb_encode_job good = {.segments = &segment, .segment_count = 1, .elements = 8, .residual_in = values + 8,
                            .residual_out = values + 8, .threshold = TAU, .max_sent = GTCB_NO_CAP, .scratch = (uint32_t *)memory};
    CHECK(gtcb_cuda_scratch_bytes(8, 1) <= sizeof memory, "scratch of %zu bytes", gtcb_cuda_scratch_bytes(8, 1));
    CHECK(gtcb_cuda_encode(&good, message, &one) == GTCB_OK, "a sound job");
    CHECK(gtcb_cuda_encode(&good, message, &none) == GTCB_BAD_ARGUMENT, "no blocks");
    CHECK(gtcb_cuda_encode(&good, message + 8, &one) == GTCB_BAD_ARGUMENT, "message not aligned");
#define REFUSED(field, value)                                                                   \
    do {                                                                                        \
        gtcb_encode_job job = good;                                                             \
        job.field = value;                                                                      \
        CHECK(gtcb_cuda_encode(&job, message, &one) == GTCB_BAD_ARGUMENT, #field " = " #value); \
    } while (0)
    REFUSED(elements, 7);
    REFUSED(elements, 0);
    REFUSED(max_sent, 0);
    REFUSED(threshold, 0);
    REFUSED(threshold, INFINITY);
    REFUSED(threshold, NAN);
    REFUSED(residual_out, values + 9);      /* overlaps residual_in in part */
    REFUSED(scratch, (uint32_t *)memory + 1);
    const gtcb_segment vast = {values, GTCB_CUDA_MAX_ELEMENTS + 1};
    good.segments = &vast;
    REFUSED(elements, vast.count);          /* more chunks than a grid has blocks */
    const gtcb_cuda_message m = {message, message + GTCB_HEADER_BYTES};
    uint32_t verdict_of[1];
    CHECK(gtcb_cuda_decode_add(&m, 1, values, 8, NULL, memory, &one) == GTCB_OK, "a sound message");
    CHECK(gtcb_cuda_decode_mean(&m, 1, values, 8, 1, NULL, memory, &one) == GTCB_OK, "a sound message");
    CHECK(gtcb_cuda_decode_mean(&m, 0, values, 8, 1, NULL, memory, &one) == GTCB_BAD_ARGUMENT, "the mean of nothing");
    CHECK(gtcb_cuda_decode_mean(&m, 1, values, 8, 0, NULL, memory, &one) == GTCB_BAD_ARGUMENT, "divisor = 0");
    CHECK(gtcb_cuda_decode_add(&m, 1, values, 9, NULL, memory, &one) == GTCB_MISMATCH, "another number of elements");
    CHECK(gtcb_cuda_validate(&m, 1, 9, verdict_of, memory, &one) == GTCB_MISMATCH, "another number of elements");
    message[20] ^= 1;
    CHECK(gtcb_cuda_decode_add(&m, 1, values, 8, NULL, memory, &one) == GTCB_BAD_HEADER, "a damaged header");
}

static size_t any_size(void)
{
    static const size_t around[] = {1, 4, 32, 127, 128, 1024, 4096, 8192, 8192 * 2, 8192 * 3 + 4096};
    const size_t n = around[below(&rng, 10)] + below(&rng, 7);
    return n > 3 ? n - 3 : n;
}

int main(int argc, char **argv)
{
    static const double densities[] = {0.0, 0.0005, 0.01, 0.1, 0.3, 0.9, 1.0};
    const unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 200;
    rng = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (unsigned i = 0; i < rounds; i++) {
        const gtcb_dtype dtype = (gtcb_dtype)(i % 4);
        one_case(any_size(), dtype, (pattern)below(&rng, PATTERNS), densities[i % 7]);
    }
    one_case(150000, (gtcb_dtype)below(&rng, 4), RANDOM, 0.25);      /* more blocks than a warp has lanes */
    compare_many();
    compare_blocks();
    refuse_arguments();
    printf("%lu cases: %lu words, %lu packed, %lu dense, %lu capped, %lu announcements, %lu bodies refused\n", cases,
           kinds[GTCB_WORDS], kinds[GTCB_PACKED], kinds[GTCB_DENSE], capped, announced, refused);
    CHECK(rounds < 60 || (kinds[GTCB_WORDS] && kinds[GTCB_PACKED] > 9 && kinds[GTCB_DENSE] > 9 && capped > 5 && announced > 0 &&
                           refused > 50), "a test that saw too little");
    return 0;
}
