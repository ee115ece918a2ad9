/* The exchange over the fake MPI, every rank a thread: for the sanitizers, and for what a real MPI seldom does.
   test_exchange RANKS SEED */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "exchange/exchange.h"
#include "fake_mpi.h"

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                   \
            abort();                                                                          \
        }                                                                                     \
    } while (0)

typedef struct team team;
typedef struct rank {
    team *team;
    int rank, size;
    bool threaded;
    unsigned seed;
    gtcb_engine *engine;
    gtcb_exchange *exchange;
} rank;
struct team { fake_world *world; _Atomic bool failed; void (*play)(rank *me); pthread_barrier_t barrier; size_t piece; const uint32_t *hosts; };

static void meet(rank *me) { pthread_barrier_wait(&me->team->barrier); }
static void dawdle(rank *me) { if (rand_r(&me->seed) % 4 == 0) usleep((useconds_t)(rand_r(&me->seed) % 300)); }

static void *play(void *self)
{
    rank *me = self;
    gtcb_engine_settings settings = {.mpi = fake_table(), .variant = gtcb_variant_best(), .threads = 1 + (size_t)me->rank % 2,
                                     .progress_thread = me->threaded, .piece_bytes = me->team->piece, .direct_bytes = 256, .ring_bytes = 2000};
    CHECK(gtcb_engine_open(&settings, &me->engine) == GTCB_OK);
    CHECK(gtcb_exchange_open(me->engine, fake_comm(me->team->world, me->rank), me->team->hosts, &me->exchange) == GTCB_OK);
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

static void with_team(int size, unsigned seed, const char *name, void (*game)(rank *me))
{
    for (int mode = 0; mode < 9; mode++) {           /* all driven, all threaded, mixed; on one host, on hosts of two, on two in turn */
        uint32_t hosts[64];
        for (int r = 0; r < size; r++)
            hosts[r] = mode / 3 == 1 ? (uint32_t)r / 2 : 7 + (uint32_t)r % 2;
        team t = {.world = fake_open(size), .play = game, .piece = seed % 2 ? 100 : GTCB_PIECE_BYTES, .hosts = mode < 3 ? NULL : hosts};
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
        int unread = fake_close(t.world);
        CHECK(t.failed || unread == 0);
    }
    printf("%s ok\n", name);
    fflush(stdout);
}

static const gtcb_failure *finish(gtcb_op *op)
{
    if (!gtcb_op_wait(op, 60))
        gtcb_op_give_up(op, 60);
    return gtcb_op_failure(op);
}

static float value(int r, size_t i) { return (float)((r + 1) * 1000003 % 97) - (float)(i % 13) * 0.37f; }

static float *values(int r, size_t n)
{
    float *array = malloc(n * sizeof *array + 4);
    for (size_t i = 0; i < n; i++)
        array[i] = value(r, i);
    return array;
}

/* -- games ------------------------------------------------------------------------------------------ */

static void reduce(rank *me)
{
    static const size_t lengths[] = {0, 1, 3, 10, 100, 1000, 20001};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        size_t n = lengths[k];
        float *x = values(me->rank, n);
        gtcb_op *op;
        dawdle(me);
        CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, n, (uint64_t)me->rank + 1, true, 3, &op) == GTCB_OK);
        CHECK(finish(op)->status == GTCB_OK);
        for (size_t i = 0; i < n; i++) {
            double acc = 0, weights = 0;
            for (int r = 0; r < me->size; r++) {
                acc += (r + 1) * (double)value(r, i);
                weights += r + 1;
            }
            CHECK(x[i] == (float)(acc / weights));
        }
        CHECK(gtcb_op_release(op));
        free(x);
    }
}

static void broadcast(rank *me)
{
    for (int root = 0; root < me->size; root++)
        for (size_t n = 1; n < 30000; n *= 9) {
            float *x = values(me->rank, n);
            gtcb_op *op;
            dawdle(me);
            CHECK(gtcb_post_broadcast(me->exchange, GTCB_FLOAT32, x, n, (uint32_t)root, 0, &op) == GTCB_OK);
            CHECK(finish(op)->status == GTCB_OK);
            for (size_t i = 0; i < n; i++)
                CHECK(x[i] == value(root, i));
            CHECK(gtcb_op_release(op));
            free(x);
        }
}

/* Many operations at once, waited for from the last to the first. */
static void encode(rank *me)
{
    enum { STEPS = 6, BUCKETS = 5, N = 3000 };
    float *residuals[2] = {calloc(BUCKETS * N, sizeof(float)), calloc(BUCKETS * N, sizeof(float))};
    float *dense = calloc(BUCKETS * N, sizeof(float)), *gradient = values(me->rank, N);
    for (int step = 0; step < STEPS; step++) {
        gtcb_op *ops[BUCKETS];
        for (uint32_t b = 0; b < BUCKETS; b++) {
            gtcb_segment segments[] = {{gradient, 1000}, {gradient + 1000, N - 1000}};
            gtcb_encode_job job = {.segments = segments, .segment_count = 2, .dtype = GTCB_F32, .elements = N,
                                   .residual_in = residuals[step % 2] + b * N, .residual_out = residuals[1 - step % 2] + b * N,
                                   .threshold = 20, .max_sent = GTCB_NO_CAP, .bucket = b};
            dawdle(me);
            CHECK(gtcb_post_encode(me->exchange, &job, &ops[b]) == GTCB_OK);
        }
        for (uint32_t b = BUCKETS; b-- > 0;) {
            CHECK(finish(ops[b])->status == GTCB_OK);
            CHECK(gtcb_op_decode_add(ops[b], dense + b * N, N) == GTCB_OK);
            CHECK(gtcb_op_decode_add(ops[b], dense, N - 1) == GTCB_BAD_ARGUMENT);
            CHECK(gtcb_op_release(ops[b]));
        }
    }
    for (size_t i = 0; i < BUCKETS * N; i++)
        CHECK(dense[i] == dense[i % N]);
    CHECK(gtcb_exchange_counters(me->exchange).operations == STEPS * BUCKETS);
    free(residuals[0]);
    free(residuals[1]);
    free(dense);
    free(gradient);
}

/* Bodies of very different lengths, none among them. */
static void allgather(rank *me)
{
    for (size_t turn = 0; turn < 6; turn++) {
        size_t n[64];
        for (int r = 0; r < me->size; r++)
            n[r] = ((size_t)r + turn) % 3 * 1700 * ((size_t)r % 2 + 1);
        float *x = values(me->rank, n[me->rank]);
        gtcb_op *op;
        dawdle(me);
        CHECK(gtcb_post_allgather(me->exchange, GTCB_FLOAT32, x, n[me->rank], 1, &op) == GTCB_OK);
        CHECK(finish(op)->status == GTCB_OK);
        for (int r = 0; r < me->size; r++) {
            size_t bytes;
            const float *body = gtcb_op_body(op, (uint32_t)r, &bytes);
            CHECK(bytes == n[r] * sizeof *body);
            for (size_t i = 0; i < n[r]; i++)
                CHECK(body[i] == value(r, i));
        }
        CHECK(gtcb_op_release(op));
        free(x);
    }
}

static void non_finite(rank *me)
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
static void mismatch(rank *me)
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

static void damage(rank *me)
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
static void deadline(rank *me)
{
    float *x = values(me->rank, 9000);
    gtcb_op *op;
    bool late = me->rank == me->size - 1;
    if (late)
        usleep(300000);
    CHECK(gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, x, 9000, 1, true, 0, &op) == GTCB_OK);
    if (!gtcb_op_wait(op, late ? 30 : 0.1))
        gtcb_op_give_up(op, 0.1);
    const gtcb_failure *failure = gtcb_op_failure(op);
    CHECK(failure->status == GTCB_DEADLINE && failure->rank == (uint32_t)me->size - 1);
    CHECK(late || gtcb_op_is_late(op, (uint32_t)me->size - 1));
    meet(me);
    gtcb_op_release(op);
    if (gtcb_exchange_close(me->exchange))
        free(x);
}

static void broken_mpi(rank *me)
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

static void abandon(rank *me)
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

int main(int argc, char **argv)
{
    int size = argc > 1 ? atoi(argv[1]) : 3;
    unsigned seed = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    CHECK(size >= 1 && size <= 64);
    with_team(size, seed, "reduce", reduce);
    with_team(size, seed, "broadcast", broadcast);
    with_team(size, seed, "encode", encode);
    with_team(size, seed, "allgather", allgather);
    with_team(size, seed, "non_finite", non_finite);
    if (size > 1) {
        with_team(size, seed, "mismatch", mismatch);
        with_team(size, seed, "damage", damage);
        with_team(size, seed, "deadline", deadline);
        with_team(size, seed, "broken_mpi", broken_mpi);
        with_team(size, seed, "abandon", abandon);
    }
    return 0;
}
