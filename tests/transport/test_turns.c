/* Who may send when: large transfers of a batch go by rounds, small ones do not wait but behind others. */
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
    b.round++;
    send(&b, LONG, 3);
    b.round++;
    send(&b, LONG, 4);
    send(&b, 64, 4);                             /* must not overtake */
    b.round++;
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

static void a_round_ends_with_its_sends_and_its_receives(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    for (uint32_t i = 1; i < 4; i++) {
        b.round++;
        send(&b, 64, i);
        send(&b, LONG, i);
        receive(&b, LONG, 4 + i);
    }
    CHECK(count == 4 && posted[1].peer == 1 && posted[2].peer == 105);
    CHECK(posted[3].peer == 2 && posted[3].bytes == 64);           /* nothing waits before it */
    CHECK(b.awaited[5] == 1 && b.awaited[7] == 1);     /* what waits is awaited */
    CHECK(poll_after(&b, 1) == 1 && count == 4);
    CHECK(poll_after(&b, 2) == 1 && b.awaited[5] == 0);
    CHECK(count == 7 && posted[4].peer == 2 && posted[5].peer == 106 && posted[6].peer == 3 && posted[6].bytes == 64);
    CHECK(poll_after(&b, 5) == 1 && count == 7);
    CHECK(poll_after(&b, 4) == 1 && count == 9 && posted[7].peer == 3 && posted[8].peer == 107);
    posted[0].done = posted[3].done = posted[6].done = posted[7].done = 1;
    CHECK(poll_after(&b, 8) == 5 && b.count == 0 && b.awaited[7] == 0);
    gtcb_batch_free(&b);
}

static void receives_that_come_ahead_hold_nobody_up(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    b.receive_ahead = true;
    receive(&b, LONG, 1);
    receive(&b, LONG, 2);
    b.round++;
    send(&b, LONG, 3);
    b.round++;
    send(&b, LONG, 4);
    receive(&b, LONG, 5);
    CHECK(count == 4 && posted[0].peer == 101 && posted[1].peer == 102 && posted[2].peer == 3 && posted[3].peer == 105);
    CHECK(poll_after(&b, 1) == 1 && count == 4);
    CHECK(poll_after(&b, 2) == 1 && count == 5 && posted[4].peer == 4);
    posted[0].done = posted[3].done = 1;
    CHECK(poll_after(&b, 4) == 3 && b.count == 0);
    gtcb_batch_free(&b);
}

static void pieces_are_transfers_of_one_round(void)
{
    gtcb_batch b = open_batch(LONG);
    send(&b, 2 * LONG, 1);
    b.round++;
    send(&b, LONG, 2);
    CHECK(count == 2 && posted[0].bytes == LONG && posted[1].bytes == LONG && posted[1].peer == 1);
    CHECK(poll_after(&b, 0) == 1 && count == 2);
    CHECK(poll_after(&b, 1) == 1 && count == 3 && posted[2].peer == 2);
    CHECK(poll_after(&b, 2) == 1 && b.count == 0);
    gtcb_batch_free(&b);
}

static void what_is_held_waits_for_another_batch(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    size_t finished;
    b.held = true;
    send(&b, 64, 1);
    send(&b, LONG, 1);
    receive(&b, LONG, 5);
    receive(&b, 64, 6);                          /* behind others, as ever */
    CHECK(count == 1 && posted[0].bytes == 64 && b.large == 2);
    CHECK(poll_after(&b, 0) == 1 && count == 1 && b.count == 0 && !gtcb_batch_is_over(&b));
    b.held = false;
    CHECK(gtcb_batch_poll(&b, &finished) == GTCB_OK && finished == 0);
    CHECK(count == 4 && posted[1].peer == 1 && posted[2].peer == 105 && posted[3].peer == 106);
    b.held = true;                               /* those under way go on; the next round does not begin */
    b.round++;
    send(&b, LONG, 2);
    CHECK(poll_after(&b, 1) == 1 && poll_after(&b, 2) == 1 && poll_after(&b, 3) == 1 && count == 4 && b.large == 1);
    b.held = false;
    CHECK(gtcb_batch_poll(&b, &finished) == GTCB_OK && count == 5 && posted[4].peer == 2);
    CHECK(poll_after(&b, 4) == 1 && b.large == 0 && gtcb_batch_is_over(&b));
    gtcb_batch_free(&b);
}

int main(void)
{
    one_large_send_at_a_time();
    a_round_ends_with_its_sends_and_its_receives();
    receives_that_come_ahead_hold_nobody_up();
    pieces_are_transfers_of_one_round();
    what_is_held_waits_for_another_batch();
    puts("turns ok");
    return 0;
}
