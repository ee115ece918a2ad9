/* Who may send when: large transfers of a batch take turns, small ones do not wait but behind others. */
#include <stdio.h>
#include <stdlib.h>

#include "transport/transport.h"

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                   \
            abort();                                                                          \
        }                                                                                     \
    } while (0)

enum { LONG = GTCB_LARGE + 1, MANY = 64 };
static struct { int peer, bytes, done; } posted[MANY];       /* in the order of posting, sends and receives */
static int count;

static int post(int bytes, int peer, void *request)
{
    posted[count].peer = peer;
    posted[count].bytes = bytes;
    posted[count].done = 0;
    *(int *)request = count++;
    return 0;
}

static int isend(const void *data, int bytes, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    (void)data, (void)type, (void)tag, (void)comm;
    return post(bytes, peer, request);
}

static int irecv(void *data, int bytes, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    (void)data, (void)type, (void)tag, (void)comm;
    return post(bytes, 100 + peer, request);
}

static int test(void *request, int *flag, void *status)
{
    (void)status;
    *flag = posted[*(int *)request].done;
    return 0;
}

static const gtcb_mpi MPI = {.isend = isend, .irecv = irecv, .test = test};
static char data[2 * LONG];

static void send(gtcb_batch *b, size_t bytes, uint32_t peer) { CHECK(gtcb_batch_send(b, data, bytes, peer, 1) == GTCB_OK); }
static void receive(gtcb_batch *b, size_t bytes, uint32_t peer) { CHECK(gtcb_batch_receive(b, data, bytes, peer, 1, peer) == GTCB_OK); }

static size_t poll_after(gtcb_batch *b, int which)
{
    size_t finished;
    posted[which].done = 1;
    CHECK(gtcb_batch_poll(b, &finished) == GTCB_OK);
    return finished;
}

static gtcb_batch open_batch(size_t piece)
{
    gtcb_batch b;
    count = 0;
    CHECK(gtcb_batch_init(&b, &MPI, 0, 8, piece) == GTCB_OK);
    return b;
}

static void one_large_send_at_a_time(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    send(&b, 64, 1);
    send(&b, GTCB_LARGE, 2);                     /* is not above it */
    send(&b, LONG, 3);
    send(&b, LONG, 4);
    send(&b, 64, 4);                             /* must not overtake */
    send(&b, LONG, 5);
    CHECK(count == 3 && posted[2].peer == 3);
    CHECK(b.bytes_sent == 128 + GTCB_LARGE + 3 * LONG);
    CHECK(poll_after(&b, 0) == 1 && count == 3);
    CHECK(poll_after(&b, 2) == 1);
    CHECK(count == 5 && posted[3].peer == 4 && posted[3].bytes == LONG && posted[4].bytes == 64);
    CHECK(poll_after(&b, 3) == 1 && count == 6 && posted[5].peer == 5);
    CHECK(b.count == 3);
    posted[1].done = posted[4].done = 1;
    CHECK(poll_after(&b, 5) == 3 && b.count == 0);
    gtcb_batch_free(&b);
}

static void receives_have_turns_of_their_own(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    receive(&b, LONG, 1);
    receive(&b, LONG, 2);
    send(&b, LONG, 3);
    CHECK(count == 2 && posted[0].peer == 101 && posted[1].peer == 3);
    CHECK(b.awaited[1] == 1 && b.awaited[2] == 1);     /* what waits is awaited */
    CHECK(poll_after(&b, 1) == 1 && count == 2);
    CHECK(poll_after(&b, 0) == 1 && count == 3 && posted[2].peer == 102);
    CHECK(b.awaited[1] == 0 && b.awaited[2] == 1);
    CHECK(poll_after(&b, 2) == 1 && b.count == 0 && b.awaited[2] == 0);
    gtcb_batch_free(&b);
}

static void pieces_are_transfers(void)
{
    gtcb_batch b = open_batch(GTCB_LARGE + 1);
    send(&b, 2 * LONG, 1);
    CHECK(count == 1 && posted[0].bytes == LONG);
    CHECK(poll_after(&b, 0) == 1 && count == 2 && posted[1].bytes == LONG);
    CHECK(poll_after(&b, 1) == 1 && b.count == 0);
    gtcb_batch_free(&b);
}

int main(void)
{
    one_large_send_at_a_time();
    receives_have_turns_of_their_own();
    pieces_are_transfers();
    puts("turns ok");
    return 0;
}
