/* Steps of a strategy in a simulated cluster: the library's own exchange (csrc/), linked with SimGrid's MPI and driven
   without its thread. Computation and the CPU's work on messages are simulated waits; every byte is moved.

   steps METHOD ELEMENTS BUCKETS BODY STEP PERIOD GROUP BLOCKS ENCODE DECODE REDUCE PER_HOST RING

   BODY: bytes of an encoded bucket; STEP [s]; ENCODE, REDUCE [elements/s]; DECODE [s for a message of one bucket].
   PER_HOST: ranks; RING: bytes, as gtcbmuf.exchange has it.
   Rank 0 prints the simulated seconds of a step, and the bytes that rank 0 and all ranks sent in a step. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exchange/exchange.h"

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                    \
            abort();                                                                           \
        }                                                                                      \
    } while (0)

/* -- the MPI of the exchange -----------------------------------------------------------------------

   A request of the exchange is the number of one of ours. Its test only looks; time passes in wait_for_any, which blocks
   in MPI until something has arrived. So simulated time does not depend on how often anybody asks. */

enum { REQUESTS = 1 << 16 };
static MPI_Request requests[REQUESTS];
static char in_use[REQUESTS], finished[REQUESTS];
static int highest, next_free, untold;     /* untold: finished, but not tested since */

static int new_request(void *out, MPI_Request **request)
{
    while (in_use[next_free])
        next_free = (next_free + 1) % REQUESTS;
    in_use[next_free] = 1;
    finished[next_free] = 0;
    *request = &requests[next_free];
    *(int *)out = next_free;
    if (next_free >= highest)
        highest = next_free + 1;
    return MPI_SUCCESS;
}

static int isend(const void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *out)
{
    MPI_Request *request;
    new_request(out, &request);
    return MPI_Isend(data, count, (MPI_Datatype)type, peer, tag, (MPI_Comm)comm, request);
}

static int irecv(void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *out)
{
    MPI_Request *request;
    new_request(out, &request);
    return MPI_Irecv(data, count, (MPI_Datatype)type, peer, tag, (MPI_Comm)comm, request);
}

static int test(void *which, int *flag, void *status)
{
    (void)status;
    int i = *(int *)which;
    *flag = finished[i];
    if (finished[i])
        in_use[i] = 0, next_free = i, untold--;
    return MPI_SUCCESS;
}

static int iprobe(int peer, int tag, gtcb_handle comm, int *flag, void *status)     /* nobody says farewell here */
{
    (void)peer, (void)tag, (void)comm, (void)status;
    *flag = 0;
    return MPI_SUCCESS;
}

static void wait_for_any(void)
{
    static MPI_Request pending[REQUESTS];
    static int numbers[REQUESTS], done[REQUESTS];
    int count = 0, found = 0;
    for (int i = 0; i < highest; i++)
        if (in_use[i] && !finished[i]) {
            numbers[count] = i;
            pending[count++] = requests[i];
        }
    CHECK(count > 0);
    MPI_Waitsome(count, pending, &found, done, MPI_STATUSES_IGNORE);
    for (int k = 0; k < found; k++)
        finished[numbers[done[k]]] = 1;
    untold += found;
}

static int comm_size(gtcb_handle comm, int *size) { return MPI_Comm_size((MPI_Comm)comm, size); }
static int comm_rank(gtcb_handle comm, int *rank) { return MPI_Comm_rank((MPI_Comm)comm, rank); }
static double now(void) { return MPI_Wtime(); }

/* -- a rank -------------------------------------------------------------------------------------------- */

static gtcb_engine *engine;

static struct {
    const char *method;
    double elements, body, step, encode, decode, reduce;
    int buckets, period, group, blocks, per_host;
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
            if (!gtcb_engine_progress(engine) && untold == 0)      /* a poll tests some requests at a time */
                wait_for_any();
        if (gtcb_op_failure(ops[i])->status) {
            fprintf(stderr, "%s\n", gtcb_op_failure(ops[i])->text);
            abort();
        }
        CHECK(gtcb_op_release(ops[i]));
    }
}

static void work(double seconds) { if (seconds > 0) smpi_execute(seconds); }

static gtcb_exchange *world, *group, *leaders;      /* leaders: NULL on ranks that do not lead */
static float *model, *update;
static uint8_t *message;

static bool is(const char *method) { return strcmp(job.method, method) == 0; }

/* As the policies post them: each bucket encoded, then its message on its way; at the end all decoded. */
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
    gtcb_op *ops[2];
    int64_t row[3] = {0};
    CHECK(gtcb_post_allgather(world, GTCB_BYTES, row, sizeof row, 0, &ops[0]) == GTCB_OK);
    finish(ops, 1);
    gtcb_exchange *participants = is("BMUF") ? world : leaders;
    if (participants) {
        CHECK(gtcb_post_allreduce(participants, GTCB_FLOAT32, model, (uint64_t)job.elements, 1, true, 0, &ops[0]) == GTCB_OK);
        finish(ops, 1);
        work(job.elements / job.reduce);
    }
    if (is("BMUF"))
        return;
    static uint8_t note[1024];
    CHECK(gtcb_post_broadcast(group, GTCB_BYTES, note, sizeof note, 0, 0, &ops[0]) == GTCB_OK);
    finish(ops, 1);
    CHECK(gtcb_post_broadcast(group, GTCB_FLOAT32, model, (uint64_t)job.elements, 0, 0, &ops[0]) == GTCB_OK);
    CHECK(gtcb_post_broadcast(group, GTCB_FLOAT32, update, (uint64_t)job.elements, 0, 1, &ops[1]) == GTCB_OK);
    finish(ops, 2);
}

static double block_of_steps(void)
{
    double begin = MPI_Wtime();
    for (int s = 1; s <= job.period; s++) {
        work(job.step);
        if (is("dense"))
            average_gradients();
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
    job.elements = atof(word[2]), job.buckets = atoi(word[3]), job.body = atof(word[4]), job.step = atof(word[5]);
    job.period = atoi(word[6]), job.group = atoi(word[7]), job.blocks = atoi(word[8]);
    job.encode = atof(word[9]), job.decode = atof(word[10]), job.reduce = atof(word[11]);
    job.per_host = atoi(word[12]), job.ring = (size_t)atof(word[13]);
    CHECK(job.buckets <= 256 && job.blocks >= 1 && job.period >= 1);
}

int main(int count, char **words)
{
    CHECK(count == 14);
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
        .mpi = {.isend = isend, .irecv = irecv, .test = test, .iprobe = iprobe, .comm_size = comm_size, .comm_rank = comm_rank,
                .byte = (gtcb_handle)MPI_BYTE},
        .variant = gtcb_variant_best(), .threads = 1, .progress_thread = false, .piece_bytes = GTCB_PIECE_BYTES,
        .direct_bytes = 8192, .ring_bytes = job.ring, .now = now};
    CHECK(gtcb_engine_open(&settings, &engine) == GTCB_OK);
    world = open_exchange(all, 0, 1);
    group = open_exchange(own, rank / job.group * job.group, 1);
    leaders = lead == MPI_COMM_NULL ? NULL : open_exchange(lead, 0, job.group);
    model = calloc((size_t)job.elements, sizeof *model);
    update = is("hybrid") ? calloc((size_t)job.elements, sizeof *update) : NULL;
    message = calloc((size_t)job.body + 1, 1);
    block_of_steps();
    MPI_Barrier(MPI_COMM_WORLD);
    uint64_t before = sent();
    double step = 0, slowest;
    for (int b = 0; b < job.blocks; b++)
        step += block_of_steps() / job.blocks;
    double bytes = (double)(sent() - before) / (job.period * job.blocks), total;
    MPI_Reduce(&step, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Reduce(&bytes, &total, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("result %.9g %.9g %.9g\n", slowest, bytes, total);
    MPI_Finalize();
    return 0;
}
