// What the kernels share. The same source is compiled by nvcc and, for tests without a GPU, by a C++ compiler with
// tests/cuda/emulation.h included first. Everything here is integer arithmetic or one rounded float operation at a time
// (-fmad=false), so the bits are those of codec_scalar.c.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define GTCB_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#define GTCB_LAUNCH_EARLY(kernel, blocks, threads, stream, ...) launch_early(kernel, blocks, threads, stream, __VA_ARGS__)

// A kernel that gets ready while the one before it on the stream still runs, once all blocks of that one have called
// let_next_get_ready (programmatic dependent launch). It must call after_previous before it reads what others have written. Devices
// before sm_90 have no such launches.
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void *stream, Arguments... arguments)
{
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t launch = {};
    launch.gridDim = blocks;
    launch.blockDim = threads;
    launch.stream = (cudaStream_t)stream;
    launch.attrs = &early;
    launch.numAttrs = major >= 9;
    cudaLaunchKernelEx(&launch, kernel, Parameters(arguments)...);
}
#endif

#include <stdint.h>

#include "cuda/cuda.h"

#ifndef GTCB_CUDA_THREADS       // of a block that shares out elements; a multiple of 32, at least 128
#define GTCB_CUDA_THREADS 256
#endif
#ifndef GTCB_CUDA_CHUNK         // elements that a block stages at once; a multiple of 4096, at most 32768
#define GTCB_CUDA_CHUNK 8192
#endif

constexpr unsigned THREADS = GTCB_CUDA_THREADS, LONE_THREADS = 1024;    // LONE: of a grid that is one block
constexpr unsigned CHUNK = GTCB_CUDA_CHUNK, BLOCK = GTCB_BLOCK, WARP = 32, ALL = 0xFFFFFFFFu;
constexpr unsigned SCAN_PLACES = 33;
static_assert(THREADS % WARP == 0 && THREADS >= 128 && CHUNK % 4096 == 0 && CHUNK <= 32768, "see above");

__host__ __device__ inline uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
template <class N> __host__ __device__ inline N most(N a, N b) { return a > b ? a : b; }
__host__ __device__ inline uint64_t parts(uint64_t whole, uint64_t part) { return (whole + part - 1) / part; }
__host__ __device__ inline uint64_t up_to_8(uint64_t x) { return (x + 7) & ~(uint64_t)7; }
__host__ __device__ inline uint64_t dense_bytes(uint64_t elements) { return parts(elements, 4); }

// -- the arithmetic of the packed body (docs/message-format.md, Body 2) ------------------------------------------------

struct Layout { unsigned l; uint64_t lows_bytes, upper_bits, bytes; };

__device__ inline unsigned log2_of(uint64_t x) { return 63u - (unsigned)__clzll((long long)x); }

__device__ inline Layout layout_of(uint64_t span, uint64_t count)
{
    Layout y;
    y.l = log2_of(2 * span) - log2_of(count);
    y.l -= (count << y.l) > 2 * span;
    y.lows_bytes = (count * y.l + 7) / 8;
    y.upper_bits = count + ((span - 1) >> (y.l - 1));
    y.bytes = y.lows_bytes + (y.upper_bits + 7) / 8;
    return y;
}

__device__ inline uint64_t count_of(uint64_t sent, uint64_t block) { return least(sent - block * BLOCK, BLOCK); }

// One term of S: word i of a body.
__device__ inline uint64_t checksum_term(uint64_t word, uint64_t i)
{
    const uint64_t x = word ^ ((i + 1) * 0x9E3779B97F4A7C15ull);
    return word + (word << 32) + (x & 0xFFFFFFFFu) * (x >> 32);
}

// -- between kernels: see launch_early -----------------------------------------------------------------------------

__device__ inline void let_next_get_ready()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ inline void after_previous()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

// -- within a block ------------------------------------------------------------------------------------------------

__device__ inline unsigned lane_of() { return threadIdx.x % WARP; }
__device__ inline unsigned warp_of() { return threadIdx.x / WARP; }

// Scans are in the type of what is scanned: 32 bits take half the instructions of 64.
__device__ inline uint32_t from_lane_before(uint32_t x, unsigned by) { return (uint32_t)__shfl_up_sync(ALL, x, by); }
__device__ inline uint64_t from_lane_before(uint64_t x, unsigned by) { return __shfl_up_sync(ALL, (unsigned long long)x, by); }

struct Plus { template <class N> __device__ N operator()(N a, N b) const { return a + b; } };
struct Most { template <class N> __device__ N operator()(N a, N b) const { return most(a, b); } };

template <class N, class Join = Plus> __device__ inline N warp_scan(N x, Join join = Join())        // inclusive
{
    for (unsigned by = 1; by < WARP; by *= 2) {
        const N before = from_lane_before(x, by);
        x = lane_of() >= by ? join(x, before) : x;
    }
    return x;
}

// The sum of x over the threads before; *all: over all of them. To be reached by the whole block.
template <class N> __device__ inline N block_scan(N x, uint64_t *places /* shared [SCAN_PLACES] */, N *all)
{
    const unsigned warps = blockDim.x / WARP;
    const N inclusive = warp_scan(x);
    if (lane_of() == WARP - 1)
        places[warp_of() + 1] = inclusive;
    __syncthreads();
    if (warp_of() == 0) {
        const N sum = warp_scan(lane_of() < warps ? (N)places[lane_of() + 1] : 0);
        if (lane_of() == 0)
            places[0] = 0;
        if (lane_of() < warps)
            places[lane_of() + 1] = sum;
    }
    __syncthreads();
    const N before = (N)places[warp_of()] + inclusive - x;
    *all = (N)places[warps];
    __syncthreads();
    return before;
}

// The greatest x of the threads before, 0 on the first one. To be reached by a whole block of THREADS.
__device__ inline uint32_t most_before(uint32_t x, uint32_t *of_warps /* shared [THREADS / WARP]; free after the next barrier */)
{
    const uint32_t inclusive = warp_scan(x, Most()), of_lane_before = from_lane_before(inclusive, 1);
    uint32_t before = lane_of() == 0 ? 0 : of_lane_before;
    if (lane_of() == WARP - 1)
        of_warps[warp_of()] = inclusive;
    __syncthreads();
#pragma unroll
    for (unsigned i = 0; i < THREADS / WARP; i++)
        before = i < warp_of() ? most(before, of_warps[i]) : before;
    return before;
}

// Adds x of all threads to *target. Sums modulo 2^64: the order of the additions does not show. Reached by whole warps.
__device__ inline void add_up(uint64_t x, uint64_t *target)
{
    for (unsigned by = WARP / 2; by > 0; by /= 2)
        x += __shfl_xor_sync(ALL, (unsigned long long)x, by);
    if (lane_of() == 0 && x != 0)
        atomicAdd((unsigned long long *)target, (unsigned long long)x);
}

// -- launching -----------------------------------------------------------------------------------------------------

gtcb_status noted(cudaError_t error);      // as a status; device.cu keeps the text
inline gtcb_status launched() { return noted(cudaGetLastError()); }
