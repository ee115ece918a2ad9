/* The exchange over the fake MPI, every rank a thread: for the sanitizers, and for what a real MPI seldom does.
   test_exchange RANKS SEED */
#include "team.h"

void reduce(rank *me)
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

/* What bfloat16 holds exactly. */
static uint16_t narrow(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    CHECK(!(bits & 0xFFFF));
    return (uint16_t)(bits >> 16);
}

/* Many operations at once, waited for from the last to the first. The means of odd buckets come by themselves, of one to where the
   gradients were, of the other as bfloat16. */
static void encode(rank *me)
{
    enum { STEPS = 6, BUCKETS = 5, N = 3000 };
    float *residuals[2] = {calloc(BUCKETS * N, sizeof(float)), calloc(BUCKETS * N, sizeof(float))};
    float *dense = calloc(BUCKETS * N, sizeof(float)), *gradient = values(me->rank, N), *gradients = calloc(BUCKETS * N, sizeof(float));
    uint16_t halves[2][N];
    for (int step = 0; step < STEPS; step++) {
        gtcb_op *ops[BUCKETS];
        for (uint32_t b = 0; b < BUCKETS; b++) {
            float *own = memcpy(gradients + b * N, gradient, N * sizeof(float));
            gtcb_segment segments[] = {{own, 1000}, {own + 1000, N - 1000}};
            const gtcb_target targets[] = {{own, 7}, {own + 7, N - 7}};
            const gtcb_target half[] = {{halves[0], 7}, {halves[0] + 7, N - 7}};
            const gtcb_mean_into into = {b == 3 ? half : targets, 2, b == 3 ? GTCB_BF16 : GTCB_F32, 2};
            const gtcb_mean_into too_short = {targets, 1, GTCB_F32, 2}, by_nothing = {targets, 2, GTCB_F32, 0}, of_halves = {half, 2, GTCB_F16, 2};
            gtcb_encode_job job = {.segments = segments, .segment_count = 2, .dtype = GTCB_F32, .elements = N,
                                   .residual_in = residuals[step % 2] + b * N, .residual_out = residuals[1 - step % 2] + b * N,
                                   .threshold = 20, .max_sent = GTCB_NO_CAP, .bucket = b};
            dawdle(me);
            CHECK(gtcb_post_encode(me->exchange, &job, &too_short, &ops[b]) == GTCB_BAD_ARGUMENT);
            CHECK(gtcb_post_encode(me->exchange, &job, &by_nothing, &ops[b]) == GTCB_BAD_ARGUMENT);
            CHECK(gtcb_post_encode(me->exchange, &job, &of_halves, &ops[b]) == GTCB_BAD_ARGUMENT);
            CHECK(gtcb_post_encode(me->exchange, &job, b % 2 ? &into : NULL, &ops[b]) == GTCB_OK);
        }
        for (uint32_t b = BUCKETS; b-- > 0;) {
            CHECK(finish(ops[b])->status == GTCB_OK);
            const gtcb_target targets[] = {{dense + b * N, 7}, {dense + b * N + 7, N - 7}, {dense, 1}};
            CHECK(gtcb_op_decode_mean(ops[b], &(gtcb_mean_into){targets, 2, GTCB_F32, 2}) == GTCB_OK);
            CHECK(gtcb_op_decode_mean(ops[b], &(gtcb_mean_into){&(gtcb_target){halves[1], N}, 1, GTCB_BF16, 2}) == GTCB_OK);
            CHECK(gtcb_op_decode_mean(ops[b], &(gtcb_mean_into){targets, 1, GTCB_F32, 1}) == GTCB_BAD_ARGUMENT);
            CHECK(gtcb_op_decode_mean(ops[b], &(gtcb_mean_into){targets, 3, GTCB_F32, 1}) == GTCB_BAD_ARGUMENT);
            gtcb_times at = gtcb_op_times(ops[b]);
            CHECK(at.posted <= at.begun && at.begun <= at.announced && at.announced <= at.arrived && at.arrived <= at.done);
            CHECK(gtcb_op_release(ops[b]));
        }
    }
    for (size_t i = 0; i < BUCKETS * N; i++) {
        float sum = 0, residual[16] = {0};
        for (int step = 0; step < STEPS; step++) {
            sum = 0;
            for (uint32_t w = 0; w < gtcb_exchange_size(me->exchange); w++) {
                float t = residual[w] + value((int)w, i % N), q = t >= 20 ? 20 : t <= -20 ? -20 : 0;
                residual[w] = t - q;
                sum += q;
            }
        }
        CHECK(dense[i] == sum / 2);
        CHECK(gradients[i] == (i / N == 1 ? dense[i] : gradient[i % N]));
        CHECK(halves[0][i % N] == narrow(sum / 2) && halves[1][i % N] == narrow(sum / 2));
    }
    CHECK(gtcb_exchange_counters(me->exchange).operations == STEPS * BUCKETS);
    free(residuals[0]);
    free(residuals[1]);
    free(dense);
    free(gradient);
    free(gradients);
}

/* What is kept keeps its room in the window: nothing that comes later may change it. */
static void keep(rank *me)
{
    enum { N = 900, KEPT = 7 };
    gtcb_op *ops[KEPT], *op;
    float *arrays[KEPT];
    for (int i = 0; i < KEPT; i++) {
        arrays[i] = values(me->rank + 10 * i, N);
        CHECK(gtcb_post_allgather(me->exchange, GTCB_FLOAT32, arrays[i], N, (uint32_t)i, &ops[i]) == GTCB_OK);
        for (int turn = 0; turn < 3; turn++) {
            float *x = values(me->rank + 1000, N);
            dawdle(me);
            CHECK(gtcb_post_allgather(me->exchange, GTCB_FLOAT32, x, N, 99, &op) == GTCB_OK);
            CHECK(finish(op)->status == GTCB_OK);
            CHECK(gtcb_op_release(op));
            free(x);
        }
    }
    for (int i = KEPT; i-- > 0;) {                   /* given back in another order */
        int k = (i * 3 + me->rank) % KEPT;
        CHECK(finish(ops[k])->status == GTCB_OK);
        for (int r = 0; r < me->size; r++) {
            size_t bytes;
            const float *body = gtcb_op_body(ops[k], (uint32_t)r, &bytes);
            for (size_t e = 0; e < N; e++)
                CHECK(body[e] == value(r + 10 * k, e));
        }
        CHECK(gtcb_op_release(ops[k]));
        free(arrays[k]);
    }
}

/* By way of owners: the sum, quantised once more, and what both residuals hold back, element by element. */
static void owners(rank *me)
{
    enum { STEPS = 4 };
    static const size_t lengths[] = {1, 3000};
    for (size_t k = 0; k < 2; k++) {
        const size_t n = lengths[k], size = (size_t)me->size, base = n / size, extra = n % size, own_rank = (size_t)me->rank;
        const size_t first = own_rank * base + (own_rank < extra ? own_rank : extra), own = base + (own_rank < extra);
        float *residuals[2] = {calloc(n, sizeof(float)), calloc(n, sizeof(float))};
        float *seconds[2] = {calloc(n, sizeof(float)), calloc(n, sizeof(float))};
        float *dense = malloc(n * sizeof(float)), *gradient = values(me->rank, n);
        uint16_t *halves = malloc(n * sizeof *halves);
        float *r = calloc(n * size, sizeof(float)), *s = calloc(n, sizeof(float));
        for (int step = 0; step < STEPS; step++) {
            gtcb_segment segments[] = {{gradient, n / 3}, {gradient + n / 3, n - n / 3}};
            gtcb_encode_job job = {.segments = segments, .segment_count = 2, .dtype = GTCB_F32, .elements = n,
                                   .residual_in = residuals[step % 2], .residual_out = residuals[1 - step % 2],
                                   .threshold = 20, .max_sent = GTCB_NO_CAP, .bucket = 4};
            gtcb_encode_job second = {.residual_in = seconds[step % 2], .residual_out = seconds[1 - step % 2], .threshold = 30};
            const gtcb_target targets[] = {{dense, n / 2}, {dense + n / 2, n - n / 2}};
            const gtcb_target half = {halves, n};
            const gtcb_mean_into into = {targets, 2, GTCB_F32, 2}, into_half = {&half, 1, GTCB_BF16, 2};
            const gtcb_mean_into *by_itself[] = {NULL, &into, NULL, &into_half};
            gtcb_op *op;
            dawdle(me);
            CHECK(gtcb_post_owners(me->exchange, &job, &second, by_itself[step], &op) == GTCB_OK);
            CHECK(finish(op)->status == GTCB_OK);
            CHECK(step == 1 || gtcb_op_decode_mean(op, &into) == GTCB_OK);
            CHECK(step == 3 || gtcb_op_decode_mean(op, &into_half) == GTCB_OK);
            for (size_t i = 0; i < n; i++) {
                for (size_t w = 0; w < size; w++) {
                    float t = r[w * n + i] + value((int)w, i), q = t >= 20 ? 20 : t <= -20 ? -20 : 0;
                    r[w * n + i] = t - q;
                    s[i] += q;
                }
                float q = s[i] >= 30 ? 30 : s[i] <= -30 ? -30 : 0;
                s[i] -= q;
                CHECK(dense[i] == q / 2 && halves[i] == narrow(q / 2));
                CHECK(residuals[1 - step % 2][i] == r[own_rank * n + i]);
                CHECK(i < first || i >= first + own || seconds[1 - step % 2][i - first] == s[i]);
            }
            CHECK(gtcb_op_release(op));
        }
        void *all[] = {residuals[0], residuals[1], seconds[0], seconds[1], dense, gradient, halves, r, s};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            free(all[i]);
    }
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

int main(int argc, char **argv)
{
    int size = argc > 1 ? atoi(argv[1]) : 3;
    unsigned seed = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    CHECK(size >= 1 && size <= 64);
    with_team(size, seed, "reduce", reduce, true);
    with_team(size, seed, "broadcast", broadcast, true);
    with_team(size, seed, "encode", encode, true);
    with_team(size, seed, "owners", owners, true);
    with_team(size, seed, "allgather", allgather, true);
    with_team(size, seed, "direct", direct, true);
    with_team(size, seed, "keep", keep, true);
    with_team(size, seed, "crowd", crowd, false);
    with_team(size, seed, "non_finite", non_finite, true);
    if (size == 3) {
        rounds();
        order_of_turns();
        turns_in_the_ring();
        stuck_turns();
        damaged_turn();
    }
    if (size > 1) {
        with_team(size, seed, "mismatch", mismatch, false);
        with_team(size, seed, "damage", damage, false);
        with_team(size, seed, "deadline", deadline, false);
        with_team(size, seed, "leaver", leaver, true);
        with_team(size, seed, "broken_mpi", broken_mpi, false);
        with_team(size, seed, "abandon", abandon, false);
    }
    return 0;
}
