/* Messages whose bodies MPI takes from where they lie. For the exchange that is a device, whose memory it must not touch; here the
   fake MPI alone reads it. */
#include "team.h"

enum { N = 5000, CAPACITY = 2048 };

/* A rank's: all elements, none, or either. */
static size_t message_of(int r, int turn, uint8_t *out)
{
    static const float thresholds[] = {1, 1000, 47};
    float *gradient = values(r, N), *residuals = calloc(2 * N, sizeof *residuals);
    uint32_t *scratch = malloc(sizeof *scratch * gtcb_scratch_words(N));
    gtcb_segment segment = {gradient, N};
    gtcb_encode_job job = {.segments = &segment, .segment_count = 1, .dtype = GTCB_F32, .elements = N, .residual_in = residuals,
                           .residual_out = residuals + N, .threshold = thresholds[(r + turn) % 3], .max_sent = GTCB_NO_CAP,
                           .sequence = (uint64_t)turn, .bucket = 5, .sender = (uint32_t)r, .scratch = scratch};
    size_t bytes = 0;
    CHECK(gtcb_message_capacity(N) <= CAPACITY);
    CHECK(gtcb_encode(gtcb_variant_best(), &job, NULL, out, CAPACITY, &bytes) == GTCB_OK);
    free(gradient);
    free(residuals);
    free(scratch);
    return bytes;
}

static void check_rank(rank *me, gtcb_op *op, int r, int turn, bool in_room)
{
    uint8_t message[CAPACITY];
    size_t bytes = message_of(r, turn, message), first, followed;
    bool on_host;
    const void *header = gtcb_op_body(op, (uint32_t)r, &first), *body = gtcb_op_following(op, (uint32_t)r, &followed, &on_host);
    CHECK(first == GTCB_HEADER_BYTES || first == bytes);
    CHECK(memcmp(header, message, first) == 0);
    CHECK(first + followed == bytes);
    CHECK(followed == 0 || memcmp(body, message + first, followed) == 0);
    CHECK(r == me->rank || on_host == !in_room);
}

void direct(rank *me)
{
    enum { TURNS = 9 };      /* each kind of message with each kind of room */
    for (int turn = 0; turn < TURNS; turn++) {
        const size_t room_bytes = turn % 3 == 0 ? 0 : turn % 3 == 1 ? 640 : (size_t)me->size * CAPACITY;
        uint8_t *message = malloc(CAPACITY), *room = aligned_alloc(64, 64 + room_bytes);
        size_t bytes = message_of(me->rank, turn, message), need = 0;
        for (int r = 0; r < me->size; r++) {
            uint8_t other[CAPACITY];
            size_t length = message_of(r, turn, other) - GTCB_HEADER_BYTES;
            need += r == me->rank || (r + turn) % 3 == 2 ? 0 : (length + 63) / 64 * 64;
        }
        const gtcb_direct memory = {.message = message, .room = room, .room_bytes = room_bytes};
        const size_t here = (me->rank + turn) % 3 == 2 ? bytes : GTCB_HEADER_BYTES;       /* a short one goes as a whole */
        gtcb_op *op;
        dawdle(me);
        if (gtcb_exchange_short_bytes(me->exchange) < bytes && here == bytes) {
            CHECK(gtcb_post_direct(me->exchange, message, bytes, &memory, 5, &op) == GTCB_BAD_ARGUMENT);
        } else if (gtcb_exchange_short_bytes(me->exchange) >= CAPACITY) {
            CHECK(gtcb_post_direct(me->exchange, message, here, &memory, 5, &op) == GTCB_OK);
            CHECK(finish(op)->status == GTCB_OK);
            for (int r = 0; r < me->size; r++)
                check_rank(me, op, r, turn, need <= room_bytes);
            CHECK(gtcb_op_release(op));
        }
        free(message);
        free(room);
    }
}
