/* Inside of the exchange. Two locks: `drive` is held by whoever moves operations (one thread at a time; it may
   take long), `lock` for a moment only. Where both are needed, `drive` first. */
#ifndef GTCB_EXCHANGE_INTERNAL_H
#define GTCB_EXCHANGE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "codec/variant.h"
#include "exchange/exchange.h"
#include "exchange/pool.h"

/* Of one exchange, so many operations are under way at most; others wait in its queue. */
#define GTCB_WINDOW 64
#define GTCB_KEPT 4                /* finished operations of a kind that keep their buffers */

/* -- what headers say (agree.c) ------------------------------------------------------------------- */

typedef enum gtcb_operation {      /* of raw messages: bits 28 to 31 of the bucket field */
    GTCB_ENCODE = 0,
    GTCB_ALLGATHER = 1,
    GTCB_SUM = 2,
    GTCB_MEAN = 3,
    GTCB_BROADCAST = 4,
    GTCB_PIECE = 5,                /* one rank's part of a shard, on its way to the owner */
    GTCB_RESULT = 6,               /* a reduced shard */
    GTCB_SHARD = 7,                /* of a broadcast */
    GTCB_OWNERS = 8,
    GTCB_DIRECT = 9,
    GTCB_FAREWELL = 15             /* this rank has given up */
} gtcb_operation;

uint32_t gtcb_pack_bucket(gtcb_operation operation, gtcb_element element, uint32_t bucket);
/* Compares the headers of all ranks; fails the operation the same way on all of them. */
gtcb_status gtcb_agree(gtcb_op *op);
/* Is this the header of the part that `rank` owes? Fails the operation if not. */
gtcb_status gtcb_check_part(gtcb_op *op, const void *header, const void *body, uint64_t bytes, gtcb_operation operation,
                            uint64_t shard, uint32_t sender, uint32_t from);

/* -- buffers --------------------------------------------------------------------------------------- */

typedef struct gtcb_buffer { uint8_t *data; size_t capacity; } gtcb_buffer;
/* Grows only, with room to spare; contents are lost when it grows. 64-byte aligned, and readable 64 bytes beyond. */
gtcb_status gtcb_buffer_need(gtcb_buffer *buffer, size_t bytes);
/* The same, but the first `used` bytes stay. */
gtcb_status gtcb_buffer_extend(gtcb_buffer *buffer, size_t used, size_t bytes);

/* -- operations ------------------------------------------------------------------------------------ */

typedef struct gtcb_span { void *data; size_t bytes; } gtcb_span;
typedef struct gtcb_spans { gtcb_span of[2]; } gtcb_spans;

typedef struct gtcb_op_class {
    gtcb_status (*prepare)(gtcb_op *op);                    /* writes op->announcement */
    gtcb_status (*begin)(gtcb_op *op);                      /* headers agree: posts the bodies' transfers */
    void (*arrived)(gtcb_op *op, uint32_t slot);            /* all of a slot is here; may post more */
    gtcb_status (*proceed)(gtcb_op *op);                    /* no transfer is pending: posts the next ones, or none: done */
    gtcb_spans (*spans)(gtcb_op *op, uint32_t slot);        /* where what all must have of a slot lies, for the ring */
} gtcb_op_class;

extern const gtcb_op_class gtcb_encode_class, gtcb_owners_class, gtcb_direct_class, gtcb_allgather_class, gtcb_allreduce_class, gtcb_broadcast_class;

typedef struct gtcb_letter gtcb_letter;

typedef enum gtcb_stage { GTCB_QUEUED, GTCB_HEADERS, GTCB_BODIES, GTCB_MEAN_DUE, GTCB_DONE } gtcb_stage;

struct gtcb_op {
    gtcb_op *next;                 /* in the queue, among the active, or among the free */
    gtcb_exchange *exchange;
    const gtcb_op_class *class;
    gtcb_operation operation;
    uint32_t bucket;
    uint64_t sequence;

    gtcb_encode_job job;           /* encode, owners; its segments lie in `segments` */
    gtcb_encode_job second;        /* owners: of the sum of the own shard */
    gtcb_buffer segments;
    gtcb_mean_into into;           /* encode, owners: of no targets, if the mean is asked for later; else they lie in `targets` */
    gtcb_buffer targets;
    void *array;                   /* the others */
    gtcb_direct direct;            /* direct */
    bool in_room;                  /* direct: the others' bodies are in direct.room; else in `bodies` */
    gtcb_element element;
    uint64_t elements, weight;
    uint32_t root;

    gtcb_stage stage;
    bool unsent;                   /* no peer has this operation's header */
    bool complete;                 /* it owes nobody anything */
    unsigned phase;                /* of the bodies, as the class counts them */
    gtcb_span hello;               /* what goes to all first: the announcement, and behind it a short body */
    gtcb_letter *letter;           /* in which it goes, until that has gone */
    uint8_t *greeted;              /* [size] whose hello has come */
    uint32_t ungreeted;            /* how many have not */
    uint32_t *places;              /* [size] of bodies in their senders' windows; 0: not there */
    uint32_t place;                /* of the own one */
    uint64_t bytes_shared;         /* read there by all others together; in bytes_sent, too */
    uint64_t number;               /* among those that may use windows */
    gtcb_op *held_before, *held_after;       /* lock: neighbours among those that have not been given back */
    bool around;                   /* bodies travel in the ring */
    size_t passed, to_pass;        /* pieces that came: so many have gone to the next rank, of those that are to */
    gtcb_batch batch;
    uint8_t *seen;                 /* [size] slots whose arrival has been handled, or that await nothing */
    uint8_t *late;                 /* [size] ranks that had not come at the deadline */
    uint8_t announcement[GTCB_HEADER_BYTES];
    gtcb_buffer headers;           /* [size] of all ranks */
    gtcb_buffer shorts;            /* bodies that came with their headers, */
    size_t *short_at, *short_bytes, shorts_end;     /* [size] and where they lie */
    gtcb_buffer own;               /* own message, or headers of own shards */
    gtcb_buffer bodies;            /* what arrives */
    size_t *offsets;               /* [size] into bodies; owners: of each rank the length of its body */
    double posted, begun, started, arrived, finished;     /* gtcb_times has them; started: announced */
    gtcb_failure failure;
    atomic_bool done;
};

/* letters.c */
typedef struct gtcb_inbox { uint8_t *letter; size_t at, end; uint32_t number; bool awaited; } gtcb_inbox;
typedef struct gtcb_mail {
    size_t letter_bytes;           /* of the longest */
    gtcb_letter *draft;            /* not sent yet */
    gtcb_letter *going, *blank;
    uint32_t number;               /* letters written */
    gtcb_batch coming;             /* a slot for each rank */
    gtcb_inbox *inboxes;           /* [size] what has come of each and is not read yet */
    uint64_t *owed;                /* [size] hellos for operations that wait for them */
    uint8_t *letters;              /* the memory of the inboxes */
} gtcb_mail;

/* window.c */
typedef struct gtcb_taken { uint64_t number; size_t offset; } gtcb_taken;    /* of which operation, and where */
typedef struct gtcb_window {
    uint8_t **of;                  /* [size] each rank's, as this process sees it; NULL: there are none */
    size_t room;                   /* for bodies, in each */
    uint64_t begun;                /* lock: operations so far */
    gtcb_op *oldest, *newest;      /* lock: not given back by this rank */
    gtcb_taken *taken;             /* drive: [first, end) of the own one, in order */
    size_t first, end, capacity;
    size_t free;                   /* where the next body goes */
} gtcb_window;

/* rounds.c: whom a rank sends to in a round, and whom it hears from, each of all others once; GTCB_NOBODY */
#define GTCB_NOBODY UINT32_MAX
typedef struct gtcb_round { uint32_t to, from; } gtcb_round;

struct gtcb_exchange {
    gtcb_engine *engine;
    gtcb_exchange *next;
    gtcb_handle comm;
    uint32_t rank, size;
    uint32_t *ring;                /* [size] the ranks in the order of the ring */
    uint32_t place, per_host;      /* the own one in it; most ranks on one host */
    gtcb_round *rounds;            /* [round_count] */
    uint32_t round_count;
    uint64_t next_sequence;        /* lock */
    gtcb_op *queue, *queue_end;    /* lock */
    gtcb_op *idle;                 /* lock */
    gtcb_op *active;               /* drive; in order of sequence */
    size_t active_count;           /* drive */
    gtcb_mail mail;                /* drive */
    gtcb_window window;            /* drive, but what says lock */
    bool abandoned;                /* drive: transfers may still be pending, or messages unread */
    gtcb_failure failure;          /* lock: the first */
    bool failed;                   /* drive */
    gtcb_batch farewells;          /* drive: to all others */
    uint8_t farewell[GTCB_HEADER_BYTES];
    gtcb_batch heard;              /* drive: from one of them */
    uint8_t heard_header[GTCB_HEADER_BYTES];
    double moved_at, looked_at;    /* drive: last time that anything moved; that farewells were looked for */
    gtcb_counters counters;        /* lock */
    atomic_bool corrupt_next;
};

struct gtcb_engine {
    gtcb_engine_settings settings;
    pthread_mutex_t drive, lock;
    pthread_cond_t work, done;
    pthread_t thread;
    bool has_thread, stopped;
    atomic_bool stop;
    atomic_size_t unfinished;      /* operations posted and not done */
    atomic_int waiters;
    gtcb_exchange *exchanges;      /* drive */
    gtcb_pool *pool;
    gtcb_buffer scratch;           /* drive: of encode */
    pthread_mutex_t decode;        /* after `drive`, where that is held; before `lock` */
    gtcb_buffer decoding;          /* decode */
};

/* operation.c: all with `drive` held */
gtcb_op *gtcb_op_create(gtcb_exchange *exchange, gtcb_operation operation, uint32_t bucket);
void gtcb_op_destroy(gtcb_op *op);
void gtcb_op_start(gtcb_op *op);
bool gtcb_op_advance(gtcb_op *op);
void gtcb_op_finish(gtcb_op *op);
/* Notes a failure, unless there is one already. */
gtcb_status gtcb_op_fail(gtcb_op *op, gtcb_status status, uint32_t rank, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* A transfer of `batch` failed with `status`. */
gtcb_status gtcb_op_transfer_failed(gtcb_op *op, const gtcb_batch *batch, gtcb_status status);
const char *gtcb_op_describe(const gtcb_op *op, char *text, size_t bytes);

/* For the classes: transfers of this operation. `phase` keeps the tags of its rounds apart. */
gtcb_status gtcb_op_send(gtcb_op *op, const void *data, size_t bytes, uint32_t peer, unsigned phase);
gtcb_status gtcb_op_expect(gtcb_op *op, void *data, size_t bytes, uint32_t peer, unsigned phase, uint32_t slot);
gtcb_status gtcb_op_pass_on(gtcb_op *op, size_t k, uint32_t peer);            /* what came as piece k */
/* Validates a body that has arrived; fails the operation if it is not sound. */
gtcb_status gtcb_op_validate(gtcb_op *op, const void *header, void *body, size_t bytes, uint32_t from);
uint8_t *gtcb_op_header_of(gtcb_op *op, uint32_t rank);
/* A body of so many bytes comes with its header. All ranks come to the same answer. */
bool gtcb_is_short(const gtcb_exchange *exchange, size_t bytes);
/* Puts a short body behind the announcement, into op->own. */
gtcb_status gtcb_op_say(gtcb_op *op, const void *body, size_t bytes);
/* Counts and validates the body of so many bytes that came with another rank's header. */
gtcb_status gtcb_op_check_short_body(gtcb_op *op, uint32_t rank, size_t bytes);
uint8_t *gtcb_op_short_body(gtcb_op *op, uint32_t rank);
void gtcb_exchange_stop(gtcb_exchange *exchange, const gtcb_failure *failure);
uint64_t gtcb_first_not_begun(gtcb_exchange *exchange);
bool gtcb_mark_late(gtcb_op *op);
void gtcb_engine_enqueue(gtcb_op *op);      /* without `drive` */
bool gtcb_in_own_thread(const gtcb_engine *engine);      /* not in one of the program */
bool gtcb_drive_all(gtcb_engine *engine);   /* one round; true if anything moved */

/* letters.c: what operations tell all ranks first */
gtcb_status gtcb_mail_open(gtcb_exchange *exchange);
void gtcb_mail_free(gtcb_exchange *exchange);
size_t gtcb_longest_short_body(const gtcb_exchange *exchange);
gtcb_status gtcb_mail_write(gtcb_op *op);             /* into the draft */
void gtcb_mail_send(gtcb_exchange *exchange);         /* the draft; whoever fails by it is done */
bool gtcb_mail_poll(gtcb_exchange *exchange);         /* true if anything moved */
bool gtcb_mail_is_through(gtcb_op *op);               /* own hello gone, all others' here */
bool gtcb_mail_mark_late(gtcb_op *op);
bool gtcb_mail_is_idle(const gtcb_exchange *exchange);

/* window.c: bodies in memory that a host's ranks share */
void gtcb_window_free(gtcb_exchange *exchange);
void gtcb_window_begin(gtcb_op *op);
void gtcb_window_give_back(gtcb_op *op);              /* with `lock` held */
void gtcb_window_put(gtcb_op *op, const void *body, size_t bytes);   /* sets op->place, if there is room */
/* NULL: no body of so many bytes can lie there. */
uint8_t *gtcb_window_at(const gtcb_exchange *exchange, uint32_t rank, uint32_t place, size_t bytes);

typedef struct gtcb_pace { unsigned idle; int slack; } gtcb_pace;
void gtcb_back_off(gtcb_pace *pace, bool moved);

/* ring.c. `hosts`: a number for each rank's host; NULL: all are on one */
gtcb_status gtcb_ring_open(gtcb_exchange *exchange, const uint32_t *hosts);
/* `hosts` as above, after it */
gtcb_status gtcb_rounds_open(gtcb_exchange *exchange, const uint32_t *hosts);
/* Whether bodies of which the longest has so many bytes do; all ranks must ask with the same number. */
bool gtcb_goes_around(const gtcb_exchange *exchange, size_t longest);
/* Posts what comes in the present phase, and sends what is this rank's own. */
gtcb_status gtcb_ring_begin(gtcb_op *op);
/* One body of each rank to all, in the present phase: around the ring or straight. `longest`: the same number on all ranks. */
gtcb_status gtcb_spread(gtcb_op *op, size_t longest);
/* For each class to call when a slot has arrived. */
void gtcb_ring_pass_on(gtcb_op *op);
bool gtcb_ring_mark_late(gtcb_op *op);

/* turns.c: whose large transfers may set out. What earlier operations have of them: straight to their peers, around the ring */
typedef struct gtcb_earlier { bool straight, around; } gtcb_earlier;
bool gtcb_take_turn(gtcb_op *op, const gtcb_earlier *earlier);       /* true: it had to wait, and may go on now */
void gtcb_note_large(const gtcb_op *op, gtcb_earlier *earlier);
gtcb_op *gtcb_whose_turn(gtcb_op *op);                /* the one that it waits for; itself, if it waits for none */

/* shards.c. The message of shard i; the job has segments, residuals and threshold */
gtcb_status gtcb_encode_shard(gtcb_op *op, uint32_t i, gtcb_encode_job *job, uint8_t *message, size_t capacity, gtcb_header *out);
/* Those of all shards, every `stride` bytes in op->own. Adds up what is sent; at a NaN it announces its index and stops. */
gtcb_status gtcb_encode_shards(gtcb_op *op, size_t stride, gtcb_header *announced);

/* mean.c. The mean that an operation owes, where its messages are here: it is done then. With `drive` held. */
void gtcb_op_settle_mean(gtcb_op *op);
bool gtcb_mean_fits(const gtcb_mean_into *into, uint64_t elements);      /* in a dtype that a mean has, divided by more than 0 */

/* owners.c: what the owner of a shard made of it; once done */
gtcb_message gtcb_owners_result(gtcb_op *op, uint32_t shard);

/* farewell.c: how the others learn that this rank has failed. `end`: the first operation that it will not finish. */
void gtcb_exchange_fail(gtcb_exchange *exchange, const gtcb_failure *failure, uint64_t end);
void gtcb_write_farewell(gtcb_exchange *exchange, const gtcb_failure *failure, uint64_t end, void *header_out);
/* The failure that a farewell means for whoever reads it. */
gtcb_failure gtcb_read_farewell(const gtcb_header *farewell);
/* Looks for farewells where nothing moves; fails what they concern. */
void gtcb_look_for_farewells(gtcb_exchange *exchange, bool moved);

/* Peers in an order that differs from rank to rank, so that not all talk to rank 0 first. */
static inline uint32_t gtcb_peer(const gtcb_exchange *exchange, uint32_t i)     /* i = 1 .. size - 1 */
{
    return (uint32_t)(((uint64_t)exchange->rank + i) % exchange->size);
}

typedef struct gtcb_shard { uint64_t first, count; } gtcb_shard;
static inline gtcb_shard gtcb_shard_of(uint64_t elements, uint32_t shards, uint32_t i)
{
    uint64_t base = elements / shards, extra = elements % shards;
    gtcb_shard shard = {i * base + (i < extra ? i : extra), base + (i < extra)};
    return shard;
}

#endif
