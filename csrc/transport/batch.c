/* Non-blocking transfers of any length, and the poll that drives them. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "transport/transport.h"

/* A poll tests so many requests at most: each test also drives MPI, so that with hundreds of peers
   testing all of them every time would cost more than it learns. */
#define TESTS_PER_POLL 16

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
    free(batch->turns.waiting);
    free(batch->awaited);
    memset(batch, 0, sizeof *batch);
}

static gtcb_request *next_request(gtcb_batch *batch)
{
    if (batch->count == batch->capacity) {
        size_t capacity = batch->capacity ? 2 * batch->capacity : 16;
        gtcb_request *grown = realloc(batch->pending, capacity * sizeof *grown);
        if (!grown)
            return NULL;
        batch->pending = grown;
        batch->capacity = capacity;
    }
    gtcb_request *request = &batch->pending[batch->count];
    memset(request, 0, sizeof *request);
    return request;
}

static bool is_send(const gtcb_transfer *t) { return t->slot == GTCB_NO_SLOT; }
static bool is_large(const gtcb_transfer *t) { return t->bytes > GTCB_LARGE; }

static gtcb_status post(gtcb_batch *batch, const gtcb_transfer *t)
{
    const gtcb_mpi *mpi = batch->mpi;
    gtcb_request *request = next_request(batch);
    if (!request)
        return GTCB_NO_MEMORY;
    request->transfer = *t;
    batch->mpi_code = is_send(t) ? mpi->isend(t->data, (int)t->bytes, mpi->byte, (int)t->peer, t->tag, batch->comm, request->opaque)
                                 : mpi->irecv(t->data, (int)t->bytes, mpi->byte, (int)t->peer, t->tag, batch->comm, request->opaque);
    if (batch->mpi_code)
        return GTCB_MPI_ERROR;
    batch->count++;
    if (t->in_turn) {
        batch->turns.under_way++;
        batch->turns.round = t->round;
    }
    return GTCB_OK;
}

static gtcb_status let_wait(gtcb_turns *turns, const gtcb_transfer *t)
{
    if (turns->end == turns->capacity) {
        size_t capacity = turns->capacity ? 2 * turns->capacity : 16;
        gtcb_transfer *grown = realloc(turns->waiting, capacity * sizeof *grown);
        if (!grown)
            return GTCB_NO_MEMORY;
        turns->waiting = grown;
        turns->capacity = capacity;
    }
    turns->waiting[turns->end++] = *t;
    return GTCB_OK;
}

static bool is_its_turn(const gtcb_batch *batch, const gtcb_transfer *t)
{
    const gtcb_turns *turns = &batch->turns;
    return !t->in_turn || (!batch->held && (turns->under_way == 0 || turns->round == t->round));
}

/* A small one, too, waits behind others: MPI matches messages of one tag in the order of posting. */
static gtcb_status post_in_turn(gtcb_batch *batch, const gtcb_transfer *t)
{
    gtcb_turns *turns = &batch->turns;
    bool ahead = !is_send(t) && batch->receive_ahead;
    bool waits = !ahead && (turns->first < turns->end || !is_its_turn(batch, t));
    return waits ? let_wait(turns, t) : post(batch, t);
}

/* Those whose turn it is now. */
static gtcb_status post_waiting(gtcb_batch *batch)
{
    gtcb_turns *turns = &batch->turns;
    gtcb_status status = GTCB_OK;
    while (!status && turns->first < turns->end && is_its_turn(batch, &turns->waiting[turns->first]))
        status = post(batch, &turns->waiting[turns->first++]);
    if (turns->first == turns->end)
        turns->first = turns->end = 0;
    return status;
}

/* In pieces of piece_bytes */
static gtcb_status add(gtcb_batch *batch, gtcb_transfer whole)
{
    gtcb_status status = GTCB_OK;
    for (size_t at = 0; at < whole.bytes && !status;) {
        gtcb_transfer piece = whole;
        piece.data = (char *)whole.data + at;
        piece.bytes = whole.bytes - at < batch->piece_bytes ? whole.bytes - at : batch->piece_bytes;
        piece.round = batch->round;
        piece.in_turn = is_large(&piece) && (is_send(&piece) || !batch->receive_ahead);
        status = post_in_turn(batch, &piece);
        at += piece.bytes;
        batch->large += is_large(&piece);
        if (is_send(&piece))
            batch->bytes_sent += piece.bytes;
        else {
            batch->bytes_received += piece.bytes;
            batch->awaited[piece.slot]++;
        }
    }
    return status;
}

gtcb_status gtcb_batch_send(gtcb_batch *batch, const void *data, size_t bytes, uint32_t peer, int tag)
{
    return add(batch, (gtcb_transfer){.data = (void *)(uintptr_t)data, .bytes = bytes, .peer = peer, .slot = GTCB_NO_SLOT, .tag = tag});
}

gtcb_status gtcb_batch_receive(gtcb_batch *batch, void *data, size_t bytes, uint32_t peer, int tag, uint32_t slot)
{
    return add(batch, (gtcb_transfer){.data = data, .bytes = bytes, .peer = peer, .slot = slot, .tag = tag});
}

gtcb_status gtcb_batch_poll(gtcb_batch *batch, size_t *finished)
{
    *finished = 0;
    gtcb_status posted = post_waiting(batch);
    if (posted)
        return posted;
    size_t tests = batch->count < TESTS_PER_POLL ? batch->count : TESTS_PER_POLL;
    while (tests-- && batch->count) {
        if (batch->cursor >= batch->count)
            batch->cursor = 0;
        gtcb_request *request = &batch->pending[batch->cursor];
        intptr_t status[GTCB_MPI_STATUS_BYTES / sizeof(intptr_t)];
        int done = 0;
        batch->mpi_code = batch->mpi->test(request->opaque, &done, status);
        if (batch->mpi_code) {
            *request = batch->pending[--batch->count];   /* a request in error is over */
            return GTCB_MPI_ERROR;
        }
        if (!done) {
            batch->cursor++;
            continue;
        }
        gtcb_transfer t = request->transfer;
        if (!is_send(&t))
            batch->awaited[t.slot]--;
        batch->large -= is_large(&t);
        if (t.in_turn)
            batch->turns.under_way--;
        *request = batch->pending[--batch->count];
        ++*finished;
        posted = post_waiting(batch);
        if (posted)
            return posted;
    }
    return GTCB_OK;
}

bool gtcb_batch_is_over(const gtcb_batch *batch) { return batch->count == 0 && batch->turns.first == batch->turns.end; }

bool gtcb_mpi_has_come(const gtcb_mpi *mpi, gtcb_handle comm, uint32_t peer, int tag)
{
    intptr_t status[GTCB_MPI_STATUS_BYTES / sizeof(intptr_t)];
    int flag = 0;
    return mpi->iprobe((int)peer, tag, comm, &flag, status) == 0 && flag;
}
