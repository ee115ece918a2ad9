/* Inside of the codec: what a variant is, and the arithmetic of the format that all of them share.
   A variant is a table of inner loops. Everything that decides what the bytes are is either here, in the
   drivers (encode.c, pack.c, decode.c, validate.c), or in codec_scalar.c, which is the definition of each loop. */
#ifndef GTCB_VARIANT_H
#define GTCB_VARIANT_H

#include <float.h>
#include <string.h>

#include "codec.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the format is little-endian, and so is this code"
#endif
_Static_assert(FLT_EVAL_METHOD == 0, "sums must round to float32; compile with SSE, not x87");
_Static_assert(sizeof(size_t) == 8, "buckets of more than 2^31 elements need 64-bit sizes");

#if defined(__x86_64__) && defined(__GNUC__)
#define GTCB_X86 1
#endif

/* The bucket is staged in chunks of this many elements, whatever the number of threads, so that an index inside
   a chunk and the sign fit 16 bits. */
#define GTCB_CHUNK 32768
#define GTCB_STREAM_ELEMENTS (1u << 20)      /* what is written of larger buckets does not stay in a cache anyway */
#define GTCB_SLACK 64    /* entries that a vector store may write beyond the last one of an output array */
#define GTCB_PAD 64      /* bytes that a vector load may read beyond the end of a block's bits */
#define GTCB_NONE SIZE_MAX

/* A piece of one tensor inside one chunk. */
typedef struct gtcb_piece {
    const void *gradient;
    const float *residual_in;
    float *residual_out;
    size_t count;
    float threshold;
    gtcb_dtype dtype;
    bool stream;            /* store the residual past the caches */
    uint32_t first;         /* index in the chunk of the piece's first element */
} gtcb_piece;

struct gtcb_variant {
    const char *name;
    bool (*supported)(void);

    /* t = r + g; writes r' and, for each sent element, 2 * (index in the chunk) + negative. Returns how many; sets
       *non_finite (never clears it) if any t is. May write GTCB_SLACK words more than it returns. */
    size_t (*stage)(const gtcb_piece *piece, uint16_t *words, bool *non_finite);
    /* Index of the first NaN or infinity, GTCB_NONE if there is none. */
    size_t (*non_finite_f32)(const float *values, size_t count);
    size_t (*non_finite_f64)(const double *values, size_t count);

    /* out[i] = words[i] + offset; may write GTCB_SLACK more. */
    void (*widen)(const uint16_t *words, size_t count, uint32_t offset, uint32_t *out);
    /* The lows and uppers of a block whose v fit 32 bits; may read GTCB_SLACK entries beyond v[count] and write GTCB_PAD
       bytes beyond the end of each. */
    void (*pack)(const uint32_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits);
    /* The same for v = words + offset modulo 2^16, which is exact if the block is narrow. */
    void (*pack_narrow)(const uint16_t *words, uint16_t offset, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers,
                        size_t upper_bits);
    /* The reverse, for a valid block. Up to GTCB_PAD bytes beyond the inputs are readable, and as many entries
       beyond v[count] writable. */
    void (*unpack)(const uint8_t *lows, const uint8_t *uppers, size_t upper_bits, size_t count, unsigned l, uint32_t *v);
    /* dense[v / 2] += v odd ? -threshold : threshold, one after the other. */
    void (*add)(float *dense, const uint32_t *v, size_t count, float threshold);
    /* The same for the codes of a dense body; the first code is at bit 0. */
    void (*add_codes)(float *dense, const uint8_t *codes, size_t count, float threshold);

    /* out[i] = sum[i] / divisor, which is no NaN, as float32 or rounded to bfloat16; `stream`: past the caches. */
    void (*divide)(const float *sum, size_t count, float divisor, gtcb_dtype dtype, void *out, bool stream);

    /* S of the format over bytes that begin at word number `first` of the sequence. */
    uint64_t (*checksum)(const void *data, size_t bytes, uint64_t first);
    size_t (*ones)(const uint8_t *bits, size_t bytes);
    /* How many codes are not 0; GTCB_NONE if one is 2. */
    size_t (*count_codes)(const uint8_t *codes, size_t bytes);
};

extern const gtcb_variant gtcb_scalar;
#ifdef GTCB_X86
extern const gtcb_variant gtcb_avx2, gtcb_avx512;
void gtcb_divide_avx2(const float *sum, size_t count, float divisor, gtcb_dtype dtype, void *out, bool stream);
#endif

/* -- the arithmetic of the packed body (docs/message-format.md, Body 2) ---------------------------- */

typedef struct gtcb_layout {
    unsigned l;
    uint64_t lows_bytes, upper_bits, bytes;     /* bytes: lows and uppers, without the gap to the next block */
} gtcb_layout;

static inline unsigned gtcb_log2(uint64_t x) { return 63u - (unsigned)__builtin_clzll(x); }   /* floor; x > 0 */

/* l = floor(log2(floor(2 * span / count))). floor(a / c) has the top bit of a's, or the one below, c times
   shifted: so no division. */
static inline unsigned gtcb_low_bits(uint64_t span, uint64_t count)
{
    unsigned l = gtcb_log2(2 * span) - gtcb_log2(count);
    return l - (count << l > 2 * span);
}

static inline gtcb_layout gtcb_block_layout(uint64_t span, uint64_t count)      /* 1 <= count <= span */
{
    gtcb_layout y;
    y.l = gtcb_low_bits(span, count);
    y.lows_bytes = (count * y.l + 7) / 8;
    y.upper_bits = count + ((span - 1) >> (y.l - 1));
    y.bytes = y.lows_bytes + (y.upper_bits + 7) / 8;
    return y;
}

/* Longest l of a block with 32-bit v is 32; lows and uppers then take at most this. */
#define GTCB_BLOCK_BYTES (GTCB_BLOCK * (64 + 3) / 8)

static inline bool gtcb_is_narrow(uint64_t span) { return span <= UINT64_C(1) << 15; }    /* v fit 16 bits */
static inline bool gtcb_is_wide(uint64_t span) { return span >= UINT64_C(1) << 31; }  /* 2 * span exceeds 32 bits */
static inline uint64_t gtcb_align8(uint64_t x) { return (x + 7) & ~UINT64_C(7); }
static inline uint64_t gtcb_blocks(uint64_t sent) { return sent / GTCB_BLOCK + (sent % GTCB_BLOCK != 0); }
static inline uint64_t gtcb_block_count(uint64_t sent, uint64_t block)      /* elements in that block */
{
    uint64_t left = sent - block * GTCB_BLOCK;
    return left < GTCB_BLOCK ? left : GTCB_BLOCK;
}

/* Blocks that are too wide for the variants' 32 bits (wide.c). */
void gtcb_pack_wide(const uint64_t *v, size_t count, unsigned l, uint8_t *lows, uint8_t *uppers, size_t upper_bits);
void gtcb_unpack_wide(const uint8_t *lows, const uint8_t *uppers, size_t upper_bits, size_t count, unsigned l, uint64_t *v);

/* -- bytes ------------------------------------------------------------------------------------------ */

static inline uint16_t gtcb_get16(const void *p) { uint16_t x; memcpy(&x, p, sizeof x); return x; }
static inline uint32_t gtcb_get32(const void *p) { uint32_t x; memcpy(&x, p, sizeof x); return x; }
static inline uint64_t gtcb_get64(const void *p) { uint64_t x; memcpy(&x, p, sizeof x); return x; }
static inline void gtcb_put32(void *p, uint32_t x) { memcpy(p, &x, sizeof x); }
static inline void gtcb_put64(void *p, uint64_t x) { memcpy(p, &x, sizeof x); }

static inline uint64_t gtcb_get_tail(const void *p, size_t bytes)    /* fewer than 8, filled up with zeros */
{
    uint64_t x = 0;
    memcpy(&x, p, bytes);
    return x;
}

static inline uint32_t gtcb_float_bits(float x) { return gtcb_get32(&x); }
static inline float gtcb_from_bits(uint32_t bits) { float x; memcpy(&x, &bits, sizeof x); return x; }

static inline float gtcb_from_bfloat16(uint16_t bits) { return gtcb_from_bits((uint32_t)bits << 16); }

/* To nearest, ties to even; beyond the largest: infinity. A NaN stays one. */
static inline uint16_t gtcb_to_bfloat16(float x)
{
    const uint32_t bits = gtcb_float_bits(x);
    return (uint16_t)((x == x ? bits + 0x7FFF + (bits >> 16 & 1) : bits | 0x400000) >> 16);
}

/* -- loops that the variants share and compile for their instruction sets ---------------------------- */

/* Before a loop of few instructions, which compilers leave as it is: its own overhead counts, and where it happens to lie. */
#ifdef __clang__
#define GTCB_UNROLL _Pragma("clang loop unroll_count(8)")
/* Before a loop whose output may be one of its inputs, element for element: that is no obstacle to vectors. */
#define GTCB_EACH _Pragma("clang loop vectorize(assume_safety)")
#else
#define GTCB_UNROLL _Pragma("GCC unroll 8")
#define GTCB_EACH _Pragma("GCC ivdep")
#endif

/* dense[v / 2] += q, one after the other because a crafted message may repeat an element; and to scattered addresses,
   where gathers and scatters are no faster. */
static inline void gtcb_add_each(float *dense, const uint32_t *v, size_t count, float threshold)
{
    const float q[2] = {threshold, -threshold};
    GTCB_UNROLL
    for (size_t i = 0; i < count; i++)
        dense[v[i] >> 1] += q[v[i] & 1];
}

/* 1 / x has no rounding error, so that x * y is y / (1 / x) to the bit. */
static inline bool gtcb_has_exact_reciprocal(float x)
{
    return (gtcb_float_bits(x) & 0x7FFFFFu) == 0 && x >= 0x1p-100f && x <= 0x1p100f;
}

/* For code that is compiled for the baseline, where __builtin_popcountll is a call. */
static inline unsigned gtcb_ones_of(uint64_t w)
{
    w -= w >> 1 & UINT64_C(0x5555555555555555);
    w = (w & UINT64_C(0x3333333333333333)) + (w >> 2 & UINT64_C(0x3333333333333333));
    return (unsigned)(((w + (w >> 4)) & UINT64_C(0x0F0F0F0F0F0F0F0F)) * UINT64_C(0x0101010101010101) >> 56);
}

static inline size_t gtcb_count_ones(const uint8_t *bits, size_t bytes)
{
    size_t n = 0, at = 0;
    for (; at + 8 <= bytes; at += 8)
        n += (size_t)__builtin_popcountll(gtcb_get64(bits + at));
    return n + (size_t)__builtin_popcountll(gtcb_get_tail(bits + at, bytes - at));
}

static inline size_t gtcb_count_sent_codes(const uint8_t *codes, size_t bytes)      /* GTCB_NONE if one is 2 */
{
    const uint64_t low = UINT64_C(0x5555555555555555);      /* the lower bit of each code */
    uint64_t twos = 0;
    size_t n = 0;
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t c = bytes - at >= 8 ? gtcb_get64(codes + at) : gtcb_get_tail(codes + at, bytes - at);
        twos |= c >> 1 & ~c & low;
        n += (size_t)__builtin_popcountll(c & low);
    }
    return twos != 0 ? GTCB_NONE : n;
}

/* -- shared by the drivers --------------------------------------------------------------------------- */

#define GTCB_MAX_ELEMENTS (UINT64_C(1) << 60)      /* so that no length of the format overflows */
#define GTCB_WORDS_MAX (UINT64_C(1) << 31)         /* largest n of a words body */

static inline uint64_t gtcb_dense_bytes(uint64_t elements) { return elements / 4 + (elements % 4 != 0); }

/* Fills in the checksum of the header; the body checksum is already in *h. */
void gtcb_write_header(const gtcb_header *h, uint8_t out[GTCB_HEADER_BYTES]);

static inline void gtcb_run(const gtcb_executor *e, void (*task)(void *, size_t), void *context, size_t count)
{
    if (e != NULL && count > 1)
        e->run(e->self, task, context, count);
    else
        for (size_t i = 0; i < count; i++)
            task(context, i);
}

/* What encode.c hands to pack.c: the words that are to be sent, chunk by chunk. */
typedef struct gtcb_chunk {
    uint64_t segment, offset;   /* where its gradients begin */
    uint64_t start;         /* number of its first word among all words */
    uint64_t checksum;      /* of the part of a dense body that it wrote */
    uint32_t count;         /* of words */
    uint32_t non_finite;    /* index in the chunk, UINT32_MAX: none */
} gtcb_chunk;

typedef struct gtcb_group { uint64_t offset, base, checksum; } gtcb_group;   /* of blocks, one task packs it */
#define GTCB_GROUP 32       /* blocks: at most one group a chunk */

typedef struct gtcb_staged {
    const gtcb_variant *variant;
    const gtcb_executor *executor;
    gtcb_chunk *chunks;
    gtcb_group *groups;
    uint16_t *words;        /* those of chunk c begin at words + c * GTCB_PLACE */
    size_t chunk_count;
    uint64_t elements, sent;
} gtcb_staged;

#define GTCB_PLACE (GTCB_CHUNK + GTCB_SLACK)

/* Chooses the shortest body (also prepares the groups), then writes it; returns its checksum. */
gtcb_kind gtcb_choose_body(const gtcb_staged *s, uint64_t *body_bytes);
uint64_t gtcb_write_body(const gtcb_staged *s, gtcb_kind kind, uint64_t body_bytes, uint8_t *body);

#endif
