// A bucket as kernels read it: gradients of any dtype in segments, four elements of a thread at a time.
#pragma once

#include "cuda/encoder.cuh"

// -- one element -----------------------------------------------------------------------------------------------------

__device__ inline float from_bfloat16(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }

__device__ inline float from_float16(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31)                                         // NaN, infinity
        return __uint_as_float(sign | 0x7F800000u | fraction << 13);
    if (exponent != 0)
        return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    return __uint_as_float(sign | __float_as_uint((float)fraction * 0x1p-24f));     // denormal or zero; exact
}

template <gtcb_dtype D> struct Gradient;
template <> struct Gradient<GTCB_F32> {
    using type = float;
    static __device__ float sum(float r, float g) { return r + g; }
};
template <> struct Gradient<GTCB_F64> {
    using type = double;
    static __device__ float sum(float r, double g) { return (float)((double)r + g); }
};
template <> struct Gradient<GTCB_BF16> {
    using type = uint16_t;
    static __device__ float sum(float r, uint16_t g) { return r + from_bfloat16(g); }
};
template <> struct Gradient<GTCB_F16> {
    using type = uint16_t;
    static __device__ float sum(float r, uint16_t g) { return r + from_float16(g); }
};

__device__ inline bool finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// -- four elements of one thread ---------------------------------------------------------------------------------------

template <class T> struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four { T of[4]; };

// By an intrinsic, as of an assignment the compiler makes four stores; a residual is not read again before the next step.
__device__ inline void store_four(float *to, const float *r) { __stcs((float4 *)to, make_float4(r[0], r[1], r[2], r[3])); }

// Segment in which the bucket's element lies: the last one that begins at or before it and is not empty.
__device__ inline uint64_t segment_of(const Segment *segments, uint64_t count, uint64_t element)
{
    uint64_t low = 0, high = count;
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (segments[middle].start <= element)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// Gradients and residuals of the elements first … first + count - 1, count <= 4. *segment: one at or before theirs.
template <class T> __device__ void load(const Encoder &e, const Segment *segments, uint64_t first, unsigned count, uint64_t *segment,
                                        T *g, float *r)
{
    while (segments[*segment + 1].start <= first)
        ++*segment;
    const Segment s = segments[*segment];
    const T *from = (const T *)s.data + (first - s.start);
    const bool whole = count == 4 && segments[*segment + 1].start >= first + 4;
    if (whole && (uintptr_t)from % sizeof(Four<T>) == 0) {
        const Four<T> four = *(const Four<T> *)from;
        for (unsigned j = 0; j < 4; j++)
            g[j] = four.of[j];
    } else {
        uint64_t at = *segment;
        for (unsigned j = 0; j < count; j++) {
            while (segments[at + 1].start <= first + j)
                at++;
            g[j] = ((const T *)segments[at].data)[first + j - segments[at].start];
        }
    }
    if (count == 4 && e.aligned) {
        const Four<float> four = *(const Four<float> *)(e.residual_in + first);
        for (unsigned j = 0; j < 4; j++)
            r[j] = four.of[j];
    } else {
        for (unsigned j = 0; j < count; j++)
            r[j] = e.residual_in[first + j];
    }
}

__device__ inline void store(const Encoder &e, uint64_t first, unsigned count, const float *r)
{
    if (count == 4 && e.aligned) {
        store_four(e.residual_out + first, r);
    } else {
        for (unsigned j = 0; j < count; j++)
            e.residual_out[first + j] = r[j];
    }
}
