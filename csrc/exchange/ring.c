/* The ring: how long bodies that every rank must have travel between hosts.

   Each rank sends to the next one in the ring only, and passes on what comes from the one before. The ring visits host
   by host. So a body crosses each network card once, where it would otherwise go to every rank behind it; and a card has
   one sender at a time, always the same, whose TCP connection stays at full speed: a card that several senders take in
   turn reached three quarters of its rate. Bodies travel in pieces, each of which is passed on as soon as it has come: so the network has no
   pause between two bodies.

   The price is that a body needs size - 1 hops, one after the other: short bodies go straight to all. */
#include <stdlib.h>

#include "exchange/internal.h"

/* Ranks by host, in their order on each; most ranks on one host. */
gtcb_status gtcb_ring_open(gtcb_exchange *x, const uint32_t *hosts)
{
    x->ring = calloc(x->size, sizeof *x->ring);
    if (!x->ring)
        return GTCB_NO_MEMORY;
    uint32_t placed = 0;
    for (uint32_t first = 0; first < x->size; first++) {
        bool visited = false;
        for (uint32_t r = 0; r < first && hosts && !visited; r++)
            visited = hosts[r] == hosts[first];
        uint32_t here = placed;
        for (uint32_t r = first; r < x->size && !visited; r++)
            if (!hosts || hosts[r] == hosts[first])
                x->ring[placed++] = r;
        if (placed - here > x->per_host)
            x->per_host = placed - here;
        if (!hosts)
            break;
    }
    while (x->ring[x->place] != x->rank)
        x->place++;
    return GTCB_OK;
}

/* With g ranks on each of some hosts the ring saves nearly (g - 1) of g bodies at a card, and takes a hop for each rank
   more: it pays from about (bandwidth x latency of a hop) / (g - 1), some 16 KB / (g - 1) on common Ethernet. With one rank
   on a host it saves no bytes, but all that senders lose who take a card in turn. */
bool gtcb_goes_around(const gtcb_exchange *x, size_t longest)
{
    size_t g = x->per_host;
    return x->size > 2 && g < x->size && longest >= x->engine->settings.ring_bytes / (1 + 16 * (g - 1));
}

static uint32_t at(const gtcb_exchange *x, uint32_t place) { return x->ring[place % x->size]; }
static uint32_t next_rank(const gtcb_exchange *x) { return at(x, x->place + 1); }
static uint32_t rank_before(const gtcb_exchange *x) { return at(x, x->place + x->size - 1); }
static bool from_one(const gtcb_op *op) { return op->operation == GTCB_BROADCAST; }

/* What comes from the rank before, in its order: that rank's own body, then the one before's; of a broadcast all shards. */
static uint32_t slot_coming(const gtcb_op *op, uint32_t k)
{
    const gtcb_exchange *x = op->exchange;
    return from_one(op) ? k : at(x, x->place + 2 * x->size - 1 - k);
}

static uint32_t count_coming(const gtcb_op *op)
{
    const gtcb_exchange *x = op->exchange;
    return !from_one(op) ? x->size - 1 : x->rank == op->root ? 0 : x->size;
}

/* The next rank needs neither its own body nor, if it is the root, any shard. */
static uint32_t count_to_pass(const gtcb_op *op)
{
    const gtcb_exchange *x = op->exchange;
    return !from_one(op) ? x->size - 2 : next_rank(x) == op->root ? 0 : count_coming(op);
}

static gtcb_status send_slot(gtcb_op *op, uint32_t slot)
{
    gtcb_spans spans = op->class->spans(op, slot);
    gtcb_status status = GTCB_OK;
    for (size_t i = 0; i < 2 && !status; i++)
        status = gtcb_op_send(op, spans.of[i].data, spans.of[i].bytes, next_rank(op->exchange), op->phase);
    return status;
}

gtcb_status gtcb_ring_begin(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_status status = GTCB_OK;
    op->around = true;
    op->batch.receiving = GTCB_IN_ORDER;
    op->batch.round++;
    op->passed = op->to_pass = op->batch.receives.end;
    for (uint32_t k = 0; k < count_coming(op) && !status; k++) {
        gtcb_spans spans = op->class->spans(op, slot_coming(op, k));
        for (size_t i = 0; i < 2 && !status; i++)
            status = gtcb_op_expect(op, spans.of[i].data, spans.of[i].bytes, rank_before(x), op->phase, slot_coming(op, k));
        if (k < count_to_pass(op))
            op->to_pass = op->batch.receives.end;
    }
    if (!from_one(op))
        return status ? status : send_slot(op, x->rank);
    for (uint32_t i = 0; x->rank == op->root && i < x->size && !status; i++)
        status = send_slot(op, i);
    return status;
}

static gtcb_status send_own(gtcb_op *op, uint32_t peer)
{
    const gtcb_spans own = op->class->spans(op, op->exchange->rank);
    gtcb_status status = GTCB_OK;
    for (size_t k = 0; k < 2 && peer != GTCB_NOBODY && !status; k++)
        status = gtcb_op_send(op, own.of[k].data, own.of[k].bytes, peer, op->phase);
    return status;
}

static gtcb_status expect_from(gtcb_op *op, uint32_t peer)
{
    gtcb_status status = GTCB_OK;
    if (peer == GTCB_NOBODY)
        return status;
    const gtcb_spans coming = op->class->spans(op, peer);
    for (size_t k = 0; k < 2 && !status; k++)
        status = gtcb_op_expect(op, coming.of[k].data, coming.of[k].bytes, peer, op->phase, peer);
    return status;
}

gtcb_status gtcb_spread(gtcb_op *op, size_t longest)
{
    gtcb_exchange *x = op->exchange;
    if (gtcb_goes_around(x, longest))
        return gtcb_ring_begin(op);
    gtcb_status status = GTCB_OK;
    for (uint32_t i = 0; i < x->round_count && !status; i++) {
        op->batch.round++;
        status = send_own(op, x->rounds[i].to);
        if (!status)
            status = expect_from(op, x->rounds[i].from);
    }
    return status;
}

/* Piece by piece, sound or not: the next rank sees for itself, and need not wait for the whole. */
void gtcb_ring_pass_on(gtcb_op *op)
{
    while (op->passed < op->to_pass && op->passed < op->batch.receives.over)
        if (gtcb_op_pass_on(op, op->passed++, next_rank(op->exchange)))
            return;
}

bool gtcb_ring_mark_late(gtcb_op *op)
{
    if (!op->around || op->stage != GTCB_BODIES)
        return false;
    for (uint32_t k = 0; k < count_coming(op); k++)
        if (!op->seen[slot_coming(op, k)]) {
            op->late[from_one(op) ? rank_before(op->exchange) : slot_coming(op, k)] = 1;
            return true;
        }
    return false;
}
