/* Rounds: in which order a rank sends to every other one, and hears from it.

   Round by round all ranks of a host send to the ranks of one other host, and hear from those of one other: first to each other,
   then to the next host, and so on; within that to each of its ranks in turn. So a card has never more than one host's ranks sending to
   it, which share one card themselves and cannot overrun it. If ranks were only counted on, rank + 1, rank + 2, ..., two on
   a host would send to different hosts at times, and two hosts to one.

   All ranks come to the same pairs. Where hosts have different numbers of ranks, some have nobody to send to in a round, or to hear from. */
#include <stdlib.h>

#include "exchange/internal.h"

typedef struct hosts { uint32_t count, *first; } hosts;         /* [count + 1] places in the ring where each begins */

static uint32_t rank_at(const gtcb_exchange *x, const hosts *all, uint32_t host, uint32_t index)
{
    uint32_t place = all->first[host % all->count] + index % x->per_host;
    return place < all->first[host % all->count + 1] ? x->ring[place] : GTCB_NOBODY;
}

/* After gtcb_ring_open: the ring goes host by host. */
gtcb_status gtcb_rounds_open(gtcb_exchange *x, const uint32_t *host_of)
{
    hosts all = {0, malloc(((size_t)x->size + 1) * sizeof *all.first)};
    x->rounds = malloc(2 * (size_t)x->size * sizeof *x->rounds);        /* in each it sends, or hears: to and from size - 1 ranks */
    if (!all.first || !x->rounds) {
        free(all.first);
        return GTCB_NO_MEMORY;
    }
    uint32_t own = 0;
    for (uint32_t place = 0; place < x->size; place++) {
        if (place == 0 || (host_of && host_of[x->ring[place]] != host_of[x->ring[place - 1]]))
            all.first[all.count++] = place;
        if (place == x->place)
            own = all.count - 1;
    }
    all.first[all.count] = x->size;
    const uint32_t index = x->place - all.first[own];
    for (uint32_t h = 0; h < all.count; h++)
        for (uint32_t k = h == 0; k < x->per_host; k++) {
            gtcb_round round = {rank_at(x, &all, own + h, index + k), rank_at(x, &all, own + all.count - h, index + x->per_host - k)};
            if (round.to != GTCB_NOBODY || round.from != GTCB_NOBODY)
                x->rounds[x->round_count++] = round;
        }
    free(all.first);
    return GTCB_OK;
}
