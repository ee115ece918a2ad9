/* Threads that share the codec's tasks with whoever calls. */
#ifndef GTCB_POOL_H
#define GTCB_POOL_H

#include "codec/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gtcb_pool gtcb_pool;

/* `threads` counts the caller. */
gtcb_status gtcb_pool_open(size_t threads, gtcb_pool **out);
void gtcb_pool_close(gtcb_pool *pool);
const gtcb_executor *gtcb_pool_executor(gtcb_pool *pool);      /* NULL with one thread */

#ifdef __cplusplus
}
#endif
#endif
