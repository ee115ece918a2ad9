/* The only room that knows MPI. Built without mpi.h and without libmpi: a table of functions is looked up
   in the library that mpi4py has loaded (gtcb_mpi_lookup), or filled by a program that links MPI itself.

   Handles (MPI_Comm, MPI_Datatype) are pointers in one MPI and ints in another. Both travel as intptr_t: on the
   ABIs that setup.py accepts, the two lie in the same integer register, an int sign-extended, which is
   how mpi4py's _handleof gives it. Requests and statuses are opaque and larger than any known one. */
#ifndef GTCB_TRANSPORT_H
#define GTCB_TRANSPORT_H

#include "codec/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef intptr_t gtcb_handle;

#define GTCB_MPI_STATUS_BYTES 256    /* 20 to 32 in the MPIs there are */
#define GTCB_MPI_TEXT 8192           /* above MPI_MAX_ERROR_STRING and MPI_MAX_LIBRARY_VERSION_STRING of all */
#define GTCB_PIECE_BYTES ((size_t)1 << 30)   /* of one MPI message: MPI counts are ints */

typedef struct gtcb_mpi {
    int (*isend)(const void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request);
    int (*issend)(const void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request);
    int (*irecv)(void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request);
    int (*test)(void *request, int *flag, void *status);
    int (*iprobe)(int peer, int tag, gtcb_handle comm, int *flag, void *status);
    int (*comm_size)(gtcb_handle comm, int *size);
    int (*comm_rank)(gtcb_handle comm, int *rank);
    int (*get_library_version)(char *text, int *length);
    int (*error_string)(int code, char *text, int *length);
    gtcb_handle byte;                /* MPI_BYTE */
} gtcb_mpi;

/* Fills the table from the library that the shared object at `path` (mpi4py's MPI module, already loaded) uses.
   On failure the status is GTCB_BAD_ARGUMENT and `text` says what is missing. */
gtcb_status gtcb_mpi_lookup(const char *path, gtcb_handle byte, gtcb_mpi *out, char *text, size_t text_bytes);

/* Do both sides see the same MPI? Size and rank of `comm` and the library version, as mpi4py gave them; the
   trailing NULs and spaces of versions do not count. */
gtcb_status gtcb_mpi_self_test(const gtcb_mpi *mpi, gtcb_handle comm, int size, int rank, const char *version,
                               char *text, size_t text_bytes);

/* Whether the MPI that the shared object at `path` uses says that it reads and writes the memory of CUDA devices: 1, 0;
   -1: it has no such question. MPI must have been started. */
int gtcb_mpi_is_cuda_aware(const char *path);

/* What MPI says about an error code. */
void gtcb_mpi_error_text(const gtcb_mpi *mpi, int code, char *text, size_t text_bytes);

/* MPI_Finalize of the MPI that the shared object at `path` uses, on a thread of its own, until it comes back or the time is up. In
   the latter case the end of the process, which must come next, keeps its status and runs no destructors. */
void gtcb_mpi_finalize_within(const char *path, double seconds);

/* -- batch: transfers that are under way together ------------------------------------------------- */

typedef struct gtcb_transfer {       /* a message of MPI: the whole, or a piece of it */
    void *data;
    size_t bytes;
    uint32_t peer;
    uint32_t slot;                   /* what it belongs to; receives only: GTCB_NO_SLOT for sends */
    int tag;
    bool large;                      /* the whole is */
    bool in_turn;                    /* the next round waits for it */
    bool asks;                       /* a send that is over when it is received: nothing is sent behind it before */
    uint32_t round;
} gtcb_transfer;

#define GTCB_NO_SLOT UINT32_MAX

typedef struct gtcb_request {
    intptr_t opaque[2];
    gtcb_transfer transfer;
} gtcb_request;

/* Transfers above this length take turns, by rounds: those of a round set out when those of the round before have ended, sends
   and receives. In a round every rank sends to one other and hears from one, so that each network card has one sender at a time
   (csrc/exchange/rounds.c). A send alone says little: it may be over, for MPI, when what it sent is
   still on its way, and who then goes on to the next peer is its second sender. So one in pieces asks with its first piece, and the others follow when the
   receiver, whose turn it is then, has taken that. Two senders at once share a card's rate and overrun the queue of a
   small switch; what is lost is sent again after a timeout. Batches know nothing of each other: who has several holds all but one. */
#define GTCB_LARGE ((size_t)1 << 16)

typedef struct gtcb_line {           /* requests one after the other: only the first one under way is tested, as each test drives MPI */
    gtcb_request *of;                /* [0, over) are over, [over, posted) under way, [posted, end) wait */
    size_t over, posted, end, capacity;
} gtcb_line;

typedef enum gtcb_receiving {
    GTCB_IN_ROUNDS,                  /* large receives take turns, as sends do */
    GTCB_AHEAD,                      /* receives take none: only senders do */
    GTCB_IN_ORDER,                   /* nor do they where all comes from one peer: piece by piece, and is sent on as it comes */
} gtcb_receiving;

typedef struct gtcb_batch {
    const gtcb_mpi *mpi;
    gtcb_handle comm;
    size_t piece_bytes;
    gtcb_request *pending;           /* small ones, and those that come ahead: in any order */
    size_t count, capacity, cursor;
    gtcb_line sends, receives;       /* large ones, and small ones behind them */
    size_t in_turn;                  /* under way */
    uint32_t turn;                   /* their round */
    uint32_t round;                  /* of what is added now */
    gtcb_receiving receiving;
    bool held;                       /* no large transfer sets out that takes turns: it is another batch's turn */
    size_t large;                    /* pieces of large transfers that are not over, with those that take no turns */
    uint32_t *awaited;               /* [slots] receives of each slot that have not arrived */
    size_t slots;
    uint64_t bytes_sent, bytes_received;
    int mpi_code;                    /* of the call that gave GTCB_MPI_ERROR */
} gtcb_batch;

gtcb_status gtcb_batch_init(gtcb_batch *batch, const gtcb_mpi *mpi, gtcb_handle comm, size_t slots, size_t piece_bytes);
void gtcb_batch_free(gtcb_batch *batch);     /* only when count is 0: MPI writes into pending requests */

/* Transfers of any length, cut in pieces of piece_bytes; 0 bytes travel as nothing. */
gtcb_status gtcb_batch_send(gtcb_batch *batch, const void *data, size_t bytes, uint32_t peer, int tag);
gtcb_status gtcb_batch_receive(gtcb_batch *batch, void *data, size_t bytes, uint32_t peer, int tag, uint32_t slot);

/* In order: sends receive number k of the line to a peer, as it came. It must be over. */
gtcb_status gtcb_batch_pass_on(gtcb_batch *batch, size_t k, uint32_t peer);

/* Has a message of that tag come from that peer that nobody has received? */
bool gtcb_mpi_has_come(const gtcb_mpi *mpi, gtcb_handle comm, uint32_t peer, int tag);

/* Posts what waits if its turn has come, tests some of the requests under way; *finished says how many were done. */
gtcb_status gtcb_batch_poll(gtcb_batch *batch, size_t *finished);

size_t gtcb_batch_under_way(const gtcb_batch *batch);
bool gtcb_batch_waits(const gtcb_batch *batch);

/* Nothing is under way, and nothing waits. */
bool gtcb_batch_is_over(const gtcb_batch *batch);

/* Whom it waits for, into late[peer]: who has not sent; if nobody, who has not taken what was sent; if nothing has set out, with whom it
   would be. False: for nobody. */
bool gtcb_batch_mark_late(const gtcb_batch *batch, uint8_t *late);

/* Of one that is over: as gtcb_batch_init left it, but for its memory. */
void gtcb_batch_rewind(gtcb_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
