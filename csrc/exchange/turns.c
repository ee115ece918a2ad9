/* Turns of operations. The large transfers of one go to many peers, round after round (transport.h), so that a card has one sender at a
   time; two operations at their rounds together would be two senders again. So those of an operation set out when no earlier one of the
   exchange has any on this rank, under way or waiting. In the ring all go to the next rank and come from the one before: several
   operations may be at that together, and the ring does not run empty between them. Headers, short bodies and receives that come ahead
   (GTCB_AHEAD, GTCB_IN_ORDER) never wait here; and nothing does where no card can have two senders: on one host, and between two ranks.

   Nobody waits in a circle. All ranks have the same operations in the same order, and one waits for earlier ones only. Of those that are
   not over on all ranks the earliest waits for none, on any rank: it goes on as if it were alone, and then the next is the earliest. So
   none starves either. One that fails, is given up, or of which a farewell tells, leaves the active ones and holds nobody up from then
   on, though MPI may still be at some of its transfers.

   The order is that of one exchange: those of several that are at work together (the hybrid's groups and its leaders) are not in turn. */
#include "exchange/internal.h"

static bool cards_can_have_two_senders(const gtcb_exchange *x) { return x->size > 2 && x->per_host < x->size; }

bool gtcb_take_turn(gtcb_op *op, const gtcb_earlier *earlier)
{
    bool was_held = op->batch.held;
    op->batch.held = earlier->straight || (earlier->around && !op->around);
    return was_held && !op->batch.held;
}

void gtcb_note_large(const gtcb_op *op, gtcb_earlier *earlier)
{
    if (op->batch.large && cards_can_have_two_senders(op->exchange))
        *(op->around ? &earlier->around : &earlier->straight) = true;
}

gtcb_op *gtcb_whose_turn(gtcb_op *op)
{
    gtcb_op *first = op->exchange->active;
    if (op->stage == GTCB_QUEUED && first)
        return first;
    if (!op->batch.held || !gtcb_batch_waits(&op->batch))
        return op;
    while (first != op && !first->batch.large)
        first = first->next;
    return first;
}
