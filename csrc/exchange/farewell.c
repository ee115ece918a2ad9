/* How the others learn that this rank has failed. The first failure closes an exchange, and a farewell goes to every
   peer: a header on a tag of its own, with the first operation that this rank will not finish. What it has begun and
   can finish it does, for their sake. A rank where nothing moves for a moment looks for farewells, so nobody waits
   for its own deadline when a peer has already given up. */
#include <stdio.h>

#include "exchange/internal.h"

#define FAREWELL_TAG 32767         /* no operation has it; the highest that MPI promises */
#define QUIET_SECONDS 0.02
#define LOOK_SECONDS 0.01

/* `sent` packs the status, whom the failure is about, and where. */
static uint64_t pack(const gtcb_failure *failure)
{
    return (uint64_t)failure->status | (uint64_t)(failure->rank & 0xFFFFFF) << 8 | (failure->sequence & 0xFFFFFFFF) << 32;
}

void gtcb_write_farewell(gtcb_exchange *x, const gtcb_failure *failure, uint64_t end, void *header_out)
{
    gtcb_header h = {.kind = GTCB_RAW, .element = GTCB_BYTES, .sent = pack(failure), .sequence = end,
                     .bucket = gtcb_pack_bucket(GTCB_FAREWELL, GTCB_BYTES, failure->bucket), .sender = x->rank};
    gtcb_write_header(&h, header_out);
}

/* A deadline is one for all: who comes late must hear that it was waited for, not that something is closed. */
gtcb_failure gtcb_read_farewell(const gtcb_header *h)
{
    gtcb_status status = (gtcb_status)(h->sent & 255);
    gtcb_failure failure = {.status = GTCB_CLOSED, .rank = h->sender, .bucket = h->bucket & (GTCB_BUCKETS - 1),
                            .sequence = h->sent >> 32};
    unsigned about = (unsigned)(h->sent >> 8 & 0xFFFFFF);
    unsigned long long sequence = failure.sequence;
    if (status == GTCB_DEADLINE) {
        failure.status = GTCB_DEADLINE;
        failure.rank = about;
        snprintf(failure.text, sizeof failure.text, "rank %u gave up at sequence %llu, after it had waited in vain for rank %u",
                 h->sender, sequence, about);
    } else if (status == GTCB_CLOSED && about == h->sender) {
        snprintf(failure.text, sizeof failure.text, "rank %u ended its program before sequence %llu", h->sender, sequence);
    } else {
        snprintf(failure.text, sizeof failure.text, "rank %u gave up at sequence %llu (bucket %u): %s (about rank %u); its own "
                 "error says more", h->sender, sequence, failure.bucket, gtcb_status_text(status), about);
    }
    return failure;
}

void gtcb_exchange_fail(gtcb_exchange *x, const gtcb_failure *failure, uint64_t end)
{
    if (x->failed)
        return;
    x->failed = true;
    x->abandoned = true;       /* a farewell can stay unread: no later communicator may take it for its own */
    pthread_mutex_lock(&x->engine->lock);
    x->failure = *failure;
    pthread_mutex_unlock(&x->engine->lock);
    gtcb_write_farewell(x, failure, end, x->farewell);
    for (uint32_t i = 1; i < x->size; i++)       /* a rank that cannot be reached will not hear it either */
        gtcb_batch_send(&x->farewells, x->farewell, GTCB_HEADER_BYTES, gtcb_peer(x, i), FAREWELL_TAG);
}

void gtcb_exchange_leave(gtcb_exchange *x, gtcb_status status)
{
    pthread_mutex_lock(&x->engine->drive);
    uint64_t end = gtcb_first_not_begun(x);
    gtcb_failure failure = {.status = status, .rank = x->rank, .sequence = end, .text = "this rank's program is at its end"};
    if (status != GTCB_CLOSED)
        snprintf(failure.text, sizeof failure.text, "this rank has left it: %s", gtcb_status_text(status));
    gtcb_exchange_fail(x, &failure, end);
    pthread_mutex_unlock(&x->engine->drive);
}

/* Fails the operations under way that the sender will not finish. */
static void heed(gtcb_exchange *x, const gtcb_header *h)
{
    gtcb_failure failure = gtcb_read_farewell(h);
    uint64_t begun = gtcb_first_not_begun(x);
    gtcb_exchange_fail(x, &failure, h->sequence < begun ? h->sequence : begun);
    for (gtcb_op **link = &x->active; *link;) {
        gtcb_op *op = *link;
        if (op->sequence < h->sequence) {
            link = &op->next;
            continue;
        }
        gtcb_mark_late(op);
        gtcb_op_fail(op, failure.status, failure.rank, "%s", failure.text);
        *link = op->next;
        op->next = NULL;
        x->active_count--;
        gtcb_op_finish(op);
    }
}

static void listen(gtcb_exchange *x)
{
    for (uint32_t i = 1; i < x->size && !x->heard.count; i++)
        if (gtcb_mpi_has_come(x->heard.mpi, x->comm, gtcb_peer(x, i), FAREWELL_TAG))
            gtcb_batch_receive(&x->heard, x->heard_header, GTCB_HEADER_BYTES, gtcb_peer(x, i), FAREWELL_TAG, 0);
}

void gtcb_look_for_farewells(gtcb_exchange *x, bool moved)
{
    size_t finished = 0;
    if (x->farewells.count)
        gtcb_batch_poll(&x->farewells, &finished);
    double now = x->active ? x->engine->settings.now() : 0;
    if (moved || !x->active) {
        x->moved_at = now;
        return;
    }
    if (x->heard.count) {
        gtcb_header h;
        gtcb_status status = gtcb_batch_poll(&x->heard, &finished);
        if (!status && finished && !gtcb_read_header(x->heard_header, &h) && h.bucket >> 28 == GTCB_FAREWELL)
            heed(x, &h);
    } else if (now - x->moved_at > QUIET_SECONDS && now - x->looked_at > LOOK_SECONDS) {
        x->looked_at = now;
        listen(x);
    }
}
