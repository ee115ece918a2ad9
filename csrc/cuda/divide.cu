// The mean of a sum: each element divided by itself, correctly rounded, as the host does it.
#include "cuda/device.cuh"

__global__ void __launch_bounds__(THREADS) divide(float *values, uint64_t elements, float divisor)
{
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < elements; i += (uint64_t)gridDim.x * THREADS)
        values[i] /= divisor;
}

gtcb_status gtcb_cuda_divide(float *values, uint64_t elements, float divisor, const gtcb_cuda_launch *launch)
{
    if (launch == nullptr || launch->blocks == 0 || (values == nullptr && elements > 0))
        return GTCB_BAD_ARGUMENT;
    if (elements == 0)
        return GTCB_OK;
    GTCB_LAUNCH(divide, launch->blocks, THREADS, launch->stream, values, elements, divisor);
    return launched();
}
