/* The definition: each loop of the codec as docs/message-format.md says it, one element after another. */
#include "variant.h"

static bool always(void) { return true; }

/* -- Accumulate, threshold, residual --------------------------------------------------------------- */

static float from_float16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31)                                         /* NaN, infinity */
        return gtcb_from_bits(sign | 0x7F800000u | fraction << 13);
    if (exponent != 0)
        return gtcb_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f;               /* denormal or zero; exact */
    return gtcb_from_bits(sign | gtcb_float_bits(magnitude));
}

/* t = r + g: float32, round to nearest even; float16 and bfloat16 converted exactly first;
   float64: t = float32(float64(r) + g). */
static float sum(float r, const void *gradient, size_t i, gtcb_dtype dtype)
{
    switch (dtype) {
    case GTCB_BF16: return r + gtcb_from_bfloat16(((const uint16_t *)gradient)[i]);
    case GTCB_F16: return r + from_float16(((const uint16_t *)gradient)[i]);
    case GTCB_F64: return (float)((double)r + ((const double *)gradient)[i]);
    default: return r + ((const float *)gradient)[i];
    }
}

static bool finite_f32(float x) { return (gtcb_float_bits(x) & 0x7F800000u) != 0x7F800000u; }

static size_t stage(const gtcb_piece *p, uint16_t *words, bool *non_finite)
{
    const float tau = p->threshold;
    size_t sent = 0;
    for (size_t i = 0; i < p->count; i++) {
        float t = sum(p->residual_in[i], p->gradient, i, p->dtype);
        float q = t >= tau ? tau : t <= -tau ? -tau : 0.0f;
        if (!finite_f32(t))
            *non_finite = true;
        if (q != 0.0f)
            words[sent++] = (uint16_t)(2 * (p->first + i) + (q < 0.0f));
        p->residual_out[i] = t - q;
    }
    return sent;
}

static size_t non_finite_f32(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!finite_f32(values[i]))
            return i;
    return GTCB_NONE;
}

static size_t non_finite_f64(const double *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if ((gtcb_get64(values + i) >> 52 & 2047) == 2047)
            return i;
    return GTCB_NONE;
}

static void widen(const uint16_t *words, size_t count, uint32_t offset, uint32_t *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = words[i] + offset;
}

/* -- Body 2: packed -------------------------------------------------------------------------------- */

static void pack(const uint32_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits)
{
    const uint32_t mask = (uint32_t)((UINT64_C(1) << l) - 1);
    memset(uppers, 0, (upper_bits + 7) / 8);
    uint64_t waiting = 0;           /* bits of lows not yet written */
    unsigned bits = 0;
    for (size_t i = 0; i < count; i++) {
        size_t bit = (size_t)((uint64_t)v[i] >> l) + i;
        uppers[bit / 8] |= (uint8_t)(1u << bit % 8);
        waiting |= (uint64_t)(v[i] & mask) << bits;
        for (bits += l; bits >= 8; bits -= 8, waiting >>= 8)
            *lows++ = (uint8_t)waiting;
    }
    if (bits > 0)
        *lows = (uint8_t)waiting;
}

static void pack_narrow(const uint16_t *words, uint16_t offset, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers,
                        size_t upper_bits)
{
    uint32_t v[GTCB_BLOCK];
    for (size_t i = 0; i < count; i++)
        v[i] = (uint16_t)(words[i] + offset);
    pack(v, count, l, lows, uppers, upper_bits);
}

static void unpack(const uint8_t *lows, const uint8_t *uppers, size_t upper_bits, size_t count, unsigned l, uint32_t *v)
{
    const uint32_t mask = (uint32_t)((UINT64_C(1) << l) - 1);
    uint64_t waiting = 0;           /* bits of lows read but not yet used */
    unsigned bits = 0;
    size_t i = 0;
    for (size_t bit = 0; bit < upper_bits && i < count; bit++)
        if (uppers[bit / 8] >> bit % 8 & 1) {
            for (; bits < l; bits += 8)
                waiting |= (uint64_t)*lows++ << bits;
            v[i] = (uint32_t)((uint64_t)(bit - i) << l) | ((uint32_t)waiting & mask);
            waiting >>= l;
            bits -= l;
            i++;
        }
}

/* -- Applying messages ----------------------------------------------------------------------------- */

static void add_codes(float *dense, const uint8_t *codes, size_t count, float threshold)
{
    for (size_t i = 0; i < count; i++) {
        unsigned code = codes[i / 4] >> i % 4 * 2 & 3;
        if (code != 0)              /* adding 0 would turn -0 into +0 */
            dense[i] += code == 1 ? threshold : -threshold;
    }
}

static void divide(const float *sum, size_t count, float divisor, gtcb_dtype dtype, void *out, bool stream)
{
    float *single = out;
    uint16_t *half = out;
    (void)stream;
    if (dtype == GTCB_BF16)
        for (size_t i = 0; i < count; i++)
            half[i] = gtcb_to_bfloat16(sum[i] / divisor);
    else
        for (size_t i = 0; i < count; i++)
            single[i] = sum[i] / divisor;
}

/* -- Checks ---------------------------------------------------------------------------------------- */

static uint64_t checksum(const void *data, size_t bytes, uint64_t first)
{
    const uint8_t *p = data;
    uint64_t s = 0, key = first * UINT64_C(0x9E3779B97F4A7C15);
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t w = bytes - at >= 8 ? gtcb_get64(p + at) : gtcb_get_tail(p + at, bytes - at);
        key += UINT64_C(0x9E3779B97F4A7C15);
        uint64_t x = w ^ key;
        s += w + (w << 32) + (x & UINT32_MAX) * (x >> 32);
    }
    return s;
}

static size_t ones(const uint8_t *bits, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += (size_t)__builtin_popcount(bits[i]);
    return n;
}

static size_t count_codes(const uint8_t *codes, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned low = codes[i] & 0x55u, high = codes[i] >> 1 & 0x55u;      /* code 2: high without low */
        if (high & ~low)
            return GTCB_NONE;
        n += (size_t)__builtin_popcount(low);
    }
    return n;
}

const gtcb_variant gtcb_scalar = {
    .name = "scalar", .supported = always,
    .stage = stage, .non_finite_f32 = non_finite_f32, .non_finite_f64 = non_finite_f64,
    .widen = widen, .pack = pack, .pack_narrow = pack_narrow, .unpack = unpack,
    .add = gtcb_add_each, .add_codes = add_codes, .divide = divide,
    .checksum = checksum, .ones = ones, .count_codes = count_codes,
};
