/* The codec: gradients to messages and back; and the block filter. Pure C11: no MPI, no Python, no threads, no malloc.
   The bytes are specified in docs/message-format.md; every variant gives the same ones. */
#ifndef GTCB_CODEC_H
#define GTCB_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GTCB_HEADER_BYTES 64
#define GTCB_BLOCK 1024            /* sent elements in a block of the packed body */
#define GTCB_NO_CAP UINT64_MAX     /* gtcb_encode_job.max_sent: send all that reached the threshold */

typedef enum gtcb_status {
    GTCB_OK = 0,
    GTCB_BAD_ARGUMENT,      /* the caller's fault: NULL, n = 0 segments that do not add up, threshold <= 0 ... */
    GTCB_TOO_SMALL,         /* capacity below gtcb_message_capacity() */
    GTCB_TRUNCATED,         /* fewer bytes than the header says */
    GTCB_BAD_MAGIC,
    GTCB_BAD_VERSION,
    GTCB_BAD_HEADER,        /* header checksum, or fields that contradict each other */
    GTCB_BAD_CHECKSUM,      /* body checksum */
    GTCB_BAD_BODY,          /* the body breaks a rule of its kind */
    GTCB_MISMATCH,          /* a sound message that does not belong here (elements, bucket, sequence, sender) */
    GTCB_NON_FINITE,        /* the message announces a NaN or infinity */
    GTCB_NO_MEMORY,         /* from here on: transport and exchange */
    GTCB_MPI_ERROR,
    GTCB_DEADLINE,
    GTCB_CLOSED,
    GTCB_CUDA_ERROR         /* a GPU failed, or a kernel could not be started */
} gtcb_status;

const char *gtcb_status_text(gtcb_status status);

typedef enum gtcb_kind { GTCB_WORDS = 1, GTCB_PACKED = 2, GTCB_DENSE = 3, GTCB_RAW = 4 } gtcb_kind;
typedef enum gtcb_element { GTCB_QUANTA = 0, GTCB_BYTES = 1, GTCB_FLOAT32 = 2, GTCB_FLOAT64 = 3, GTCB_BFLOAT16 = 4 } gtcb_element;
typedef enum gtcb_dtype { GTCB_F32 = 0, GTCB_BF16 = 1, GTCB_F16 = 2, GTCB_F64 = 3 } gtcb_dtype;   /* of gradients */

#define GTCB_FLAG_NON_FINITE 1u

typedef struct gtcb_header {
    uint8_t kind, flags, element;
    uint64_t elements, sent, body_bytes, sequence;
    uint32_t bucket, sender;
    float threshold;
    uint64_t body_checksum;
} gtcb_header;

/* Runs task(context, i) for every i < count, in any order, on any threads, and returns when all are done. */
typedef struct gtcb_executor {
    void (*run)(void *self, void (*task)(void *context, size_t i), void *context, size_t count);
    void *self;
    size_t threads;         /* how many there are */
} gtcb_executor;            /* NULL where one is asked for: run serially */

/* -- variants ------------------------------------------------------------------------------------ */

typedef struct gtcb_variant gtcb_variant;
size_t gtcb_variant_count(void);                        /* compiled into this binary */
const gtcb_variant *gtcb_variant_at(size_t i);          /* scalar first */
const char *gtcb_variant_name(const gtcb_variant *v);   /* "scalar", "avx2", "avx512" */
bool gtcb_variant_supported(const gtcb_variant *v);     /* by this processor */
const gtcb_variant *gtcb_variant_best(void);
const gtcb_variant *gtcb_variant_named(const char *name);   /* NULL if unknown */

/* -- encode -------------------------------------------------------------------------------------- */

typedef struct gtcb_segment { const void *data; size_t count; } gtcb_segment;   /* one tensor of the bucket */

typedef struct gtcb_encode_job {
    const gtcb_segment *segments;   /* the gradients, laid end to end */
    size_t segment_count;
    gtcb_dtype dtype;               /* of all segments */
    uint64_t elements;              /* sum of the segments' counts */
    const float *residual_in;       /* [elements] */
    float *residual_out;            /* [elements]; may be residual_in, else must not overlap it */
    float threshold;
    uint64_t max_sent;              /* GTCB_NO_CAP, or the cap's m > 0 */
    uint64_t sequence;
    uint32_t bucket, sender;
    uint32_t *scratch;              /* [gtcb_scratch_words(elements)]; only as much of it is touched as elements are sent */
} gtcb_encode_job;

size_t gtcb_scratch_words(uint64_t elements);
uint64_t gtcb_message_capacity(uint64_t elements);             /* 64 + ceil(n / 4) */
uint64_t gtcb_bound(uint64_t elements, uint64_t sent);         /* longest message with that many sent */
uint64_t gtcb_max_sent(uint64_t elements, uint64_t cap_bytes); /* largest m with bound <= cap; 0 if none */

/* Writes one message. With a non-finite sum the message is the 64-byte announcement, *message_bytes = 64, the
   status GTCB_OK, and residual_out holds nothing of use: a caller that must be able to refuse the step keeps
   residual_in apart from residual_out. Segments need the alignment of their dtype only. */
gtcb_status gtcb_encode(const gtcb_variant *v, const gtcb_encode_job *job, const gtcb_executor *executor,
                        void *message, size_t capacity, size_t *message_bytes);

/* Of an element of a raw message; 0: no such type. */
size_t gtcb_raw_bytes(unsigned element);

/* Header of a raw message for `body`; scans float bodies for NaN and infinity and announces them. */
gtcb_status gtcb_write_raw_header(const gtcb_variant *v, gtcb_element element, const void *body, uint64_t elements,
                                  uint64_t weight, uint64_t sequence, uint32_t bucket, uint32_t sender,
                                  void *header_out /* 64 bytes */);

/* -- decode -------------------------------------------------------------------------------------- */

/* The checks that need no body; `bytes` is at least 64 bytes long. */
gtcb_status gtcb_read_header(const void *bytes, gtcb_header *out);
/* All checks of docs/message-format.md 1 to 4. `header_bytes` and `body` may lie apart. A sound announcement is
   GTCB_OK here (see gtcb_header.flags); gtcb_decode_add refuses it. */
gtcb_status gtcb_validate(const gtcb_variant *v, const void *header_bytes, const void *body, size_t body_bytes);

typedef struct gtcb_message { const void *header; const void *body; } gtcb_message;   /* validated */

/* dense[i] += q, messages in the given order; the same bits for every variant and executor. All messages must
   have passed gtcb_validate and have `elements` elements. Nothing is written if one is raw or has another number
   of elements (GTCB_MISMATCH), or announces a NaN or infinity (GTCB_NON_FINITE). */
gtcb_status gtcb_decode_add(const gtcb_variant *v, const gtcb_message *messages, size_t count,
                            float *dense, uint64_t elements, const gtcb_executor *executor);

typedef struct gtcb_target { void *data; size_t count; } gtcb_target;

/* What a mean can be written as. */
static inline bool gtcb_is_mean_dtype(gtcb_dtype dtype) { return dtype == GTCB_F32 || dtype == GTCB_BF16; }

typedef struct gtcb_mean_job {
    const gtcb_message *messages;   /* [count], validated, as for gtcb_decode_add */
    size_t count;
    uint64_t elements;              /* of each message */
    const gtcb_target *targets;     /* where the mean goes; laid end to end */
    size_t target_count;
    gtcb_dtype dtype;               /* of the targets */
    uint64_t first;                 /* of the targets' elements: the place of the messages' first one */
    float divisor;
    void *scratch;                  /* [gtcb_mean_scratch_bytes(count, executor)], aligned for doubles */
} gtcb_mean_job;

size_t gtcb_mean_scratch_bytes(size_t count, const gtcb_executor *executor);

/* target[i] = (0 + q + q + ...) / divisor in one pass over the targets: the bits of clearing, gtcb_decode_add and a
   division; of bfloat16 these rounded, to nearest, ties to even. Refuses what that refuses, and then writes nothing. */
gtcb_status gtcb_decode_mean(const gtcb_variant *v, const gtcb_mean_job *job, const gtcb_executor *executor);

/* -- block filter -------------------------------------------------------------------------------- */

/* BMUF's equations (docs/algorithms.md), element by element; every operation is rounded to the dtype by itself. All arrays are
   [elements], float32 or float64 (GTCB_F32, GTCB_F64), and apart from each other unless they are said to be allowed the same. */
typedef struct gtcb_block_filter {
    gtcb_dtype dtype;
    uint64_t elements;
    double momentum, lr;       /* η, ζ; rounded to the dtype */
    bool nesterov;
} gtcb_block_filter;

/* Δ = η·Δ + ζ·G;  W = W + Δ;  start = W + η·Δ, or W if not nesterov. start may be G. */
gtcb_status gtcb_block_update(const gtcb_block_filter *filter, const void *block_delta /* G */, void *block_update /* Δ */,
                              void *params /* W */, void *start, const gtcb_executor *executor);
/* delta = model - (W + η·Δ), or model - W if not nesterov. delta may be model. */
gtcb_status gtcb_local_delta(const gtcb_block_filter *filter, const void *model, const void *block_update, const void *params,
                             void *delta, const gtcb_executor *executor);

uint64_t gtcb_checksum(const gtcb_variant *v, const void *data, size_t bytes);   /* S of the format */

#ifdef __cplusplus
}
#endif
#endif
