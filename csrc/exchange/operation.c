/* The life of an operation: queued, headers, bodies, perhaps a mean, done. What it does with bodies is its class's. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "exchange/internal.h"

/* Bodies have tags of their own operation and round; the numbers come again after 2048 operations, of which
   GTCB_WINDOW at most are under way. MPI allows tags up to 32767; 0 is that of letters. */
#define TAG_OF(op, phase) (1 + (int)((op)->sequence % 2048) * 4 + (int)(phase))

gtcb_status gtcb_buffer_extend(gtcb_buffer *buffer, size_t used, size_t bytes)
{
    const size_t pad = 64;
    if (bytes <= buffer->capacity)
        return GTCB_OK;
    if (bytes > SIZE_MAX / 2)
        return GTCB_NO_MEMORY;
    size_t capacity = bytes + (buffer->capacity ? bytes / 4 : 0);    /* lengths vary from step to step */
    uint8_t *grown = aligned_alloc(64, (capacity + pad + 63) / 64 * 64);
    if (!grown)
        return GTCB_NO_MEMORY;
    if (used)
        memcpy(grown, buffer->data, used);
    free(buffer->data);
    *buffer = (gtcb_buffer){grown, capacity};
    return GTCB_OK;
}

gtcb_status gtcb_buffer_need(gtcb_buffer *buffer, size_t bytes)
{
    if (bytes > buffer->capacity) {      /* before the new memory is taken */
        free(buffer->data);
        buffer->data = NULL;
    }
    return gtcb_buffer_extend(buffer, 0, bytes);
}

bool gtcb_is_short(const gtcb_exchange *x, size_t bytes) { return bytes <= gtcb_longest_short_body(x); }
size_t gtcb_exchange_short_bytes(const gtcb_exchange *x) { return gtcb_longest_short_body(x); }

static const gtcb_op_class *class_of(gtcb_operation operation)
{
    switch (operation) {
    case GTCB_ENCODE: return &gtcb_encode_class;
    case GTCB_OWNERS: return &gtcb_owners_class;
    case GTCB_DIRECT: return &gtcb_direct_class;
    case GTCB_ALLGATHER: return &gtcb_allgather_class;
    case GTCB_BROADCAST: return &gtcb_broadcast_class;
    default: return &gtcb_allreduce_class;
    }
}

/* Between hosts in short pieces, which can be passed on, and take turns, while others are on their way. A piece must not be longer than what MPI
   sends without asking the receiver, 64 KiB over TCP with Open MPI, or each would take a way there and back. What is in the memory of
   a device goes as a whole: there every piece has its price. */
#define WIRE_PIECE ((size_t)60 << 10)

static size_t piece_bytes(const gtcb_exchange *x, gtcb_operation operation)
{
    const size_t most = x->engine->settings.piece_bytes;
    return x->per_host < x->size && operation != GTCB_DIRECT && most > WIRE_PIECE ? WIRE_PIECE : most;
}

gtcb_op *gtcb_op_create(gtcb_exchange *x, gtcb_operation operation, uint32_t bucket)
{
    gtcb_op *op = calloc(1, sizeof *op);
    if (!op)
        return NULL;
    op->exchange = x;
    op->class = class_of(operation);
    op->operation = operation;
    op->bucket = bucket;
    op->seen = malloc(x->size);
    op->late = malloc(x->size);
    op->greeted = malloc(x->size);
    op->offsets = calloc(x->size, sizeof *op->offsets);
    op->short_at = calloc(2 * (size_t)x->size, sizeof *op->short_at);
    op->places = calloc(x->size, sizeof *op->places);
    gtcb_status status = gtcb_batch_init(&op->batch, &x->engine->settings.mpi, x->comm, x->size, piece_bytes(x, operation));
    if (!op->seen || !op->late || !op->greeted || !op->offsets || !op->short_at || !op->places || status ||
        gtcb_buffer_need(&op->headers, (size_t)x->size * GTCB_HEADER_BYTES)) {
        gtcb_op_destroy(op);
        return NULL;
    }
    op->short_bytes = op->short_at + x->size;
    return op;
}

void gtcb_op_destroy(gtcb_op *op)
{
    gtcb_batch_free(&op->batch);
    free(op->seen);
    free(op->late);
    free(op->greeted);
    free(op->offsets);
    free(op->short_at);
    free(op->places);
    free(op->shorts.data);
    free(op->segments.data);
    free(op->targets.data);
    free(op->headers.data);
    free(op->own.data);
    free(op->bodies.data);
    free(op);
}

uint8_t *gtcb_op_header_of(gtcb_op *op, uint32_t rank) { return op->headers.data + (size_t)rank * GTCB_HEADER_BYTES; }
uint8_t *gtcb_op_short_body(gtcb_op *op, uint32_t rank) { return op->shorts.data + op->short_at[rank]; }

gtcb_status gtcb_op_say(gtcb_op *op, const void *body, size_t bytes)
{
    if (gtcb_buffer_need(&op->own, GTCB_HEADER_BYTES + bytes))
        return GTCB_NO_MEMORY;
    memcpy(op->own.data, op->announcement, GTCB_HEADER_BYTES);
    if (bytes)
        memcpy(op->own.data + GTCB_HEADER_BYTES, body, bytes);
    op->hello = (gtcb_span){op->own.data, GTCB_HEADER_BYTES + bytes};
    return GTCB_OK;
}

gtcb_status gtcb_op_check_short_body(gtcb_op *op, uint32_t rank, size_t bytes)
{
    if (op->short_bytes[rank] != bytes)
        return gtcb_op_fail(op, GTCB_TRUNCATED, rank, "rank %u, bucket %u, sequence %llu: a body of %zu bytes came, the header says %zu", rank,
                            op->bucket, (unsigned long long)op->sequence, op->short_bytes[rank], bytes);
    op->batch.bytes_received += bytes;
    return bytes ? gtcb_op_validate(op, gtcb_op_header_of(op, rank), gtcb_op_short_body(op, rank), bytes, rank) : GTCB_OK;
}

gtcb_status gtcb_op_fail(gtcb_op *op, gtcb_status status, uint32_t rank, const char *format, ...)
{
    gtcb_failure *failure = &op->failure;
    if (failure->status)
        return failure->status;
    failure->status = status;
    failure->rank = rank;
    failure->bucket = op->bucket;
    failure->sequence = op->sequence;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure->text, sizeof failure->text, format, arguments);
    va_end(arguments);
    return status;
}

gtcb_status gtcb_op_transfer_failed(gtcb_op *op, const gtcb_batch *batch, gtcb_status status)
{
    char text[512] = "no memory for requests", what[160];
    if (status == GTCB_MPI_ERROR)
        gtcb_mpi_error_text(batch->mpi, batch->mpi_code, text, sizeof text);
    return gtcb_op_fail(op, status, op->exchange->rank, "%s, sequence %llu: %s", gtcb_op_describe(op, what, sizeof what),
                        (unsigned long long)op->sequence, text);
}

static gtcb_status transfer_failed(gtcb_op *op, gtcb_status status) { return gtcb_op_transfer_failed(op, &op->batch, status); }

gtcb_status gtcb_op_send(gtcb_op *op, const void *data, size_t bytes, uint32_t peer, unsigned phase)
{
    gtcb_status status = gtcb_batch_send(&op->batch, data, bytes, peer, TAG_OF(op, phase));
    return status ? transfer_failed(op, status) : GTCB_OK;
}

gtcb_status gtcb_op_pass_on(gtcb_op *op, size_t k, uint32_t peer)
{
    gtcb_status status = gtcb_batch_pass_on(&op->batch, k, peer);
    return status ? transfer_failed(op, status) : GTCB_OK;
}

gtcb_status gtcb_op_expect(gtcb_op *op, void *data, size_t bytes, uint32_t peer, unsigned phase, uint32_t slot)
{
    gtcb_status status = gtcb_batch_receive(&op->batch, data, bytes, peer, TAG_OF(op, phase), slot);
    op->seen[slot] = op->batch.awaited[slot] == 0;
    return status ? transfer_failed(op, status) : GTCB_OK;
}

gtcb_status gtcb_op_validate(gtcb_op *op, const void *header, void *body, size_t bytes, uint32_t from)
{
    gtcb_exchange *x = op->exchange;
    if (bytes && atomic_exchange(&x->corrupt_next, false))
        ((uint8_t *)body)[bytes / 2] ^= 1;
    gtcb_status status = gtcb_validate(x->engine->settings.variant, header, body, bytes);
    if (status)
        gtcb_op_fail(op, status, from, "body from rank %u, bucket %u, sequence %llu: %s", from, op->bucket,
                     (unsigned long long)op->sequence, gtcb_status_text(status));
    return status;
}

static gtcb_status say_hello(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    memcpy(gtcb_op_header_of(op, x->rank), op->announcement, GTCB_HEADER_BYTES);
    op->batch.bytes_received = (uint64_t)(x->size - 1) * GTCB_HEADER_BYTES;
    op->batch.bytes_sent = (uint64_t)(x->size - 1) * op->hello.bytes + op->bytes_shared;
    gtcb_status status = gtcb_mail_write(op);
    return status ? gtcb_op_fail(op, status, x->rank, "no memory for a letter") : GTCB_OK;
}

void gtcb_op_start(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    memset(op->seen, 1, x->size);
    memset(op->late, 0, x->size);
    op->phase = 0;
    op->around = false;
    op->passed = op->to_pass = 0;
    gtcb_batch_rewind(&op->batch);
    op->letter = NULL;
    op->unsent = true;
    op->complete = false;
    if (x->failed) {
        gtcb_op_fail(op, GTCB_CLOSED, x->failure.rank, "%s", x->failure.text);
        op->stage = GTCB_DONE;
        return;
    }
    op->hello = (gtcb_span){op->announcement, GTCB_HEADER_BYTES};
    gtcb_window_begin(op);
    op->begun = x->engine->settings.now();
    gtcb_status status = op->class->prepare(op);
    if (status)
        gtcb_op_fail(op, status, x->rank, "%s on rank %u, sequence %llu", gtcb_status_text(status), x->rank,
                     (unsigned long long)op->sequence);
    op->started = x->engine->settings.now();
    if (!status) {
        op->unsent = false;
        status = say_hello(op);
    }
    op->stage = status ? GTCB_DONE : GTCB_HEADERS;
}

static void handle_arrivals(gtcb_op *op)
{
    for (uint32_t slot = 0; slot < op->exchange->size; slot++)
        if (!op->seen[slot] && op->batch.awaited[slot] == 0) {
            op->seen[slot] = 1;
            op->class->arrived(op, slot);
        }
}

/* One step of an operation that has no transfer pending. */
static gtcb_status next_stage(gtcb_op *op)
{
    if (op->stage == GTCB_HEADERS) {
        gtcb_status status = gtcb_agree(op);
        if (!status)
            status = op->class->begin(op);
        if (status)
            return status;
        op->stage = GTCB_BODIES;
        op->complete = false;
    } else {
        gtcb_status status = op->class->proceed(op);
        if (status)
            return status;
        op->complete = gtcb_batch_is_over(&op->batch);
        if (op->complete) {
            op->arrived = op->exchange->engine->settings.now();
            op->stage = op->into.count && !op->failure.status ? GTCB_MEAN_DUE : GTCB_DONE;
        }
    }
    return GTCB_OK;
}

static bool may_go_on(gtcb_op *op)
{
    return gtcb_batch_is_over(&op->batch) && (op->stage == GTCB_BODIES || (op->stage == GTCB_HEADERS && gtcb_mail_is_through(op)));
}

bool gtcb_op_advance(gtcb_op *op)
{
    size_t finished = 0;
    gtcb_status status = gtcb_batch_poll(&op->batch, &finished);
    if (status) {
        transfer_failed(op, status);
        op->stage = GTCB_DONE;
        return true;
    }
    if (finished && op->stage == GTCB_BODIES) {
        gtcb_ring_pass_on(op);
        handle_arrivals(op);
    }
    bool moved = finished > 0;
    while (may_go_on(op)) {
        moved = true;
        if (next_stage(op))
            op->stage = GTCB_DONE;
    }
    /* A class that could not post a transfer has failed for good: what it owes others will not come. */
    if (op->failure.status == GTCB_MPI_ERROR || op->failure.status == GTCB_NO_MEMORY)
        op->stage = GTCB_DONE;
    return moved;
}
