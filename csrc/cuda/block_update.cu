// BMUF's block update, element by element in registers: three arrays read, three written, in one pass.
#include "cuda/device.cuh"

template <class T> struct Update { const T *block_delta; T *block_update, *params, *start; T momentum, lr; bool nesterov; };

template <class T> __device__ void update_one(const Update<T> &u, uint64_t i)
{
    const T g = u.block_delta[i];
    const T delta = u.momentum * u.block_update[i] + u.lr * g;      // three roundings: -fmad=false
    const T w = u.params[i] + delta;
    u.block_update[i] = delta;
    u.params[i] = w;
    u.start[i] = u.nesterov ? u.momentum * delta + w : w;
}

template <class T> __global__ void __launch_bounds__(THREADS) update_block(Update<T> u, uint64_t elements)
{
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < elements; i += (uint64_t)gridDim.x * THREADS)
        update_one(u, i);
}

template <class T> static void launch_update(const gtcb_cuda_block *b, const gtcb_cuda_launch *launch)
{
    const Update<T> u = {(const T *)b->block_delta, (T *)b->block_update, (T *)b->params, (T *)b->start,
                         (T)b->momentum, (T)b->lr, b->nesterov};
    GTCB_LAUNCH(update_block<T>, launch->blocks, THREADS, launch->stream, u, b->elements);
}

gtcb_status gtcb_cuda_block_update(const gtcb_cuda_block *b, const gtcb_cuda_launch *launch)
{
    if (b == nullptr || launch == nullptr || launch->blocks == 0 || (b->dtype != GTCB_F32 && b->dtype != GTCB_F64))
        return GTCB_BAD_ARGUMENT;
    if (b->elements == 0)
        return GTCB_OK;
    if (b->block_delta == nullptr || b->block_update == nullptr || b->params == nullptr || b->start == nullptr)
        return GTCB_BAD_ARGUMENT;
    if (b->dtype == GTCB_F32)
        launch_update<float>(b, launch);
    else
        launch_update<double>(b, launch);
    return launched();
}
