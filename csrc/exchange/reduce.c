/* Allreduce. The owner of a shard adds all ranks' parts of it in float64, in rank order, rounds once (to bfloat16 by way of
   float32), and sends the result to all. A short array has no shards: every rank gets all parts and does the owner's sum itself. The
   order of the additions is the same, so the bits are too, whatever the number of ranks that own.

   round 0    header and part of each shard, to its owner; a very short array has come with the headers
   round 1    header and result of each shard, from its owner to all; long ones around the ring

   A rank that finds a part unsound still takes part in round 1, with a farewell for a header, so that all ranks end this
   operation, and soon. Results land in the caller's array, whose parts have gone by then: after an error in either round it
   holds nothing of use. What headers refuse, a NaN or another operation, leaves it as it was. */
#include "exchange/internal.h"

#define SUM_BLOCK 4096             /* elements added at a time: their float64 sums stay in the first cache */

static bool is_direct(const gtcb_op *op)
{
    const gtcb_exchange *x = op->exchange;
    return x->size == 1 || op->elements * gtcb_raw_bytes(op->element) <= x->engine->settings.direct_bytes;
}

/* Then the array comes with the headers, and there is no other round. */
static bool is_short(const gtcb_op *op)
{
    return is_direct(op) && gtcb_is_short(op->exchange, op->elements * gtcb_raw_bytes(op->element));
}

static uint32_t shards(const gtcb_op *op) { return is_direct(op) ? 1 : op->exchange->size; }
static uint32_t own_shard(const gtcb_op *op) { return is_direct(op) ? 0 : op->exchange->rank; }
static gtcb_shard shard(const gtcb_op *op, uint32_t i) { return gtcb_shard_of(op->elements, shards(op), i); }

static uint8_t *part_header(gtcb_op *op, uint32_t i) { return op->own.data + (size_t)i * GTCB_HEADER_BYTES; }
static uint8_t *part(gtcb_op *op, uint32_t i) { return (uint8_t *)op->array + shard(op, i).first * gtcb_raw_bytes(op->element); }
static size_t part_bytes(const gtcb_op *op, uint32_t i) { return shard(op, i).count * gtcb_raw_bytes(op->element); }

static uint8_t *result_header(gtcb_op *op, uint32_t i) { return part_header(op, shards(op) + i); }

/* A slot per rank: header and body of its part of the own shard. */
static size_t stride(const gtcb_op *op) { return GTCB_HEADER_BYTES + (part_bytes(op, own_shard(op)) + 63) / 64 * 64; }
static uint8_t *slot_of(gtcb_op *op, uint32_t rank) { return op->bodies.data + rank * stride(op); }

static gtcb_status prepare_short(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_header h;
    gtcb_status status = gtcb_write_raw_header(x->engine->settings.variant, op->element, op->array, op->elements, op->weight,
                                               op->sequence, gtcb_pack_bucket(op->operation, op->element, op->bucket), x->rank,
                                               op->announcement);
    if (!status)
        status = gtcb_read_header(op->announcement, &h);
    return status ? status : gtcb_op_say(op, op->array, h.body_bytes);
}

/* The header that goes to all: a non-finite value is announced with its index in the whole array. The bodies travel
   as parts with checksums of their own, so the body checksum of this one is 0. */
static gtcb_status prepare(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    if (gtcb_buffer_need(&op->own, (size_t)2 * shards(op) * GTCB_HEADER_BYTES) ||
        gtcb_buffer_need(&op->bodies, stride(op) * x->size))
        return GTCB_NO_MEMORY;
    if (is_short(op))
        return prepare_short(op);
    gtcb_header announced = {.kind = GTCB_RAW, .element = (uint8_t)op->element, .elements = op->elements, .sent = op->weight,
                             .body_bytes = op->elements * gtcb_raw_bytes(op->element), .sequence = op->sequence,
                             .bucket = gtcb_pack_bucket(op->operation, op->element, op->bucket), .sender = x->rank};
    for (uint32_t i = 0; i < shards(op); i++) {
        gtcb_header h;
        gtcb_status status = gtcb_write_raw_header(x->engine->settings.variant, op->element, part(op, i), shard(op, i).count, i,
                                                   op->sequence, gtcb_pack_bucket(GTCB_PIECE, op->element, op->bucket), x->rank,
                                                   part_header(op, i));
        if (!status)
            status = gtcb_read_header(part_header(op, i), &h);
        if (status)
            return status;
        if (h.flags & GTCB_FLAG_NON_FINITE) {
            announced.flags = GTCB_FLAG_NON_FINITE;
            announced.sent = shard(op, i).first + h.sent;
            announced.body_bytes = 0;
            break;
        }
    }
    gtcb_write_header(&announced, op->announcement);
    return GTCB_OK;
}

static uint64_t weight_of(gtcb_op *op, uint32_t rank) { return gtcb_get64(gtcb_op_header_of(op, rank) + 16); }

static gtcb_status send_part(gtcb_op *op, uint32_t peer)
{
    const uint32_t owned = is_direct(op) ? 0 : peer;
    if (peer == GTCB_NOBODY || !part_bytes(op, owned))
        return GTCB_OK;
    gtcb_status status = gtcb_op_send(op, part_header(op, owned), GTCB_HEADER_BYTES, peer, 0);
    return status ? status : gtcb_op_send(op, part(op, owned), part_bytes(op, owned), peer, 0);
}

static gtcb_status expect_part(gtcb_op *op, uint32_t peer)
{
    const size_t bytes = part_bytes(op, own_shard(op));
    if (peer == GTCB_NOBODY || !bytes)
        return GTCB_OK;
    gtcb_status status = gtcb_op_expect(op, slot_of(op, peer), GTCB_HEADER_BYTES, peer, 0, peer);
    return status ? status : gtcb_op_expect(op, slot_of(op, peer) + GTCB_HEADER_BYTES, bytes, peer, 0, peer);
}

static gtcb_status begin(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_status status = GTCB_OK;
    size_t expected = part_bytes(op, own_shard(op));
    for (uint32_t r = 0; r < x->size && is_short(op); r++)
        if (r != x->rank && !gtcb_op_check_short_body(op, r, expected) && expected)
            memcpy(slot_of(op, r) + GTCB_HEADER_BYTES, gtcb_op_short_body(op, r), expected);
    if (is_short(op))
        return GTCB_OK;
    /* Sends first, here and in gtcb_spread: where two ranks send each other long bodies, Open MPI's answer to a request to send must
       go out before the own body fills the same TCP connection, or the two bodies go one after the other. */
    for (uint32_t i = 0; i < x->round_count && !status; i++) {
        op->batch.round++;
        status = send_part(op, x->rounds[i].to);
        if (!status)
            status = expect_part(op, x->rounds[i].from);
    }
    return status;
}

static void arrived(gtcb_op *op, uint32_t slot)
{
    bool results = op->phase == 1;
    uint8_t *header = results ? result_header(op, slot) : slot_of(op, slot);
    uint8_t *body = results ? part(op, slot) : header + GTCB_HEADER_BYTES;
    size_t bytes = part_bytes(op, results ? slot : own_shard(op));
    if (bytes && atomic_exchange(&op->exchange->corrupt_next, false))
        body[bytes / 2] ^= 1;
    gtcb_check_part(op, header, body, bytes, results ? GTCB_RESULT : GTCB_PIECE, results ? slot : own_shard(op), slot, slot);
}

/* -- the sum ------------------------------------------------------------------------------------------- */

#define SAME(x) (x)

#define SUM(TYPE, name, FROM, ROUND, TO)                                                                     \
    static void name(gtcb_op *op, size_t first, size_t count, double divisor)                               \
    {                                                                                                        \
        double acc[SUM_BLOCK];                                                                               \
        uint32_t me = op->exchange->rank;                                                                    \
        for (size_t k = 0; k < count; k++)                                                                   \
            acc[k] = 0.0;                                                                                    \
        for (uint32_t r = 0; r < op->exchange->size; r++) {                                                  \
            const uint8_t *from = r == me ? part(op, own_shard(op)) : slot_of(op, r) + GTCB_HEADER_BYTES;    \
            const TYPE *x = (const TYPE *)from + first;                                                      \
            double weight = (double)weight_of(op, r);                                                        \
            for (size_t k = 0; k < count; k++)                                                               \
                acc[k] += weight * (double)FROM(x[k]);                                                       \
        }                                                                                                    \
        TYPE *out = (TYPE *)part(op, own_shard(op)) + first;                                                 \
        for (size_t k = 0; k < count; k++)                                                                   \
            out[k] = TO((ROUND)(op->operation == GTCB_MEAN ? acc[k] / divisor : acc[k]));                    \
    }

SUM(float, sum_f32, SAME, float, SAME)
SUM(double, sum_f64, SAME, double, SAME)
SUM(uint16_t, sum_bf16, gtcb_from_bfloat16, float, gtcb_to_bfloat16)

static void sum_block(void *context, size_t i)
{
    gtcb_op *op = context;
    size_t all = shard(op, own_shard(op)).count, first = i * SUM_BLOCK;
    size_t count = all - first < SUM_BLOCK ? all - first : SUM_BLOCK;
    uint64_t weights = 0;
    for (uint32_t r = 0; r < op->exchange->size; r++)
        weights += weight_of(op, r);
    (op->element == GTCB_FLOAT32 ? sum_f32 : op->element == GTCB_FLOAT64 ? sum_f64 : sum_bf16)(op, first, count, (double)weights);
}

static void add_parts(gtcb_op *op)
{
    size_t blocks = (shard(op, own_shard(op)).count + SUM_BLOCK - 1) / SUM_BLOCK;
    const gtcb_executor *executor = gtcb_pool_executor(op->exchange->engine->pool);
    if (executor)
        executor->run(executor->self, sum_block, op, blocks);
    else
        for (size_t i = 0; i < blocks; i++)
            sum_block(op, i);
}

static gtcb_spans result(gtcb_op *op, uint32_t rank)
{
    size_t bytes = part_bytes(op, rank);
    return (gtcb_spans){{{result_header(op, rank), bytes ? GTCB_HEADER_BYTES : 0}, {part(op, rank), bytes}}};
}

/* The result's header: as bytes, because a sum may overflow to infinity, and that is then the result. */
static gtcb_status send_results(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    uint8_t *header = result_header(op, x->rank);
    op->phase = 1;
    if (op->failure.status)
        gtcb_write_farewell(x, &op->failure, op->sequence, header);
    else {
        gtcb_status status = gtcb_write_raw_header(x->engine->settings.variant, GTCB_BYTES, part(op, x->rank), part_bytes(op, x->rank),
                                                   x->rank, op->sequence, gtcb_pack_bucket(GTCB_RESULT, op->element, op->bucket),
                                                   x->rank, header);
        if (status)
            return gtcb_op_fail(op, status, x->rank, "result: %s", gtcb_status_text(status));
    }
    return gtcb_spread(op, part_bytes(op, 0));
}

static gtcb_status proceed(gtcb_op *op)
{
    if (op->phase == 1)
        return GTCB_OK;
    if (!op->failure.status)
        add_parts(op);
    return is_direct(op) ? GTCB_OK : send_results(op);
}

const gtcb_op_class gtcb_allreduce_class = {prepare, begin, arrived, proceed, result};
