/* Messages whose bodies lie in the memory of a device (docs/cuda.md): MPI reads them there, and writes the others' there.

   The headers of the codec travel first, as short bodies, so every rank knows how much follows from whom. A message that is
   short as a whole, or a text in place of one, is such a body, and nothing follows. This room looks at no long body: it cannot.
   Who has posted them validates them on the device. Where the room given is too small they come to the host's memory. */
#include "exchange/internal.h"

static gtcb_status prepare(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_status status = gtcb_write_raw_header(x->engine->settings.variant, GTCB_BYTES, op->array, op->elements, 1, op->sequence,
                                               gtcb_pack_bucket(GTCB_DIRECT, GTCB_BYTES, op->bucket), x->rank, op->announcement);
    return status ? status : gtcb_op_say(op, op->array, op->elements);
}

/* Bytes that follow from a rank; SIZE_MAX: its header says what cannot be. */
static size_t following(gtcb_op *op, uint32_t rank)
{
    size_t bytes;
    const void *message = gtcb_op_body(op, rank, &bytes);
    gtcb_header h;
    if (bytes != GTCB_HEADER_BYTES || gtcb_read_header(message, &h) || (h.flags & GTCB_FLAG_NON_FINITE))
        return 0;
    return h.body_bytes <= gtcb_message_capacity(h.elements) - GTCB_HEADER_BYTES ? h.body_bytes : SIZE_MAX;
}

static void *place_of(gtcb_op *op, uint32_t rank)
{
    if (rank == op->exchange->rank)
        return (void *)(op->direct.message + GTCB_HEADER_BYTES);
    return (op->in_room ? op->direct.room : op->bodies.data) + op->offsets[rank];
}

static gtcb_spans spans(gtcb_op *op, uint32_t rank)
{
    return (gtcb_spans){{{place_of(op, rank), following(op, rank)}}};
}

/* Where each body will lie. *longest: of all. */
static gtcb_status lay_out(gtcb_op *op, size_t *longest)
{
    gtcb_exchange *x = op->exchange;
    size_t need = 0;
    for (uint32_t r = 0; r < x->size; r++) {
        size_t bytes = following(op, r);
        op->offsets[r] = need;
        if (bytes > SIZE_MAX / 4 - need)
            return gtcb_op_fail(op, GTCB_BAD_HEADER, r, "rank %u announces a body of %zu bytes", r, bytes);
        *longest = bytes > *longest ? bytes : *longest;
        if (r != x->rank)
            need += (bytes + GTCB_DIRECT_ALIGNMENT - 1) / GTCB_DIRECT_ALIGNMENT * GTCB_DIRECT_ALIGNMENT;
    }
    op->in_room = need <= op->direct.room_bytes;
    if (!op->in_room && gtcb_buffer_need(&op->bodies, need))
        return gtcb_op_fail(op, GTCB_NO_MEMORY, x->rank, "no memory for bodies of %zu bytes", need);
    return GTCB_OK;
}

static gtcb_status begin(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    size_t longest = 0;
    gtcb_status status = GTCB_OK;
    for (uint32_t r = 0; r < x->size && !status; r++)
        if (r != x->rank)
            status = gtcb_op_check_short_body(op, r, gtcb_get64(gtcb_op_header_of(op, r) + 24));
    if (!status)
        status = lay_out(op, &longest);
    op->complete = !status && longest == 0;       /* else the others wait for what follows from here */
    if (status)
        return status;
    if (longest && gtcb_in_own_thread(x->engine) && op->direct.use_device)
        op->direct.use_device(op->direct.device);
    return gtcb_spread(op, longest);
}

static void arrived(gtcb_op *op, uint32_t slot)
{
    (void)op, (void)slot;
}

static gtcb_status proceed(gtcb_op *op) { (void)op; return GTCB_OK; }

const gtcb_op_class gtcb_direct_class = {prepare, begin, arrived, proceed, spans};

const void *gtcb_op_following(gtcb_op *op, uint32_t rank, size_t *bytes, bool *on_host)
{
    *bytes = op->operation == GTCB_DIRECT ? following(op, rank) : 0;
    *on_host = rank != op->exchange->rank && !op->in_room;
    return *bytes ? place_of(op, rank) : NULL;
}
