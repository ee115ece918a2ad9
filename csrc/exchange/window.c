/* Windows: memory that all ranks of a host share, so that a body is written once, by its sender, and read there by everyone.
   Each rank has one, the same length on all: first what it has given back, then room for bodies. The header says where in
   its sender's window the body lies (letters.c); no message carries it.

   A body may be overwritten only when everybody has done with it. Each rank numbers the operations that may use windows
   as it begins them, all ranks alike, and publishes how many of the first it has given back (gtcb_op_release). What finds no room goes
   by message, as if there were no windows: a ticket that somebody keeps costs speed, and nothing stands still. */
#include <stdlib.h>

#include "exchange/internal.h"

#define ALIGNMENT 64
#define CONTROL_BYTES 4096         /* a page, for one number: nobody else writes near it */

static _Atomic uint64_t *given_back(const gtcb_exchange *x, uint32_t rank) { return (_Atomic uint64_t *)x->window.of[rank]; }

gtcb_status gtcb_exchange_share(gtcb_exchange *x, uint8_t *const *windows, size_t bytes)
{
    if (x->window.of || bytes < 2 * CONTROL_BYTES || gtcb_exchange_sequence(x))
        return GTCB_BAD_ARGUMENT;
    for (uint32_t r = 0; r < x->size; r++)
        if ((uintptr_t)windows[r] % ALIGNMENT)
            return GTCB_BAD_ARGUMENT;
    uint8_t **of = malloc(x->size * sizeof *of);
    if (!of)
        return GTCB_NO_MEMORY;
    memcpy(of, windows, x->size * sizeof *of);
    pthread_mutex_lock(&x->engine->drive);
    x->window.of = of;
    x->window.room = (bytes - CONTROL_BYTES) / ALIGNMENT * ALIGNMENT;
    pthread_mutex_unlock(&x->engine->drive);
    return GTCB_OK;
}

void gtcb_window_free(gtcb_exchange *x)
{
    free(x->window.of);
    free(x->window.taken);
}

/* -- what has been given back ------------------------------------------------------------------------- */

void gtcb_window_begin(gtcb_op *op)
{
    gtcb_window *w = &op->exchange->window;
    op->place = 0;
    op->bytes_shared = 0;
    if (!w->of)
        return;
    pthread_mutex_lock(&op->exchange->engine->lock);
    op->number = w->begun++;
    op->held_before = w->newest;
    op->held_after = NULL;
    *(w->newest ? &w->newest->held_after : &w->oldest) = op;
    w->newest = op;
    pthread_mutex_unlock(&op->exchange->engine->lock);
}

/* With `lock` held */
void gtcb_window_give_back(gtcb_op *op)
{
    gtcb_exchange *x = op->exchange;
    gtcb_window *w = &x->window;
    if (!w->of || (op != w->oldest && !op->held_before))
        return;
    *(op->held_before ? &op->held_before->held_after : &w->oldest) = op->held_after;
    *(op->held_after ? &op->held_after->held_before : &w->newest) = op->held_before;
    op->held_before = op->held_after = NULL;
    atomic_store_explicit(given_back(x, x->rank), w->oldest ? w->oldest->number : w->begun, memory_order_release);
}

/* -- room for own bodies: taken and given back in the same order --------------------------------------- */

static void reclaim(gtcb_exchange *x)
{
    gtcb_window *w = &x->window;
    uint64_t all = UINT64_MAX;
    for (uint32_t r = 0; r < x->size; r++) {
        uint64_t number = atomic_load_explicit(given_back(x, r), memory_order_acquire);
        all = number < all ? number : all;
    }
    while (w->first < w->end && w->taken[w->first].number < all)
        w->first++;
    if (w->first == w->end)
        w->first = w->end = w->free = 0;     /* the lowest memory again: it is in the cache */
}

/* Where `bytes` in a row are free; false: nowhere. What is taken lies in [oldest, free), perhaps around the end. */
static bool find_room(gtcb_window *w, size_t bytes)
{
    if (w->first == w->end)
        return bytes <= w->room;
    size_t oldest = w->taken[w->first].offset;
    if (w->free > oldest) {
        if (bytes <= w->room - w->free)
            return true;
        if (bytes >= oldest)
            return false;
        w->free = 0;
        return true;
    }
    return bytes < oldest - w->free;         /* never quite full: that would look like empty */
}

static bool note(gtcb_window *w, gtcb_taken taken)
{
    if (w->end == w->capacity && w->first) {
        memmove(w->taken, w->taken + w->first, (w->end - w->first) * sizeof *w->taken);
        w->end -= w->first;
        w->first = 0;
    }
    if (w->end == w->capacity) {
        size_t capacity = w->capacity ? 2 * w->capacity : 64;
        gtcb_taken *grown = realloc(w->taken, capacity * sizeof *grown);
        if (!grown)
            return false;
        w->taken = grown;
        w->capacity = capacity;
    }
    w->taken[w->end++] = taken;
    return true;
}

void gtcb_window_put(gtcb_op *op, const void *body, size_t bytes)
{
    gtcb_exchange *x = op->exchange;
    gtcb_window *w = &x->window;
    size_t room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT;   /* decoders may read 64 bytes beyond */
    if (!w->of || bytes > w->room)
        return;
    reclaim(x);
    if (!find_room(w, room) || !note(w, (gtcb_taken){op->number, w->free}))
        return;
    memcpy(x->window.of[x->rank] + CONTROL_BYTES + w->free, body, bytes);
    op->place = (uint32_t)(w->free / ALIGNMENT) + 1;
    op->bytes_shared = (uint64_t)(x->size - 1) * bytes;
    w->free += room;
    atomic_thread_fence(memory_order_release);
}

uint8_t *gtcb_window_at(const gtcb_exchange *x, uint32_t rank, uint32_t place, size_t bytes)
{
    if (!place || !x->window.of)
        return NULL;
    size_t offset = (size_t)(place - 1) * ALIGNMENT;
    if (offset > x->window.room || bytes > x->window.room - offset)
        return NULL;
    atomic_thread_fence(memory_order_acquire);
    return x->window.of[rank] + CONTROL_BYTES + offset;
}
