/* What the document says beside the bodies: lengths and caps, headers, statuses, raw messages, bad arguments. */
#include <math.h>

#include "check.h"
#include "oracle.h"

static void check_bounds(void)
{
    CHECK(gtcb_message_capacity(0) == 64 && gtcb_message_capacity(5) == 66 && gtcb_message_capacity(25000000) == 6250064, "capacity");
    CHECK(gtcb_bound(1000, 0) == 64 && gtcb_bound(1000, 1) == 68 && gtcb_bound(1000, 1000) == 64 + 250, "bound");
    /* n = 10^6, k = 5000: l = floor(log2(400)) = 8, B = 5: 40 + ceil((45000 + 7813) / 8) + 45 */
    CHECK(gtcb_bound(1000000, 5000) == 64 + 40 + 6602 + 45, "%" PRIu64, gtcb_bound(1000000, 5000));
    for (uint64_t n = 1; n <= 3000; n += 1 + n / 7)
        for (uint64_t k = 1; k <= n; k++)
            CHECK(gtcb_bound(n, k) >= gtcb_bound(n, k - 1), "the bound falls at %" PRIu64 " of %" PRIu64, k, n);
    for (uint64_t n = 1; n <= 3000; n += 1 + n / 7)
        for (uint64_t cap = 0; cap < 64 + n; cap += 1 + n / 100) {
            uint64_t m = gtcb_max_sent(n, cap);
            CHECK(m == 0 || gtcb_bound(n, m) <= cap, "max_sent too large");
            CHECK(m == n || gtcb_bound(n, m + 1) > cap, "max_sent too small");
        }
    const uint64_t most = UINT64_C(1) << 60;
    CHECK(gtcb_bound(most, most) == 64 + most / 4 && gtcb_max_sent(most, UINT64_MAX) == most, "no overflow");
    CHECK(gtcb_bound((UINT64_C(1) << 31) + 1, 1) > 68, "words beyond 2^31 elements");
}

/* Evenly spread elements are the worst case of the bound; also with every block size. */
static void check_bound_holds(void)
{
    for (uint64_t n = 500; n <= 200000; n = n * 3 + 1)
        for (uint64_t k = 1; k <= n; k += 1 + k / 5) {
            uint64_t *numbers = must(malloc(8 * k));
            for (uint64_t i = 0; i < k; i++)
                numbers[i] = 2 * ((i + 1) * n / k - 1) + (i & 1);
            gtcb_encode_job job = {.elements = n, .threshold = 1};
            size_t bytes;
            uint8_t *m = oracle_message(&job, numbers, k, &bytes);
            CHECK(bytes <= gtcb_bound(n, k), "%zu bytes, bound %" PRIu64, bytes, gtcb_bound(n, k));
            CHECK(gtcb_validate(gtcb_variant_best(), m, m + 64, bytes - 64) == GTCB_OK, "oracle's message");
            free(m);
            free(numbers);
        }
}

static gtcb_status validate(const uint8_t *m, size_t bytes) { return gtcb_validate(gtcb_variant_best(), m, m + 64, bytes - 64); }

static void repair(uint8_t *m, size_t bytes)
{
    uint64_t s = bytes > 64 ? gtcb_checksum(&gtcb_scalar, m + 64, bytes - 64) : 0;
    memcpy(m + 56, &s, 8);
    memset(m + 52, 0, 4);
    s = gtcb_checksum(&gtcb_scalar, m, 64);
    uint32_t folded = (uint32_t)(s >> 32) ^ (uint32_t)s;
    memcpy(m + 52, &folded, 4);
}

/* Sets a field, repairs the checksums, expects the status, puts the field back. */
static void expect(uint8_t *m, size_t bytes, size_t at, const void *value, size_t size, gtcb_status status)
{
    uint8_t old[8];
    memcpy(old, m + at, size);
    memcpy(m + at, value, size);
    repair(m, bytes);
    gtcb_status found = validate(m, bytes);
    CHECK(found == status, "byte %zu: %s, expected %s", at, gtcb_status_text(found), gtcb_status_text(status));
    memcpy(m + at, old, size);
    repair(m, bytes);
    CHECK(validate(m, bytes) == GTCB_OK, "put back");
}

#define EXPECT(at, type, value, status) expect(m, bytes, at, &(type){value}, sizeof(type), status)

static void check_headers(void)
{
    uint64_t numbers[200];
    for (uint64_t i = 0; i < 200; i++)
        numbers[i] = 14 * i + (i & 1);
    gtcb_encode_job job = {.elements = 5000, .threshold = 0.25f, .sequence = 77, .bucket = 3, .sender = 9};
    size_t bytes;
    uint8_t *m = oracle_message(&job, numbers, 200, &bytes);
    gtcb_header h;
    CHECK(gtcb_read_header(m, &h) == GTCB_OK && h.kind == GTCB_PACKED && h.sent == 200 && h.elements == 5000 && h.sequence == 77 &&
          h.bucket == 3 && h.sender == 9 && h.threshold == 0.25f && h.body_bytes == bytes - 64, "header fields");
    EXPECT(0, uint8_t, 'g', GTCB_BAD_MAGIC);
    EXPECT(4, uint8_t, 2, GTCB_BAD_VERSION);
    EXPECT(5, uint8_t, 0, GTCB_BAD_HEADER);
    EXPECT(5, uint8_t, 5, GTCB_BAD_HEADER);
    EXPECT(5, uint8_t, GTCB_WORDS, GTCB_BAD_HEADER);
    EXPECT(5, uint8_t, GTCB_DENSE, GTCB_BAD_HEADER);
    EXPECT(5, uint8_t, GTCB_RAW, GTCB_BAD_HEADER);
    EXPECT(6, uint8_t, 2, GTCB_BAD_HEADER);
    EXPECT(6, uint8_t, 1, GTCB_BAD_HEADER);     /* an announcement has no body */
    EXPECT(7, uint8_t, 1, GTCB_BAD_HEADER);
    EXPECT(8, uint64_t, 199, GTCB_BAD_HEADER);
    EXPECT(8, uint64_t, 1394, GTCB_OK);         /* the span */
    EXPECT(8, uint64_t, 1393, GTCB_BAD_BODY);
    EXPECT(8, uint64_t, (UINT64_C(1) << 60) + 1, GTCB_BAD_HEADER);
    EXPECT(16, uint64_t, 0, GTCB_BAD_HEADER);
    EXPECT(16, uint64_t, 199, GTCB_BAD_BODY);
    EXPECT(16, uint64_t, 201, GTCB_BAD_BODY);
    EXPECT(24, uint64_t, bytes - 63, GTCB_TRUNCATED);
    EXPECT(24, uint64_t, bytes - 65, GTCB_BAD_BODY);
    EXPECT(48, float, 0.0f, GTCB_BAD_HEADER);
    EXPECT(48, float, -1.0f, GTCB_BAD_HEADER);
    EXPECT(48, float, INFINITY, GTCB_BAD_HEADER);
    EXPECT(48, float, NAN, GTCB_BAD_HEADER);
    EXPECT(48, float, 0x1p-149f, GTCB_OK);
    EXPECT(64, uint64_t, 199, GTCB_BAD_BODY);   /* span below the count */
    EXPECT(64, uint64_t, 5001, GTCB_BAD_BODY);
    EXPECT(64, uint64_t, UINT64_MAX, GTCB_BAD_BODY);
    CHECK(m[bytes - 1] != 0, "the last bit of uppers is 1");
    EXPECT(bytes - 1, uint8_t, 0, GTCB_BAD_BODY);
    /* l = floor(log2(13)) = 3; the last v is 2787 = 2 * 1393 + 1, its low 3 bits are bits 597 to 599 of the lows */
    const size_t last_low = 64 + 8 + 597 / 8;
    const uint8_t others = m[last_low] & 31;
    CHECK(m[last_low] >> 5 == 2787 % 8, "the place of the last low");
    EXPECT(last_low, uint8_t, (uint8_t)(others | 2 << 5), GTCB_OK);
    for (int low = 4; low < 8; low++)           /* an index beyond the block */
        EXPECT(last_low, uint8_t, (uint8_t)(others | low << 5), GTCB_BAD_BODY);
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        m[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(validate(m, bytes) != GTCB_OK, "flip of bit %zu passes", bit);
        m[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    free(m);

    uint64_t two[] = {3, 9};                    /* words */
    m = oracle_message(&job, two, 2, &bytes);
    CHECK(m[5] == GTCB_WORDS, "words");
    EXPECT(68, uint32_t, 2, GTCB_BAD_BODY);     /* the same element, the other sign */
    EXPECT(68, uint32_t, 4, GTCB_OK);
    EXPECT(68, uint32_t, 9999, GTCB_OK);
    EXPECT(68, uint32_t, 10000, GTCB_BAD_BODY);
    EXPECT(64, uint32_t, 11, GTCB_BAD_BODY);
    EXPECT(8, uint64_t, (UINT64_C(1) << 31) + 1, GTCB_BAD_HEADER);
    free(m);

    uint64_t all[21];                           /* dense, 3 codes in the last byte's fill are not elements */
    for (uint64_t i = 0; i < 21; i++)
        all[i] = 2 * i + 1;
    job.elements = 21;
    m = oracle_message(&job, all, 21, &bytes);
    CHECK(m[5] == GTCB_DENSE && bytes == 70, "dense");
    EXPECT(64, uint8_t, 0xFE, GTCB_BAD_BODY);
    EXPECT(64, uint8_t, 0xFC, GTCB_BAD_BODY);
    EXPECT(69, uint8_t, 0x0F, GTCB_BAD_BODY);
    EXPECT(69, uint8_t, 0x01, GTCB_OK);
    free(m);

    m = oracle_message(&job, all, 0, &bytes);
    CHECK(bytes == 64 && m[5] == GTCB_WORDS, "empty");
    EXPECT(5, uint8_t, GTCB_PACKED, GTCB_OK);
    EXPECT(16, uint64_t, 21, GTCB_BAD_HEADER);
    m[6] = 1;                                   /* an announcement: element 0, 20, 21 of 21 */
    repair(m, 64);
    EXPECT(16, uint64_t, 20, GTCB_OK);
    EXPECT(16, uint64_t, 21, GTCB_BAD_HEADER);
    EXPECT(8, uint64_t, UINT64_C(1) << 40, GTCB_OK);
    EXPECT(5, uint8_t, GTCB_PACKED, GTCB_BAD_HEADER);
    free(m);
}

static void check_raw(void)
{
    const gtcb_variant *v = gtcb_variant_best();
    static double values[50000];
    uint8_t header[64];
    gtcb_header h;
    static const size_t sizes[] = {0, 1, 4, 8, 2};
    for (unsigned element = GTCB_BYTES; element <= GTCB_BFLOAT16; element++)
        for (uint64_t n = 0; n <= 50000; n = n * 5 + 1) {
            CHECK(gtcb_write_raw_header(v, (gtcb_element)element, values, n, 5, 6, 7, 8, header) == GTCB_OK, "raw");
            CHECK(gtcb_read_header(header, &h) == GTCB_OK && h.kind == GTCB_RAW && h.element == element && h.elements == n &&
                  h.sent == 5 && h.sequence == 6 && h.bucket == 7 && h.sender == 8 && h.body_bytes == n * sizes[element], "raw header");
            CHECK(gtcb_validate(v, header, values, n * sizes[element]) == GTCB_OK, "raw validates");
            float dense[1] = {0};
            CHECK(gtcb_decode_add(v, &(gtcb_message){header, values}, 1, dense, n, NULL) == GTCB_MISMATCH, "raw is not added");
        }
    values[40001] = (double)NAN;
    CHECK(gtcb_write_raw_header(v, GTCB_FLOAT64, values, 50000, 5, 6, 7, 8, header) == GTCB_OK, "raw");
    CHECK(gtcb_read_header(header, &h) == GTCB_OK && h.flags == 1 && h.sent == 40001 && h.body_bytes == 0, "raw announces");
    CHECK(gtcb_validate(v, header, NULL, 0) == GTCB_OK, "announcement validates");
    static uint16_t halves[40000];
    halves[0] = 0x7F7F, halves[39000] = 0xFF80, halves[39001] = 0x7FC0;             /* largest, -infinity, NaN */
    CHECK(gtcb_write_raw_header(v, GTCB_BFLOAT16, halves, 40000, 5, 6, 7, 8, header) == GTCB_OK, "raw");
    CHECK(gtcb_read_header(header, &h) == GTCB_OK && h.flags == 1 && h.sent == 39000 && h.body_bytes == 0, "raw announces");
    CHECK(gtcb_write_raw_header(v, GTCB_BYTES, values, 400000, 5, 6, 7, 8, header) == GTCB_OK, "bytes are never NaN");
    CHECK(gtcb_read_header(header, &h) == GTCB_OK && h.flags == 0, "bytes are never NaN");
    CHECK(gtcb_write_raw_header(v, GTCB_QUANTA, values, 1, 0, 0, 0, 0, header) == GTCB_BAD_ARGUMENT, "element");
}

static void check_arguments(void)
{
    float gradient[8] = {0}, residual[20] = {0};
    static uint32_t scratch[10000];
    uint8_t message[66];
    size_t bytes;
    const gtcb_variant *v = gtcb_variant_best();
    gtcb_segment segment = {gradient, 8};
    const gtcb_encode_job sound = {.segments = &segment, .segment_count = 1, .elements = 8, .residual_in = residual,
                                   .residual_out = residual, .threshold = 1, .max_sent = GTCB_NO_CAP, .scratch = scratch};
    CHECK(gtcb_scratch_words(8) <= 10000, "scratch");
    CHECK(gtcb_encode(v, &sound, NULL, message, 66, &bytes) == GTCB_OK && bytes == 64, "sound");
    CHECK(gtcb_encode(v, &sound, NULL, message, 65, &bytes) == GTCB_TOO_SMALL, "capacity");
    CHECK(gtcb_encode(NULL, &sound, NULL, message, 66, &bytes) == GTCB_BAD_ARGUMENT, "variant");
    CHECK(gtcb_encode(v, NULL, NULL, message, 66, &bytes) == GTCB_BAD_ARGUMENT, "job");
    CHECK(gtcb_encode(v, &sound, NULL, NULL, 66, &bytes) == GTCB_BAD_ARGUMENT, "message");
#define REFUSED(change)                                                                                  \
    do {                                                                                                 \
        gtcb_encode_job job = sound;                                                                     \
        change;                                                                                          \
        CHECK(gtcb_encode(v, &job, NULL, message, 66, &bytes) == GTCB_BAD_ARGUMENT, "%s", #change);      \
    } while (0)
    REFUSED(job.elements = 0);
    REFUSED(job.elements = 7);
    REFUSED(job.elements = 9);
    REFUSED(job.threshold = 0);
    REFUSED(job.threshold = -1);
    REFUSED(job.threshold = NAN);
    REFUSED(job.threshold = INFINITY);
    REFUSED(job.max_sent = 0);
    REFUSED(job.residual_in = NULL);
    REFUSED(job.residual_out = NULL);
    REFUSED(job.residual_out = residual + 7);       /* overlaps */
    REFUSED(job.scratch = NULL);
    REFUSED(job.segments = NULL);
    REFUSED(job.dtype = (gtcb_dtype)4);
    float dense[8];
    gtcb_message m = {message, NULL};
    CHECK(gtcb_decode_add(v, &m, 1, dense, 8, NULL) == GTCB_OK, "empty");
    CHECK(gtcb_decode_add(v, &m, 1, dense, 7, NULL) == GTCB_MISMATCH, "elements");
    CHECK(gtcb_decode_add(v, NULL, 1, dense, 8, NULL) == GTCB_BAD_ARGUMENT, "messages");
    gtcb_target target = {dense, 8};
    const gtcb_mean_job sound_mean = {&m, 1, 8, &target, 1, GTCB_F32, 0, 2, must(malloc(gtcb_mean_scratch_bytes(1, NULL)))};
    for (size_t i = 0; i < 8; i++)
        dense[i] = 5;
#define MEAN_REFUSED(change, wanted)                                                                     \
    do {                                                                                                 \
        gtcb_mean_job mean = sound_mean;                                                                 \
        change;                                                                                          \
        CHECK(gtcb_decode_mean(v, &mean, NULL) == wanted && dense[0] == 5 && dense[7] == 5, "%s", #change); \
    } while (0)
    MEAN_REFUSED(mean.elements = 7, GTCB_MISMATCH);
    MEAN_REFUSED(mean.elements = 9, GTCB_BAD_ARGUMENT);
    MEAN_REFUSED(mean.first = 1, GTCB_BAD_ARGUMENT);
    MEAN_REFUSED(mean.first = 9, GTCB_BAD_ARGUMENT);
    MEAN_REFUSED(mean.divisor = 0, GTCB_BAD_ARGUMENT);
    MEAN_REFUSED(mean.dtype = GTCB_F16, GTCB_BAD_ARGUMENT);
    MEAN_REFUSED(mean.dtype = GTCB_F64, GTCB_BAD_ARGUMENT);
    MEAN_REFUSED(mean.messages = NULL, GTCB_BAD_ARGUMENT);
    MEAN_REFUSED(mean.scratch = NULL, GTCB_BAD_ARGUMENT);
    CHECK(gtcb_decode_mean(v, &sound_mean, NULL) == GTCB_OK && dense[0] == 0 && dense[7] == 0, "a mean of nothing is 0");
    free(sound_mean.scratch);
    CHECK(gtcb_validate(v, message, NULL, 0) == GTCB_OK && gtcb_validate(v, NULL, NULL, 0) == GTCB_BAD_ARGUMENT, "validate");
}

static void check_names(void)
{
    CHECK(gtcb_variant_named("scalar") == gtcb_variant_at(0) && gtcb_variant_named("sse9") == NULL && gtcb_variant_named(NULL) == NULL, "names");
    CHECK(gtcb_variant_supported(gtcb_variant_best()) && gtcb_variant_at(99) == NULL, "best");
    for (size_t i = 0; i < gtcb_variant_count(); i++)
        CHECK(gtcb_variant_named(gtcb_variant_name(gtcb_variant_at(i))) == gtcb_variant_at(i), "name %zu", i);
    for (int s = GTCB_OK; s <= GTCB_CLOSED; s++)
        CHECK(strcmp(gtcb_status_text((gtcb_status)s), "unknown status") != 0, "status %d has no text", s);
}

int main(void)
{
    check_bounds();
    check_bound_holds();
    check_headers();
    check_raw();
    check_arguments();
    check_names();
    printf("ok\n");
    return 0;
}
