/* The ends of operations: what became of them, giving up, giving back. */
#include <stdio.h>

#include "exchange/internal.h"

bool gtcb_op_done(const gtcb_op *op) { return atomic_load(&op->done); }
const gtcb_failure *gtcb_op_failure(const gtcb_op *op) { return &op->failure; }
bool gtcb_op_is_late(const gtcb_op *op, uint32_t rank) { return op->late[rank]; }
uint64_t gtcb_op_sequence(const gtcb_op *op) { return op->sequence; }
gtcb_times gtcb_op_times(const gtcb_op *op) { return (gtcb_times){op->posted, op->begun, op->started, op->arrived, op->finished}; }
uint64_t gtcb_op_bytes_sent(const gtcb_op *op) { return op->batch.bytes_sent; }

/* Whose header or body is awaited. In the ring, where everything comes from one rank: the nearest before it whose body has not come. */
bool gtcb_mark_late(gtcb_op *op)
{
    return gtcb_mail_mark_late(op) || gtcb_ring_mark_late(op) || gtcb_batch_mark_late(&op->batch, op->late);
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

/* Whom it waits for: into op->late, and in words. */
static gtcb_failure name_the_late(gtcb_op *op, double waited)
{
    gtcb_exchange *x = op->exchange;
    char text[512] = "", what[160];
    size_t length = 0;
    gtcb_op *held = gtcb_whose_turn(op);
    memset(op->late, 0, x->size);
    memset(held->late, 0, x->size);
    if (gtcb_mark_late(held) && held != op)
        memcpy(op->late, held->late, x->size);
    gtcb_failure failure = {.status = GTCB_DEADLINE, .rank = x->rank, .bucket = op->bucket, .sequence = op->sequence};
    for (uint32_t r = x->size; r-- > 0;)
        if (op->late[r])
            failure.rank = r;
    for (uint32_t r = 0; r < x->size && length + 24 < sizeof text; r++)
        if (op->late[r])
            length += (size_t)snprintf(text + length, sizeof text - length, "%s%u", length ? ", " : "", r);
    snprintf(failure.text, sizeof failure.text, "rank %u waited %.1f s in %s, sequence %llu, for the %s of rank %s", x->rank, waited,
             gtcb_op_describe(op, what, sizeof what), (unsigned long long)op->sequence,
             held->stage == GTCB_BODIES ? "body" : "header", length ? text : "(nobody)");
    return failure;
}

void gtcb_op_waits_for(gtcb_op *op, double waited, gtcb_failure *out)
{
    *out = (gtcb_failure){.status = GTCB_OK};
    pthread_mutex_lock(&op->exchange->engine->drive);
    if (!atomic_load(&op->done))
        *out = name_the_late(op, waited);
    pthread_mutex_unlock(&op->exchange->engine->drive);
}

void gtcb_op_give_up(gtcb_op *op, double waited)
{
    gtcb_exchange *x = op->exchange;
    pthread_mutex_lock(&x->engine->drive);
    if (!atomic_load(&op->done) && op->stage == GTCB_MEAN_DUE) {       /* waits for nobody */
        gtcb_op_settle_mean(op);
        unlink_op(op);
        gtcb_op_finish(op);
    } else if (!atomic_load(&op->done)) {
        gtcb_failure failure = name_the_late(op, waited);
        gtcb_op_fail(op, failure.status, failure.rank, "%s", failure.text);
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
    if (!atomic_load(&op->done) || gtcb_batch_under_way(&op->batch))
        return false;
    size_t kept = 0;
    pthread_mutex_lock(&x->engine->lock);
    gtcb_window_give_back(op);
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
