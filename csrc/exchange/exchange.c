/* One communicator: its queue, its first failure, and the posting and giving back of operations. */
#include <stdio.h>
#include <stdlib.h>

#include "exchange/internal.h"

gtcb_status gtcb_exchange_open(gtcb_engine *engine, gtcb_handle comm, gtcb_exchange **out)
{
    const gtcb_mpi *mpi = &engine->settings.mpi;
    int rank = -1, size = -1;
    if (mpi->comm_rank(comm, &rank) || mpi->comm_size(comm, &size) || rank < 0 || rank >= size)
        return GTCB_MPI_ERROR;
    gtcb_exchange *x = calloc(1, sizeof *x);
    if (!x)
        return GTCB_NO_MEMORY;
    x->engine = engine;
    x->comm = comm;
    x->rank = (uint32_t)rank;
    x->size = (uint32_t)size;
    gtcb_status status = gtcb_batch_init(&x->farewells, mpi, comm, 1, GTCB_HEADER_BYTES);
    if (!status)
        status = gtcb_batch_init(&x->heard, mpi, comm, 1, GTCB_HEADER_BYTES);
    if (status) {
        gtcb_exchange_free(x);
        return status;
    }
    pthread_mutex_lock(&engine->drive);
    if (engine->stopped)
        status = GTCB_CLOSED;
    x->next = engine->exchanges;
    engine->exchanges = x;
    pthread_mutex_unlock(&engine->drive);
    if (status) {
        gtcb_exchange_close(x);
        gtcb_exchange_free(x);
        return status;
    }
    *out = x;
    return GTCB_OK;
}

/* Ends everything at once, with `drive` held. No farewell: MPI may be on its way out. */
void gtcb_exchange_stop(gtcb_exchange *x, const gtcb_failure *failure)
{
    pthread_mutex_lock(&x->engine->lock);
    if (!x->failure.status)
        x->failure = *failure;
    gtcb_op *queued = x->queue;
    x->queue = NULL;
    pthread_mutex_unlock(&x->engine->lock);
    x->failed = true;
    gtcb_op *lists[] = {x->active, queued};
    x->active = NULL;
    x->active_count = 0;
    for (size_t i = 0; i < 2; i++)
        for (gtcb_op *op = lists[i], *next; op; op = next) {
            next = op->next;
            if (i == 1)
                op->unsent = true;
            gtcb_op_fail(op, failure->status, failure->rank, "%s", failure->text);
            gtcb_op_finish(op);
        }
}

bool gtcb_exchange_close(gtcb_exchange *x)
{
    gtcb_engine *engine = x->engine;
    gtcb_failure failure = {.status = GTCB_CLOSED, .text = "the exchange was closed while operations were in flight"};
    pthread_mutex_lock(&engine->drive);
    gtcb_exchange_stop(x, &failure);
    size_t finished;               /* farewells are short, and done as soon as MPI looks at them */
    for (int i = 0; i < 1000 && !engine->stopped && (x->farewells.count || x->heard.count); i++) {
        gtcb_batch_poll(&x->farewells, &finished);
        gtcb_batch_poll(&x->heard, &finished);
    }
    gtcb_exchange **link = &engine->exchanges;
    while (*link && *link != x)
        link = &(*link)->next;
    if (*link)
        *link = x->next;
    bool clean = !x->abandoned && x->farewells.count == 0 && x->heard.count == 0;
    pthread_mutex_unlock(&engine->drive);
    return clean;
}

void gtcb_exchange_free(gtcb_exchange *x)
{
    for (gtcb_op *op = x->idle, *next; op; op = next) {
        next = op->next;
        gtcb_op_destroy(op);
    }
    gtcb_batch_free(&x->farewells);
    gtcb_batch_free(&x->heard);
    free(x);
}

uint32_t gtcb_exchange_rank(const gtcb_exchange *x) { return x->rank; }
uint32_t gtcb_exchange_size(const gtcb_exchange *x) { return x->size; }
void gtcb_exchange_corrupt_next(gtcb_exchange *x) { atomic_store(&x->corrupt_next, true); }

uint64_t gtcb_first_not_begun(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    uint64_t sequence = x->queue ? x->queue->sequence : x->next_sequence;
    pthread_mutex_unlock(&x->engine->lock);
    return sequence;
}

uint64_t gtcb_exchange_sequence(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    uint64_t sequence = x->next_sequence;
    pthread_mutex_unlock(&x->engine->lock);
    return sequence;
}

gtcb_status gtcb_exchange_set_sequence(gtcb_exchange *x, uint64_t sequence)
{
    gtcb_status status = GTCB_BAD_ARGUMENT;
    pthread_mutex_lock(&x->engine->drive);
    pthread_mutex_lock(&x->engine->lock);
    if (!x->queue && !x->active && sequence >= x->next_sequence) {
        x->next_sequence = sequence;
        status = GTCB_OK;
    }
    pthread_mutex_unlock(&x->engine->lock);
    pthread_mutex_unlock(&x->engine->drive);
    return status;
}

gtcb_counters gtcb_exchange_counters(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    gtcb_counters counters = x->counters;
    pthread_mutex_unlock(&x->engine->lock);
    return counters;
}

gtcb_failure gtcb_exchange_failure(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    gtcb_failure failure = x->failure;
    pthread_mutex_unlock(&x->engine->lock);
    return failure;
}

/* -- posting ------------------------------------------------------------------------------------------ */

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

gtcb_status gtcb_post_encode(gtcb_exchange *x, const gtcb_encode_job *job, gtcb_op **out)
{
    uint64_t elements = 0;
    for (size_t i = 0; i < job->segment_count; i++)
        elements += job->segments[i].count;
    if (elements != job->elements || !(job->threshold > 0) || job->threshold > FLT_MAX || job->max_sent == 0)
        return GTCB_BAD_ARGUMENT;
    gtcb_op *op;
    gtcb_status status = take(x, GTCB_ENCODE, job->bucket, &op);
    if (status)
        return status;
    status = gtcb_buffer_need(&op->segments, job->segment_count * sizeof *job->segments);
    if (status) {
        gtcb_op_destroy(op);
        return status;
    }
    if (job->segment_count)
        memcpy(op->segments.data, job->segments, job->segment_count * sizeof *job->segments);
    op->job = *job;
    op->elements = elements;
    gtcb_engine_enqueue(op);
    *out = op;
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
    if (element != GTCB_FLOAT32 && element != GTCB_FLOAT64)
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

/* -- ends --------------------------------------------------------------------------------------------- */

bool gtcb_op_done(const gtcb_op *op) { return atomic_load(&op->done); }
const gtcb_failure *gtcb_op_failure(const gtcb_op *op) { return &op->failure; }
bool gtcb_op_is_late(const gtcb_op *op, uint32_t rank) { return op->late[rank]; }
uint64_t gtcb_op_sequence(const gtcb_op *op) { return op->sequence; }
uint64_t gtcb_op_bytes_sent(const gtcb_op *op) { return op->batch.bytes_sent; }

/* Who has not come: whose header or body is awaited; if nobody's, who has not taken what was sent. */
bool gtcb_mark_late(gtcb_op *op)
{
    bool any = false;
    for (int sends = 0; sends < 2 && !any; sends++)
        for (size_t i = 0; i < op->batch.count; i++)
            if (sends || op->batch.pending[i].slot != GTCB_NO_SLOT) {
                op->late[op->batch.pending[i].peer] = 1;
                any = true;
            }
    return any;
}

static void unlink_op(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    pthread_mutex_lock(&x->engine->lock);
    gtcb_op *last = NULL;
    for (gtcb_op **link = &x->queue; *link; link = &(*link)->next) {
        if (*link == op) {
            *link = op->next;
            if (x->queue_end == op)
                x->queue_end = last;
            break;
        }
        last = *link;
    }
    pthread_mutex_unlock(&x->engine->lock);
    for (gtcb_op **link = &x->active; *link; link = &(*link)->next)
        if (*link == op) {
            *link = op->next;
            x->active_count--;
            break;
        }
    op->next = NULL;
}

void gtcb_op_give_up(gtcb_op *op, double waited)
{
    gtcb_exchange *x = op->exchange;
    pthread_mutex_lock(&x->engine->drive);
    if (!atomic_load(&op->done)) {
        char text[512] = "", what[160];
        size_t length = 0;
        gtcb_op *held = op->stage == GTCB_QUEUED && x->active ? x->active : op;     /* the one in its way */
        if (op->stage == GTCB_QUEUED)
            memset(op->late, 0, x->size);
        if (gtcb_mark_late(held))
            memcpy(op->late, held->late, x->size);
        uint32_t first = UINT32_MAX;
        for (uint32_t r = 0; r < x->size; r++)
            if (op->late[r]) {
                if (length + 24 < sizeof text)
                    length += (size_t)snprintf(text + length, sizeof text - length, "%s%u", length ? ", " : "", r);
                first = first == UINT32_MAX ? r : first;
            }
        gtcb_op_fail(op, GTCB_DEADLINE, first == UINT32_MAX ? x->rank : first,
                     "rank %u waited %.1f s in %s, sequence %llu, for the %s of rank %s", x->rank, waited,
                     gtcb_op_describe(op, what, sizeof what), (unsigned long long)op->sequence,
                     held->stage == GTCB_BODIES ? "body" : "header", length ? text : "(nobody)");
        op->unsent = op->stage == GTCB_QUEUED;
        gtcb_exchange_fail(x, &op->failure, x->active ? x->active->sequence : op->sequence);
        unlink_op(op);
        gtcb_op_finish(op);
        gtcb_exchange_stop(x, &op->failure);         /* the others will not do better */
    }
    pthread_mutex_unlock(&x->engine->drive);
}

bool gtcb_op_release(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    if (!atomic_load(&op->done) || op->batch.count)
        return false;
    size_t kept = 0;
    pthread_mutex_lock(&x->engine->lock);
    for (gtcb_op *other = x->idle; other; other = other->next)
        kept += other->operation == op->operation && other->bucket == op->bucket;
    if (kept < GTCB_KEPT) {
        op->next = x->idle;
        x->idle = op;
    }
    pthread_mutex_unlock(&x->engine->lock);
    if (kept >= GTCB_KEPT)
        gtcb_op_destroy(op);
    return true;
}
