/* Messages applied to a tile, a range of the elements: dense[i] += q for those of theirs that lie in it. */
#ifndef GTCB_APPLY_H
#define GTCB_APPLY_H

#include "variant.h"

/* Where a message goes on. */
typedef struct gtcb_cursor {
    uint64_t number;                /* words: the next word; packed: the next block */
    uint64_t offset, base;          /* packed: where that block is in the body, and its first index */
} gtcb_cursor;

typedef struct gtcb_source {        /* a message */
    const uint8_t *body;
    uint64_t body_bytes, sent;
    float threshold;
    gtcb_kind kind;
} gtcb_source;

typedef struct gtcb_tile {
    float *data;                    /* of element `low` */
    uint64_t low, high;
    bool cached;                    /* is in a cache already */
} gtcb_tile;

gtcb_source gtcb_source_of(const gtcb_message *message);
gtcb_cursor gtcb_start_of(const gtcb_source *m);
/* Moves to the first element from `low` on, or, within a block, to that block. */
void gtcb_advance(const gtcb_source *m, gtcb_cursor *at, uint64_t low);
/* Moves on to `high`, from where the message reaches `low`. Returns about how many elements lie between: as if a block's were spread
   evenly, those of words, which are few, left out, and all that a dense body has a code for. */
uint64_t gtcb_pass(const gtcb_source *m, gtcb_cursor *at, uint64_t low, uint64_t high);
/* Sets out to fetch what gtcb_apply will read next of a packed body: where tiles are filled from many messages in turn, those are more
   streams than a processor follows by itself. */
void gtcb_ask_for_body(const gtcb_source *m, const gtcb_cursor *at);
/* The elements with low <= index < high. */
void gtcb_apply(const gtcb_variant *v, const gtcb_source *m, gtcb_cursor *at, gtcb_tile tile);

static inline uint64_t gtcb_least(uint64_t a, uint64_t b) { return a < b ? a : b; }

#endif
