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
    if (!status && gtcb_is_short(x, header.body_bytes))
        op->hello = (gtcb_span){op->own.data, GTCB_HEADER_BYTES + header.body_bytes};
    else if (!status)
        gtcb_window_put(op, op->own.data + GTCB_HEADER_BYTES, header.body_bytes);
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
    size_t bytes = op->elements * gtcb_raw_bytes(op->element);
    gtcb_status status = gtcb_write_raw_header(x->engine->settings.variant, GTCB_BYTES, op->array, bytes, 1, op->sequence,
                                               gtcb_pack_bucket(GTCB_ALLGATHER, op->element, op->bucket), x->rank,
                                               op->announcement);
    if (!status && gtcb_is_short(x, bytes))
        return gtcb_op_say(op, op->array, bytes);
    if (!status)
        gtcb_window_put(op, op->array, bytes);
    return status;
}

static size_t body_bytes(gtcb_op *op, uint32_t rank)
{
    return gtcb_get64(gtcb_op_header_of(op, rank) + 24);     /* a header that gtcb_agree has read */
}

static bool came_with_header(gtcb_op *op, uint32_t rank) { return gtcb_is_short(op->exchange, body_bytes(op, rank)); }
static uint32_t place_of(gtcb_op *op, uint32_t rank) { return rank == op->exchange->rank ? op->place : op->places[rank]; }
static bool travels(gtcb_op *op, uint32_t rank) { return !came_with_header(op, rank) && !place_of(op, rank); }
static bool lies_in_own(gtcb_op *op, uint32_t rank)
{
    return rank == op->exchange->rank && (op->operation == GTCB_ENCODE || op->operation == GTCB_DIRECT);
}

static uint8_t *body_of(gtcb_op *op, uint32_t rank)
{
    if (lies_in_own(op, rank))
        return op->own.data + GTCB_HEADER_BYTES;
    if (rank != op->exchange->rank && came_with_header(op, rank))
        return gtcb_op_short_body(op, rank);
    if (place_of(op, rank))
        return gtcb_window_at(op->exchange, rank, place_of(op, rank), body_bytes(op, rank));
    return op->bodies.data + op->offsets[rank];
}

static gtcb_spans spans(gtcb_op *op, uint32_t rank)
{
    return (gtcb_spans){{{body_of(op, rank), travels(op, rank) ? body_bytes(op, rank) : 0}}};
}

static void check_placed(gtcb_op *op, uint32_t rank)
{
    uint8_t *body = body_of(op, rank);
    op->batch.bytes_received += body_bytes(op, rank);
    if (body)
        gtcb_op_validate(op, gtcb_op_header_of(op, rank), body, body_bytes(op, rank), rank);
    else
        gtcb_op_fail(op, GTCB_BAD_HEADER, rank, "rank %u, bucket %u, sequence %llu: a body of %zu bytes outside its window", rank, op->bucket,
                     (unsigned long long)op->sequence, body_bytes(op, rank));
}

static gtcb_status begin(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    size_t need = 0, longest = 0;
    for (uint32_t r = 0; r < x->size; r++) {
        op->offsets[r] = need;
        longest = body_bytes(op, r) > longest ? body_bytes(op, r) : longest;
        if (lies_in_own(op, r) || place_of(op, r) || (r != x->rank && came_with_header(op, r)))
            continue;
        size_t bytes = body_bytes(op, r);
        if (bytes > SIZE_MAX / 4 - need)
            return gtcb_op_fail(op, GTCB_NO_MEMORY, r, "rank %u announces a body of %zu bytes", r, bytes);
        need += (bytes + 63) / 64 * 64;
    }
    if (gtcb_buffer_need(&op->bodies, need))
        return gtcb_op_fail(op, GTCB_NO_MEMORY, x->rank, "no memory for bodies of %zu bytes", need);
    if (body_bytes(op, x->rank) && op->operation == GTCB_ALLGATHER && !op->place)
        memcpy(body_of(op, x->rank), op->array, body_bytes(op, x->rank));
    for (uint32_t r = 0; r < x->size; r++)                          /* sound or not: the others want the long ones */
        if (r != x->rank && came_with_header(op, r))
            gtcb_op_check_short_body(op, r, body_bytes(op, r));
        else if (r != x->rank && place_of(op, r))
            check_placed(op, r);
    return gtcb_spread(op, longest);
}

static void arrived(gtcb_op *op, uint32_t slot)
{
    gtcb_op_validate(op, gtcb_op_header_of(op, slot), body_of(op, slot), body_bytes(op, slot), slot);
}

static gtcb_status proceed(gtcb_op *op) { (void)op; return GTCB_OK; }

const gtcb_op_class gtcb_encode_class = {prepare_encode, begin, arrived, proceed, spans};
const gtcb_op_class gtcb_allgather_class = {prepare_allgather, begin, arrived, proceed, spans};

const void *gtcb_op_header(gtcb_op *op, uint32_t rank) { return gtcb_op_header_of(op, rank); }

const void *gtcb_op_body(gtcb_op *op, uint32_t rank, size_t *bytes)
{
    *bytes = body_bytes(op, rank);
    return body_of(op, rank);
}
