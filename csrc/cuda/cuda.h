/* The codec on a CUDA device: the same contract as codec/codec.h, and the same bytes, for arrays in device memory.

   Every call enqueues kernels on the caller's stream and returns: none waits, allocates or copies between host and
   device. Pointers to arrays, messages and workspaces are device addresses; job structures lie on the host and are not
   needed once the call has returned. A status other than GTCB_OK says that nothing useful was enqueued. */
#ifndef GTCB_CUDA_H
#define GTCB_CUDA_H

#include "codec/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gtcb_cuda_launch {
    void *stream;              /* a cudaStream_t; NULL: the legacy default stream */
    unsigned blocks;           /* of a grid that shares out a bucket; any number > 0 gives the same bytes */
} gtcb_cuda_launch;

/* -- encode -------------------------------------------------------------------------------------- */

/* Of one bucket: encode has a block of threads for each chunk of 4,096 elements or more, and a grid less than 2^31 blocks. */
#define GTCB_CUDA_MAX_ELEMENTS (UINT64_C(1) << 42)

/* As gtcb_encode, but: elements is at most GTCB_CUDA_MAX_ELEMENTS; segments[i].data, residuals, scratch and message are
   on the device; `scratch` is gtcb_cuda_scratch_bytes long, `message` gtcb_cuda_message_bytes, both aligned to 16. The
   length of the message is known when its first 64 bytes are read (gtcb_read_header). All that the bytes depend on is in
   the job: a captured graph repeats them with the threshold and the sequence number of its capture. */
gtcb_status gtcb_cuda_encode(const gtcb_encode_job *job, void *message, const gtcb_cuda_launch *launch);
size_t gtcb_cuda_scratch_bytes(uint64_t elements, size_t segments);
size_t gtcb_cuda_message_bytes(uint64_t elements);      /* gtcb_message_capacity, up to a multiple of 8 */

/* -- decode -------------------------------------------------------------------------------------- */

/* header: 64 bytes on the host, which gtcb_read_header accepts. body: on the device, aligned to 8, readable up to a
   multiple of 8 bytes. */
typedef struct gtcb_cuda_message { const void *header; const void *body; } gtcb_cuda_message;

/* Check of the bodies (docs/message-format.md, 1 to 4): verdicts[i], on the device, becomes what gtcb_validate would
   return for messages[i]. Refuses the headers that gtcb_decode_add refuses, with its status. scratch:
   gtcb_cuda_decode_scratch_bytes, aligned to 16. */
gtcb_status gtcb_cuda_validate(const gtcb_cuda_message *messages, size_t count, uint64_t elements, uint32_t *verdicts,
                               void *scratch, const gtcb_cuda_launch *launch);

/* dense[i] += q, messages in the given order. verdicts: of gtcb_cuda_validate, earlier on the stream: if one is not
   GTCB_OK nothing is written; NULL: the bodies were validated elsewhere. The bodies must not change in between. */
gtcb_status gtcb_cuda_decode_add(const gtcb_cuda_message *messages, size_t count, float *dense, uint64_t elements,
                                 const uint32_t *verdicts, void *scratch, const gtcb_cuda_launch *launch);

/* mean[i] = (0 + q + q + ...) / divisor, the division correctly rounded; count > 0, divisor > 0. Else as
   gtcb_cuda_decode_add. What was in `mean` is not read. */
gtcb_status gtcb_cuda_decode_mean(const gtcb_cuda_message *messages, size_t count, float *mean, uint64_t elements, float divisor,
                                  const uint32_t *verdicts, void *scratch, const gtcb_cuda_launch *launch);
/* Only headers are read. Grows with the elements sent, in powers of two, up to 4 bytes an element; and with messages up to 64. */
size_t gtcb_cuda_decode_scratch_bytes(const gtcb_cuda_message *messages, size_t count, uint64_t elements);

/* -- block update ---------------------------------------------------------------------------------- */

/* BMUF's equations (docs/algorithms.md) in one pass, element by element, each operation rounded by itself:
   Δ = η·Δ + ζ·G;  W = W + Δ;  start = W + η·Δ, or W if not nesterov. All arrays [elements], float32 or float64
   (GTCB_F32, GTCB_F64); start may be G. */
typedef struct gtcb_cuda_block {
    gtcb_dtype dtype;
    uint64_t elements;
    const void *block_delta;   /* G */
    void *block_update;        /* Δ */
    void *params;              /* W */
    void *start;               /* W_start */
    double momentum, lr;       /* η, ζ; rounded to the dtype */
    bool nesterov;
} gtcb_cuda_block;
gtcb_status gtcb_cuda_block_update(const gtcb_cuda_block *block, const gtcb_cuda_launch *launch);

#ifdef __cplusplus
}
#endif
#endif
