/* The MPI of the exchange in a simulation.

   A request of the exchange is the number of one of ours. Its test only looks; time passes in wait_for_any, which blocks
   in MPI until something has arrived. So simulated time does not depend on how often anybody asks.

   What goes one way between two ranks with one tag is a lane: it arrives in order, as on a connection. A ring posts a
   receive for every other rank on one lane; SimGrid searches all that a rank has posted at each end, so it gets the
   first few of a lane only, and only the first is waited for. */
#include <mpi.h>

#include "lanes.h"

enum { REQUESTS = 1 << 16, AHEAD = 4 };
static struct request {
    MPI_Request mpi;
    void *data;
    int count;
    MPI_Datatype type;
    char in_use, begun, finished;
    int next;                              /* in the lane; -1: the last */
} requests[REQUESTS];
static int next_free, untold;              /* untold: finished, but not tested since */

static struct lane {
    gtcb_handle comm;
    int peer, tag, first, last, ahead;     /* ahead: begun, not finished */
    bool sends;
} lanes[REQUESTS];
static int lane_count;

/* What the lane may begin. A send begins at once: whoever sends has nothing to wait for. */
static void begin(struct lane *lane)
{
    for (int i = lane->first; i >= 0 && (lane->sends || lane->ahead < AHEAD); i = requests[i].next) {
        struct request *r = &requests[i];
        if (r->begun)
            continue;
        if (lane->sends)
            MPI_Isend(r->data, r->count, r->type, lane->peer, lane->tag, (MPI_Comm)lane->comm, &r->mpi);
        else
            MPI_Irecv(r->data, r->count, r->type, lane->peer, lane->tag, (MPI_Comm)lane->comm, &r->mpi);
        r->begun = 1;
        lane->ahead++;
    }
}

static struct lane *find_lane(bool sends, int peer, int tag, gtcb_handle comm)
{
    for (int k = lane_count - 1; k >= 0; k--)
        if (lanes[k].peer == peer && lanes[k].tag == tag && lanes[k].sends == sends && lanes[k].comm == comm)
            return &lanes[k];
    lanes[lane_count] = (struct lane){.comm = comm, .peer = peer, .tag = tag, .first = -1, .sends = sends};
    return &lanes[lane_count++];
}

static int post(struct request what, bool sends, int peer, int tag, gtcb_handle comm, void *out)
{
    while (requests[next_free].in_use)
        next_free = (next_free + 1) % REQUESTS;
    what.in_use = 1, what.next = -1;
    requests[next_free] = what;
    struct lane *lane = find_lane(sends, peer, tag, comm);
    if (lane->first < 0)
        lane->first = next_free;
    else
        requests[lane->last].next = next_free;
    lane->last = next_free;
    *(int *)out = next_free;
    begin(lane);
    return MPI_SUCCESS;
}

static int isend(const void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *out)
{
    return post((struct request){.data = (void *)data, .count = count, .type = (MPI_Datatype)type}, true, peer, tag, comm, out);
}

static int irecv(void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *out)
{
    return post((struct request){.data = data, .count = count, .type = (MPI_Datatype)type}, false, peer, tag, comm, out);
}

static int test(void *which, int *flag, void *status)
{
    (void)status;
    struct request *r = &requests[*(int *)which];
    *flag = r->finished;
    if (r->finished)
        r->in_use = 0, next_free = *(int *)which, untold--;
    return MPI_SUCCESS;
}

static int iprobe(int peer, int tag, gtcb_handle comm, int *flag, void *status)     /* nobody says farewell here */
{
    (void)peer, (void)tag, (void)comm, (void)status;
    *flag = 0;
    return MPI_SUCCESS;
}

/* For one at a time where there are few: SimGrid keeps what ends in a wait for some in a list that it searches. */
static void wait_for_any(void)
{
    static MPI_Request pending[REQUESTS];
    static int done[REQUESTS];
    enum { FEW = 8 };
    int found = 1;
    CHECK(lane_count > 0);
    for (int k = 0; k < lane_count; k++)
        pending[k] = requests[lanes[k].first].mpi;
    if (lane_count > FEW)
        MPI_Waitsome(lane_count, pending, &found, done, MPI_STATUSES_IGNORE);
    else
        MPI_Waitany(lane_count, pending, done, MPI_STATUS_IGNORE);
    untold += found;
    for (int i = 0; i < found; i++) {
        struct lane *lane = &lanes[done[i]];
        requests[lane->first].finished = 1;
        lane->first = requests[lane->first].next;
        lane->ahead--;
        begin(lane);
    }
    int count = lane_count;
    lane_count = 0;
    for (int k = 0; k < count; k++)
        if (lanes[k].first >= 0)
            lanes[lane_count++] = lanes[k];
}

static int comm_size(gtcb_handle comm, int *size) { return MPI_Comm_size((MPI_Comm)comm, size); }
static int comm_rank(gtcb_handle comm, int *rank) { return MPI_Comm_rank((MPI_Comm)comm, rank); }

/* A poll tests some requests at a time; and some are tested in their order, so that one which is over waits for those before. */
enum { POLLS = 64 };

void lanes_polled(bool moved)
{
    static int still;
    still = moved ? 0 : still + 1;
    if (still && (untold == 0 || (still > POLLS && lane_count > 0))) {
        wait_for_any();
        still = 0;
    }
}

const gtcb_mpi lanes_mpi = {
    .isend = isend, .issend = isend,       /* here every send is over when it is received (send-is-detached-thresh) */
    .irecv = irecv, .test = test, .iprobe = iprobe, .comm_size = comm_size, .comm_rank = comm_rank};
