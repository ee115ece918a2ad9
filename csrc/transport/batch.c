/* Non-blocking transfers of any length, and the poll that drives them. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "transport/transport.h"

/* A poll tests so many requests at most: each test also drives MPI, so that with hundreds of peers
   testing all of them every time would cost more than it learns. */
#define TESTS_PER_POLL 16

/* Under way in a line. Of sends, what MPI has taken but not sent it may keep in memory of its own; of receives, each
   takes some hundred bytes of it. */
#define MOST_SENDS 4
#define MOST_RECEIVES 64

gtcb_status gtcb_batch_init(gtcb_batch *batch, const gtcb_mpi *mpi, gtcb_handle comm, size_t slots, size_t piece_bytes)
{
    memset(batch, 0, sizeof *batch);
    batch->mpi = mpi;
    batch->comm = comm;
    batch->piece_bytes = piece_bytes < INT_MAX ? piece_bytes : INT_MAX;
    batch->slots = slots;
    batch->awaited = calloc(slots ? slots : 1, sizeof *batch->awaited);
    return batch->awaited ? GTCB_OK : GTCB_NO_MEMORY;
}

void gtcb_batch_free(gtcb_batch *batch)
{
    free(batch->pending);
    free(batch->sends.of);
    free(batch->receives.of);
    free(batch->awaited);
    memset(batch, 0, sizeof *batch);
}

void gtcb_batch_rewind(gtcb_batch *batch)
{
    batch->sends.over = batch->sends.posted = batch->sends.end = 0;
    batch->receives.over = batch->receives.posted = batch->receives.end = 0;
    batch->receiving = GTCB_IN_ROUNDS;
    batch->bytes_sent = batch->bytes_received = 0;
}

static bool is_send(const gtcb_transfer *t) { return t->slot == GTCB_NO_SLOT; }
static bool waits(const gtcb_line *line) { return line->posted < line->end; }
static size_t under_way(const gtcb_line *line) { return line->posted - line->over; }
static const gtcb_transfer *next_of(const gtcb_line *line) { return &line->of[line->posted].transfer; }

/* Room for one more. */
static gtcb_request *extend(gtcb_request **requests, size_t count, size_t *capacity)
{
    if (count == *capacity) {
        size_t more = *capacity ? 2 * *capacity : 16;
        gtcb_request *grown = realloc(*requests, more * sizeof *grown);
        if (!grown)
            return NULL;
        *requests = grown;
        *capacity = more;
    }
    return memset(*requests + count, 0, sizeof **requests);
}

static gtcb_status post(gtcb_batch *batch, gtcb_request *request)
{
    const gtcb_mpi *mpi = batch->mpi;
    const gtcb_transfer *t = &request->transfer;
    batch->mpi_code = is_send(t) ? (t->asks ? mpi->issend : mpi->isend)(t->data, (int)t->bytes, mpi->byte, (int)t->peer, t->tag, batch->comm, request->opaque)
                                 : mpi->irecv(t->data, (int)t->bytes, mpi->byte, (int)t->peer, t->tag, batch->comm, request->opaque);
    if (batch->mpi_code)
        return GTCB_MPI_ERROR;
    if (t->in_turn) {
        batch->in_turn++;
        batch->turn = t->round;
    }
    return GTCB_OK;
}

/* -- turns -------------------------------------------------------------------------------------------- */

static bool has_room(const gtcb_batch *batch, const gtcb_transfer *t)
{
    const gtcb_line *sends = &batch->sends;
    if (!is_send(t))
        return under_way(&batch->receives) < MOST_RECEIVES;
    return under_way(sends) < MOST_SENDS && !(under_way(sends) && sends->of[sends->posted - 1].transfer.asks);
}

static bool none_before(const gtcb_line *line, uint32_t round) { return !waits(line) || next_of(line)->round >= round; }

/* Small receives have no turns; but in a round that has not begun nobody is to be waited for. */
static bool is_early(const gtcb_batch *b, const gtcb_transfer *t)
{
    return !is_send(t) && b->receiving == GTCB_IN_ROUNDS && ((b->in_turn && b->turn != t->round) || (b->held && waits(&b->sends)));
}

static bool is_its_turn(const gtcb_batch *b, const gtcb_transfer *t)
{
    if (!has_room(b, t) || is_early(b, t) || (t->in_turn && b->held))
        return false;
    if (!t->in_turn || (b->in_turn && b->turn == t->round))
        return true;
    return b->in_turn == 0 && none_before(&b->sends, t->round) && none_before(&b->receives, t->round);
}

/* Of a line, those whose turn it is now: whether there were any. */
static bool post_next(gtcb_batch *batch, gtcb_line *line, gtcb_status *status)
{
    const size_t before = line->posted;
    while (!*status && waits(line) && is_its_turn(batch, next_of(line))) {
        *status = post(batch, &line->of[line->posted]);
        line->posted += !*status;
    }
    return line->posted > before;
}

/* Sends first: see csrc/exchange/reduce.c, begin. Until neither line moves: what is posted in one may be what the other waited for. */
static gtcb_status post_waiting(gtcb_batch *batch)
{
    gtcb_status status = GTCB_OK;
    while (post_next(batch, &batch->sends, &status) | post_next(batch, &batch->receives, &status))
        ;
    return status;
}

/* A small one, too, waits behind others: MPI matches messages of one tag in the order of posting. */
static bool goes_in_line(const gtcb_batch *batch, const gtcb_transfer *t)
{
    if (!is_send(t) && batch->receiving != GTCB_IN_ROUNDS)
        return batch->receiving == GTCB_IN_ORDER;
    return t->large || is_early(batch, t) || waits(is_send(t) ? &batch->sends : &batch->receives);
}

static gtcb_status add(gtcb_batch *batch, const gtcb_transfer *t)
{
    gtcb_line *line = is_send(t) ? &batch->sends : &batch->receives;
    const bool in_line = goes_in_line(batch, t);
    gtcb_request *request = in_line ? extend(&line->of, line->end, &line->capacity) : extend(&batch->pending, batch->count, &batch->capacity);
    if (!request)
        return GTCB_NO_MEMORY;
    request->transfer = *t;
    gtcb_status status = in_line ? GTCB_OK : post(batch, request);
    if (status)
        return status;
    ++*(in_line ? &line->end : &batch->count);
    batch->large += t->large;
    if (is_send(t))
        batch->bytes_sent += t->bytes;
    else {
        batch->bytes_received += t->bytes;
        batch->awaited[t->slot]++;
    }
    return post_waiting(batch);
}

static gtcb_status add_pieces(gtcb_batch *batch, gtcb_transfer whole)
{
    const bool large = whole.bytes > GTCB_LARGE, takes_turns = large && (is_send(&whole) || batch->receiving == GTCB_IN_ROUNDS);
    const bool asks = takes_turns && is_send(&whole) && whole.bytes > batch->piece_bytes && batch->receiving != GTCB_IN_ORDER;
    gtcb_status status = GTCB_OK;
    for (size_t at = 0; at < whole.bytes && !status;) {
        gtcb_transfer piece = whole;
        piece.data = (char *)whole.data + at;
        piece.bytes = whole.bytes - at < batch->piece_bytes ? whole.bytes - at : batch->piece_bytes;
        piece.round = batch->round;
        piece.large = large;
        piece.in_turn = takes_turns;
        piece.asks = asks && at == 0;
        status = add(batch, &piece);
        at += piece.bytes;
    }
    return status;
}

gtcb_status gtcb_batch_send(gtcb_batch *batch, const void *data, size_t bytes, uint32_t peer, int tag)
{
    return add_pieces(batch, (gtcb_transfer){.data = (void *)(uintptr_t)data, .bytes = bytes, .peer = peer, .slot = GTCB_NO_SLOT, .tag = tag});
}

gtcb_status gtcb_batch_receive(gtcb_batch *batch, void *data, size_t bytes, uint32_t peer, int tag, uint32_t slot)
{
    return add_pieces(batch, (gtcb_transfer){.data = data, .bytes = bytes, .peer = peer, .slot = slot, .tag = tag});
}

gtcb_status gtcb_batch_pass_on(gtcb_batch *batch, size_t k, uint32_t peer)
{
    gtcb_transfer t = batch->receives.of[k].transfer;
    t.peer = peer;
    t.slot = GTCB_NO_SLOT;
    t.round = batch->round;
    t.in_turn = t.large;
    return add(batch, &t);
}

/* -- what is over ---------------------------------------------------------------------------------------- */

static gtcb_status test(gtcb_batch *batch, gtcb_request *request, bool *over)
{
    intptr_t status[GTCB_MPI_STATUS_BYTES / sizeof(intptr_t)];
    int done = 0;
    batch->mpi_code = batch->mpi->test(request->opaque, &done, status);
    *over = done && !batch->mpi_code;
    if (batch->mpi_code)
        return GTCB_MPI_ERROR;
    const gtcb_transfer *t = &request->transfer;
    if (*over) {
        batch->large -= t->large;
        batch->in_turn -= t->in_turn;
        if (!is_send(t))
            batch->awaited[t->slot]--;
    }
    return GTCB_OK;
}

static gtcb_status test_line(gtcb_batch *batch, gtcb_line *line, size_t *finished)
{
    gtcb_status status = GTCB_OK;
    bool over = true;
    while (!status && over && under_way(line)) {
        status = test(batch, &line->of[line->over], &over);
        line->over += over || status;                    /* a request in error is over */
        *finished += over;
    }
    return status;
}

static gtcb_status test_pending(gtcb_batch *batch, size_t *finished)
{
    gtcb_status status = GTCB_OK;
    size_t tests = batch->count < TESTS_PER_POLL ? batch->count : TESTS_PER_POLL;
    while (!status && tests-- && batch->count) {
        if (batch->cursor >= batch->count)
            batch->cursor = 0;
        gtcb_request *request = &batch->pending[batch->cursor];
        bool over;
        status = test(batch, request, &over);
        *finished += over;
        if (over || status)
            *request = batch->pending[--batch->count];
        else
            batch->cursor++;
    }
    return status;
}

gtcb_status gtcb_batch_poll(gtcb_batch *batch, size_t *finished)
{
    *finished = 0;
    gtcb_status status = post_waiting(batch);
    if (!status)
        status = test_line(batch, &batch->sends, finished);
    if (!status)
        status = test_line(batch, &batch->receives, finished);
    if (!status)
        status = test_pending(batch, finished);
    return status ? status : post_waiting(batch);
}

size_t gtcb_batch_under_way(const gtcb_batch *batch) { return batch->count + under_way(&batch->sends) + under_way(&batch->receives); }
bool gtcb_batch_waits(const gtcb_batch *batch) { return waits(&batch->sends) || waits(&batch->receives); }
bool gtcb_batch_is_over(const gtcb_batch *batch) { return gtcb_batch_under_way(batch) == 0 && !gtcb_batch_waits(batch); }

bool gtcb_batch_mark_late(const gtcb_batch *batch, uint8_t *late)
{
    const gtcb_line *lines[] = {&batch->receives, &batch->sends};
    bool any = false;
    for (int sends = 0; sends < 2 && !any; sends++) {
        for (size_t i = 0; i < batch->count; i++)
            if (is_send(&batch->pending[i].transfer) == (bool)sends)
                any = (late[batch->pending[i].transfer.peer] = 1);
        if (under_way(lines[sends]))
            any = (late[lines[sends]->of[lines[sends]->over].transfer.peer] = 1);
    }
    for (int i = 0; i < 2 && !any; i++)
        for (size_t k = lines[i]->posted; k < lines[i]->end; k++)
            late[lines[i]->of[k].transfer.peer] = 1;
    return any || gtcb_batch_waits(batch);
}

bool gtcb_mpi_has_come(const gtcb_mpi *mpi, gtcb_handle comm, uint32_t peer, int tag)
{
    intptr_t status[GTCB_MPI_STATUS_BYTES / sizeof(intptr_t)];
    int flag = 0;
    return mpi->iprobe((int)peer, tag, comm, &flag, status) == 0 && flag;
}
