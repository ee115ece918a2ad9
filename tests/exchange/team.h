/* Ranks as threads over the fake MPI, and what their games share. */
#ifndef TEAM_H
#define TEAM_H

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "exchange/exchange.h"
#include "fake_mpi.h"

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                   \
            abort();                                                                          \
        }                                                                                     \
    } while (0)

typedef struct team team;
typedef struct rank {
    team *team;
    int rank, size;
    bool threaded;
    unsigned seed;
    gtcb_engine *engine;
    gtcb_exchange *exchange;
} rank;
struct team { fake_world *world; _Atomic bool failed; void (*play)(rank *me); pthread_barrier_t barrier; size_t piece; const uint32_t *hosts; uint8_t **windows; };

#define WINDOW_BYTES (4096 + 9000)    /* some bodies find no room */

/* Plays the game with all kinds of hosts: in all ways of driving, or (games that wait for clocks) in one with each. */
void with_team(int size, unsigned seed, const char *name, void (*game)(rank *me), bool all_ways);
void meet(rank *me);
void dawdle(rank *me);
const gtcb_failure *finish(gtcb_op *op);
float value(int r, size_t i);
float *values(int r, size_t n);

void rounds(void);
void crowd(rank *me);
void order_of_turns(void);
void turns_in_the_ring(void);
void stuck_turns(void);
void damaged_turn(void);
void reduce(rank *me);             /* a sound game, for after a refusal */
void direct(rank *me);
void non_finite(rank *me);
void mismatch(rank *me);
void damage(rank *me);
void deadline(rank *me);
void leaver(rank *me);
void broken_mpi(rank *me);
void abandon(rank *me);

#endif
