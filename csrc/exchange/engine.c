/* The engine: who drives, and the thread.

   Whoever holds `drive` moves all operations. A waiting caller drives itself, so that a result reaches it without a
   change of threads; the progress thread drives while nobody waits. Both back off when nothing moves: a machine
   may have more ranks than cores. */
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "exchange/internal.h"

static double monotonic(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define START_ELEMENTS 65536       /* some 20 us of encoding */

/* -- driving: with `drive` held -------------------------------------------------------------------- */

static gtcb_op *next_queued(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    gtcb_op *op = x->queue;
    if (op) {
        x->queue = op->next;
        op->next = NULL;
    }
    pthread_mutex_unlock(&x->engine->lock);
    return op;
}

/* The next in the queue; adds to what has been begun in this round, so that hellos of small ones go in one letter, and
   that of a large one does not wait for others. */
static bool start_next(gtcb_exchange *x, uint64_t *elements)
{
    gtcb_op *op = x->active_count < GTCB_WINDOW || x->failed ? next_queued(x) : NULL;
    if (!op)
        return false;
    gtcb_op **end = &x->active;
    while (*end)
        end = &(*end)->next;
    *end = op;
    x->active_count++;
    gtcb_op_start(op);
    *elements += op->elements;
    return op->stage != GTCB_DONE;
}

static bool start_some(gtcb_exchange *x)
{
    uint64_t elements = 0;
    size_t before = x->active_count;
    while (elements < START_ELEMENTS && start_next(x, &elements))
        ;
    if (x->active_count > before)
        gtcb_mail_send(x);
    return x->active_count > before;
}

void gtcb_op_finish(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    gtcb_status status = op->failure.status;
    if (status != GTCB_OK && status != GTCB_NON_FINITE)
        gtcb_exchange_fail(x, &op->failure, op->complete ? gtcb_first_not_begun(x) : op->sequence);
    if (gtcb_batch_under_way(&op->batch))
        x->abandoned = true;
    pthread_mutex_lock(&engine->lock);
    x->counters.operations++;
    x->counters.bytes_sent += op->batch.bytes_sent;
    x->counters.bytes_received += op->batch.bytes_received;
    x->counters.bytes_shared += op->bytes_shared;
    op->finished = engine->settings.now();
    if (status || !op->into.count)
        op->arrived = op->finished;
    if (!op->unsent)
        x->counters.exchange_seconds += op->arrived - op->started;
    op->stage = GTCB_DONE;
    atomic_store(&op->done, true);
    atomic_fetch_sub(&engine->unfinished, 1);
    pthread_cond_broadcast(&engine->done);
    pthread_mutex_unlock(&engine->lock);
}

static bool drive_exchange(gtcb_exchange *x)
{
    bool moved = start_some(x);
    moved |= gtcb_mail_poll(x);
    gtcb_earlier earlier = {false, false};
    for (gtcb_op **link = &x->active; *link;) {
        gtcb_op *op = *link;
        moved |= gtcb_take_turn(op, &earlier);
        if (op->stage != GTCB_DONE)
            moved |= gtcb_op_advance(op);
        if (op->stage == GTCB_DONE) {
            *link = op->next;
            op->next = NULL;
            x->active_count--;
            gtcb_op_finish(op);
            moved = true;
        } else {
            gtcb_note_large(op, &earlier);
            link = &op->next;
        }
    }
    gtcb_look_for_farewells(x, moved);
    return moved;
}

/* One mean that is due: of the messages of others first of all, so that what others wait for sets out before. */
static bool decode_one(gtcb_exchange *x)
{
    for (gtcb_op *op = x->active; op; op = op->next)
        if (op->stage == GTCB_MEAN_DUE) {
            gtcb_op_settle_mean(op);
            return true;
        }
    return false;
}

bool gtcb_drive_all(gtcb_engine *engine)
{
    bool moved = false;
    for (gtcb_exchange *x = engine->exchanges; x; x = x->next)
        moved |= drive_exchange(x);
    for (gtcb_exchange *x = engine->exchanges; x && !moved; x = x->next)
        moved = decode_one(x);
    return moved;
}

bool gtcb_in_own_thread(const gtcb_engine *engine) { return engine->has_thread && pthread_equal(engine->thread, pthread_self()); }

bool gtcb_engine_progress(gtcb_engine *engine)
{
    if (pthread_mutex_trylock(&engine->drive) != 0)
        return false;
    bool moved = !engine->stopped && gtcb_drive_all(engine);
    pthread_mutex_unlock(&engine->drive);
    return moved;
}

/* Until there is work and nobody waits for it. Whoever posts is often on the same core: it first gets on with backward, where this
   thread would encode, a millisecond of a large bucket, before the post is over. */
static void wait_for_work(gtcb_engine *engine, gtcb_pace *p)
{
    bool woken = false;
    pthread_mutex_lock(&engine->lock);
    while (!atomic_load(&engine->stop) && (atomic_load(&engine->unfinished) == 0 || atomic_load(&engine->waiters) > 0)) {
        pthread_cond_wait(&engine->work, &engine->lock);
        p->idle = 0;
        woken = true;
    }
    pthread_mutex_unlock(&engine->lock);
    if (woken)
        sched_yield();
}

static void *progress_thread(void *self)
{
    gtcb_engine *engine = self;
#ifdef __linux__
    prctl(PR_SET_NAME, "gtcbmuf", 0, 0, 0);
#endif
    gtcb_pace p = {0, 0};
    while (!atomic_load(&engine->stop)) {
        wait_for_work(engine, &p);
        gtcb_back_off(&p, atomic_load(&engine->stop) || gtcb_engine_progress(engine));
    }
    return NULL;
}

/* -- posting ---------------------------------------------------------------------------------------- */

void gtcb_engine_enqueue(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    atomic_store(&op->done, false);
    op->stage = GTCB_QUEUED;
    memset(&op->failure, 0, sizeof op->failure);
    op->posted = op->begun = op->started = engine->settings.now();
    op->next = NULL;
    pthread_mutex_lock(&engine->lock);
    op->sequence = x->next_sequence++;
    if (x->queue)
        x->queue_end->next = op;
    else
        x->queue = op;
    x->queue_end = op;
    atomic_fetch_add(&engine->unfinished, 1);
    if (engine->has_thread && atomic_load(&engine->waiters) == 0)
        pthread_cond_signal(&engine->work);
    pthread_mutex_unlock(&engine->lock);
    if (!engine->has_thread)
        gtcb_engine_progress(engine);
}

/* -- the engine itself ------------------------------------------------------------------------------- */

gtcb_status gtcb_engine_open(const gtcb_engine_settings *settings, gtcb_engine **out)
{
    if (!settings->variant || !settings->threads || !settings->piece_bytes)
        return GTCB_BAD_ARGUMENT;
    gtcb_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return GTCB_NO_MEMORY;
    engine->settings = *settings;
    if (!engine->settings.now)
        engine->settings.now = monotonic;
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&engine->drive, NULL);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->decode, NULL);
    pthread_cond_init(&engine->work, &clock);
    pthread_cond_init(&engine->done, &clock);
    pthread_condattr_destroy(&clock);
    gtcb_status status = settings->threads > 1 ? gtcb_pool_open(settings->threads, &engine->pool) : GTCB_OK;
    if (!status && settings->progress_thread) {
        engine->has_thread = pthread_create(&engine->thread, NULL, progress_thread, engine) == 0;
        status = engine->has_thread ? GTCB_OK : GTCB_NO_MEMORY;
    }
    if (status) {
        gtcb_engine_close(engine);
        gtcb_engine_free(engine);
        return status;
    }
    *out = engine;
    return GTCB_OK;
}

void gtcb_engine_close(gtcb_engine *engine)
{
    if (engine->stopped)
        return;
    pthread_mutex_lock(&engine->lock);
    atomic_store(&engine->stop, true);
    pthread_cond_broadcast(&engine->work);
    pthread_mutex_unlock(&engine->lock);
    if (engine->has_thread)
        pthread_join(engine->thread, NULL);
    pthread_mutex_lock(&engine->drive);
    engine->has_thread = false;
    gtcb_failure failure = {.status = GTCB_CLOSED, .text = "the engine was closed while operations were in flight"};
    for (gtcb_exchange *x = engine->exchanges; x; x = x->next)
        gtcb_exchange_stop(x, &failure);
    engine->stopped = true;
    pthread_mutex_unlock(&engine->drive);
}

void gtcb_engine_free(gtcb_engine *engine)
{
    gtcb_pool_close(engine->pool);
    free(engine->scratch.data);
    free(engine->decoding.data);
    pthread_mutex_destroy(&engine->drive);
    pthread_mutex_destroy(&engine->lock);
    pthread_mutex_destroy(&engine->decode);
    pthread_cond_destroy(&engine->work);
    pthread_cond_destroy(&engine->done);
    free(engine);
}

const gtcb_engine_settings *gtcb_engine_get_settings(const gtcb_engine *engine) { return &engine->settings; }
