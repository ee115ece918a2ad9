/* Steps of a strategy in a simulated cluster: the library's own exchange (csrc/), linked with SimGrid's MPI and driven
   without its thread. Computation and the CPU's work on messages are simulated waits; every byte is moved.

   steps METHOD ELEMENTS BUCKETS SENT BODY STEP PERIOD GROUP WARM_UP ENCODE DECODE REDUCE PER_HOST RING

   SENT: elements that are sent of a bucket; BODY: bytes of an encoded bucket; STEP [s]; ENCODE, REDUCE [elements/s];
   DECODE [s for a message of one bucket].
   WARM_UP: blocks before the one that is counted; PER_HOST: ranks; RING: bytes, as gtcbmuf.exchange has it.
   Rank 0 prints the simulated seconds of a step, and the bytes that rank 0 and all ranks sent in a step. */
#include <mpi.h>
#include <simgrid/engine.h>
#include <string.h>

#include "lanes.h"

static double now(void) { return simgrid_get_clock(); }

/* -- a rank -------------------------------------------------------------------------------------------- */

static gtcb_engine *engine;

static struct {
    const char *method;
    double elements, sent, body, step, encode, decode, reduce;
    int buckets, period, group, warm_up, per_host;
    size_t ring;
} job;

/* Of every rank_step-th rank of the job, beginning with one of number `first`. */
static gtcb_exchange *open_exchange(MPI_Comm comm, int first, int rank_step)
{
    gtcb_exchange *x;
    int size;
    MPI_Comm_size(comm, &size);
    uint32_t *hosts = malloc((size_t)size * sizeof *hosts);
    for (int i = 0; i < size; i++)
        hosts[i] = (uint32_t)((first + i * rank_step) / job.per_host);
    CHECK(gtcb_exchange_open(engine, (gtcb_handle)comm, hosts, &x) == GTCB_OK);
    free(hosts);
    return x;
}

static void finish(gtcb_op **ops, int count)
{
    for (int i = 0; i < count; i++) {
        while (!gtcb_op_done(ops[i]))
            lanes_polled(gtcb_engine_progress(engine));
        if (gtcb_op_failure(ops[i])->status) {
            fprintf(stderr, "%s\n", gtcb_op_failure(ops[i])->text);
            abort();
        }
        CHECK(gtcb_op_release(ops[i]));
    }
}

static void work(double seconds) { if (seconds > 0) smpi_execute(seconds); }

static gtcb_exchange *world, *group, *leaders;      /* leaders: NULL on ranks that do not lead */
static float *model, *gradient, *residuals[2], *seconds[2];
static uint8_t *message;

static bool is(const char *method) { return strcmp(job.method, method) == 0; }

/* As the policies post them: each bucket encoded, then its message on its way. Decoding comes at the end: as nothing hides it
   here, it takes as long there as between. */
static void exchange_messages(gtcb_exchange *x)
{
    gtcb_op *ops[256];
    for (int b = 0; b < job.buckets; b++) {
        work(job.elements / job.buckets / job.encode);
        CHECK(gtcb_post_allgather(x, GTCB_BYTES, message, (uint64_t)job.body, (uint32_t)b, &ops[b]) == GTCB_OK);
    }
    finish(ops, job.buckets);
    work(gtcb_exchange_size(x) * job.buckets * job.decode);
}

/* Gradients as sparse as SENT says, at random positions that are the same on all ranks: then results are as sparse. */
static void make_gradients(void)
{
    const size_t each = (size_t)job.elements / (unsigned)job.buckets;
    uint64_t random = 1;
    gradient = calloc(each, sizeof *gradient);
    for (int i = 0; i < 2; i++)
        residuals[i] = calloc(each, sizeof *gradient), seconds[i] = calloc(each, sizeof *gradient);
    for (uint64_t i = 0; i < (uint64_t)job.sent; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        gradient[(random >> 33) % each] = 1;
    }
}

/* Every sum is N quanta of 1 and is sent, so both residuals stay 0. An owner's work on its shard comes before, here. */
static void exchange_by_owners(void)
{
    gtcb_op *ops[256];
    const uint32_t size = gtcb_exchange_size(world);
    const size_t each = (size_t)job.elements / (unsigned)job.buckets;
    gtcb_segment segment = {gradient, each};
    for (int b = 0; b < job.buckets; b++) {
        gtcb_encode_job first = {.segments = &segment, .segment_count = 1, .elements = each, .residual_in = residuals[0],
                                 .residual_out = residuals[1], .threshold = 1, .max_sent = GTCB_NO_CAP, .bucket = (uint32_t)b};
        gtcb_encode_job second = {.residual_in = seconds[0], .residual_out = seconds[1], .threshold = (float)size};
        work((double)each * (1 + 1.0 / size) / job.encode + job.decode);
        CHECK(gtcb_post_owners(world, &first, &second, NULL, &ops[b]) == GTCB_OK);
    }
    finish(ops, job.buckets);
    work(job.buckets * job.decode);
}

static void average_gradients(void)
{
    gtcb_op *ops[256];
    uint64_t each = (uint64_t)job.elements / (unsigned)job.buckets;
    for (int b = 0; b < job.buckets; b++) {
        work((double)each / job.reduce);
        CHECK(gtcb_post_allreduce(world, GTCB_FLOAT32, model + (unsigned)b * each, each, 1, true, (uint32_t)b, &ops[b]) == GTCB_OK);
    }
    finish(ops, job.buckets);
}

static void end_block(void)
{
    gtcb_op *op;
    int64_t row[3] = {0};
    CHECK(gtcb_post_allgather(world, GTCB_BYTES, row, sizeof row, 0, &op) == GTCB_OK);
    finish(&op, 1);
    gtcb_exchange *participants = is("BMUF") ? world : leaders;
    if (participants) {
        CHECK(gtcb_post_allreduce(participants, GTCB_FLOAT32, model, (uint64_t)job.elements, 1, true, 0, &op) == GTCB_OK);
        finish(&op, 1);
        work(job.elements / job.reduce);
    }
    if (is("BMUF"))
        return;
    CHECK(gtcb_post_allgather(group, GTCB_BYTES, row, 0, 0, &op) == GTCB_OK);     /* no error to tell of */
    finish(&op, 1);
    CHECK(gtcb_post_broadcast(group, GTCB_FLOAT32, model, (uint64_t)job.elements, 0, 0, &op) == GTCB_OK);
    finish(&op, 1);
}

static double block_of_steps(void)
{
    double begin = MPI_Wtime();
    for (int s = 1; s <= job.period; s++) {
        work(job.step);
        if (is("dense"))
            average_gradients();
        else if (is("owners"))
            exchange_by_owners();
        else if (!is("BMUF"))
            exchange_messages(is("GTC") ? world : group);
        if (s == job.period && (is("BMUF") || is("hybrid")))
            end_block();
    }
    return (MPI_Wtime() - begin) / job.period;
}

static uint64_t sent(void)
{
    uint64_t bytes = gtcb_exchange_counters(world).bytes_sent + gtcb_exchange_counters(group).bytes_sent;
    return bytes + (leaders ? gtcb_exchange_counters(leaders).bytes_sent : 0);
}

static void read_job(char **word)
{
    job.method = word[1];
    job.elements = atof(word[2]), job.buckets = atoi(word[3]), job.sent = atof(word[4]), job.body = atof(word[5]);
    job.step = atof(word[6]), job.period = atoi(word[7]), job.group = atoi(word[8]), job.warm_up = atoi(word[9]);
    job.encode = atof(word[10]), job.decode = atof(word[11]), job.reduce = atof(word[12]);
    job.per_host = atoi(word[13]), job.ring = (size_t)atof(word[14]);
    CHECK(job.buckets <= 256 && job.period >= 1);
}

int main(int count, char **words)
{
    CHECK(count == 15);
    read_job(words);
    MPI_Init(&count, &words);
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm all, own, lead;
    MPI_Comm_dup(MPI_COMM_WORLD, &all);
    MPI_Comm_split(MPI_COMM_WORLD, rank / job.group, rank, &own);
    MPI_Comm_split(MPI_COMM_WORLD, rank % job.group ? MPI_UNDEFINED : 0, rank, &lead);
    gtcb_engine_settings settings = {
        .mpi = lanes_mpi,
        .variant = gtcb_variant_best(), .threads = 1, .progress_thread = false, .piece_bytes = GTCB_PIECE_BYTES,
        .direct_bytes = 8192, .ring_bytes = job.ring, .now = now};
    settings.mpi.byte = (gtcb_handle)MPI_BYTE;
    CHECK(gtcb_engine_open(&settings, &engine) == GTCB_OK);
    world = open_exchange(all, 0, 1);
    group = open_exchange(own, rank / job.group * job.group, 1);
    leaders = lead == MPI_COMM_NULL ? NULL : open_exchange(lead, 0, job.group);
    model = calloc((size_t)job.elements, sizeof *model);
    message = calloc((size_t)job.body + 1, 1);
    if (is("owners"))
        make_gradients();
    MPI_Barrier(MPI_COMM_WORLD);
    for (int b = 0; b < job.warm_up; b++)
        block_of_steps();
    MPI_Barrier(MPI_COMM_WORLD);
    uint64_t before = sent();
    double step = block_of_steps(), slowest;
    double bytes = (double)(sent() - before) / job.period, total;
    MPI_Reduce(&step, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Reduce(&bytes, &total, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("result %.9g %.9g %.9g\n", slowest, bytes, total);
    MPI_Finalize();
    return 0;
}
