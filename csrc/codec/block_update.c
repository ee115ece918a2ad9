/* The block filter: an element's operations one after the other in registers, in one pass over memory. Memory is what it waits
   for, so there are no variants: wider vectors than the baseline's gain nothing. */
#include "variant.h"

#define TASK 65536                 /* elements */

typedef struct pass {
    const gtcb_block_filter *filter;
    const void *in, *block_update, *params;
    void *new_update, *new_params, *out;
    void (*loop)(const struct pass *p, size_t first, size_t count);
} pass;

#define LOOPS(T, name)                                                                                        \
    static void update_##name(const pass *p, size_t first, size_t count)                                      \
    {                                                                                                         \
        const T *g = (const T *)p->in + first, momentum = (T)p->filter->momentum, lr = (T)p->filter->lr;      \
        T *delta = (T *)p->new_update + first, *w = (T *)p->new_params + first, *start = (T *)p->out + first; \
        const bool nesterov = p->filter->nesterov;                                                            \
        GTCB_EACH                                                                                             \
        for (size_t i = 0; i < count; i++) {                                                                  \
            const T d = momentum * delta[i] + lr * g[i], x = w[i] + d;                                        \
            delta[i] = d;                                                                                     \
            w[i] = x;                                                                                         \
            start[i] = nesterov ? momentum * d + x : x;                                                       \
        }                                                                                                     \
    }                                                                                                         \
    static void subtract_##name(const pass *p, size_t first, size_t count)                                    \
    {                                                                                                         \
        const T *model = (const T *)p->in + first, momentum = (T)p->filter->momentum;                         \
        const T *delta = (const T *)p->block_update + first, *w = (const T *)p->params + first;               \
        T *out = (T *)p->out + first;                                                                         \
        const bool nesterov = p->filter->nesterov;                                                            \
        GTCB_EACH                                                                                             \
        for (size_t i = 0; i < count; i++)                                                                    \
            out[i] = model[i] - (nesterov ? momentum * delta[i] + w[i] : w[i]);                               \
    }

LOOPS(float, f32)
LOOPS(double, f64)

static void run_task(void *context, size_t i)
{
    const pass *p = context;
    size_t first = i * TASK, left = p->filter->elements - first;
    p->loop(p, first, left < TASK ? left : TASK);
}

static bool sound(const gtcb_block_filter *f, const void *a, const void *b, const void *c, const void *d)
{
    return f && (f->dtype == GTCB_F32 || f->dtype == GTCB_F64) && (f->elements == 0 || (a && b && c && d));
}

static void run(pass p, const gtcb_executor *executor)
{
    gtcb_run(executor, run_task, &p, (p.filter->elements + TASK - 1) / TASK);
}

gtcb_status gtcb_block_update(const gtcb_block_filter *filter, const void *block_delta, void *block_update, void *params, void *start,
                              const gtcb_executor *executor)
{
    if (!sound(filter, block_delta, block_update, params, start))
        return GTCB_BAD_ARGUMENT;
    run((pass){.filter = filter, .in = block_delta, .new_update = block_update, .new_params = params, .out = start,
               .loop = filter->dtype == GTCB_F32 ? update_f32 : update_f64}, executor);
    return GTCB_OK;
}

gtcb_status gtcb_local_delta(const gtcb_block_filter *filter, const void *model, const void *block_update, const void *params,
                             void *delta, const gtcb_executor *executor)
{
    if (!sound(filter, model, block_update, params, delta))
        return GTCB_BAD_ARGUMENT;
    run((pass){.filter = filter, .in = model, .block_update = block_update, .params = params, .out = delta,
               .loop = filter->dtype == GTCB_F32 ? subtract_f32 : subtract_f64}, executor);
    return GTCB_OK;
}
