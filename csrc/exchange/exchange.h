/* The exchange: operations between all ranks of a communicator, each begun by a post and ended by a wait.

   Every operation has a sequence number. First each rank sends its 64-byte header to all others; bodies move only
   when all headers agree (docs/message-format.md, "Messages of an exchange"). An engine drives all exchanges of the
   process: from its own thread, or from whoever waits; in both ways by the same code, one driver at a time. */
#ifndef GTCB_EXCHANGE_H
#define GTCB_EXCHANGE_H

#include "transport/transport.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gtcb_engine gtcb_engine;
typedef struct gtcb_exchange gtcb_exchange;
typedef struct gtcb_op gtcb_op;

/* -- engine -------------------------------------------------------------------------------------- */

typedef struct gtcb_engine_settings {
    gtcb_mpi mpi;
    const gtcb_variant *variant;
    size_t threads;            /* for encode and decode, 1 or more */
    bool progress_thread;      /* needs MPI_THREAD_MULTIPLE, which the caller has seen to */
    size_t piece_bytes;        /* GTCB_PIECE_BYTES; at least 1, less for tests */
    size_t direct_bytes;       /* reduce and broadcast up to this length in one round, without shards */
    size_t ring_bytes;         /* with g ranks on a host, bodies between hosts from ring_bytes / (16 g - 15) go around (ring.c) */
    double (*now)(void);       /* seconds of any origin; NULL: the monotonic clock */
} gtcb_engine_settings;

gtcb_status gtcb_engine_open(const gtcb_engine_settings *settings, gtcb_engine **out);
/* Stops the thread and fails what is in flight (GTCB_CLOSED); to be called before MPI_Finalize. May be called twice. */
void gtcb_engine_close(gtcb_engine *engine);
/* After gtcb_engine_close and all gtcb_exchange_free; not at all if an exchange had to be left alone. */
void gtcb_engine_free(gtcb_engine *engine);
const gtcb_engine_settings *gtcb_engine_get_settings(const gtcb_engine *engine);
/* One round of work, for who drives without a thread; true if anything moved. */
bool gtcb_engine_progress(gtcb_engine *engine);

/* -- exchange ------------------------------------------------------------------------------------ */

typedef struct gtcb_failure {
    gtcb_status status;        /* GTCB_OK: there is none */
    uint32_t rank;             /* whom it is about */
    uint32_t bucket;
    uint64_t index;            /* GTCB_NON_FINITE: the element; posts_differ: a rank of the other side */
    bool posts_differ;         /* GTCB_MISMATCH: ranks have posted different operations */
    uint64_t sequence;
    char text[1024];
} gtcb_failure;

typedef struct gtcb_counters {
    uint64_t operations, bytes_sent, bytes_received, elements_sent;    /* quanta sent by this rank */
    uint64_t bytes_shared;     /* of bytes_sent: those that others read in shared memory */
    double encode_seconds, exchange_seconds, decode_seconds, wait_seconds;
} gtcb_counters;

/* `comm` is for this exchange alone. `hosts`: [size of comm] a number for the host of each rank, the same on all ranks;
   NULL: all are on one host. */
gtcb_status gtcb_exchange_open(gtcb_engine *engine, gtcb_handle comm, const uint32_t *hosts, gtcb_exchange **out);
/* Memory that all ranks of the exchange share, if they are on one host: windows[r], `bytes` long on every rank and zeros at
   first, is rank r's, which alone writes there. To be called on all ranks or none, before the first operation; the memory
   must stay until the exchange is freed. Bodies then need no messages. */
gtcb_status gtcb_exchange_share(gtcb_exchange *exchange, uint8_t *const *windows, size_t bytes);
/* Ends what is in flight (GTCB_CLOSED). False if MPI may still touch buffers, or messages may lie unread: then
   the exchange and those operations must be left alone for good, and no rank may free the communicator. */
bool gtcb_exchange_close(gtcb_exchange *exchange);
/* Tells the others that this rank's program is at its end (status GTCB_CLOSED), or that something beside the exchange has
   failed here, and how: whoever waits for an operation that it has not posted fails (GTCB_CLOSED). What it has posted goes on. */
void gtcb_exchange_leave(gtcb_exchange *exchange, gtcb_status status);
void gtcb_exchange_free(gtcb_exchange *exchange);      /* once closed, if that gave true, and all operations released */
uint32_t gtcb_exchange_rank(const gtcb_exchange *exchange);
uint32_t gtcb_exchange_size(const gtcb_exchange *exchange);
size_t gtcb_exchange_short_bytes(const gtcb_exchange *exchange);        /* bodies up to this length come with their headers */
uint64_t gtcb_exchange_sequence(gtcb_exchange *exchange);               /* of the next operation */
/* Only forward, only with nothing under way (GTCB_BAD_ARGUMENT), and on all ranks alike. */
gtcb_status gtcb_exchange_set_sequence(gtcb_exchange *exchange, uint64_t sequence);
/* Elements of a bucket of so many that this rank owns. */
uint64_t gtcb_exchange_shard(const gtcb_exchange *exchange, uint64_t elements);
gtcb_counters gtcb_exchange_counters(gtcb_exchange *exchange);
/* The first error that closed the exchange; status GTCB_OK while it is usable. */
gtcb_failure gtcb_exchange_failure(gtcb_exchange *exchange);
/* For tests: one bit of the next body that arrives here is turned. */
void gtcb_exchange_corrupt_next(gtcb_exchange *exchange);

/* -- operations ---------------------------------------------------------------------------------- */

#define GTCB_BUCKETS ((uint32_t)1 << 24)     /* bucket numbers are below */

/* Where a bucket's mean goes: arrays of float32 or bfloat16 that have its elements between them, and by what the sum is divided. */
typedef struct gtcb_mean_into { const gtcb_target *targets; size_t count; gtcb_dtype dtype; float divisor; } gtcb_mean_into;

/* Arrays belong to the operation until it is done, and until gtcb_op_release has returned true.
   `into`: the mean goes there as soon as all messages are here and sound, before the operation is done; the targets may be what the
   job reads. NULL: whoever wants it asks by gtcb_op_decode_mean. Of the job scratch, sequence and sender are ignored. */
gtcb_status gtcb_post_encode(gtcb_exchange *exchange, const gtcb_encode_job *job, const gtcb_mean_into *into, gtcb_op **out);
/* By way of owners (owners.c). `second`: the shard of this rank, as gtcb_shard_of cuts the bucket, quantised at `threshold` with
   residual_in and residual_out, [elements of the shard]; its other members are ignored. Of job->max_sent each shard has its share. */
gtcb_status gtcb_post_owners(gtcb_exchange *exchange, const gtcb_encode_job *job, const gtcb_encode_job *second,
                             const gtcb_mean_into *into, gtcb_op **out);
gtcb_status gtcb_post_allreduce(gtcb_exchange *exchange, gtcb_element element, void *array, uint64_t elements,
                                uint64_t weight, bool mean, uint32_t bucket, gtcb_op **out);
gtcb_status gtcb_post_broadcast(gtcb_exchange *exchange, gtcb_element element, void *array, uint64_t elements,
                                uint32_t root, uint32_t bucket, gtcb_op **out);
gtcb_status gtcb_post_allgather(gtcb_exchange *exchange, gtcb_element element, const void *array, uint64_t elements,
                                uint32_t bucket, gtcb_op **out);

#define GTCB_DIRECT_ALIGNMENT 64
/* Memory of a device that MPI itself reads and writes (direct.c); it must be able to. */
typedef struct gtcb_direct {
    const uint8_t *message;    /* the own one, header and body; may be NULL where nothing follows what is on the host */
    uint8_t *room;             /* aligned to GTCB_DIRECT_ALIGNMENT; for the others' bodies, each padded to as much */
    size_t room_bytes;
    void (*use_device)(int device);    /* by the engine's thread, which has none, before MPI gets to see the memory; may be NULL */
    int device;
} gtcb_direct;
/* Every rank's message to all. `message`, short, on the host: a whole message of the codec, or a text; or only the header of
   direct->message, whose body then follows. Nobody has validated what follows. */
gtcb_status gtcb_post_direct(gtcb_exchange *exchange, const void *message, size_t bytes, const gtcb_direct *direct, uint32_t bucket,
                             gtcb_op **out);

/* Waits so many seconds at most; true if the operation is done, well or not. */
bool gtcb_op_wait(gtcb_op *op, double seconds);
bool gtcb_op_done(const gtcb_op *op);
/* Whom it waits for, as GTCB_DEADLINE would say it after so many seconds; GTCB_OK if it is done. It goes on. */
void gtcb_op_waits_for(gtcb_op *op, double waited_seconds, gtcb_failure *out);
/* Ends an operation whose time is up: GTCB_DEADLINE naming who has not come, unless it is done after all. */
void gtcb_op_give_up(gtcb_op *op, double waited_seconds);
const gtcb_failure *gtcb_op_failure(const gtcb_op *op);         /* once done */
bool gtcb_op_is_late(const gtcb_op *op, uint32_t rank);         /* after GTCB_DEADLINE */
uint64_t gtcb_op_sequence(const gtcb_op *op);
uint64_t gtcb_op_bytes_sent(const gtcb_op *op);
/* Seconds of settings.now: when it was posted, its turn came (encode begins), its header was sent, all that it awaits was here,
   it was done: later, if it had a mean to decode. */
typedef struct gtcb_times { double posted, begun, announced, arrived, done; } gtcb_times;
gtcb_times gtcb_op_times(const gtcb_op *op);                    /* once done */
const void *gtcb_op_header(gtcb_op *op, uint32_t rank);
const void *gtcb_op_body(gtcb_op *op, uint32_t rank, size_t *bytes);     /* encode, allgather; direct: what came on the host */
/* direct: what followed, and whether that lies in the host's memory; NULL: nothing */
const void *gtcb_op_following(gtcb_op *op, uint32_t rank, size_t *bytes, bool *on_host);
/* After post_encode: all ranks' quanta added up in their order; after post_owners: what the owners made of them. */
gtcb_status gtcb_op_decode_mean(gtcb_op *op, const gtcb_mean_into *into);
/* Gives the operation back; its buffers serve the next one of its kind. False if MPI may still touch its buffers
   and arrays: they must then stay where they are for good, or until another call returns true. */
bool gtcb_op_release(gtcb_op *op);

#ifdef __cplusplus
}
#endif
#endif
