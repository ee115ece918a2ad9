/* The message of each shard of a bucket. */
#include <stdlib.h>

#include "exchange/internal.h"

static gtcb_shard shard(const gtcb_op *op, uint32_t i) { return gtcb_shard_of(op->elements, op->exchange->size, i); }

static uint64_t share(const gtcb_op *op, uint32_t i)
{
    uint64_t all = op->job.max_sent, part = gtcb_shard_of(all, op->exchange->size, i).count;
    return all == GTCB_NO_CAP ? GTCB_NO_CAP : part ? part : 1;      /* what is never sent would pile up */
}

gtcb_status gtcb_encode_shard(gtcb_op *op, uint32_t i, gtcb_encode_job *job, uint8_t *message, size_t capacity, gtcb_header *out)
{
    gtcb_engine *engine = op->exchange->engine;
    size_t bytes;
    job->elements = shard(op, i).count;
    if (gtcb_buffer_need(&engine->scratch, sizeof(uint32_t) * gtcb_scratch_words(job->elements)))
        return GTCB_NO_MEMORY;
    job->scratch = (uint32_t *)engine->scratch.data;
    job->max_sent = share(op, i);
    job->sequence = op->sequence;
    job->bucket = op->bucket;
    job->sender = op->exchange->rank;
    gtcb_status status = gtcb_encode(engine->settings.variant, job, gtcb_pool_executor(engine->pool), message, capacity, &bytes);
    return status ? status : gtcb_read_header(message, out);
}

/* The gradients of a shard: segments from `at` on, into `out`; where the next shard's begin. */
typedef struct place { size_t segment, offset; } place;

static place cut(const gtcb_op *op, place at, uint64_t count, gtcb_segment *out, size_t *out_count)
{
    static const size_t bytes_of[] = {[GTCB_F32] = 4, [GTCB_BF16] = 2, [GTCB_F16] = 2, [GTCB_F64] = 8};
    const gtcb_segment *segments = (const gtcb_segment *)op->segments.data;
    for (*out_count = 0; count > 0;) {
        const gtcb_segment *s = &segments[at.segment];
        uint64_t left = s->count - at.offset, taken = left < count ? left : count;
        if (taken)
            out[(*out_count)++] = (gtcb_segment){(const uint8_t *)s->data + at.offset * bytes_of[op->job.dtype], taken};
        count -= taken;
        at = taken < left ? (place){at.segment, at.offset + taken} : (place){at.segment + 1, 0};
    }
    return at;
}

gtcb_status gtcb_encode_shards(gtcb_op *op, size_t stride, gtcb_header *announced)
{
    gtcb_segment *cuts = malloc((op->job.segment_count + 1) * sizeof *cuts);
    if (!cuts)
        return GTCB_NO_MEMORY;
    place at = {0, 0};
    gtcb_status status = GTCB_OK;
    for (uint32_t i = 0; i < op->exchange->size && shard(op, i).count && !status && !announced->flags; i++) {
        gtcb_encode_job job = op->job;
        gtcb_header h;
        at = cut(op, at, shard(op, i).count, cuts, &job.segment_count);
        job.segments = cuts;
        job.residual_in += shard(op, i).first;
        job.residual_out += shard(op, i).first;
        status = gtcb_encode_shard(op, i, &job, op->own.data + i * stride, stride, &h);
        if (!status && h.flags & GTCB_FLAG_NON_FINITE) {
            announced->flags = GTCB_FLAG_NON_FINITE;
            announced->sent = shard(op, i).first + h.sent;
            announced->body_bytes = 0;
        } else if (!status) {
            announced->sent += h.sent;
        }
    }
    free(cuts);
    return status;
}
