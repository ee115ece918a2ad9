/* The MPI of the exchange in a simulation: requests that only look, and one place where time passes. */
#ifndef LANES_H
#define LANES_H

#include <stdio.h>
#include <stdlib.h>

#include "exchange/exchange.h"

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                    \
            abort();                                                                           \
        }                                                                                      \
    } while (0)

extern const gtcb_mpi lanes_mpi;           /* without MPI_BYTE */

/* After each poll of the engine: waits for a request where nothing has moved. */
void lanes_polled(bool moved);

#endif
