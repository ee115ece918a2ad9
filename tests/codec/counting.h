/* Proof of what ran: a variant whose loops count their calls and pass them on to the variant under test. */
#ifndef COUNTING_H
#define COUNTING_H

#include "check.h"

enum { STAGE, NON_FINITE_F32, NON_FINITE_F64, WIDEN, PACK, PACK_NARROW, UNPACK, ADD, ADD_CODES, DIVIDE, CHECKSUM, ONES,
       COUNT_CODES, LOOPS };
static const char *const loop_names[LOOPS] = {"stage", "non_finite_f32", "non_finite_f64", "widen", "pack", "pack_narrow",
                                              "unpack", "add", "add_codes", "divide", "checksum", "ones", "count_codes"};
static atomic_ulong calls[8][LOOPS];    /* by number of the variant in the table */
static const gtcb_variant *under_test;
static size_t under_test_number;

#define COUNT(loop) (atomic_fetch_add_explicit(&calls[under_test_number][loop], 1, memory_order_relaxed), under_test)

static size_t c_stage(const gtcb_piece *p, uint16_t *w, bool *f) { return COUNT(STAGE)->stage(p, w, f); }
static size_t c_f32(const float *x, size_t n) { return COUNT(NON_FINITE_F32)->non_finite_f32(x, n); }
static size_t c_f64(const double *x, size_t n) { return COUNT(NON_FINITE_F64)->non_finite_f64(x, n); }
static void c_widen(const uint16_t *w, size_t n, uint32_t o, uint32_t *v) { COUNT(WIDEN)->widen(w, n, o, v); }
static void c_pack(const uint32_t *v, size_t n, unsigned l, uint8_t *lo, uint8_t *up, size_t b) { COUNT(PACK)->pack(v, n, l, lo, up, b); }
static void c_narrow(const uint16_t *w, uint16_t o, size_t n, unsigned l, uint8_t *lo, uint8_t *up, size_t b)
{
    COUNT(PACK_NARROW)->pack_narrow(w, o, n, l, lo, up, b);
}
static void c_unpack(const uint8_t *lo, const uint8_t *up, size_t b, size_t n, unsigned l, uint32_t *v) { COUNT(UNPACK)->unpack(lo, up, b, n, l, v); }
static void c_add(float *d, const uint32_t *v, size_t n, float t) { COUNT(ADD)->add(d, v, n, t); }
static void c_add_codes(float *d, const uint8_t *c, size_t n, float t) { COUNT(ADD_CODES)->add_codes(d, c, n, t); }
static void c_divide(const float *x, size_t n, float d, gtcb_dtype t, void *o, bool s) { COUNT(DIVIDE)->divide(x, n, d, t, o, s); }
static uint64_t c_checksum(const void *p, size_t n, uint64_t f) { return COUNT(CHECKSUM)->checksum(p, n, f); }
static size_t c_ones(const uint8_t *p, size_t n) { return COUNT(ONES)->ones(p, n); }
static size_t c_count_codes(const uint8_t *p, size_t n) { return COUNT(COUNT_CODES)->count_codes(p, n); }

static const gtcb_variant counting = {"counting", NULL, c_stage, c_f32, c_f64, c_widen, c_pack, c_narrow, c_unpack,
                                      c_add, c_add_codes, c_divide, c_checksum, c_ones, c_count_codes};

static inline const gtcb_variant *count_calls_of(size_t number)
{
    under_test_number = number;
    under_test = gtcb_variant_at(number);
    return &counting;
}

/* Every compiled-in variant that this processor has must have run each loop in `needed`. */
static inline void check_all_ran(unsigned needed)
{
    for (size_t i = 0; i < gtcb_variant_count(); i++) {
        const gtcb_variant *v = gtcb_variant_at(i);
        if (!v->supported()) {
            printf("variant %s: not supported by this processor, not tested\n", v->name);
            continue;
        }
        for (unsigned loop = 0; loop < LOOPS; loop++)
            if (needed >> loop & 1)
                CHECK(calls[i][loop] > 0, "variant %s never ran %s", v->name, loop_names[loop]);
        printf("variant %s: stage %lu, pack %lu and %lu, unpack %lu calls\n", v->name, calls[i][STAGE], calls[i][PACK],
               calls[i][PACK_NARROW], calls[i][UNPACK]);
    }
}

/* A variant that points at the scalar hot loops would pass by testing nothing. */
static inline void check_variants_differ(void)
{
#if defined(__x86_64__)
    CHECK(gtcb_variant_count() == 3, "expected scalar, avx2, avx512");
#endif
    for (size_t i = 0; i < gtcb_variant_count(); i++)
        for (size_t j = 0; j < i; j++) {
            const gtcb_variant *a = gtcb_variant_at(i), *b = gtcb_variant_at(j);
            CHECK(strcmp(a->name, b->name) != 0, "two variants are named %s", a->name);
            CHECK(a->stage != b->stage && a->pack != b->pack && a->pack_narrow != b->pack_narrow && a->unpack != b->unpack &&
                  a->checksum != b->checksum,
                  "%s and %s share a loop", a->name, b->name);
        }
}

#endif
