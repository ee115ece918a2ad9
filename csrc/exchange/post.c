/* Posting operations: arguments are checked, buffers of an earlier one of the kind taken, and it joins the queue. */
#include <stdlib.h>

#include "exchange/internal.h"

/* An operation of that kind that is not in use, buffers and all, or a new one. */
static gtcb_status take(gtcb_exchange *x, gtcb_operation operation, uint32_t bucket, gtcb_op **out)
{
    if (bucket >= GTCB_BUCKETS)
        return GTCB_BAD_ARGUMENT;
    pthread_mutex_lock(&x->engine->lock);
    bool closed = x->failure.status != GTCB_OK;
    gtcb_op *op = NULL;
    for (gtcb_op **link = &x->idle; !closed && *link; link = &(*link)->next)
        if ((*link)->operation == operation && (*link)->bucket == bucket) {
            op = *link;
            *link = op->next;
            break;
        }
    pthread_mutex_unlock(&x->engine->lock);
    if (closed)
        return GTCB_CLOSED;
    if (!op)
        op = gtcb_op_create(x, operation, bucket);
    *out = op;
    return op ? GTCB_OK : GTCB_NO_MEMORY;
}

static gtcb_status keep(gtcb_buffer *buffer, const void *data, size_t bytes)
{
    gtcb_status status = gtcb_buffer_need(buffer, bytes);
    if (!status && bytes)
        memcpy(buffer->data, data, bytes);
    return status;
}

static gtcb_status take_job(gtcb_exchange *x, gtcb_operation operation, const gtcb_encode_job *job, const gtcb_mean_into *into,
                            gtcb_op **out)
{
    uint64_t elements = 0;
    for (size_t i = 0; i < job->segment_count; i++)
        elements += job->segments[i].count;
    if (elements != job->elements || !(job->threshold > 0) || job->threshold > FLT_MAX || job->max_sent == 0 ||
        (into && !gtcb_mean_fits(into, elements)))
        return GTCB_BAD_ARGUMENT;
    gtcb_op *op;
    gtcb_status status = take(x, operation, job->bucket, &op);
    if (status)
        return status;
    op->into = into ? *into : (gtcb_mean_into){NULL, 0, GTCB_F32, 1};
    status = keep(&op->segments, job->segments, job->segment_count * sizeof *job->segments);
    if (!status)
        status = keep(&op->targets, op->into.targets, op->into.count * sizeof *op->into.targets);
    if (status) {
        gtcb_op_destroy(op);
        return status;
    }
    op->into.targets = (const gtcb_target *)op->targets.data;
    op->job = *job;
    op->elements = elements;
    *out = op;
    return GTCB_OK;
}

gtcb_status gtcb_post_encode(gtcb_exchange *x, const gtcb_encode_job *job, const gtcb_mean_into *into, gtcb_op **out)
{
    gtcb_status status = take_job(x, GTCB_ENCODE, job, into, out);
    if (!status)
        gtcb_engine_enqueue(*out);
    return status;
}

gtcb_status gtcb_post_owners(gtcb_exchange *x, const gtcb_encode_job *job, const gtcb_encode_job *second,
                             const gtcb_mean_into *into, gtcb_op **out)
{
    if (job->elements == 0 || !(second->threshold > 0) || second->threshold > FLT_MAX)
        return GTCB_BAD_ARGUMENT;
    gtcb_status status = take_job(x, GTCB_OWNERS, job, into, out);
    if (status)
        return status;
    (*out)->second = *second;
    gtcb_engine_enqueue(*out);
    return GTCB_OK;
}

gtcb_status gtcb_post_direct(gtcb_exchange *x, const void *message, size_t bytes, const gtcb_direct *direct, uint32_t bucket,
                             gtcb_op **out)
{
    if (!gtcb_is_short(x, bytes) || (uintptr_t)direct->room % GTCB_DIRECT_ALIGNMENT)
        return GTCB_BAD_ARGUMENT;
    gtcb_status status = take(x, GTCB_DIRECT, bucket, out);
    if (status)
        return status;
    (*out)->element = GTCB_BYTES;
    (*out)->array = (void *)message;
    (*out)->elements = bytes;
    (*out)->direct = *direct;
    gtcb_engine_enqueue(*out);
    return GTCB_OK;
}

static gtcb_status post_array(gtcb_exchange *x, gtcb_operation operation, gtcb_element element, void *array,
                              uint64_t elements, uint64_t weight, uint32_t root, uint32_t bucket, gtcb_op **out)
{
    gtcb_op *op;
    gtcb_status status = take(x, operation, bucket, &op);
    if (status)
        return status;
    op->element = element;
    op->array = array;
    op->elements = elements;
    op->weight = weight;
    op->root = root;
    gtcb_engine_enqueue(op);
    *out = op;
    return GTCB_OK;
}

gtcb_status gtcb_post_allreduce(gtcb_exchange *x, gtcb_element element, void *array, uint64_t elements, uint64_t weight,
                                bool mean, uint32_t bucket, gtcb_op **out)
{
    if (element != GTCB_FLOAT32 && element != GTCB_FLOAT64 && element != GTCB_BFLOAT16)
        return GTCB_BAD_ARGUMENT;
    return post_array(x, mean ? GTCB_MEAN : GTCB_SUM, element, array, elements, weight, 0, bucket, out);
}

gtcb_status gtcb_post_broadcast(gtcb_exchange *x, gtcb_element element, void *array, uint64_t elements, uint32_t root,
                                uint32_t bucket, gtcb_op **out)
{
    if (root >= x->size)
        return GTCB_BAD_ARGUMENT;
    return post_array(x, GTCB_BROADCAST, element, array, elements, 0, root, bucket, out);
}

gtcb_status gtcb_post_allgather(gtcb_exchange *x, gtcb_element element, const void *array, uint64_t elements, uint32_t bucket,
                                gtcb_op **out)
{
    return post_array(x, GTCB_ALLGATHER, element, (void *)array, elements, 0, 0, bucket, out);
}
