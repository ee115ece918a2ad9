/* Who may send when: large transfers of a batch go by rounds, small ones do not wait but behind others. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/transport.h"

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                   \
            abort();                                                                          \
        }                                                                                     \
    } while (0)

enum { LONG = GTCB_LARGE + 1, MANY = 256 };
static struct { int peer, bytes, done, asks; const void *data; } posted[MANY];       /* in the order of posting, sends and receives */
static int count;

static int post(const void *data, int bytes, int peer, int asks, void *request)
{
    posted[count].data = data;
    posted[count].peer = peer;
    posted[count].bytes = bytes;
    posted[count].done = 0;
    posted[count].asks = asks;
    *(int *)request = count++;
    return 0;
}

static int isend(const void *data, int bytes, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    (void)type, (void)tag, (void)comm;
    return post(data, bytes, peer, 0, request);
}

static int issend(const void *data, int bytes, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    (void)type, (void)tag, (void)comm;
    return post(data, bytes, peer, 1, request);
}

static int irecv(void *data, int bytes, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    (void)type, (void)tag, (void)comm;
    return post(data, bytes, 100 + peer, 0, request);
}

static int test(void *request, int *flag, void *status)
{
    (void)status;
    *flag = posted[*(int *)request].done;
    return 0;
}

static const gtcb_mpi MPI = {.isend = isend, .issend = issend, .irecv = irecv, .test = test};
static char data[10 * LONG];

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
    CHECK(gtcb_batch_under_way(&b) == 3);
    posted[1].done = posted[4].done = 1;
    CHECK(poll_after(&b, 5) == 3 && gtcb_batch_is_over(&b));
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
    CHECK(count == 7 && posted[4].peer == 2 && posted[5].peer == 3 && posted[5].bytes == 64 && posted[6].peer == 106);
    CHECK(poll_after(&b, 6) == 1 && count == 7);
    CHECK(poll_after(&b, 4) == 1 && count == 9 && posted[7].peer == 3 && posted[8].peer == 107);
    posted[0].done = posted[3].done = posted[5].done = posted[7].done = 1;
    CHECK(poll_after(&b, 8) == 5 && gtcb_batch_is_over(&b) && b.awaited[7] == 0);
    gtcb_batch_free(&b);
}

/* Where hosts have different numbers of ranks, some have nobody to send to in a round. */
static void a_round_may_be_a_receive_alone(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    receive(&b, LONG, 1);
    b.round++;
    receive(&b, LONG, 2);
    b.round++;
    send(&b, LONG, 3);
    CHECK(count == 1);
    CHECK(poll_after(&b, 0) == 1 && count == 2 && posted[1].peer == 102);
    CHECK(poll_after(&b, 1) == 1 && count == 3 && posted[2].peer == 3);
    gtcb_batch_free(&b);
}

static void receives_that_come_ahead_hold_nobody_up(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    b.receiving = GTCB_AHEAD;
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
    CHECK(poll_after(&b, 4) == 3 && gtcb_batch_is_over(&b));
    gtcb_batch_free(&b);
}

/* With its first piece a send asks; then so many are under way at a time. */
static void pieces_follow_when_the_first_is_taken(void)
{
    gtcb_batch b = open_batch(16000);                /* of LONG: five */
    send(&b, LONG, 1);
    receive(&b, LONG, 5);
    CHECK(count == 6 && posted[0].asks && posted[0].peer == 1 && posted[0].bytes == 16000 && posted[1].peer == 105);
    CHECK(poll_after(&b, 0) == 1 && count == 10);
    for (int i = 6; i < 10; i++)
        CHECK(posted[i].peer == 1 && !posted[i].asks && posted[i].data == data + (i - 5) * 16000);
    CHECK(posted[9].bytes == LONG - 4 * 16000);
    b.round++;
    send(&b, 10 * LONG, 2);
    for (int i = 1; i < 10; i++)
        CHECK(poll_after(&b, i) == 1);
    CHECK(count == 11 && posted[10].asks && posted[10].peer == 2);
    CHECK(poll_after(&b, 10) == 1 && count == 15);           /* four, and no more */
    CHECK(poll_after(&b, 12) == 0 && count == 15);           /* the first of them is looked at */
    CHECK(poll_after(&b, 11) == 2 && count == 17);
    gtcb_batch_free(&b);
}

/* What comes from one peer is over piece by piece, in its order, and goes on as it came. */
static void pieces_are_passed_on(void)
{
    gtcb_batch b = open_batch(16000);
    b.receiving = GTCB_IN_ORDER;
    receive(&b, 64, 1);
    receive(&b, LONG, 1);
    CHECK(count == 6 && b.receives.end == 6);
    CHECK(poll_after(&b, 1) == 0 && b.receives.over == 0);
    CHECK(poll_after(&b, 0) == 2 && b.receives.over == 2);
    for (size_t k = 0; k < 2; k++)
        CHECK(gtcb_batch_pass_on(&b, k, 3) == GTCB_OK);
    CHECK(count == 8 && posted[6].bytes == 64 && posted[7].bytes == 16000 && posted[7].peer == 3 && posted[7].data == data && !posted[7].asks);
    b.held = true;
    CHECK(poll_after(&b, 2) == 1 && gtcb_batch_pass_on(&b, 2, 3) == GTCB_OK && count == 8);
    b.held = false;
    CHECK(poll_after(&b, 6) == 1 && count == 9 && posted[8].data == data + 16000);
    CHECK(b.bytes_sent == 64 + 2 * 16000 && b.bytes_received == 64 + LONG);
    receive(&b, 10 * LONG, 1);                       /* 41 more */
    receive(&b, 10 * LONG, 1);
    CHECK(b.receives.posted == 3 + 64 && b.receives.end == 6 + 82);
    gtcb_batch_free(&b);
}

/* Who is late: whose message is awaited; if none, who has not taken what was sent; if nothing has set out, all that is waited with. */
static void the_late_are_named(void)
{
    uint8_t late[8] = {0};
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    b.held = true;
    send(&b, LONG, 1);
    receive(&b, LONG, 2);
    CHECK(gtcb_batch_mark_late(&b, late) && late[1] && late[2]);
    memset(late, 0, sizeof late);
    b.held = false;
    b.round++;
    send(&b, LONG, 3);
    receive(&b, 64, 4);
    receive(&b, LONG, 4);
    size_t finished;
    CHECK(gtcb_batch_poll(&b, &finished) == GTCB_OK && count == 2);
    CHECK(gtcb_batch_mark_late(&b, late) && late[2] && late[1] + late[3] + late[4] == 0);
    memset(late, 0, sizeof late);
    CHECK(poll_after(&b, 1) == 1 && gtcb_batch_mark_late(&b, late) && late[1] && late[2] + late[3] + late[4] == 0);
    memset(late, 0, sizeof late);
    CHECK(poll_after(&b, 0) == 1 && gtcb_batch_mark_late(&b, late) && late[4] && late[1] + late[2] + late[3] == 0);
    posted[2].done = posted[3].done = 1;
    memset(late, 0, sizeof late);
    CHECK(poll_after(&b, 4) == 3 && !gtcb_batch_mark_late(&b, late) && late[1] + late[2] + late[3] + late[4] == 0);
    gtcb_batch_free(&b);
}

static void what_is_held_waits_for_another_batch(void)
{
    gtcb_batch b = open_batch(GTCB_PIECE_BYTES);
    size_t finished;
    b.held = true;
    receive(&b, 64, 7);                          /* small, as all there is so far: waits for nothing */
    CHECK(count == 1 && poll_after(&b, 0) == 1);
    count = 0;
    send(&b, 64, 1);
    send(&b, LONG, 1);
    receive(&b, 64, 5);                          /* of what does not set out: nobody is to be waited for */
    receive(&b, LONG, 5);
    receive(&b, 64, 6);                          /* behind others, as ever */
    CHECK(count == 1 && posted[0].bytes == 64 && b.large == 2);
    CHECK(poll_after(&b, 0) == 1 && count == 1 && gtcb_batch_under_way(&b) == 0 && !gtcb_batch_is_over(&b));
    b.held = false;
    CHECK(gtcb_batch_poll(&b, &finished) == GTCB_OK && finished == 0);
    CHECK(count == 5 && posted[1].peer == 1 && posted[2].bytes == 64 && posted[3].peer == 105 && posted[4].peer == 106);
    b.held = true;                               /* those under way go on; the next round does not begin */
    b.round++;
    send(&b, LONG, 2);
    CHECK(poll_after(&b, 1) == 1 && poll_after(&b, 2) == 1 && poll_after(&b, 3) == 1 && poll_after(&b, 4) == 1 && count == 5 && b.large == 1);
    b.held = false;
    CHECK(gtcb_batch_poll(&b, &finished) == GTCB_OK && count == 6 && posted[5].peer == 2);
    CHECK(poll_after(&b, 5) == 1 && b.large == 0 && gtcb_batch_is_over(&b));
    gtcb_batch_free(&b);
}

int main(void)
{
    one_large_send_at_a_time();
    a_round_ends_with_its_sends_and_its_receives();
    a_round_may_be_a_receive_alone();
    receives_that_come_ahead_hold_nobody_up();
    pieces_follow_when_the_first_is_taken();
    pieces_are_passed_on();
    the_late_are_named();
    what_is_held_waits_for_another_batch();
    puts("turns ok");
    return 0;
}
