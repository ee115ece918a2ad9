// The part of the CUDA runtime that csrc/cuda/device.cu calls, for emulated devices (one, unless told otherwise) whose memory is
// the host's: what cudaMalloc has given is its device's, all else device 0's. Every call is done when it returns. A call
// can be made to fail: fault.
#pragma once

#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>

enum {
    cudaErrorMemoryAllocation = 2, cudaErrorInvalidDevice = 101, cudaErrorInvalidResourceHandle = 400, cudaErrorNotReady = 600, cudaErrorLaunchFailure = 719
};

inline int device_count = 1;
inline thread_local int current_device = 0;
inline std::atomic<int> devices_set_beside{0};          // calls of cudaSetDevice in other threads than the main one
inline thread_local cudaError_t launch_error = cudaSuccess;

// Streams are numbers: the first 256 belong to device 0, the next to device 1; but 0, 1 and 2 to the current one.
inline int device_of_stream(cudaStream_t stream) { return (uintptr_t)stream <= 2 ? current_device : (int)((uintptr_t)stream >> 8); }
inline void note_launch(const void *stream)
{
    if (device_of_stream((cudaStream_t)stream) != current_device)
        launch_error = cudaErrorInvalidResourceHandle;
}

// The call of this name (malloc, pin, copy, query, synchronize, launch) fails after so many that do not, and from then on.
struct Fault { char call[16]; long sound; cudaError_t error; };
inline Fault fault = {"", 0, cudaSuccess};
inline cudaError_t outcome_of(const char *call)
{
    return strcmp(call, fault.call) == 0 && fault.sound-- <= 0 ? fault.error : cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyDefault };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
using cudaEvent_t = int *;         // its device

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
         : error == cudaErrorInvalidResourceHandle ? "invalid resource handle"
                                              : "an emulated error";
}
inline const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaErrorInvalidResourceHandle ? "cudaErrorInvalidResourceHandle" : "cudaErrorEmulated";
}
inline cudaError_t cudaGetDeviceCount(int *count) { *count = device_count; return cudaSuccess; }
inline cudaError_t cudaGetDevice(int *device) { *device = current_device; return cudaSuccess; }
inline cudaError_t cudaSetDevice(int device)
{
    devices_set_beside += gettid() != getpid();
    if (device < 0 || device >= device_count)
        return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *found, int device)
{
    *found = {"emulated", {{1, 2, (char)(3 + device)}}, 9, 0, 2, (size_t)1 << 30};
    return device >= 0 && device < device_count ? cudaSuccess : cudaErrorInvalidDevice;
}

struct Allocation { size_t bytes; int device; };
inline std::map<uintptr_t, Allocation> allocations;
inline std::mutex allocations_lock;
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *found, const void *pointer)
{
    std::lock_guard<std::mutex> locked(allocations_lock);
    auto after = allocations.upper_bound((uintptr_t)pointer);
    *found = {cudaMemoryTypeDevice, 0};
    if (after != allocations.begin() && (uintptr_t)pointer - std::prev(after)->first < std::prev(after)->second.bytes)
        found->device = std::prev(after)->second.device;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError()
{
    const cudaError_t error = launch_error;
    launch_error = cudaSuccess;
    return error != cudaSuccess ? error : outcome_of("launch");
}
inline cudaError_t take(const char *call, void **memory, size_t bytes)
{
    if (outcome_of(call) != cudaSuccess)
        return fault.error;
    *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (*memory)
        memset(*memory, 0x5A, bytes);
    std::lock_guard<std::mutex> locked(allocations_lock);
    allocations[(uintptr_t)*memory] = {bytes, current_device};
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaMalloc(void **memory, size_t bytes) { return take("malloc", memory, bytes); }
inline cudaError_t cudaMallocHost(void **memory, size_t bytes) { return take("pin", memory, bytes); }
inline cudaError_t cudaFree(void *memory)
{
    std::lock_guard<std::mutex> locked(allocations_lock);
    allocations.erase((uintptr_t)memory);
    free(memory);
    return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void *memory) { return cudaFree(memory); }
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
inline cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = new int(current_device); return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { delete event; return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return device_of_stream(stream) == *event ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return outcome_of("synchronize"); }
inline cudaError_t cudaEventQuery(cudaEvent_t) { return outcome_of("query"); }
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) { *milliseconds = 1; return cudaSuccess; }
