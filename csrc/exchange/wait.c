/* Waiting: for an operation to be done, and a moment where nothing moves. */
#include <sched.h>
#include <time.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "exchange/internal.h"

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Spin for some microseconds, then sleep: the longer, the longer nothing has moved, as each look at MPI costs microseconds of a core
   that others may want, on a machine with more ranks than cores. No sched_yield: where more processes want to run than there
   are cores, whoever yields to a busy one is without a core for milliseconds; whoever sleeps is woken at once. Who has slept waits for
   the network, and spins no more in this wait: pieces of a long body come hundreds of microseconds apart. */
#define SPINS 64
#define FIRST_SLEEP 20000          /* ns */
#define LONGER 2500                /* each next one, */
#define TIMES 32                   /* to 100 us */

void gtcb_back_off(gtcb_pace *p, bool moved)
{
    if (moved) {
        p->idle = p->idle < SPINS ? 0 : SPINS;
        return;
    }
    if (++p->idle < SPINS) {
        relax();
        return;
    }
#ifdef __linux__
    if (!p->slack) {                             /* with the usual slack of 50 us, a sleep of 20 takes 70 */
        p->slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
        prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    }
#endif
    const unsigned slept = p->idle - SPINS;
    struct timespec pause = {0, FIRST_SLEEP + LONGER * (long)(slept < TIMES ? slept : TIMES)};
    nanosleep(&pause, NULL);
}

static void restore_slack(const gtcb_pace *p)
{
#ifdef __linux__
    if (p->slack > 0)
        prctl(PR_SET_TIMERSLACK, p->slack, 0, 0, 0);
#endif
    (void)p;
}

/* The thread sleeps while somebody waits; when the last waiter leaves work behind, it must go on. */
static void wake_thread(gtcb_engine *engine)
{
    if (!engine->has_thread || atomic_load(&engine->unfinished) == 0 || atomic_load(&engine->waiters) > 0)
        return;
    pthread_mutex_lock(&engine->lock);
    pthread_cond_signal(&engine->work);
    pthread_mutex_unlock(&engine->lock);
}

/* Until it is done, or for a millisecond. Who sleeps does not drive, so the thread must. */
static void sleep_until_done(gtcb_op *op, double seconds)
{
    gtcb_engine *engine = op->exchange->engine;
    atomic_fetch_sub(&engine->waiters, 1);
    wake_thread(engine);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long nanoseconds = until.tv_nsec + (long)(1e9 * (seconds < 0.001 ? seconds : 0.001));
    until.tv_sec += nanoseconds / 1000000000;
    until.tv_nsec = nanoseconds % 1000000000;
    pthread_mutex_lock(&engine->lock);
    if (!atomic_load(&op->done))
        pthread_cond_timedwait(&engine->done, &engine->lock, &until);
    atomic_fetch_add(&engine->waiters, 1);
    pthread_mutex_unlock(&engine->lock);
}

bool gtcb_op_wait(gtcb_op *op, double seconds)
{
    if (atomic_load(&op->done))
        return true;
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    double begin = engine->settings.now(), now = begin;
    unsigned held = 0;
    gtcb_pace p = {0, 0};
    atomic_fetch_add(&engine->waiters, 1);
    while (!atomic_load(&op->done) && now - begin < seconds) {
        if (pthread_mutex_trylock(&engine->drive) == 0) {
            bool moved = !engine->stopped && gtcb_drive_all(engine);
            pthread_mutex_unlock(&engine->drive);
            gtcb_back_off(&p, moved || atomic_load(&op->done));
            held = 0;
        } else if (held++ < 200) {
            sched_yield();                           /* the thread is about to leave */
        } else {
            sleep_until_done(op, begin + seconds - now);     /* somebody else drives */
        }
        now = engine->settings.now();
    }
    restore_slack(&p);
    atomic_fetch_sub(&engine->waiters, 1);
    wake_thread(engine);
    pthread_mutex_lock(&engine->lock);
    x->counters.wait_seconds += now - begin;
    pthread_mutex_unlock(&engine->lock);
    return atomic_load(&op->done);
}
