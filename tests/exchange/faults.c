/* Games in which something goes wrong: every rank has to hear of it. */
#include "team.h"

void non_finite(rank *me)
{
    float *x = values(me->rank, 5000);
    if (me->rank == me->size - 1)
        x[4321] = NAN;
    gtcb_op *op;
    CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, 5000, 1, false, 8, &op) == GTCB_OK);
    const gtcb_failure *failure = finish(op);
    CHECK(failure->status == GTCB_NON_FINITE && failure->rank == (uint32_t)me->size - 1 && failure->index == 4321);
    CHECK(gtcb_op_release(op));
    free(x);
    reduce(me);
}

/* One rank posts another operation: all end, whatever each has begun. */
void mismatch(rank *me)
{
    float *arrays[40];
    gtcb_op *ops[40], *op;
    int posted = 0;
    for (int i = 0; i < 40; i++)
        arrays[i] = values(me->rank, 9000);
    while (posted < 40) {
        uint32_t bucket = me->rank == 0 && posted == 5 ? 1 : 0;
        dawdle(me);
        if (gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, arrays[posted], posted % 2 ? 9000 : 9, 1, true, bucket, &ops[posted]))
            break;
        posted++;
    }
    CHECK(posted > 5);
    for (int i = 0; i < posted; i++) {
        gtcb_status status = finish(ops[i])->status;
        CHECK(i < 5 ? status == GTCB_OK : i == 5 ? status == GTCB_MISMATCH : status == GTCB_OK || status == GTCB_CLOSED);
    }
    CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, arrays[0], 9, 1, true, 0, &op) == GTCB_CLOSED);
    meet(me);                                        /* others may read what is sent from here */
    for (int i = 0; i < posted; i++)
        gtcb_op_release(ops[i]);
    if (gtcb_exchange_close(me->exchange))
        for (int i = 0; i < 40; i++)
            free(arrays[i]);
}

void damage(rank *me)
{
    static const size_t lengths[] = {9, 9000};
    size_t n = lengths[me->seed % 2 ^ ((unsigned)me->rank & 1)];
    float *x = values(me->rank, n);
    if (me->rank == 1)
        gtcb_exchange_corrupt_next(me->exchange);
    bool failed = false;
    for (int i = 0; i < 3 && !failed; i++) {
        gtcb_op *op;
        if (gtcb_post_broadcast(me->exchange, GTCB_FLOAT32, x, n, 0, 0, &op) == GTCB_CLOSED)
            break;
        gtcb_status status = finish(op)->status;
        bool may_get_it_too = me->team->hosts;       /* from rank 1, in the ring */
        CHECK(me->rank == 1 ? status == GTCB_BAD_CHECKSUM : status == GTCB_OK || status == GTCB_CLOSED ||
              (may_get_it_too && status == GTCB_BAD_CHECKSUM));
        failed = status != GTCB_OK;
        gtcb_op_release(op);
    }
    CHECK(gtcb_exchange_failure(me->exchange).status != GTCB_OK);
    meet(me);
    if (gtcb_exchange_close(me->exchange))
        free(x);
}

/* The last rank comes too late: those who wait name it, and it hears of it. */
void deadline(rank *me)
{
    float *x = values(me->rank, 9000);
    gtcb_op *op;
    uint32_t last = (uint32_t)me->size - 1;
    bool late = (uint32_t)me->rank == last;
    if (late) {
        meet(me);
        meet(me);                                    /* the others have given up */
    }
    CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, 9000, 1, true, 0, &op) == GTCB_OK);
    if (late)
        CHECK(gtcb_op_wait(op, 30));
    else {
        gtcb_failure wait = {.rank = last + 1};
        for (int i = 0; i < 300 && wait.rank != last && !gtcb_op_wait(op, 0.1); i++)   /* a busy machine is late, too */
            gtcb_op_waits_for(op, 0.1, &wait);
        CHECK(wait.status == GTCB_DEADLINE && wait.rank == last && !gtcb_op_done(op));
        CHECK(strstr(wait.text, "waited 0.1 s in post_allreduce(mean=True) of 9000 float32 (bucket 0), sequence 0, for the header of"));
        meet(me);                                    /* who gives up ends the others' waits */
        gtcb_op_give_up(op, 0.1);
        meet(me);
    }
    const gtcb_failure *failure = gtcb_op_failure(op);
    CHECK(failure->status == GTCB_DEADLINE && failure->rank == (uint32_t)me->size - 1);
    CHECK(late || gtcb_op_is_late(op, (uint32_t)me->size - 1));
    meet(me);
    gtcb_op_release(op);
    if (gtcb_exchange_close(me->exchange))
        free(x);
}

/* The last rank leaves before the operation: whoever waits for it hears so, and its own waits for nobody. */
void leaver(rank *me)
{
    float *x = values(me->rank, 9000);
    gtcb_op *op;
    gtcb_failure wait;
    bool leaves = me->rank == me->size - 1;
    if (leaves) {
        gtcb_exchange_leave(me->exchange, GTCB_CLOSED);
        CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, 9000, 1, true, 0, &op) == GTCB_CLOSED);
    } else {
        CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, 9000, 1, true, 0, &op) == GTCB_OK);
        const gtcb_failure *failure = finish(op);
        CHECK(failure->status == GTCB_CLOSED);
        char text[64];                               /* of the rank itself, or of one that has heard it before */
        snprintf(text, sizeof text, "rank %u ended its program before sequence 0", me->size - 1);
        CHECK(strstr(failure->text, text) || (me->size > 2 && strstr(failure->text, "gave up")));
        gtcb_op_waits_for(op, 1, &wait);
        CHECK(wait.status == GTCB_OK);
    }
    meet(me);
    if (!leaves)
        gtcb_op_release(op);
    if (gtcb_exchange_close(me->exchange))
        free(x);
}

void broken_mpi(rank *me)
{
    float *x = values(me->rank, 9000);
    gtcb_op *op;
    meet(me);
    if (me->rank == 0)
        fake_break(me->team->world, 0, 77);
    meet(me);
    CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, 9000, 1, true, 0, &op) == GTCB_OK);
    if (!gtcb_op_wait(op, 0.2))
        gtcb_op_give_up(op, 0.2);
    const gtcb_failure *failure = gtcb_op_failure(op);
    CHECK(me->rank == 0 ? failure->status == GTCB_MPI_ERROR && strstr(failure->text, "fake error 77") : failure->status == GTCB_DEADLINE);
    meet(me);
    gtcb_op_release(op);
    if (gtcb_exchange_close(me->exchange))
        free(x);
}

void abandon(rank *me)
{
    float *x = values(me->rank, 9000);
    gtcb_op *ops[10];
    int posted = me->rank == 0 ? 0 : 10;
    for (int i = 0; i < posted; i++)
        CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, 9000, 1, true, 0, &ops[i]) == GTCB_OK);
    gtcb_engine_close(me->engine);
    for (int i = 0; i < posted; i++)
        CHECK(finish(ops[i])->status == GTCB_CLOSED);
    meet(me);
    for (int i = 0; i < posted; i++)
        gtcb_op_release(ops[i]);
    if (gtcb_exchange_close(me->exchange))
        free(x);
}
