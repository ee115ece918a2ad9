// What the kernels of encode hand to each other, all of it in the scratch memory. In order on the stream:
//   stage.cu   note_segments (many of them), stage_chunks: residual, and the words of each chunk
//   plan.cu    number_words, cap_chunks (with a cap), plan_message: numbers, layout, which body
//   pack.cu    write_message
#pragma once

#include "cuda/device.cuh"

struct Segment { const void *data; uint64_t start; };      // start: index in the bucket of its first element

struct Plan {                      // of one message
    uint64_t sent, body_bytes, checksum;
    uint64_t non_finite;           // index of the first; NONE
    uint64_t window_start;         // of the cap
    uint32_t kind;
    uint32_t blocks_done;          // of threads, with their part of the body
};

constexpr uint64_t NONE = ~(uint64_t)0;
constexpr uint32_t NONE_IN_CHUNK = ~(uint32_t)0;

struct Encoder {
    // of the job
    uint64_t elements, chunks, max_sent, sequence, segment_count;
    const float *residual_in;
    float *residual_out;
    float threshold;
    gtcb_dtype dtype;
    uint32_t bucket, sender;
    bool aligned;                  // both residuals to 16 bytes
    uint64_t *message;             // [capacity / 8]
    // scratch
    Plan *plan;
    Segment *segments;             // [segment_count + 1], the last one begins at `elements`; few are an argument of stage_chunks
    uint64_t *starts;              // [chunks] number of a chunk's first word among all
    uint64_t *ends, *offsets;      // [blocks of the packed body] index after the last element; place in the body
    uint32_t *counts;              // [chunks] words
    uint32_t *non_finite;          // [chunks] index in the chunk; NONE_IN_CHUNK
    uint16_t *words;               // those of chunk c begin at words + c * CHUNK: 2 * index in the chunk + negative
};

void launch_stage(const Encoder &encoder, const gtcb_segment *segments, const gtcb_cuda_launch &launch);
void launch_plan(const Encoder &encoder, const gtcb_cuda_launch &launch);
void launch_pack(const Encoder &encoder, const gtcb_cuda_launch &launch);
