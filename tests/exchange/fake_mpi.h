/* An MPI of threads in one process, for the exchange's own table: what a rank sends lies in its receiver's box until
   a receive of the same communicator, sender and tag takes it, in order. */
#ifndef FAKE_MPI_H
#define FAKE_MPI_H

#include "transport/transport.h"

typedef struct fake_world fake_world;

fake_world *fake_open(int size);
int fake_close(fake_world *world);               /* frees what nobody has received as well; how many messages that were */
gtcb_handle fake_comm(fake_world *world, int rank);
gtcb_mpi fake_table(void);
/* The tags of this rank's sends above 4 KiB, in the order in which they were posted; how many. */
#define FAKE_NOTED 256
int fake_long_sends(fake_world *world, int rank, int tags[FAKE_NOTED]);
/* From now on, calls of this rank return this error code (0: none). */
void fake_break(fake_world *world, int rank, int code);

#endif
