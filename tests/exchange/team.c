#include "team.h"

void meet(rank *me) { pthread_barrier_wait(&me->team->barrier); }
void dawdle(rank *me) { if (rand_r(&me->seed) % 4 == 0) usleep((useconds_t)(rand_r(&me->seed) % 300)); }

static void *play(void *self)
{
    rank *me = self;
    gtcb_engine_settings settings = {.mpi = fake_table(), .variant = gtcb_variant_best(), .threads = 1 + (size_t)me->rank % 2,
                                     .progress_thread = me->threaded, .piece_bytes = me->team->piece, .direct_bytes = 256, .ring_bytes = 2000};
    CHECK(gtcb_engine_open(&settings, &me->engine) == GTCB_OK);
    CHECK(gtcb_exchange_open(me->engine, fake_comm(me->team->world, me->rank), me->team->hosts, &me->exchange) == GTCB_OK);
    if (me->team->windows)
        CHECK(gtcb_exchange_share(me->exchange, me->team->windows, WINDOW_BYTES) == GTCB_OK);
    me->team->play(me);
    if (gtcb_exchange_failure(me->exchange).status)
        me->team->failed = true;
    bool clean = gtcb_exchange_close(me->exchange);
    gtcb_engine_close(me->engine);
    gtcb_engine_close(me->engine);
    meet(me);
    if (clean) {
        gtcb_exchange_free(me->exchange);
        gtcb_engine_free(me->engine);
    }
    return NULL;
}

void with_team(int size, unsigned seed, const char *name, void (*game)(rank *me), bool all_ways)
{
    /* all driven, all threaded, mixed; on one host, on hosts of two, on two in turn, on one with windows */
    for (int mode = 0; mode < 12; mode++) {
        if (!all_ways && mode % 3 != mode / 3 % 3)
            continue;
        uint32_t hosts[64];
        uint8_t *windows[64];
        for (int r = 0; r < size; r++)
            hosts[r] = mode / 3 == 1 ? (uint32_t)r / 2 : 7 + (uint32_t)r % 2;
        team t = {.world = fake_open(size), .play = game, .piece = seed % 2 ? 100 : GTCB_PIECE_BYTES, .hosts = mode < 3 || mode >= 9 ? NULL : hosts,
                  .windows = mode >= 9 ? windows : NULL};
        for (int r = 0; r < size; r++)
            windows[r] = memset(aligned_alloc(4096, 4 * 4096), 0, 4 * 4096);
        pthread_t threads[64];
        rank ranks[64];
        pthread_barrier_init(&t.barrier, NULL, (unsigned)size);
        for (int r = 0; r < size; r++) {
            ranks[r] = (rank){.team = &t, .rank = r, .size = size, .threaded = mode % 3 == 1 || (mode % 3 == 2 && r % 2), .seed = seed + (unsigned)r};
            pthread_create(&threads[r], NULL, play, &ranks[r]);
        }
        for (int r = 0; r < size; r++)
            pthread_join(threads[r], NULL);
        pthread_barrier_destroy(&t.barrier);
        for (int r = 0; r < size; r++)
            free(windows[r]);
        int unread = fake_close(t.world);
        CHECK(t.failed || unread == 0);
    }
    printf("%s ok\n", name);
    fflush(stdout);
}

const gtcb_failure *finish(gtcb_op *op)
{
    if (!gtcb_op_wait(op, 60))
        gtcb_op_give_up(op, 60);
    return gtcb_op_failure(op);
}

float value(int r, size_t i) { return (float)((r + 1) * 1000003 % 97) - (float)(i % 13) * 0.37f; }

float *values(int r, size_t n)
{
    float *array = malloc(n * sizeof *array + 4);
    for (size_t i = 0; i < n; i++)
        array[i] = value(r, i);
    return array;
}
