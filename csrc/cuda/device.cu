// The CUDA runtime behind statuses; its errors are kept as texts, one a thread.
#include <stdio.h>
#include <string.h>

#include "cuda/device.cuh"
#include "cuda/device.h"

static thread_local char last_error[256] = "no error";

gtcb_status noted(cudaError_t error)
{
    if (error == cudaSuccess)
        return GTCB_OK;
    snprintf(last_error, sizeof last_error, "%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    cudaGetLastError();        // the next call begins without it
    return error == cudaErrorMemoryAllocation ? GTCB_NO_MEMORY : GTCB_CUDA_ERROR;
}

const char *gtcb_cuda_error_text(void) { return last_error; }

int gtcb_cuda_devices(void)
{
    int count = 0;
    return noted(cudaGetDeviceCount(&count)) == GTCB_OK ? count : 0;
}

gtcb_status gtcb_cuda_device_facts(int device, gtcb_cuda_facts *facts)
{
    cudaDeviceProp found;
    const gtcb_status status = noted(cudaGetDeviceProperties(&found, device));
    if (status != GTCB_OK)
        return status;
    snprintf(facts->name, sizeof facts->name, "%s", found.name);
    for (int i = 0; i < 16; i++)
        snprintf(facts->uuid + 2 * i, 3, "%02x", (unsigned char)found.uuid.bytes[i]);
    facts->major = found.major;
    facts->minor = found.minor;
    facts->multiprocessors = found.multiProcessorCount;
    facts->bytes = found.totalGlobalMem;
    return GTCB_OK;
}

gtcb_status gtcb_cuda_enter(int device, int *previous)
{
    const gtcb_status status = noted(cudaGetDevice(previous));
    return status != GTCB_OK || *previous == device ? status : noted(cudaSetDevice(device));
}

void gtcb_cuda_leave(int previous) { noted(cudaSetDevice(previous)); }

void gtcb_cuda_use(int device)
{
    if (noted(cudaSetDevice(device)) == GTCB_OK)
        noted(cudaFree(nullptr));          // makes the context
}

int gtcb_cuda_device_of(const void *pointer)
{
    cudaPointerAttributes found;
    if (noted(cudaPointerGetAttributes(&found, pointer)) != GTCB_OK)
        return -1;
    return found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged ? found.device : -1;
}

gtcb_status gtcb_cuda_allocate(size_t bytes, void **memory) { return noted(cudaMalloc(memory, bytes)); }
gtcb_status gtcb_cuda_allocate_pinned(size_t bytes, void **memory) { return noted(cudaMallocHost(memory, bytes)); }
void gtcb_cuda_free(void *memory) { noted(cudaFree(memory)); }
void gtcb_cuda_free_pinned(void *memory) { noted(cudaFreeHost(memory)); }

gtcb_status gtcb_cuda_copy(void *to, const void *from, size_t bytes, void *stream)
{
    return noted(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream));
}

gtcb_status gtcb_cuda_zero(void *memory, size_t bytes, void *stream)
{
    return noted(cudaMemsetAsync(memory, 0, bytes, (cudaStream_t)stream));
}

gtcb_status gtcb_cuda_synchronize(void *stream) { return noted(cudaStreamSynchronize((cudaStream_t)stream)); }

gtcb_status gtcb_cuda_event_create(void **event) { return noted(cudaEventCreate((cudaEvent_t *)event)); }
void gtcb_cuda_event_destroy(void *event) { noted(cudaEventDestroy((cudaEvent_t)event)); }

gtcb_status gtcb_cuda_event_record(void *event, void *stream)
{
    return noted(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
}

gtcb_status gtcb_cuda_event_wait(void *event) { return noted(cudaEventSynchronize((cudaEvent_t)event)); }

gtcb_status gtcb_cuda_event_done(void *event, int *done)
{
    const cudaError_t found = cudaEventQuery((cudaEvent_t)event);
    *done = found == cudaSuccess;
    return found == cudaErrorNotReady ? GTCB_OK : noted(found);
}

gtcb_status gtcb_cuda_event_elapsed(void *begin, void *end, float *milliseconds)
{
    return noted(cudaEventElapsedTime(milliseconds, (cudaEvent_t)begin, (cudaEvent_t)end));
}
