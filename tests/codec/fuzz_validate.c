/* Mutated messages: the validators of all variants agree, and what they accept is decoded inside its bounds, to the same
   sums by every variant. Built with AddressSanitizer and UBSan: each message and each result is in a heap block of
   exactly its size.      fuzz_validate [mutations] [seed]                                          */
#include "counting.h"
#include "oracle.h"

#define MAX_BYTES 4096
enum { SEEDS = 24, LARGEST_DECODED = 20000 };

typedef struct text { uint8_t bytes[MAX_BYTES]; size_t count; } text;

static uint64_t rng;
static text seeds[SEEDS];
static unsigned long reached, accepted, decoded, statuses[GTCB_CLOSED + 1], accepted_kinds[5];

static void make_seed(text *t, size_t number)
{
    static const uint64_t sizes[] = {1, 7, 40, 300, 1000, 3000, 6000, 15000};
    const uint64_t n = sizes[number % 8] + below(&rng, 3);
    const unsigned percent = number < 8 ? 3 : number < 16 ? 25 : 90;
    uint64_t *numbers = must(malloc(8 * n)), k = 0;
    for (uint64_t i = 0; i < n; i++)
        if (below(&rng, 100) < percent || i == n - 1)       /* an index too large is one beyond the result */
            numbers[k++] = 2 * i + below(&rng, 2);
    gtcb_encode_job job = {.elements = n, .threshold = 0.5f, .sequence = number};
    uint8_t *m = oracle_message(&job, numbers, k, &t->count);
    CHECK(t->count <= MAX_BYTES, "seed of %zu bytes", t->count);
    memcpy(t->bytes, m, t->count);
    free(m);
    free(numbers);
}

/* -- mutations ------------------------------------------------------------------------------------- */

static uint64_t interesting(void)
{
    static const uint64_t values[] = {0, 1, 2, 3, 1023, 1024, 1025, UINT64_C(1) << 31, (UINT64_C(1) << 31) + 1, UINT32_MAX,
                                      UINT64_C(1) << 60, (UINT64_C(1) << 60) + 1, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 1};
    return below(&rng, 4) ? values[below(&rng, 15)] : random64(&rng) >> below(&rng, 64);
}

static void edit_u64(uint8_t *at)
{
    uint64_t x = gtcb_get64(at);
    switch (below(&rng, 4)) {
    case 0: x = interesting(); break;
    case 1: x ^= UINT64_C(1) << below(&rng, 64); break;
    default: x += below(&rng, 33) - 16;
    }
    gtcb_put64(at, x);
}

static void edit_header(text *t)
{
    static const size_t wide[] = {8, 16, 24, 32};
    if (below(&rng, 3))
        edit_u64(t->bytes + wide[below(&rng, 4)]);
    else if (below(&rng, 2))
        t->bytes[4 + below(&rng, 4)] = (uint8_t)below(&rng, 6);
    else
        t->bytes[below(&rng, 64)] = (uint8_t)random64(&rng);
}

static void swap_bits(uint8_t *bytes, size_t a, size_t b)       /* keeps the number of ones */
{
    if ((bytes[a / 8] >> a % 8 & 1) != (bytes[b / 8] >> b % 8 & 1)) {
        bytes[a / 8] ^= (uint8_t)(1 << a % 8);
        bytes[b / 8] ^= (uint8_t)(1 << b % 8);
    }
}

static void mutate(text *t)
{
    const size_t body = t->count > 64 ? t->count - 64 : 0;
    if (body == 0 || below(&rng, 6) == 0) {
        edit_header(t);
        return;
    }
    uint8_t *p = t->bytes + 64;
    const text *other = &seeds[below(&rng, SEEDS)];
    size_t at = below(&rng, body), length = 1 + below(&rng, 16), bit = below(&rng, 8 * body);
    switch (below(&rng, 9)) {
    case 0: p[at] ^= (uint8_t)(1 << below(&rng, 8)); break;
    case 1: p[at] = (uint8_t)random64(&rng); break;
    case 2: t->count -= length < body ? length : body; break;
    case 3:
        if (t->count + length <= MAX_BYTES)
            for (; length > 0; length--)
                t->bytes[t->count++] = (uint8_t)(below(&rng, 2) ? 0 : random64(&rng));
        break;
    case 4:
        if (body >= 8)
            edit_u64(p + below(&rng, body < 40 ? body / 8 : 5) * 8);
        break;      /* the spans, or what is in their place */
    case 5: swap_bits(p, bit, bit + 1 < 8 * body ? bit + 1 : bit); break;
    case 6: swap_bits(p, bit, below(&rng, 8 * body)); break;
    case 7: memset(p + at, below(&rng, 2) ? 0xFF : 0, length < body - at ? length : body - at); break;
    default:
        if (other->count > 64) {
            size_t from = below(&rng, other->count - 64), room = body - at, have = other->count - 64 - from;
            memcpy(p + at, other->bytes + 64 + from, room < have ? room : have);
        }
    }
}

static void repair(text *t)
{
    if (t->count < 64)
        return;
    const uint64_t body = t->count - 64;
    if (below(&rng, 8))
        gtcb_put64(t->bytes + 24, body);
    if (below(&rng, 16))
        gtcb_put64(t->bytes + 56, gtcb_checksum(&gtcb_scalar, t->bytes + 64, body));
    if (below(&rng, 16)) {
        gtcb_put32(t->bytes + 52, 0);
        uint64_t s = gtcb_checksum(&gtcb_scalar, t->bytes, 64);
        gtcb_put32(t->bytes + 52, (uint32_t)(s >> 32) ^ (uint32_t)s);
    }
}

/* -- checks ------------------------------------------------------------------------------------------ */

static void decode(const gtcb_message *m, const gtcb_header *h, const gtcb_executor *executor)
{
    float *expected = NULL;
    for (size_t i = 0; i < gtcb_variant_count(); i++) {
        if (!gtcb_variant_at(i)->supported())
            continue;
        float *dense = must(calloc(h->elements + !h->elements, 4));
        const gtcb_variant *v = count_calls_of(i);
        gtcb_status status = gtcb_decode_add(v, m, 1, dense, h->elements, executor);
        CHECK(status == (h->kind == GTCB_RAW ? GTCB_MISMATCH : h->flags ? GTCB_NON_FINITE : GTCB_OK), "%d", status);
        if (expected == NULL) {
            expected = dense;
            continue;
        }
        CHECK(memcmp(dense, expected, h->elements * 4) == 0, "%s decodes otherwise", under_test->name);
        free(dense);
    }
    free(expected);
    decoded++;
}

static void check(const text *t)
{
    uint8_t *header = must(malloc(64)), *body = must(malloc(t->count - 64 + (t->count == 64)));
    memcpy(header, t->bytes, 64);
    memcpy(body, t->bytes + 64, t->count - 64);
    gtcb_status status = GTCB_OK;
    gtcb_header h;
    for (size_t i = 0; i < gtcb_variant_count(); i++) {
        if (!gtcb_variant_at(i)->supported())
            continue;
        gtcb_status s = gtcb_validate(count_calls_of(i), header, body, t->count - 64);
        CHECK(i == 0 || s == status, "%s says %d, scalar %d", under_test->name, s, status);
        status = s;
    }
    statuses[status]++;
    reached += t->count > 64 && (status == GTCB_OK || status == GTCB_BAD_BODY);
    if (status == GTCB_OK) {
        CHECK(gtcb_read_header(header, &h) == GTCB_OK, "header of an accepted message");
        accepted++;
        accepted_kinds[h.kind]++;
        if (h.elements <= LARGEST_DECODED)
            decode(&(gtcb_message){header, body}, &h, executors[accepted % 8 == 0]);
    }
    free(header);
    free(body);
}

int main(int argc, char **argv)
{
    const unsigned long mutations = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;
    rng = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (size_t i = 0; i < SEEDS; i++) {
        make_seed(&seeds[i], i);
        check(&seeds[i]);
        CHECK(accepted == i + 1, "seed %zu is refused", i);
    }
    reached = accepted = decoded = 0;
    for (unsigned long i = 0; i < mutations; i++) {
        static text t;
        const text *seed = &seeds[below(&rng, SEEDS)];
        t.count = seed->count;
        memcpy(t.bytes, seed->bytes, seed->count);
        for (uint64_t j = 1 + below(&rng, 3); j > 0; j--)
            mutate(&t);
        repair(&t);
        check(&t);
    }
    printf("%lu mutations, %lu reached the checks of the body, %lu accepted (%lu words, %lu packed, %lu dense, %lu raw), "
           "%lu decoded\n", mutations, reached, accepted, accepted_kinds[1], accepted_kinds[2], accepted_kinds[3], accepted_kinds[4], decoded);
    for (int s = 0; s <= GTCB_CLOSED; s++)
        if (statuses[s] > 0)
            printf("  %lu %s\n", statuses[s], gtcb_status_text((gtcb_status)s));
    CHECK(reached > 0 && accepted > 0 && decoded > 0 && statuses[GTCB_BAD_BODY] > 0, "the mutations are too blunt");
    CHECK(accepted_kinds[1] > 0 && accepted_kinds[2] > 0 && accepted_kinds[3] > 0, "a kind was never accepted");
    check_all_ran(1u << UNPACK | 1u << ADD | 1u << CHECKSUM | 1u << ONES | 1u << COUNT_CODES | 1u << ADD_CODES);
    return 0;
}
