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

gtcb_status gtcb_batch_send(gtcb_batch *batch, const void *data, size_t bytes, uint32_t peer, int tag)
{
    const gtcb_mpi *mpi = batch->mpi;
    for (size_t at = 0; at < bytes;) {
        size_t piece = bytes - at < batch->piece_bytes ? bytes - at : batch->piece_bytes;
        gtcb_request *request = next_request(batch);
        if (!request)
            return GTCB_NO_MEMORY;
        request->peer = peer;
        request->slot = GTCB_NO_SLOT;
        batch->mpi_code = mpi->isend((const char *)data + at, (int)piece, mpi->byte, (int)peer, tag, batch->comm,
                                     request->opaque);
        if (batch->mpi_code)
            return GTCB_MPI_ERROR;
        batch->count++;
        batch->bytes_sent += piece;
        at += piece;
    }
    return GTCB_OK;
}

gtcb_status gtcb_batch_receive(gtcb_batch *batch, void *data, size_t bytes, uint32_t peer, int tag, uint32_t slot)
{
    const gtcb_mpi *mpi = batch->mpi;
    for (size_t at = 0; at < bytes;) {
        size_t piece = bytes - at < batch->piece_bytes ? bytes - at : batch->piece_bytes;
        gtcb_request *request = next_request(batch);
        if (!request)
            return GTCB_NO_MEMORY;
        request->peer = peer;
        request->slot = slot;
        batch->mpi_code = mpi->irecv((char *)data + at, (int)piece, mpi->byte, (int)peer, tag, batch->comm,
                                     request->opaque);
        if (batch->mpi_code)
            return GTCB_MPI_ERROR;
        batch->count++;
        batch->awaited[slot]++;
        batch->bytes_received += piece;
        at += piece;
    }
    return GTCB_OK;
}

gtcb_status gtcb_batch_poll(gtcb_batch *batch, size_t *finished)
{
    *finished = 0;
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
        if (request->slot != GTCB_NO_SLOT)
            batch->awaited[request->slot]--;
        *request = batch->pending[--batch->count];
        ++*finished;
    }
    return GTCB_OK;
}

bool gtcb_mpi_has_come(const gtcb_mpi *mpi, gtcb_handle comm, uint32_t peer, int tag)
{
    intptr_t status[GTCB_MPI_STATUS_BYTES / sizeof(intptr_t)];
    int flag = 0;
    return mpi->iprobe((int)peer, tag, comm, &flag, status) == 0 && flag;
}
