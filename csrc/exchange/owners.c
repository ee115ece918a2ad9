/* The owner-sharded exchange of quanta: what a rank sends does not grow with the number of ranks, but for headers.

   announcement   to all: how much this rank sends in all, or where in the bucket its NaN is
   round 0        header and body of the message of each shard, to its owner
   round 1        header of the result to all. The owner has added the messages, in rank order, into float32, and its second
                  residual, and made a message of that at a second threshold
   round 2        bodies of the results to all; long ones around the ring

   A shard without elements has no messages. A rank that finds a message of its shard unsound takes part in round 1
   with a farewell in place of its header, so that all ranks end this operation, and soon; nobody goes on to round 2. */
#include <stdlib.h>

#include "exchange/internal.h"

static gtcb_shard shard(const gtcb_op *op, uint32_t i) { return gtcb_shard_of(op->elements, op->exchange->size, i); }
static gtcb_shard own_shard(const gtcb_op *op) { return shard(op, op->exchange->rank); }

/* Room for the longest message of any shard: the first is the longest. */
static size_t stride(const gtcb_op *op) { return (gtcb_message_capacity(shard(op, 0).count) + 63) / 64 * 64; }

static uint8_t *own_message(gtcb_op *op, uint32_t i) { return op->own.data + i * stride(op); }
/* A slot per rank: its message of the own shard, later its result; the own slot has only the own result. */
static uint8_t *slot_of(gtcb_op *op, uint32_t rank) { return op->bodies.data + rank * stride(op); }
static float *sum_of(gtcb_op *op) { return (float *)slot_of(op, op->exchange->size); }
static size_t body_bytes(const uint8_t *message) { return gtcb_get64(message + 24); }

static gtcb_status prepare(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    gtcb_header announced = {.kind = GTCB_RAW, .element = GTCB_FLOAT32, .elements = op->elements, .body_bytes = 4 * op->elements,
                             .sequence = op->sequence, .bucket = gtcb_pack_bucket(GTCB_OWNERS, GTCB_QUANTA, op->bucket),
                             .sender = x->rank};
    if (gtcb_buffer_need(&op->own, x->size * stride(op)) ||
        gtcb_buffer_need(&op->bodies, x->size * stride(op) + sizeof(float) * own_shard(op).count))
        return GTCB_NO_MEMORY;
    double begin = engine->settings.now();
    gtcb_status status = gtcb_encode_shards(op, stride(op), &announced);
    gtcb_write_header(&announced, op->announcement);
    pthread_mutex_lock(&engine->lock);
    x->counters.encode_seconds += engine->settings.now() - begin;
    if (!status && !announced.flags)
        x->counters.elements_sent += announced.sent;
    pthread_mutex_unlock(&engine->lock);
    return status;
}

/* -- round 0: to the owners ------------------------------------------------------------------------------ */

/* A body is awaited when its header says how long it is; while that is not known, its length here is this. */
#define NO_HEADER SIZE_MAX

/* Receives take no turns here: the one whose turn it is might await a body whose sender is at another body, to a rank that
   awaits another, and so on in a circle. Senders take theirs. */
static gtcb_status begin(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_status status = GTCB_OK;
    op->batch.receiving = GTCB_AHEAD;
    for (uint32_t i = 1; i < x->size && own_shard(op).count && !status; i++) {
        uint32_t peer = gtcb_peer(x, x->size - i);
        op->offsets[peer] = NO_HEADER;
        status = gtcb_op_expect(op, slot_of(op, peer), GTCB_HEADER_BYTES, peer, 0, peer);
    }
    for (uint32_t i = 0; i < x->round_count && !status; i++) {
        const uint32_t peer = x->rounds[i].to;
        if (peer == GTCB_NOBODY || !shard(op, peer).count)
            continue;
        uint8_t *message = own_message(op, peer);
        op->batch.round++;
        status = gtcb_op_send(op, message, GTCB_HEADER_BYTES, peer, 0);
        if (!status)
            status = gtcb_op_send(op, message + GTCB_HEADER_BYTES, body_bytes(message), peer, 0);
    }
    return status;
}

/* Is it the header of a message of shard `i`, which `rank` sends? */
static gtcb_status check_header(gtcb_op *op, const uint8_t *header, uint32_t i, uint32_t rank)
{
    gtcb_header h;
    gtcb_status status = gtcb_read_header(header, &h);
    if (!status && h.kind == GTCB_RAW && h.bucket >> 28 == GTCB_FAREWELL) {
        gtcb_failure failure = gtcb_read_farewell(&h);
        return gtcb_op_fail(op, failure.status, failure.rank, "%s", failure.text);
    }
    uint64_t longest = gtcb_message_capacity(shard(op, i).count) - GTCB_HEADER_BYTES;
    if (!status && (h.kind == GTCB_RAW || h.elements != shard(op, i).count || h.body_bytes > longest || h.bucket != op->bucket ||
                    h.sequence != op->sequence || h.sender != rank))
        status = GTCB_MISMATCH;
    if (!status && h.flags & GTCB_FLAG_NON_FINITE) {      /* of a result: the sum of finite values overflows */
        uint64_t index = shard(op, i).first + h.sent;
        gtcb_op_fail(op, GTCB_NON_FINITE, rank, "rank %u: the sum of element %llu of bucket %u is infinite", rank,
                     (unsigned long long)index, op->bucket);
        op->failure.index = index;
        return GTCB_NON_FINITE;
    }
    if (status)
        gtcb_op_fail(op, status, rank, "header of shard %u from rank %u at sequence %llu: %s", i, rank,
                     (unsigned long long)op->sequence, gtcb_status_text(status));
    return status;
}

static void message_arrived(gtcb_op *op, uint32_t slot)
{
    uint8_t *header = slot_of(op, slot), *body = header + GTCB_HEADER_BYTES;
    if (op->offsets[slot] == NO_HEADER) {
        if (check_header(op, header, op->exchange->rank, slot))
            return;                /* its length is not known: see proceed */
        op->offsets[slot] = body_bytes(header);
        gtcb_op_expect(op, body, op->offsets[slot], slot, 0, slot);
        if (op->offsets[slot])
            return;
    }
    gtcb_op_validate(op, header, body, op->offsets[slot], slot);
}

static bool all_lengths_known(const gtcb_op *op)
{
    for (uint32_t r = 0; r < op->exchange->size && own_shard(op).count; r++)
        if (r != op->exchange->rank && op->offsets[r] == NO_HEADER)
            return false;
    return true;
}

/* -- round 1: sums ------------------------------------------------------------------------------------------ */

/* sum = Σ q of the own shard, ranks in order; the result: sum + second residual, encoded. */
static gtcb_status add_up(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    size_t count = own_shard(op).count;
    memset(sum_of(op), 0, count * sizeof(float));
    gtcb_message *messages = malloc(x->size * sizeof *messages);
    if (!messages)
        return gtcb_op_fail(op, GTCB_NO_MEMORY, x->rank, "no memory for %u messages", x->size);
    for (uint32_t r = 0; r < x->size; r++) {
        const uint8_t *message = r == x->rank ? own_message(op, r) : slot_of(op, r);
        messages[r] = (gtcb_message){message, message + GTCB_HEADER_BYTES};
    }
    double begin_time = engine->settings.now();
    gtcb_status status = gtcb_decode_add(engine->settings.variant, messages, x->size, sum_of(op), count,
                                         gtcb_pool_executor(engine->pool));
    free(messages);
    gtcb_segment sum = {sum_of(op), count};
    gtcb_encode_job job = op->second;
    gtcb_header h;
    job.segments = &sum;
    job.segment_count = 1;
    job.dtype = GTCB_F32;
    if (!status)
        status = gtcb_encode_shard(op, x->rank, &job, slot_of(op, x->rank), stride(op), &h);
    pthread_mutex_lock(&engine->lock);
    x->counters.decode_seconds += engine->settings.now() - begin_time;
    pthread_mutex_unlock(&engine->lock);
    return status ? gtcb_op_fail(op, status, x->rank, "result: %s", gtcb_status_text(status)) : GTCB_OK;
}

static gtcb_status tell_results(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    uint8_t *own = slot_of(op, x->rank);
    op->phase = 1;
    if (op->failure.status)
        gtcb_write_farewell(x, &op->failure, op->sequence, own);
    else if (own_shard(op).count && add_up(op))
        return op->failure.status;
    gtcb_status status = GTCB_OK;
    for (uint32_t i = 1; i < x->size && !status; i++) {
        uint32_t peer = gtcb_peer(x, x->size - i);
        if (shard(op, peer).count)
            status = gtcb_op_expect(op, slot_of(op, peer), GTCB_HEADER_BYTES, peer, 1, peer);
    }
    for (uint32_t i = 1; i < x->size && own_shard(op).count && !status; i++)
        status = gtcb_op_send(op, own, GTCB_HEADER_BYTES, gtcb_peer(x, i), 1);
    return status;
}

/* Every rank has the same headers and comes to the same verdict: then this operation is over for all. Unless a header was
   damaged on its way here: then only a farewell tells the others, which wait for this rank in round 2. */
static gtcb_status judge_results(gtcb_op *op, bool *for_all)
{
    *for_all = true;
    for (uint32_t r = 0; r < op->exchange->size && shard(op, r).count; r++) {
        gtcb_header h;
        gtcb_status status = check_header(op, slot_of(op, r), r, r);
        if (!status)
            continue;
        *for_all = status == GTCB_NON_FINITE || (!gtcb_read_header(slot_of(op, r), &h) && h.bucket >> 28 == GTCB_FAREWELL);
        return status;
    }
    return GTCB_OK;
}

/* -- round 2: to all ------------------------------------------------------------------------------------------- */

static gtcb_spans result(gtcb_op *op, uint32_t rank)
{
    uint8_t *message = slot_of(op, rank);
    return (gtcb_spans){{{message + GTCB_HEADER_BYTES, shard(op, rank).count ? body_bytes(message) : 0}}};
}

static gtcb_status send_results(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    size_t longest = 0;
    for (uint32_t r = 0; r < x->size; r++)
        longest = result(op, r).of[0].bytes > longest ? result(op, r).of[0].bytes : longest;
    op->phase = 2;
    op->batch.receiving = GTCB_IN_ROUNDS;
    return gtcb_spread(op, longest);
}

static void arrived(gtcb_op *op, uint32_t slot)
{
    if (op->phase == 0)
        message_arrived(op, slot);
    if (op->phase != 2)
        return;
    gtcb_span body = result(op, slot).of[0];
    gtcb_op_validate(op, slot_of(op, slot), body.data, body.bytes, slot);
}

static gtcb_status proceed(gtcb_op *op)
{
    if (op->phase == 0) {
        if (!all_lengths_known(op))
            return op->failure.status;
        gtcb_status status = tell_results(op);
        if (status || !gtcb_batch_is_over(&op->batch))
            return status;
    }
    if (op->phase == 1) {
        bool for_all;
        gtcb_status status = judge_results(op, &for_all);
        return status ? (for_all ? GTCB_OK : status) : send_results(op);
    }
    return GTCB_OK;
}

const gtcb_op_class gtcb_owners_class = {prepare, begin, arrived, proceed, result};

gtcb_message gtcb_owners_result(gtcb_op *op, uint32_t i)
{
    return (gtcb_message){slot_of(op, i), slot_of(op, i) + GTCB_HEADER_BYTES};
}
