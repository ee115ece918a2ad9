/* Letters: how the hellos of operations travel. A hello is an operation's header, with a short body behind it. With many
   small buckets the messages cost more than their bytes, so the hellos of operations that begin together go in one
   MPI message to each rank, a letter. Which ones do is each rank's own affair: hellos come in the order of the
   operations, however they are divided, and whoever reads them gives each to the next operation that waits for one.

   letter     bytes (u32), number of the letter (u32), then for each hello: its bytes (u32), place (u32), the hello, padded to 8

   The place is that of a long body in the sender's window (window.c), 0 if it is not there.

   A letter is expected only of a rank that owes a hello, so none is awaited where no operation is under way. */
#include <stdlib.h>

#include "exchange/internal.h"

#define LETTER_TAG 0               /* no body has it */
#define LETTER_BYTES 16384
#define FRAME 8
/* What comes below the length that MPIs send at once, beside a header */
#define SHORT_BYTES 2048

struct gtcb_letter {
    gtcb_letter *next;
    uint8_t *data;
    size_t bytes;
    uint32_t operations;           /* that wait for it to be gone */
    gtcb_batch batch;
};

static size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }

size_t gtcb_longest_short_body(const gtcb_exchange *x)
{
    size_t room = x->mail.letter_bytes - 2 * FRAME - GTCB_HEADER_BYTES;
    return room < SHORT_BYTES ? room : SHORT_BYTES;
}

gtcb_status gtcb_mail_open(gtcb_exchange *x)
{
    gtcb_mail *mail = &x->mail;
    const size_t shortest = 2 * FRAME + GTCB_HEADER_BYTES;
    size_t piece = x->engine->settings.piece_bytes / 8 * 8;
    mail->letter_bytes = piece > LETTER_BYTES ? LETTER_BYTES : piece < shortest ? shortest : piece;
    mail->inboxes = calloc(x->size, sizeof *mail->inboxes);
    mail->owed = calloc(x->size, sizeof *mail->owed);
    mail->letters = malloc(x->size * mail->letter_bytes);
    if (!mail->inboxes || !mail->owed || !mail->letters)
        return GTCB_NO_MEMORY;
    for (uint32_t r = 0; r < x->size; r++)
        mail->inboxes[r].letter = mail->letters + r * mail->letter_bytes;
    return gtcb_batch_init(&mail->coming, &x->engine->settings.mpi, x->comm, x->size, mail->letter_bytes);
}

static void destroy(gtcb_letter *letter)
{
    if (!letter)
        return;
    gtcb_batch_free(&letter->batch);
    free(letter->data);
    free(letter);
}

void gtcb_mail_free(gtcb_exchange *x)
{
    gtcb_letter *lists[] = {x->mail.draft, x->mail.going, x->mail.blank};
    for (size_t i = 0; i < 3; i++)
        for (gtcb_letter *letter = lists[i], *next; letter; letter = next) {
            next = letter->next;
            destroy(letter);
        }
    gtcb_batch_free(&x->mail.coming);
    free(x->mail.inboxes);
    free(x->mail.owed);
    free(x->mail.letters);
}

/* -- writing ----------------------------------------------------------------------------------------- */

static gtcb_letter *new_letter(gtcb_exchange *x)
{
    gtcb_letter *letter = x->mail.blank;
    if (letter) {
        x->mail.blank = letter->next;
    } else {
        letter = calloc(1, sizeof *letter);
        if (letter)
            letter->data = malloc(x->mail.letter_bytes);
        if (!letter || !letter->data ||
            gtcb_batch_init(&letter->batch, &x->engine->settings.mpi, x->comm, 1, x->mail.letter_bytes)) {
            destroy(letter);
            return NULL;
        }
    }
    letter->next = NULL;
    letter->bytes = FRAME;
    return letter;
}

static void fail_those_that_wait(gtcb_exchange *x, const gtcb_batch *batch, gtcb_status status)
{
    for (gtcb_op *op = x->active; op; op = op->next)
        if (op->stage == GTCB_HEADERS) {
            gtcb_op_transfer_failed(op, batch, status);
            op->stage = GTCB_DONE;
        }
}

static void post_draft(gtcb_exchange *x)
{
    gtcb_letter *letter = x->mail.draft;
    if (!letter)
        return;
    x->mail.draft = NULL;
    letter->next = x->mail.going;
    x->mail.going = letter;
    gtcb_put32(letter->data, (uint32_t)letter->bytes);
    gtcb_put32(letter->data + 4, ++x->mail.number);
    gtcb_status status = GTCB_OK;
    for (uint32_t i = 1; i < x->size && !status; i++)
        status = gtcb_batch_send(&letter->batch, letter->data, letter->bytes, gtcb_peer(x, i), LETTER_TAG);
    if (status)
        fail_those_that_wait(x, &letter->batch, status);
}

gtcb_status gtcb_mail_write(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    size_t room = FRAME + padded(op->hello.bytes);
    memset(op->greeted, 0, x->size);
    op->greeted[x->rank] = 1;
    op->ungreeted = x->size - 1;
    op->shorts_end = 0;
    if (x->size == 1)
        return GTCB_OK;
    if (x->mail.draft && x->mail.draft->bytes + room > x->mail.letter_bytes)
        post_draft(x);
    if (!x->mail.draft && !(x->mail.draft = new_letter(x)))
        return GTCB_NO_MEMORY;
    gtcb_letter *letter = x->mail.draft;
    uint8_t *at = letter->data + letter->bytes;
    gtcb_put32(at, (uint32_t)op->hello.bytes);
    gtcb_put32(at + 4, op->place);
    memcpy(at + FRAME, op->hello.data, op->hello.bytes);
    memset(at + FRAME + op->hello.bytes, 0, room - FRAME - op->hello.bytes);
    letter->bytes += room;
    letter->operations++;
    op->letter = letter;
    for (uint32_t r = 0; r < x->size; r++)
        x->mail.owed[r] += r != x->rank;
    return GTCB_OK;
}

/* -- reading ----------------------------------------------------------------------------------------- */

static gtcb_status take(gtcb_op *op, uint32_t from, const uint8_t *hello, size_t bytes, uint32_t place)
{
    size_t body = bytes - GTCB_HEADER_BYTES, room = (body + 63) / 64 * 64;
    if (body && gtcb_buffer_extend(&op->shorts, op->shorts_end, op->shorts_end + room))
        return gtcb_op_fail(op, GTCB_NO_MEMORY, op->exchange->rank, "no memory for a short body");
    memcpy(gtcb_op_header_of(op, from), hello, GTCB_HEADER_BYTES);
    op->short_at[from] = op->shorts_end;
    op->short_bytes[from] = body;
    op->places[from] = place;
    if (body)
        memcpy(gtcb_op_short_body(op, from), hello + GTCB_HEADER_BYTES, body);
    op->shorts_end += body ? room : 0;
    op->greeted[from] = 1;
    op->ungreeted--;
    op->exchange->mail.owed[from]--;
    return GTCB_OK;
}

/* What of a letter has no place in one: another's bytes, or those of an earlier letter */
static void refuse(gtcb_exchange *x, uint32_t from)
{
    gtcb_inbox *in = &x->mail.inboxes[from];
    for (gtcb_op *op = x->active; op; op = op->next)
        if (op->stage == GTCB_HEADERS && !op->greeted[from]) {
            gtcb_op_fail(op, GTCB_BAD_HEADER, from, "letter %u from rank %u, awaited at sequence %llu, is not one", in->number, from,
                         (unsigned long long)op->sequence);
            op->stage = GTCB_DONE;
        }
    in->at = in->end = 0;
}

/* Each hello to the next operation that waits for one of this rank; the rest stays for those that are not posted yet. */
static void read_inbox(gtcb_exchange *x, uint32_t from)
{
    gtcb_inbox *in = &x->mail.inboxes[from];
    for (gtcb_op *op = x->active; op && in->at < in->end; op = op->next) {
        if (op->stage != GTCB_HEADERS || op->greeted[from])
            continue;
        size_t left = in->end - in->at, bytes = left < FRAME ? 0 : gtcb_get32(in->letter + in->at);
        if (bytes < GTCB_HEADER_BYTES || bytes > left - FRAME) {
            refuse(x, from);
            return;
        }
        if (take(op, from, in->letter + in->at + FRAME, bytes, gtcb_get32(in->letter + in->at + 4)))
            op->stage = GTCB_DONE;
        in->at += FRAME + padded(bytes);
    }
}

static void open_letter(gtcb_exchange *x, uint32_t from)
{
    gtcb_inbox *in = &x->mail.inboxes[from];
    in->awaited = false;
    in->number++;
    in->at = FRAME;
    in->end = gtcb_get32(in->letter);
    if (in->end <= FRAME || in->end > x->mail.letter_bytes || gtcb_get32(in->letter + 4) != in->number)
        refuse(x, from);
    else
        read_inbox(x, from);
}

static void expect_letter(gtcb_exchange *x, uint32_t from)
{
    gtcb_inbox *in = &x->mail.inboxes[from];
    if (!x->mail.owed[from] || in->awaited || in->at < in->end)
        return;
    in->awaited = true;
    gtcb_status status = gtcb_batch_receive(&x->mail.coming, in->letter, x->mail.letter_bytes, from, LETTER_TAG, from);
    if (status)
        fail_those_that_wait(x, &x->mail.coming, status);
}

/* -- driving ----------------------------------------------------------------------------------------- */

void gtcb_mail_send(gtcb_exchange *x)
{
    post_draft(x);
    for (uint32_t i = 1; i < x->size; i++) {
        uint32_t peer = gtcb_peer(x, x->size - i);
        read_inbox(x, peer);
        expect_letter(x, peer);
    }
}

static bool poll_going(gtcb_exchange *x)
{
    size_t finished, all = 0;
    for (gtcb_letter **link = &x->mail.going; *link;) {
        gtcb_letter *letter = *link;
        gtcb_status status = gtcb_batch_poll(&letter->batch, &finished);
        all += finished;
        if (status)
            fail_those_that_wait(x, &letter->batch, status);
        if (letter->batch.count || letter->operations) {
            link = &letter->next;
            continue;
        }
        *link = letter->next;
        letter->next = x->mail.blank;
        x->mail.blank = letter;
    }
    return all > 0;
}

bool gtcb_mail_poll(gtcb_exchange *x)
{
    size_t finished = 0;
    bool moved = poll_going(x);
    if (!x->mail.coming.count)
        return moved;
    gtcb_status status = gtcb_batch_poll(&x->mail.coming, &finished);
    if (status)
        fail_those_that_wait(x, &x->mail.coming, status);
    for (uint32_t r = 0; r < x->size && finished; r++)
        if (x->mail.inboxes[r].awaited && !x->mail.coming.awaited[r]) {
            open_letter(x, r);
            expect_letter(x, r);
        }
    return moved || finished || status;
}

bool gtcb_mail_is_through(gtcb_op *op)
{
    if (op->ungreeted || (op->letter && op->letter->batch.count))
        return false;
    if (op->letter)
        op->letter->operations--;
    op->letter = NULL;
    return true;
}

bool gtcb_mail_is_idle(const gtcb_exchange *x)
{
    bool idle = x->mail.coming.count == 0;
    for (const gtcb_letter *letter = x->mail.going; letter; letter = letter->next)
        idle = idle && letter->batch.count == 0;
    return idle;
}

bool gtcb_mail_mark_late(gtcb_op *op)
{
    if (op->stage != GTCB_HEADERS)
        return false;
    for (uint32_t r = 0; r < op->exchange->size; r++)
        op->late[r] = !op->greeted[r];
    for (size_t i = 0; !op->ungreeted && op->letter && i < op->letter->batch.count; i++)
        op->late[op->letter->batch.pending[i].transfer.peer] = 1;
    return op->ungreeted || (op->letter && op->letter->batch.count);
}
