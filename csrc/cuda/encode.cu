// gtcb_cuda_encode: arguments, the places of everything in the scratch memory, and the order of the kernels.
#include <float.h>

#include "cuda/encoder.cuh"

// -- scratch -------------------------------------------------------------------------------------------------------------

struct Places { uint8_t *memory; size_t used; };

template <class T> static void place(Places *places, T **table, uint64_t entries)
{
    *table = (T *)(places->memory + places->used);
    places->used += (entries * sizeof(T) + 15) / 16 * 16;
}

// Lays the tables end to end; returns how long they are together.
static size_t lay_out_scratch(Encoder *e, void *scratch)
{
    Places places = {(uint8_t *)scratch, 0};
    place(&places, &e->plan, 1);
    place(&places, &e->segments, e->segment_count + 1);
    place(&places, &e->starts, e->chunks);
    place(&places, &e->ends, parts(e->elements, BLOCK));
    place(&places, &e->offsets, parts(e->elements, BLOCK));
    place(&places, &e->counts, e->chunks);
    place(&places, &e->non_finite, e->chunks);
    place(&places, &e->words, e->chunks * CHUNK);
    return places.used;
}

size_t gtcb_cuda_scratch_bytes(uint64_t elements, size_t segments)
{
    Encoder e = {};
    e.elements = elements;
    e.chunks = parts(elements, CHUNK);
    e.segment_count = segments;
    return lay_out_scratch(&e, nullptr);
}

size_t gtcb_cuda_message_bytes(uint64_t elements) { return up_to_8(GTCB_HEADER_BYTES + dense_bytes(elements)); }

// -- arguments -----------------------------------------------------------------------------------------------------------

static bool aligned(const void *p, size_t to) { return (uintptr_t)p % to == 0; }

static bool apart_or_same(const float *a, const float *b, uint64_t count)
{
    const uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x == y || (x < y ? y - x : x - y) >= count * sizeof(float);
}

static bool segments_are_sound(const gtcb_encode_job *job)
{
    static const size_t bytes_of[] = {4, 2, 2, 8};      // in the order of gtcb_dtype
    uint64_t left = job->elements;
    for (size_t i = 0; i < job->segment_count; i++) {
        const gtcb_segment *s = &job->segments[i];
        if (s->count > left || (s->count > 0 && (s->data == nullptr || !aligned(s->data, bytes_of[job->dtype]))))
            return false;
        left -= s->count;
    }
    return left == 0;
}

static_assert(GTCB_CUDA_MAX_ELEMENTS / CHUNK < (uint64_t)1 << 31, "a grid of so many chunks");

static bool job_is_sound(const gtcb_encode_job *job, const void *message, const gtcb_cuda_launch *launch)
{
    return job != nullptr && job->segments != nullptr && job->residual_in != nullptr && job->residual_out != nullptr &&
           job->scratch != nullptr && message != nullptr && launch != nullptr && launch->blocks > 0 &&
           job->elements > 0 && job->elements <= GTCB_CUDA_MAX_ELEMENTS && job->max_sent > 0 &&
           job->threshold > 0.0f && job->threshold <= FLT_MAX && (unsigned)job->dtype <= GTCB_F64 &&
           aligned(job->scratch, 16) && aligned(message, 16) && segments_are_sound(job) &&
           apart_or_same(job->residual_in, job->residual_out, job->elements);
}

gtcb_status gtcb_cuda_encode(const gtcb_encode_job *job, void *message, const gtcb_cuda_launch *launch)
{
    if (!job_is_sound(job, message, launch))
        return GTCB_BAD_ARGUMENT;
    Encoder e = {};
    e.elements = job->elements;
    e.chunks = parts(job->elements, CHUNK);
    e.max_sent = job->max_sent;
    e.sequence = job->sequence;
    e.segment_count = job->segment_count;
    e.residual_in = job->residual_in;
    e.residual_out = job->residual_out;
    e.threshold = job->threshold;
    e.dtype = job->dtype;
    e.bucket = job->bucket;
    e.sender = job->sender;
    e.aligned = aligned(job->residual_in, 16) && aligned(job->residual_out, 16);
    e.message = (uint64_t *)message;
    lay_out_scratch(&e, job->scratch);
    launch_stage(e, job->segments, *launch);
    launch_plan(e, *launch);
    launch_pack(e, *launch);
    return launched();
}
