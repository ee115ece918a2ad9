/* Broadcast. The root sends each rank its shard, and each rank sends that on to the others, header and all; the
   root's own shard goes straight to everyone. So the root sends the array at most twice, whatever the number of
   ranks. A short array is one shard, which the root sends to everyone. Between hosts a long one goes around the ring,
   shard after shard.

   Bodies land in the caller's array: after an error it holds nothing of use. A rank that got an unsound shard sends it
   on with a farewell for a header. */
#include "exchange/internal.h"

static bool is_direct(const gtcb_op *op)
{
    const gtcb_exchange *x = op->exchange;
    return x->size <= 2 || op->elements * gtcb_raw_bytes(op->element) <= x->engine->settings.direct_bytes;
}

static gtcb_shard shard(const gtcb_op *op, uint32_t i)
{
    uint64_t bytes = op->elements * gtcb_raw_bytes(op->element);
    gtcb_shard all = {0, bytes}, none = {bytes, 0};
    return is_direct(op) ? (i == op->root ? all : none) : gtcb_shard_of(bytes, op->exchange->size, i);
}

static uint8_t *shard_header(gtcb_op *op, uint32_t i) { return op->own.data + (size_t)i * GTCB_HEADER_BYTES; }
static uint8_t *shard_body(gtcb_op *op, uint32_t i) { return (uint8_t *)op->array + shard(op, i).first; }

static gtcb_status prepare(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    uint64_t bytes = op->elements * gtcb_raw_bytes(op->element);
    if (gtcb_buffer_need(&op->own, (size_t)x->size * GTCB_HEADER_BYTES))
        return GTCB_NO_MEMORY;
    for (uint32_t i = 0; i < x->size && x->rank == op->root; i++) {
        gtcb_status status = gtcb_write_raw_header(x->engine->settings.variant, GTCB_BYTES, shard_body(op, i), shard(op, i).count, i,
                                                   op->sequence, gtcb_pack_bucket(GTCB_SHARD, op->element, op->bucket), x->rank,
                                                   shard_header(op, i));
        if (status)
            return status;
    }
    gtcb_header announced = {.kind = GTCB_RAW, .element = GTCB_BYTES, .elements = bytes, .sent = op->root, .body_bytes = bytes,
                             .sequence = op->sequence, .bucket = gtcb_pack_bucket(GTCB_BROADCAST, op->element, op->bucket),
                             .sender = x->rank};
    gtcb_write_header(&announced, op->announcement);
    return GTCB_OK;
}

static gtcb_status send_shard(gtcb_op *op, uint32_t i, uint32_t peer)
{
    size_t bytes = shard(op, i).count;
    op->batch.round++;
    gtcb_status status = bytes ? gtcb_op_send(op, shard_header(op, i), GTCB_HEADER_BYTES, peer, 0) : GTCB_OK;
    return status || !bytes ? status : gtcb_op_send(op, shard_body(op, i), bytes, peer, 0);
}

static gtcb_spans spans(gtcb_op *op, uint32_t i)
{
    size_t bytes = shard(op, i).count;
    return (gtcb_spans){{{shard_header(op, i), bytes ? GTCB_HEADER_BYTES : 0}, {shard_body(op, i), bytes}}};
}

static gtcb_status expect_shard(gtcb_op *op, uint32_t i, uint32_t peer)
{
    size_t bytes = shard(op, i).count;
    gtcb_status status = bytes ? gtcb_op_expect(op, shard_header(op, i), GTCB_HEADER_BYTES, peer, 0, i) : GTCB_OK;
    return status || !bytes ? status : gtcb_op_expect(op, shard_body(op, i), bytes, peer, 0, i);
}

static gtcb_status begin(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_status status = GTCB_OK;
    if (!is_direct(op) && gtcb_goes_around(x, shard(op, 0).count))
        return gtcb_ring_begin(op);
    op->batch.receiving = GTCB_AHEAD;         /* what this rank is to pass on has to come first, whatever it waits for */
    if (x->rank == op->root) {
        for (uint32_t i = 1; i < x->size && !status; i++)
            status = send_shard(op, gtcb_peer(x, i), gtcb_peer(x, i));
        for (uint32_t i = 1; i < x->size && !status; i++)
            status = send_shard(op, op->root, gtcb_peer(x, i));
        return status;
    }
    status = expect_shard(op, x->rank, op->root);           /* in the order in which the root sends */
    if (!status)
        status = expect_shard(op, op->root, op->root);
    for (uint32_t i = 1; i < x->size && !status; i++) {
        uint32_t peer = gtcb_peer(x, x->size - i);
        if (peer != op->root)
            status = expect_shard(op, peer, peer);
    }
    return status;
}

static void arrived(gtcb_op *op, uint32_t slot)
{
    gtcb_exchange *x = op->exchange;
    size_t bytes = shard(op, slot).count;
    if (bytes && atomic_exchange(&x->corrupt_next, false))
        shard_body(op, slot)[bytes / 2] ^= 1;
    gtcb_status status = gtcb_check_part(op, shard_header(op, slot), shard_body(op, slot), bytes, GTCB_SHARD, slot, op->root,
                                         op->around || slot == x->rank ? op->root : slot);
    if (slot != x->rank || op->around)
        return;
    if (status)
        gtcb_write_farewell(x, &op->failure, op->sequence, shard_header(op, slot));
    status = GTCB_OK;
    for (uint32_t i = 1; i < x->size && !status; i++)
        if (gtcb_peer(x, i) != op->root)
            status = send_shard(op, slot, gtcb_peer(x, i));
}

static gtcb_status proceed(gtcb_op *op) { (void)op; return GTCB_OK; }

const gtcb_op_class gtcb_broadcast_class = {prepare, begin, arrived, proceed, spans};
