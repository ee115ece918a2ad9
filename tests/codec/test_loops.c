/* Each inner loop of each variant against the scalar one, directly: all l, odd counts, odd addresses. */
#include <math.h>

#include "counting.h"

static uint64_t rng = 7;
static unsigned long narrow[33];        /* narrow blocks of that l */

static void check_pack(const gtcb_variant *v, size_t count, unsigned l)
{
    uint32_t values[GTCB_BLOCK + GTCB_SLACK], back[GTCB_BLOCK + GTCB_SLACK];
    uint8_t lows[2][GTCB_BLOCK_BYTES + GTCB_PAD], uppers[2][GTCB_BLOCK * 3 / 8 + 2 * GTCB_PAD];
    uint64_t greatest = (uint64_t)count << l;       /* mean gap of v about 2^l; must fit 32 bits */
    if (greatest > UINT32_MAX)
        greatest = UINT32_MAX;
    if (l == 32 || greatest < count)
        greatest = UINT32_MAX;
    uint64_t last = 0;
    for (size_t i = 0; i < count; i++) {        /* increasing, with room for the rest */
        uint64_t room = (greatest - last - 1) / (count - i);
        last += 1 + below(&rng, below(&rng, 8) == 0 ? 2 * room + 1 : room + 1);
        if (last > greatest - (count - i))
            last = greatest - (count - i);
        values[i] = (uint32_t)last;
    }
    size_t upper_bits = (size_t)((uint64_t)values[count - 1] >> l) + count;
    if (upper_bits > GTCB_BLOCK * 3)
        return;
    size_t low_bytes = (count * l + 7) / 8, upper_bytes = (upper_bits + 7) / 8;
    memset(lows, 0xAA, sizeof lows);
    memset(uppers, 0xAA, sizeof uppers);
    gtcb_scalar.pack(values, count, l, lows[0], uppers[0], upper_bits);
    v->pack(values, count, l, lows[1], uppers[1], upper_bits);
    CHECK(memcmp(lows[0], lows[1], low_bytes) == 0, "%s lows, count %zu l %u", under_test->name, count, l);
    CHECK(memcmp(uppers[0], uppers[1], upper_bytes) == 0, "%s uppers, count %zu l %u", under_test->name, count, l);

    if (values[count - 1] <= UINT16_MAX) {
        uint16_t words[GTCB_BLOCK + GTCB_SLACK];
        const uint16_t offset = (uint16_t)random64(&rng);
        for (size_t i = 0; i < GTCB_BLOCK + GTCB_SLACK; i++)        /* noise beyond them */
            words[i] = (uint16_t)((i < count ? values[i] : random64(&rng)) - offset);
        memset(lows[1], 0xAA, sizeof lows[1]);
        memset(uppers[1], 0xAA, sizeof uppers[1]);
        v->pack_narrow(words, offset, count, l, lows[1], uppers[1], upper_bits);
        CHECK(memcmp(lows[0], lows[1], low_bytes) == 0, "%s narrow lows, count %zu l %u", under_test->name, count, l);
        CHECK(memcmp(uppers[0], uppers[1], upper_bytes) == 0, "%s narrow uppers, count %zu l %u", under_test->name, count, l);
        narrow[l]++;
    }

    uint8_t *block = must(malloc(low_bytes + upper_bytes + GTCB_PAD));     /* as it lies in a body; the pad is noise */
    memcpy(block, lows[0], low_bytes);
    memcpy(block + low_bytes, uppers[0], upper_bytes);
    memset(block + low_bytes + upper_bytes, 0xFF, GTCB_PAD);
    memset(back, 0xAA, sizeof back);
    v->unpack(block, block + low_bytes, upper_bits, count, l, back);
    CHECK(memcmp(values, back, count * 4) == 0, "%s unpack, count %zu l %u", under_test->name, count, l);
    free(block);
}

static void check_widen_add(const gtcb_variant *v, size_t count)
{
    uint16_t words[GTCB_BLOCK] = {0};
    uint32_t a[GTCB_BLOCK + GTCB_SLACK], b[GTCB_BLOCK + GTCB_SLACK], offset = (uint32_t)random64(&rng);
    for (size_t i = 0; i < count; i++)
        words[i] = (uint16_t)random64(&rng);
    gtcb_scalar.widen(words, count, offset, a);
    v->widen(words, count, offset, b);
    CHECK(memcmp(a, b, count * 4) == 0, "%s widen %zu", under_test->name, count);

    float dense[2][600];
    for (size_t i = 0; i < 600; i++)
        dense[0][i] = dense[1][i] = below(&rng, 4) ? (float)uniform(&rng) : -0.0f;
    for (size_t i = 0; i < count; i++)
        a[i] = (uint32_t)below(&rng, 1200);     /* with repetitions: order matters */
    gtcb_scalar.add(dense[0], a, count, 0.1f);
    v->add(dense[1], a, count, 0.1f);
    CHECK(memcmp(dense[0], dense[1], sizeof dense[0]) == 0, "%s add %zu", under_test->name, count);
}

static void check_codes(const gtcb_variant *v, size_t count)
{
    size_t bytes = (count + 3) / 4;
    uint8_t *codes = must(malloc(bytes + 1));
    float dense[2][2048];
    for (size_t i = 0; i < count; i++)
        dense[0][i] = dense[1][i] = below(&rng, 4) ? (float)uniform(&rng) : -0.0f;
    memset(codes, 0, bytes);
    for (size_t i = 0; i < count; i++)
        codes[i / 4] |= (uint8_t)("\0\1\3\0"[below(&rng, 4)] << i % 4 * 2);
    gtcb_scalar.add_codes(dense[0], codes, count, 0.1f);
    v->add_codes(dense[1], codes, count, 0.1f);
    CHECK(memcmp(dense[0], dense[1], count * 4) == 0, "%s add_codes %zu", under_test->name, count);
    CHECK(v->count_codes(codes, bytes) == gtcb_scalar.count_codes(codes, bytes), "%s count_codes %zu", under_test->name, count);
    if (count > 0) {
        size_t i = below(&rng, count);
        codes[i / 4] = (uint8_t)((codes[i / 4] & ~(3 << i % 4 * 2)) | 2 << i % 4 * 2);
        CHECK(v->count_codes(codes, bytes) == GTCB_NONE, "%s misses code 2 at %zu of %zu", under_test->name, i, count);
    }
    free(codes);
}

/* With halfway cases of bfloat16 and their neighbours, and what it has no number for. */
static float dividend(void)
{
    static const float rare[] = {0x3p-149f, -0.0f, FLT_MAX, -FLT_MAX, INFINITY, -INFINITY};
    static const uint32_t lower[] = {0x7FFF, 0x8000, 0x8001};
    const uint64_t kind = below(&rng, 4);
    if (kind == 0)
        return rare[below(&rng, sizeof rare / sizeof *rare)];
    return kind < 3 ? (float)(uniform(&rng) - 0.5) : gtcb_from_bits((uint32_t)(below(&rng, 0x7F80) | below(&rng, 2) << 15) << 16 | lower[below(&rng, 3)]);
}

static void check_divide_to(const gtcb_variant *v, size_t count, gtcb_dtype dtype, float divisor, bool stream)
{
    float sum[1024 + 16];
    union { float f32[1024 + 32]; uint16_t bf16[2048 + 64]; } out;
    const size_t from = below(&rng, 9), to = below(&rng, 33);
    for (size_t i = 0; i < count; i++)
        sum[from + i] = dividend();
    memset(&out, 0x55, sizeof out);
    v->divide(sum + from, count, divisor, dtype, dtype == GTCB_F32 ? (void *)(out.f32 + to) : out.bf16 + to, stream);
    for (size_t i = 0; i < (dtype == GTCB_F32 ? sizeof out / 4 : sizeof out / 2); i++) {
        const bool outside = i < to || i - to >= count;
        volatile float quotient = outside ? 0 : sum[from + i - to] / divisor;
        const uint32_t wanted = dtype == GTCB_F32 ? gtcb_float_bits(quotient) : oracle_bfloat16(quotient);
        const uint32_t found = dtype == GTCB_F32 ? gtcb_float_bits(out.f32[i]) : out.bf16[i];
        CHECK(found == (!outside ? wanted : dtype == GTCB_F32 ? 0x55555555 : 0x5555), "%s divide %zu by %g to %s, element %zu: %x, not %x",
              under_test->name, count, divisor, dtype == GTCB_F32 ? "float32" : "bfloat16", i - to, found, wanted);
    }
}

static void check_divide(const gtcb_variant *v, size_t count)
{
    static const float divisors[] = {1, 2, 3, 7, 1024, 1025, 0.1f, 0x1p-120f, 0x1p120f};
    for (size_t d = 0; d < sizeof divisors / sizeof *divisors; d++)
        for (int stream = 0; stream < 2; stream++) {
            check_divide_to(v, count, GTCB_F32, divisors[d], stream);
            check_divide_to(v, count, GTCB_BF16, divisors[d], stream);
        }
}

static void check_bytes(const gtcb_variant *v, size_t bytes, size_t shift)
{
    uint8_t *p = must(malloc(bytes + shift + 1));
    for (size_t i = 0; i < bytes + shift; i++)
        p[i] = (uint8_t)random64(&rng);
    uint64_t first = below(&rng, 3) ? random64(&rng) : 0;
    CHECK(v->checksum(p + shift, bytes, first) == gtcb_scalar.checksum(p + shift, bytes, first), "%s checksum %zu", under_test->name, bytes);
    CHECK(v->ones(p + shift, bytes) == gtcb_scalar.ones(p + shift, bytes), "%s ones %zu", under_test->name, bytes);
    free(p);
}

static void check_finite(const gtcb_variant *v, size_t count)
{
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN};
    float *f = must(malloc((count + 1) * sizeof *f));
    double *d = must(malloc((count + 1) * sizeof *d));
    for (size_t i = 0; i < count; i++)
        d[i] = f[i] = below(&rng, 3) ? (float)uniform(&rng) : below(&rng, 2) ? FLT_MAX : -0x1p-149f;
    for (size_t i = 0; i < count; i++)
        if (below(&rng, 4) == 0)
            d[i] = -DBL_MAX;
    CHECK(v->non_finite_f32(f, count) == GTCB_NONE && v->non_finite_f64(d, count) == GTCB_NONE, "%s finite %zu", under_test->name, count);
    for (size_t i = count; i-- > 0;) {
        f[i] = bad[below(&rng, 4)];
        d[i] = (double)bad[below(&rng, 4)];
        CHECK(v->non_finite_f32(f, count) == i && v->non_finite_f64(d, count) == i, "%s non-finite %zu of %zu", under_test->name, i, count);
    }
    free(f);
    free(d);
}

int main(void)
{
    check_variants_differ();
    for (size_t i = 0; i < gtcb_variant_count(); i++) {
        if (!gtcb_variant_at(i)->supported())
            continue;
        const gtcb_variant *v = count_calls_of(i);
        for (unsigned l = 1; l <= 32; l++) {
            for (size_t count = 1; count <= 200; count++)
                check_pack(v, count, l);
            for (size_t j = 0; j < 40; j++)
                check_pack(v, j < 5 ? GTCB_BLOCK - j : 1 + below(&rng, GTCB_BLOCK), l);
        }
        for (size_t count = 0; count <= 300; count++) {
            check_widen_add(v, count);
            check_codes(v, count);
            check_divide(v, count < 1024 ? count : 1024);
            check_bytes(v, count, count % 9);
            check_finite(v, count);
        }
        for (size_t j = 0; j < 200; j++) {
            check_widen_add(v, below(&rng, GTCB_BLOCK + 1));
            check_codes(v, below(&rng, 2048));
            check_bytes(v, below(&rng, 100000), j % 8);
        }
    }
    for (unsigned l = 1; l <= 15; l++)
        CHECK(narrow[l] > 0, "no narrow block of l %u", l);
    check_all_ran(((1u << LOOPS) - 1) & ~(1u << STAGE));
    return 0;
}
