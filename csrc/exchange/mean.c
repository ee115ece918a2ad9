/* The mean of what all ranks sent, from where it was received to where it is wanted. */
#include "exchange/internal.h"

/* Room for so many messages and what decoding needs besides; `decode` is held. */
static gtcb_status make_room(gtcb_engine *engine, size_t count, gtcb_message **messages, void **scratch)
{
    const size_t bytes = (count * sizeof **messages + 63) / 64 * 64;
    const gtcb_executor *executor = gtcb_pool_executor(engine->pool);
    gtcb_status status = gtcb_buffer_need(&engine->decoding, bytes + gtcb_mean_scratch_bytes(count, executor));
    if (status)
        return status;
    *messages = (gtcb_message *)engine->decoding.data;
    *scratch = engine->decoding.data + bytes;
    return GTCB_OK;
}

static gtcb_status mean_of_messages(gtcb_op *op, gtcb_mean_job *job)
{
    gtcb_engine *engine = op->exchange->engine;
    gtcb_message *messages = NULL;
    job->count = op->exchange->size;
    job->elements = op->elements;
    gtcb_status status = make_room(engine, job->count, &messages, &job->scratch);
    for (uint32_t r = 0; r < job->count && !status; r++) {
        size_t bytes;
        messages[r] = (gtcb_message){gtcb_op_header(op, r), gtcb_op_body(op, r, &bytes)};
    }
    job->messages = messages;
    return status ? status : gtcb_decode_mean(engine->settings.variant, job, gtcb_pool_executor(engine->pool));
}

/* Owners have added up already: each shard is its owner's one message. */
static gtcb_status mean_of_results(gtcb_op *op, gtcb_mean_job *job)
{
    gtcb_engine *engine = op->exchange->engine;
    gtcb_message *message = NULL;
    job->count = 1;
    gtcb_status status = make_room(engine, 1, &message, &job->scratch);
    job->messages = message;
    for (uint32_t i = 0; i < op->exchange->size && !status; i++) {
        const gtcb_shard shard = gtcb_shard_of(op->elements, op->exchange->size, i);
        *message = gtcb_owners_result(op, i);
        job->first = shard.first;
        job->elements = shard.count;
        if (shard.count)
            status = gtcb_decode_mean(engine->settings.variant, job, gtcb_pool_executor(engine->pool));
    }
    return status;
}

static gtcb_status decode(gtcb_op *op, const gtcb_mean_into *into)
{
    gtcb_exchange *x = op->exchange;
    gtcb_engine *engine = x->engine;
    gtcb_mean_job job = {.targets = into->targets, .target_count = into->count, .dtype = into->dtype, .divisor = into->divisor};
    double begin = engine->settings.now();
    pthread_mutex_lock(&engine->decode);
    gtcb_status status = op->operation == GTCB_OWNERS ? mean_of_results(op, &job) : mean_of_messages(op, &job);
    pthread_mutex_unlock(&engine->decode);
    pthread_mutex_lock(&engine->lock);
    x->counters.decode_seconds += engine->settings.now() - begin;
    pthread_mutex_unlock(&engine->lock);
    return status;
}

bool gtcb_mean_fits(const gtcb_mean_into *into, uint64_t elements)
{
    uint64_t room = 0;
    for (size_t i = 0; i < into->count; i++)
        room += into->targets[i].count;
    return room == elements && into->divisor > 0 && gtcb_is_mean_dtype(into->dtype);
}

gtcb_status gtcb_op_decode_mean(gtcb_op *op, const gtcb_mean_into *into)
{
    if (!gtcb_op_done(op) || op->failure.status || !gtcb_mean_fits(into, op->elements) ||
        (op->operation != GTCB_ENCODE && op->operation != GTCB_OWNERS))
        return GTCB_BAD_ARGUMENT;
    return decode(op, into);
}

void gtcb_op_settle_mean(gtcb_op *op)
{
    gtcb_status status = decode(op, &op->into);
    if (status)
        gtcb_op_fail(op, status, op->exchange->rank, "%s where rank %u adds up bucket %u, sequence %llu", gtcb_status_text(status),
                     op->exchange->rank, op->bucket, (unsigned long long)op->sequence);
    op->stage = GTCB_DONE;
}
