#include "oracle.h"

#include <math.h>

/* value = fraction * 2^exponent, from the fields of a 16-bit float */
static double small_float(uint16_t bits, int exponent_bits)
{
    int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1), fraction = bits & ((1 << fraction_bits) - 1);
    double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1)
        return fraction ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

double oracle_gradient(const void *data, size_t i, gtcb_dtype dtype)
{
    switch (dtype) {
    case GTCB_BF16: return small_float(((const uint16_t *)data)[i], 8);
    case GTCB_F16: return small_float(((const uint16_t *)data)[i], 5);
    case GTCB_F64: return ((const double *)data)[i];
    default: return ((const float *)data)[i];
    }
}

static void set_bit(uint8_t *bytes, uint64_t bit) { bytes[bit >> 3] = (uint8_t)(bytes[bit >> 3] | 1 << (bit & 7)); }
static int get_bit(const uint8_t *bytes, uint64_t bit) { return bytes[bit >> 3] >> (bit & 7) & 1; }
static uint64_t up8(uint64_t x) { return (x + 7) / 8 * 8; }

static uint64_t oracle_sum(const uint8_t *bytes, uint64_t count)
{
    uint64_t s = 0;
    for (uint64_t i = 0; 8 * i < count; i++) {
        uint64_t w = 0;
        for (uint64_t j = 0; j < 8 && 8 * i + j < count; j++)
            w += (uint64_t)bytes[8 * i + j] << 8 * j;
        uint64_t x = w ^ ((i + 1) * UINT64_C(0x9E3779B97F4A7C15));
        s += w + (w << 32) + (x % (UINT64_C(1) << 32)) * (x >> 32);
    }
    return s;
}

static uint64_t block_end(uint64_t k, uint64_t b) { return k < (b + 1) * 1024 ? k : (b + 1) * 1024; }

static unsigned low_bits(uint64_t span, uint64_t c)
{
    unsigned l = 0;
    for (uint64_t x = 2 * span / c; x > 1; x /= 2)
        l++;
    return l;
}

/* Length of the packed body of `numbers`; writes it if body is not NULL (and zero). */
static uint64_t packed(const uint64_t *numbers, uint64_t k, uint8_t *body)
{
    uint64_t blocks = (k + 1023) / 1024, at = 8 * blocks, base = 0;
    for (uint64_t b = 0; b < blocks; b++) {
        at = up8(at);
        uint64_t first = b * 1024, end = block_end(k, b), c = end - first, span = numbers[end - 1] / 2 + 1 - base;
        unsigned l = low_bits(span, c);
        uint64_t lows = (c * l + 7) / 8, uppers = (c + ((span - 1) >> (l - 1)) + 7) / 8;
        if (body != NULL) {
            memcpy(body + 8 * b, &span, 8);
            for (uint64_t i = 0; i < c; i++) {
                uint64_t v = numbers[first + i] - 2 * base;
                for (unsigned j = 0; j < l; j++)
                    if (v >> j & 1)
                        set_bit(body + at, i * l + j);
                set_bit(body + at + lows, (v >> l) + i);
            }
        }
        at += lows + uppers;
        base += span;
    }
    return at;
}

static uint64_t keep_window(const gtcb_encode_job *job, uint64_t *numbers, uint64_t k)
{
    uint64_t m = job->max_sent;
    if (k <= m)
        return k;
    uint8_t *kept = must(calloc(k, 1));
    for (uint64_t j = 0; j < m; j++)
        kept[(job->sequence * m % k + j) % k] = 1;
    uint64_t left = 0;
    for (uint64_t i = 0; i < k; i++) {
        double q = numbers[i] & 1 ? -(double)job->threshold : (double)job->threshold;
        if (kept[i])
            numbers[left++] = numbers[i];
        else
            job->residual_out[numbers[i] / 2] = (float)((double)job->residual_out[numbers[i] / 2] + q);
    }
    free(kept);
    return left;
}

static uint8_t *message_of(const gtcb_encode_job *job, int kind, int flags, uint64_t sent, uint64_t body_bytes)
{
    uint8_t *m = must(calloc(64 + body_bytes, 1));
    memcpy(m, "GTCB\1", 5);
    m[5] = (uint8_t)kind;
    m[6] = (uint8_t)flags;
    memcpy(m + 8, &job->elements, 8);
    memcpy(m + 16, &sent, 8);
    memcpy(m + 24, &body_bytes, 8);
    memcpy(m + 32, &job->sequence, 8);
    memcpy(m + 40, &job->bucket, 4);
    memcpy(m + 44, &job->sender, 4);
    memcpy(m + 48, &job->threshold, 4);
    return m;
}

static uint8_t *seal(uint8_t *m, uint64_t body_bytes)
{
    uint64_t s = oracle_sum(m + 64, body_bytes);
    memcpy(m + 56, &s, 8);
    s = oracle_sum(m, 64);
    uint32_t folded = (uint32_t)(s >> 32) ^ (uint32_t)s;
    memcpy(m + 52, &folded, 4);
    return m;
}

uint8_t *oracle_message(const gtcb_encode_job *job, const uint64_t *numbers, uint64_t k, size_t *bytes)
{
    const uint64_t n = job->elements;
    uint64_t lengths[4] = {0, n <= UINT64_C(1) << 31 ? 4 * k : UINT64_MAX, packed(numbers, k, NULL), (n + 3) / 4};
    int kind = 1;
    for (int other = 2; other <= 3; other++)
        if (lengths[other] < lengths[kind])
            kind = other;
    uint8_t *m = message_of(job, kind, 0, k, lengths[kind]);
    for (uint64_t j = 0; j < k && kind == 1; j++)
        memcpy(m + 64 + 4 * j, &(uint32_t){(uint32_t)numbers[j]}, 4);
    if (kind == 2)
        packed(numbers, k, m + 64);
    for (uint64_t j = 0; j < k && kind == 3; j++) {
        set_bit(m + 64, numbers[j] / 2 * 2);
        if (numbers[j] & 1)
            set_bit(m + 64, numbers[j] / 2 * 2 + 1);
    }
    *bytes = 64 + lengths[kind];
    return seal(m, lengths[kind]);
}

uint8_t *oracle_encode(const gtcb_encode_job *job, size_t *bytes)
{
    const uint64_t n = job->elements;
    const double tau = job->threshold;
    uint64_t *numbers = must(malloc(8 * n)), k = 0, bad = n, i = 0;
    for (size_t s = 0; s < job->segment_count; s++)
        for (size_t j = 0; j < job->segments[s].count; j++, i++) {
            float t = (float)((double)job->residual_in[i] + oracle_gradient(job->segments[s].data, j, job->dtype));
            double q = t >= tau ? tau : t <= -tau ? -tau : 0.0;
            if (!isfinite(t) && bad == n)
                bad = i;
            if (q != 0)
                numbers[k++] = 2 * i + (q < 0);
            job->residual_out[i] = q != 0 ? (float)(t - q) : t;
        }
    uint8_t *m = bad < n ? seal(message_of(job, 1, 1, bad, 0), 0)
                         : oracle_message(job, numbers, keep_window(job, numbers, k), bytes);
    if (bad < n)
        *bytes = 64;
    free(numbers);
    return m;
}

void oracle_decode_add(const uint8_t *message, float *dense)
{
    uint64_t n, k;
    float tau;
    memcpy(&n, message + 8, 8);
    memcpy(&k, message + 16, 8);
    memcpy(&tau, message + 48, 4);
    const uint8_t *body = message + 64;
    if (message[5] == 1)
        for (uint64_t j = 0; j < k; j++) {
            uint32_t word;
            memcpy(&word, body + 4 * j, 4);
            dense[word / 2] += word % 2 ? -tau : tau;
        }
    else if (message[5] == 3)
        for (uint64_t i = 0; i < n; i++)
            if (get_bit(body, 2 * i))
                dense[i] += get_bit(body, 2 * i + 1) ? -tau : tau;
    uint64_t at = (k + 1023) / 1024 * 8, base = 0;
    for (uint64_t b = 0; message[5] == 2 && b < (k + 1023) / 1024; b++) {
        at = up8(at);
        uint64_t c = block_end(k, b) - b * 1024, span, bit = 0;
        memcpy(&span, body + 8 * b, 8);
        unsigned l = low_bits(span, c);
        const uint8_t *lows = body + at, *uppers = lows + (c * l + 7) / 8;
        for (uint64_t i = 0; i < c; i++, bit++) {
            while (!get_bit(uppers, bit))
                bit++;
            uint64_t v = (bit - i) << l;
            for (unsigned j = 0; j < l; j++)
                v += (uint64_t)get_bit(lows, i * l + j) << j;
            dense[base + v / 2] += v % 2 ? -tau : tau;
        }
        at += (c * l + 7) / 8 + (c + ((span - 1) >> (l - 1)) + 7) / 8;
        base += span;
    }
}
