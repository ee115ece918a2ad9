/* Large transfers of several operations at once: their order, and that nothing stands still for it. */
#include "team.h"

enum { RANKS = 3, LARGE = 60000, SMALL = 10 };   /* elements: a third of LARGE is above 64 KiB, two pieces; all of it four */

/* -- three ranks, driven by hand ----------------------------------------------------------------------- */

typedef struct trio { fake_world *world; gtcb_engine *engines[RANKS]; gtcb_exchange *exchanges[RANKS]; } trio;

static trio open_trio(void)
{
    static const uint32_t hosts[RANKS] = {0, 1, 2};
    trio t = {.world = fake_open(RANKS)};
    for (int r = 0; r < RANKS; r++) {
        gtcb_engine_settings settings = {.mpi = fake_table(), .variant = gtcb_variant_best(), .threads = 1,
                                         .piece_bytes = GTCB_PIECE_BYTES, .direct_bytes = 256, .ring_bytes = 2000};
        CHECK(gtcb_engine_open(&settings, &t.engines[r]) == GTCB_OK);
        CHECK(gtcb_exchange_open(t.engines[r], fake_comm(t.world, r), hosts, &t.exchanges[r]) == GTCB_OK);
    }
    return t;
}

static void close_trio(trio *t, bool sound)
{
    for (int r = 0; r < RANKS; r++) {
        CHECK(gtcb_exchange_close(t->exchanges[r]) || !sound);
        gtcb_engine_close(t->engines[r]);
        if (sound) {
            gtcb_exchange_free(t->exchanges[r]);
            gtcb_engine_free(t->engines[r]);
        }
    }
    CHECK(fake_close(t->world) == 0 || !sound);
}

typedef struct joint { size_t elements; bool gathers; float *arrays[RANKS]; gtcb_op *ops[RANKS]; } joint;    /* an operation */

/* The last rank posts all of them first: its hellos are gone, and it has heard nothing. */
static void post(trio *t, joint *joints, uint32_t count)
{
    for (int r = RANKS; r-- > 0;)
        for (uint32_t k = 0; k < count; k++) {
            joint *j = &joints[k];
            j->arrays[r] = values(r, j->elements);
            CHECK((j->gathers ? gtcb_post_allgather(t->exchanges[r], GTCB_FLOAT32, j->arrays[r], j->elements, k, &j->ops[r])
                              : gtcb_post_allreduce(t->exchanges[r], GTCB_FLOAT32, j->arrays[r], j->elements, 1, false, k, &j->ops[r])) == GTCB_OK);
        }
}

static bool all_done(const joint *j)
{
    return gtcb_op_done(j->ops[0]) && gtcb_op_done(j->ops[1]) && gtcb_op_done(j->ops[2]);
}

static void drive(trio *t, const joint *until)
{
    for (int turn = 0; turn < 100000 && !all_done(until); turn++) {
        for (int r = 0; r < RANKS; r++)
            if (r < 2 || turn % 5 == 0)          /* the last is slow */
                gtcb_engine_progress(t->engines[r]);
        if (turn > 1000)
            usleep(100);                         /* farewells are looked for by the clock */
    }
    CHECK(all_done(until));
}

static void drive_all_but_the_last(trio *t)
{
    for (int turn = 0; turn < 100; turn++)
        for (int r = 0; r < RANKS - 1; r++)
            gtcb_engine_progress(t->engines[r]);
}

static void check_sum(const joint *j)
{
    for (int r = 0; r < RANKS; r++) {
        CHECK(gtcb_op_failure(j->ops[r])->status == GTCB_OK);
        for (size_t i = 0; i < j->elements; i++)
            CHECK(j->arrays[r][i] == (float)((double)value(0, i) + value(1, i) + value(2, i)));
    }
}

static void release(joint *joints, uint32_t count)
{
    for (uint32_t k = 0; k < count; k++)
        for (int r = 0; r < RANKS; r++)
            if (gtcb_op_release(joints[k].ops[r]))
                free(joints[k].arrays[r]);
}

static int sequence_of(int tag) { return (tag - 1) / 4; }

/* Each rank sends two parts of a sum, its own result, and one that it passes on, of two pieces each; and small ones wait for nothing. */
void order_of_turns(void)
{
    trio t = open_trio();
    joint sums[] = {{.elements = LARGE}, {.elements = LARGE}, {.elements = SMALL}};
    post(&t, sums, 3);
    drive(&t, &sums[2]);
    for (int r = 0; r < RANKS; r++)
        CHECK(!gtcb_op_done(sums[1].ops[r]));
    drive(&t, &sums[1]);
    CHECK(all_done(&sums[0]));
    for (int r = 0; r < RANKS; r++) {
        int tags[FAKE_NOTED];
        CHECK(fake_long_sends(t.world, r, tags) == 16);
        for (int i = 0; i < 16; i++)
            CHECK(sequence_of(tags[i]) == i / 8);
    }
    for (int k = 0; k < 3; k++)
        check_sum(&sums[k]);
    release(sums, 3);
    close_trio(&t, true);
    puts("order_of_turns ok");
}

/* What goes around the ring has one way: the second sets out where the first still waits for the last rank. */
void turns_in_the_ring(void)
{
    trio t = open_trio();
    joint both[] = {{.elements = LARGE, .gathers = true}, {.elements = LARGE, .gathers = true}};
    post(&t, both, 2);
    drive_all_but_the_last(&t);
    int tags[FAKE_NOTED];
    CHECK(fake_long_sends(t.world, 0, tags) == 8);
    for (int i = 0; i < 8; i++)
        CHECK(sequence_of(tags[i]) == i / 4);
    drive(&t, &both[1]);
    drive(&t, &both[0]);
    for (int r = 0; r < RANKS; r++)
        CHECK(fake_long_sends(t.world, r, tags) == 16 && gtcb_op_failure(both[0].ops[r])->status == GTCB_OK &&
              gtcb_op_failure(both[1].ops[r])->status == GTCB_OK);
    release(both, 2);
    close_trio(&t, true);
    puts("turns_in_the_ring ok");
}

/* The last rank takes part in the headers and does nothing more: who waits for the second operation hears that the first, whose
   turn it is, waits for that rank; all end, and MPI has nothing of what had not set out. */
void stuck_turns(void)
{
    trio t = open_trio();
    joint sums[] = {{.elements = LARGE}, {.elements = LARGE}};
    post(&t, sums, 2);
    drive_all_but_the_last(&t);
    int tags[FAKE_NOTED];
    CHECK(fake_long_sends(t.world, 0, tags) == 2 && sequence_of(tags[1]) == 0);
    gtcb_failure wait;
    gtcb_op_waits_for(sums[1].ops[0], 1, &wait);
    CHECK(wait.status == GTCB_DEADLINE && wait.rank == 2 && strstr(wait.text, "sequence 1, for the body of rank 2"));
    gtcb_op_give_up(sums[1].ops[0], 1);
    CHECK(gtcb_op_is_late(sums[1].ops[0], 2) && !gtcb_op_is_late(sums[1].ops[0], 1));
    drive(&t, &sums[1]);
    CHECK(all_done(&sums[0]));
    for (int r = 0; r < RANKS; r++)
        for (int k = 0; k < 2; k++)
            CHECK(gtcb_op_failure(sums[k].ops[r])->status == GTCB_DEADLINE && gtcb_op_failure(sums[k].ops[r])->rank == 2);
    for (int r = 0; r < RANKS; r++)
        CHECK(gtcb_op_release(sums[1].ops[r]));
    close_trio(&t, false);
    puts("stuck_turns ok");
}

/* A part of the first arrives damaged: it ends on all ranks, and the second, which was begun, has its turn. */
void damaged_turn(void)
{
    trio t = open_trio();
    joint sums[] = {{.elements = LARGE}, {.elements = LARGE}};
    gtcb_exchange_corrupt_next(t.exchanges[1]);
    post(&t, sums, 2);
    drive(&t, &sums[1]);
    CHECK(all_done(&sums[0]));
    for (int r = 0; r < RANKS; r++)
        CHECK(gtcb_op_failure(sums[0].ops[r])->status == (r == 1 ? GTCB_BAD_CHECKSUM : GTCB_CLOSED));
    check_sum(&sums[1]);
    release(sums, 2);
    close_trio(&t, false);
    puts("damaged_turn ok");
}

/* -- many, of all kinds, at once ------------------------------------------------------------------------- */

typedef struct crowd_op { gtcb_op *op; float *array, *residuals; } crowd_op;

static crowd_op post_one(rank *me, int kind, uint32_t bucket)
{
    crowd_op o = {.array = values(me->rank, LARGE), .residuals = calloc(4 * LARGE, sizeof(float))};
    gtcb_segment segment = {o.array, LARGE};
    gtcb_encode_job job = {.segments = &segment, .segment_count = 1, .dtype = GTCB_F32, .elements = LARGE, .residual_in = o.residuals,
                           .residual_out = o.residuals + LARGE, .threshold = 0.01f, .max_sent = GTCB_NO_CAP, .bucket = bucket};
    gtcb_encode_job second = {.residual_in = o.residuals + 2 * LARGE, .residual_out = o.residuals + 3 * LARGE, .threshold = 0.01f};
    gtcb_status status = kind == 0   ? gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, o.array, LARGE, 1, false, bucket, &o.op)
                         : kind == 1 ? gtcb_post_allgather(me->exchange, GTCB_FLOAT32, o.array, LARGE, bucket, &o.op)
                         : kind == 2 ? gtcb_post_broadcast(me->exchange, GTCB_FLOAT32, o.array, LARGE, 0, bucket, &o.op)
                         : kind == 3 ? gtcb_post_owners(me->exchange, &job, &second, NULL, &o.op)
                         : kind == 4 ? gtcb_post_allreduce(me->exchange, GTCB_FLOAT32, o.array, SMALL, 1, false, bucket, &o.op)
                                     : gtcb_post_encode(me->exchange, &job, NULL, &o.op);
    CHECK(status == GTCB_OK);
    return o;
}

static void check_one(rank *me, int kind, crowd_op *o)
{
    for (size_t i = 0; i < (kind == 4 ? SMALL : LARGE); i += kind == 4 ? 1 : 97) {
        double all = 0;
        for (int r = 0; r < me->size; r++)
            all += value(r, i);
        if (kind == 0 || kind == 4)
            CHECK(o->array[i] == (float)all);
        if (kind == 2)
            CHECK(o->array[i] == value(0, i));
        for (int r = 0; r < me->size && kind == 1; r++) {
            size_t bytes;
            CHECK(((const float *)gtcb_op_body(o->op, (uint32_t)r, &bytes))[i] == value(r, i));
        }
    }
}

/* Posted by each rank in its own time; waited for in another order on each. */
void crowd(rank *me)
{
    static const int kinds[] = {0, 0, 3, 1, 4, 0, 2, 5, 3, 4, 1, 2, 0, 5};
    enum { COUNT = sizeof kinds / sizeof *kinds };
    crowd_op ops[COUNT];
    for (int i = 0; i < COUNT; i++) {
        dawdle(me);
        ops[i] = post_one(me, kinds[i], (uint32_t)i);
    }
    for (int k = 0; k < COUNT; k++) {
        int i = me->rank % 2 ? COUNT - 1 - k : k;
        CHECK(finish(ops[i].op)->status == GTCB_OK);
        check_one(me, kinds[i], &ops[i]);
        CHECK(gtcb_op_release(ops[i].op));
        free(ops[i].array);
        free(ops[i].residuals);
    }
}
