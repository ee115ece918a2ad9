/* What the library needs of the CUDA runtime beside kernels: devices, memory, copies, events. The runtime is linked
   statically; where there is no driver gtcb_cuda_devices says so, and nothing else is to be called. */
#ifndef GTCB_CUDA_DEVICE_H
#define GTCB_CUDA_DEVICE_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gtcb_cuda_facts {
    char name[256];
    char uuid[33];             /* hexadecimal: the same in every process */
    int major, minor;          /* compute capability */
    int multiprocessors;
    uint64_t bytes;            /* of memory */
} gtcb_cuda_facts;

/* How many there are; 0 for any reason why CUDA cannot be used, which gtcb_cuda_error_text then names. */
int gtcb_cuda_devices(void);
gtcb_status gtcb_cuda_device_facts(int device, gtcb_cuda_facts *facts);
/* The device of what this thread does next; and back. */
gtcb_status gtcb_cuda_enter(int device, int *previous);
void gtcb_cuda_leave(int previous);
/* For a thread that has none: the device of all that it does, context and all. */
void gtcb_cuda_use(int device);
/* On which device memory lies; -1: on the host, or unknown to CUDA. */
int gtcb_cuda_device_of(const void *pointer);

gtcb_status gtcb_cuda_allocate(size_t bytes, void **device_memory);
gtcb_status gtcb_cuda_allocate_pinned(size_t bytes, void **host_memory);      /* from which copies do not wait */
void gtcb_cuda_free(void *device_memory);
void gtcb_cuda_free_pinned(void *host_memory);
gtcb_status gtcb_cuda_copy(void *to, const void *from, size_t bytes, void *stream);      /* any direction; does not wait */
gtcb_status gtcb_cuda_zero(void *device_memory, size_t bytes, void *stream);             /* does not wait */
gtcb_status gtcb_cuda_synchronize(void *stream);

gtcb_status gtcb_cuda_event_create(void **event);
void gtcb_cuda_event_destroy(void *event);
gtcb_status gtcb_cuda_event_record(void *event, void *stream);
gtcb_status gtcb_cuda_event_wait(void *event);
gtcb_status gtcb_cuda_event_done(void *event, int *done);                              /* does not wait */
gtcb_status gtcb_cuda_event_elapsed(void *begin, void *end, float *milliseconds);      /* both have happened */

/* Of the last error in this thread. */
const char *gtcb_cuda_error_text(void);

#ifdef __cplusplus
}
#endif
#endif
