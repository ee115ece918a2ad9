// Runs the kernels of csrc/cuda on a processor: included first (-include), it stands in for nvcc and the CUDA runtime.
//
// Each thread of a block is a fiber with a stack of its own; blocks run one after another. A fiber runs until a
// barrier, or an exchange of its warp, that not all others have reached. So what is seen of other threads is exactly
// what barriers promise, under any order of threads: emulation_order chooses it. Shared memory is filled with rubbish
// before each block. A block that cannot go on, threads of a warp in different exchanges, and a barrier that only a
// part of the block reaches end the program with a message.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static __attribute__((section("cuda_shared")))

struct dim3 { unsigned x; };
struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void __stcs(float4 *to, float4 values) { *to = values; }
extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaError_t = int;
using cudaStream_t = void *;
constexpr cudaError_t cudaSuccess = 0;
#include "runtime.h"

namespace emulation {

enum Exchange { BARRIER = 1, BALLOT, SHUFFLE };

void launch(unsigned blocks, unsigned threads, const std::function<void()> &kernel);
void wait_for_block(bool said);             // a barrier; `said` is put together
bool said_by_any();                         // after it
void exchange(Exchange what, uint64_t value, uint64_t *of_lanes /* [32] */);

}  // namespace emulation

#define GTCB_LAUNCH(kernel, blocks, threads, stream, ...) \
    (note_launch((const void *)(stream)), emulation::launch(blocks, threads, [=] { kernel(__VA_ARGS__); }))
#define GTCB_LAUNCH_EARLY GTCB_LAUNCH

inline void __threadfence() {}
inline void __syncwarp()
{
    uint64_t lanes[32];
    emulation::exchange(emulation::BARRIER, 0, lanes);
}
inline void __syncthreads() { emulation::wait_for_block(false); }
inline int __syncthreads_or(int predicate)
{
    emulation::wait_for_block(predicate != 0);
    return emulation::said_by_any();
}

inline unsigned __ballot_sync(unsigned, int predicate)
{
    uint64_t lanes[32];
    unsigned bits = 0;
    emulation::exchange(emulation::BALLOT, predicate != 0, lanes);
    for (unsigned i = 0; i < 32; i++)
        bits |= (unsigned)lanes[i] << i;
    return bits;
}
inline unsigned long long __shfl_sync(unsigned, unsigned long long value, unsigned lane)
{
    uint64_t lanes[32];
    emulation::exchange(emulation::SHUFFLE, value, lanes);
    return lanes[lane];
}
inline unsigned long long __shfl_up_sync(unsigned, unsigned long long value, unsigned by)
{
    uint64_t lanes[32];
    const unsigned lane = threadIdx.x % 32;
    emulation::exchange(emulation::SHUFFLE, value, lanes);
    return lane >= by ? lanes[lane - by] : value;
}
inline unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, unsigned mask)
{
    uint64_t lanes[32];
    emulation::exchange(emulation::SHUFFLE, value, lanes);
    return lanes[threadIdx.x % 32 ^ mask];
}

inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, sizeof x); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, sizeof bits); return bits; }

template <class T> T atomicAdd(T *target, T value) { T old = *target; *target = old + value; return old; }
template <class T> T atomicOr(T *target, T value) { T old = *target; *target = old | value; return old; }
template <class T> T atomicMin(T *target, T value) { T old = *target; *target = old < value ? old : value; return old; }

// 0: threads and blocks in order; 1: backwards; more: shuffled, differently for each number.
extern "C" void emulation_order(unsigned order);
