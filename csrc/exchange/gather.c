/* Encode and allgather: every rank's message goes to all. */
#include <stdlib.h>

#include "exchange/internal.h"

static gtcb_status prepare_encode(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    gtcb_encode_job *job = &op->job;
    size_t capacity = gtcb_message_capacity(job->elements), bytes = 0;
    if (gtcb_buffer_need(&op->own, capacity) ||
        gtcb_buffer_need(&engine->scratch, sizeof(uint32_t) * gtcb_scratch_words(job->elements)))
        return GTCB_NO_MEMORY;
    job->segments = (const gtcb_segment *)op->segments.data;
    job->scratch = (uint32_t *)engine->scratch.data;
    job->sequence = op->sequence;
    job->bucket = op->bucket;
    job->sender = x->rank;
    double begin = engine->settings.now();
    gtcb_status status = gtcb_encode(engine->settings.variant, job, gtcb_pool_executor(engine->pool), op->own.data, capacity,
                                     &bytes);
    if (status)
        return status;
    gtcb_header header;
    memcpy(op->announcement, op->own.data, GTCB_HEADER_BYTES);
    status = gtcb_read_header(op->announcement, &header);
    pthread_mutex_lock(&engine->lock);
    x->counters.encode_seconds += engine->settings.now() - begin;
    if (!(header.flags & GTCB_FLAG_NON_FINITE))
        x->counters.elements_sent += header.sent;
    pthread_mutex_unlock(&engine->lock);
    return status;
}

/* As bytes: allgather copies bits, so NaNs pass. */
static gtcb_status prepare_allgather(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    return gtcb_write_raw_header(x->engine->settings.variant, GTCB_BYTES, op->array, op->elements * gtcb_element_bytes(op->element),
                                 1, op->sequence, gtcb_pack_bucket(GTCB_ALLGATHER, op->element, op->bucket), x->rank,
                                 op->announcement);
}

static size_t body_bytes(gtcb_op *op, uint32_t rank)
{
    return gtcb_get64(gtcb_op_header_of(op, rank) + 24);     /* a header that gtcb_agree has read */
}

static gtcb_spans spans(gtcb_op *op, uint32_t rank)
{
    bool own = rank == op->exchange->rank;
    void *body = !own ? op->bodies.data + op->offsets[rank]
                 : op->operation == GTCB_ENCODE ? op->own.data + GTCB_HEADER_BYTES : op->array;
    return (gtcb_spans){{{body, body_bytes(op, rank)}}};
}

static gtcb_status begin(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    size_t need = 0, longest = 0;
    for (uint32_t r = 0; r < x->size; r++) {
        op->offsets[r] = need;
        longest = body_bytes(op, r) > longest ? body_bytes(op, r) : longest;
        if (r == x->rank && op->operation == GTCB_ENCODE)
            continue;                                        /* is in op->own */
        size_t bytes = body_bytes(op, r);
        if (bytes > SIZE_MAX / 4 - need)
            return gtcb_op_fail(op, GTCB_NO_MEMORY, r, "rank %u announces a body of %zu bytes", r, bytes);
        need += (bytes + 63) / 64 * 64;
    }
    if (gtcb_buffer_need(&op->bodies, need))
        return gtcb_op_fail(op, GTCB_NO_MEMORY, x->rank, "no memory for bodies of %zu bytes", need);
    gtcb_span own = spans(op, x->rank).of[0];
    if (own.bytes && op->operation == GTCB_ALLGATHER)
        memcpy(op->bodies.data + op->offsets[x->rank], own.data, own.bytes);
    if (gtcb_goes_around(x, longest))
        return gtcb_ring_begin(op);
    gtcb_status status = GTCB_OK;
    for (uint32_t i = 1; i < x->size && !status; i++) {
        uint32_t peer = gtcb_peer(x, x->size - i);
        status = gtcb_op_expect(op, op->bodies.data + op->offsets[peer], body_bytes(op, peer), peer, 0, peer);
    }
    for (uint32_t i = 1; i < x->size && !status; i++)
        status = gtcb_op_send(op, own.data, own.bytes, gtcb_peer(x, i), 0);
    return status;
}

static void arrived(gtcb_op *op, uint32_t slot)
{
    gtcb_ring_pass_on(op);         /* sound or not: the next rank sees for itself, and need not wait for it */
    gtcb_op_validate(op, gtcb_op_header_of(op, slot), op->bodies.data + op->offsets[slot], body_bytes(op, slot), slot);
}

static gtcb_status proceed(gtcb_op *op) { (void)op; return GTCB_OK; }

const gtcb_op_class gtcb_encode_class = {prepare_encode, begin, arrived, proceed, spans};
const gtcb_op_class gtcb_allgather_class = {prepare_allgather, begin, arrived, proceed, spans};

const void *gtcb_op_header(const gtcb_op *op, uint32_t rank) { return op->headers.data + (size_t)rank * GTCB_HEADER_BYTES; }

const void *gtcb_op_body(const gtcb_op *op, uint32_t rank, size_t *bytes)
{
    *bytes = gtcb_get64((const uint8_t *)gtcb_op_header(op, rank) + 24);
    if (op->operation == GTCB_ENCODE && rank == op->exchange->rank)
        return op->own.data + GTCB_HEADER_BYTES;
    return op->bodies.data + op->offsets[rank];
}

gtcb_status gtcb_op_decode_add(gtcb_op *op, float *dense, uint64_t elements)
{
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    if (!gtcb_op_done(op) || op->failure.status || op->operation != GTCB_ENCODE || elements != op->elements)
        return GTCB_BAD_ARGUMENT;
    gtcb_message few[32], *messages = x->size <= 32 ? few : malloc(x->size * sizeof *messages);
    if (!messages)
        return GTCB_NO_MEMORY;
    for (uint32_t r = 0; r < x->size; r++) {
        size_t bytes;
        messages[r].header = gtcb_op_header(op, r);
        messages[r].body = gtcb_op_body(op, r, &bytes);
    }
    double begin_time = engine->settings.now();
    gtcb_status status = gtcb_decode_add(engine->settings.variant, messages, x->size, dense, elements,
                                         gtcb_pool_executor(engine->pool));
    if (messages != few)
        free(messages);
    pthread_mutex_lock(&engine->lock);
    x->counters.decode_seconds += engine->settings.now() - begin_time;
    pthread_mutex_unlock(&engine->lock);
    return status;
}
