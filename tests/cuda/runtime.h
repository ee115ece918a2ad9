// The part of the CUDA runtime that csrc/cuda/device.cu calls, for one emulated device whose memory is the host's. Every
// call is done when it returns. A call can be made to fail: fault.
#pragma once

enum { cudaErrorMemoryAllocation = 2, cudaErrorInvalidDevice = 101, cudaErrorLaunchFailure = 719 };

// The call of this name (malloc, copy, synchronize, launch) fails after so many that do not, and from then on.
struct Fault { char call[16]; long sound; cudaError_t error; };
inline Fault fault = {"", 0, cudaSuccess};
inline cudaError_t outcome_of(const char *call)
{
    return strcmp(call, fault.call) == 0 && fault.sound-- <= 0 ? fault.error : cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyDefault };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
using cudaEvent_t = void *;

struct cudaPointerAttributes { cudaMemoryType type; int device; };
struct cudaDeviceProp {
    char name[256];
    struct { char bytes[16]; } uuid;
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem;
};

inline const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory"
         : error == cudaErrorLaunchFailure    ? "unspecified launch failure"
                                              : "an emulated error";
}
inline const char *cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }
inline cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
inline cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *found, int device)
{
    *found = {"emulated", {{1, 2, 3}}, 9, 0, 2, (size_t)1 << 30};
    return cudaSetDevice(device);
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *found, const void *)
{
    *found = {cudaMemoryTypeDevice, 0};
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return outcome_of("launch"); }
inline cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    if (outcome_of("malloc") != cudaSuccess)
        return fault.error;
    *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (*memory)
        memset(*memory, 0x5A, bytes);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaMallocHost(void **memory, size_t bytes) { return cudaMalloc(memory, bytes); }
inline cudaError_t cudaFree(void *memory) { free(memory); return cudaSuccess; }
inline cudaError_t cudaFreeHost(void *memory) { free(memory); return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    memmove(to, from, bytes);
    return outcome_of("copy");
}
inline cudaError_t cudaMemsetAsync(void *memory, int byte, size_t bytes, cudaStream_t)
{
    memset(memory, byte, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return outcome_of("synchronize"); }
inline cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = malloc(1); return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return outcome_of("synchronize"); }
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) { *milliseconds = 1; return cudaSuccess; }
