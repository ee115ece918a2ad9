/* Gradients to one message, in two parallel passes that give the same bytes in any order of their tasks.
   stage: one pass over the bucket writes the residual and, chunk by chunk, the words that are to be sent;
   then count, cap and choose the body; pack.c writes it. */
#include "variant.h"

#define ALIGN 64

typedef struct encoder {
    const gtcb_encode_job *job;
    gtcb_staged staged;
    bool stream;
    uint64_t window_start, kept;        /* of the cap */
} encoder;

/* -- scratch: table of chunks, table of groups, places for words ------------------------------------- */

static size_t chunk_count(uint64_t elements) { return (size_t)((elements + GTCB_CHUNK - 1) / GTCB_CHUNK); }

static size_t table_bytes(size_t chunks)
{
    size_t bytes = chunks * (sizeof(gtcb_chunk) + sizeof(gtcb_group));
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

size_t gtcb_scratch_words(uint64_t elements)
{
    size_t chunks = chunk_count(elements);
    size_t place_bytes = ((size_t)elements + chunks * GTCB_SLACK) * sizeof(uint16_t);
    return (ALIGN + table_bytes(chunks) + place_bytes + 3) / sizeof(uint32_t);
}

static void lay_out_scratch(gtcb_staged *s, uint32_t *scratch)
{
    uint8_t *p = (uint8_t *)(((uintptr_t)scratch + ALIGN - 1) / ALIGN * ALIGN);
    s->chunks = (gtcb_chunk *)p;
    s->groups = (gtcb_group *)(p + s->chunk_count * sizeof(gtcb_chunk));
    s->words = (uint16_t *)(p + table_bytes(s->chunk_count));
}

/* -- arguments ----------------------------------------------------------------------------------------- */

static bool apart_or_same(const float *a, const float *b, uint64_t count)
{
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x == y || (x < y ? y - x : x - y) >= count * sizeof(float);
}

static bool job_is_sound(const gtcb_encode_job *job)
{
    if (job == NULL || job->segments == NULL || job->residual_in == NULL || job->residual_out == NULL ||
        job->scratch == NULL || job->elements == 0 || job->elements > GTCB_MAX_ELEMENTS || job->max_sent == 0)
        return false;
    if (!(job->threshold > 0.0f && job->threshold <= FLT_MAX) || (unsigned)job->dtype > GTCB_F64)
        return false;
    uint64_t left = job->elements;
    for (size_t i = 0; i < job->segment_count; i++) {
        const gtcb_segment *s = &job->segments[i];
        if (s->count > left || (s->data == NULL && s->count > 0))
            return false;
        left -= s->count;
    }
    return left == 0 && apart_or_same(job->residual_in, job->residual_out, job->elements);
}

/* -- stage ------------------------------------------------------------------------------------------------ */

static void find_segments(encoder *e)       /* where the gradients of each chunk begin */
{
    const gtcb_segment *segments = e->job->segments;
    uint64_t segment = 0, before = 0;       /* elements in the segments before it */
    for (size_t c = 0; c < e->staged.chunk_count; c++) {
        uint64_t first = (uint64_t)c * GTCB_CHUNK;
        while (before + segments[segment].count <= first)
            before += segments[segment++].count;
        e->staged.chunks[c].segment = segment;
        e->staged.chunks[c].offset = first - before;
    }
}

static size_t chunk_elements(uint64_t elements, size_t c)
{
    uint64_t left = elements - (uint64_t)c * GTCB_CHUNK;
    return left < GTCB_CHUNK ? (size_t)left : GTCB_CHUNK;
}

static void stage_chunk(void *context, size_t c)
{
    static const size_t bytes_of[] = {[GTCB_F32] = 4, [GTCB_BF16] = 2, [GTCB_F16] = 2, [GTCB_F64] = 8};
    const encoder *e = context;
    const gtcb_encode_job *job = e->job;
    const gtcb_variant *v = e->staged.variant;
    gtcb_chunk *chunk = &e->staged.chunks[c];
    uint16_t *words = e->staged.words + c * GTCB_PLACE;
    const size_t first = c * GTCB_CHUNK, count = chunk_elements(job->elements, c);
    size_t segment = chunk->segment, offset = chunk->offset, sent = 0;
    bool non_finite = false;

    for (size_t done = 0; done < count; segment++, offset = 0) {
        const gtcb_segment *s = &job->segments[segment];
        gtcb_piece piece = {
            .gradient = (const uint8_t *)s->data + offset * bytes_of[job->dtype],
            .residual_in = job->residual_in + first + done,
            .residual_out = job->residual_out + first + done,
            .count = s->count - offset < count - done ? s->count - offset : count - done,
            .threshold = job->threshold, .dtype = job->dtype, .stream = e->stream, .first = (uint32_t)done,
        };
        if (piece.count > 0)
            sent += v->stage(&piece, words + sent, &non_finite);
        done += piece.count;
    }
    chunk->count = (uint32_t)sent;
    /* r' = t - q is finite exactly if t is: so the index can be looked up afterwards, off the hot path. */
    chunk->non_finite = non_finite ? (uint32_t)v->non_finite_f32(job->residual_out + first, count) : UINT32_MAX;
}

static uint64_t first_non_finite(const gtcb_staged *s)
{
    for (size_t c = 0; c < s->chunk_count; c++)
        if (s->chunks[c].non_finite != UINT32_MAX)
            return (uint64_t)c * GTCB_CHUNK + s->chunks[c].non_finite;
    return UINT64_MAX;
}

static void number_words(gtcb_staged *s)
{
    s->sent = 0;
    for (size_t c = 0; c < s->chunk_count; c++) {
        s->chunks[c].start = s->sent;
        s->sent += s->chunks[c].count;
    }
}

/* -- cap: of k candidates keep the m numbered (c + j) mod k, put the others back: r' = (t - q) + q ------------ */

static void cap_chunk(void *context, size_t c)
{
    const encoder *e = context;
    gtcb_chunk *chunk = &e->staged.chunks[c];
    uint16_t *words = e->staged.words + c * GTCB_PLACE;
    float *residual = e->job->residual_out + c * GTCB_CHUNK;
    const float q[2] = {e->job->threshold, -e->job->threshold};
    uint32_t kept = 0;
    for (uint32_t i = 0; i < chunk->count; i++) {
        uint64_t number = chunk->start + i;
        uint64_t j = number >= e->window_start ? number - e->window_start
                                               : number + (e->staged.sent - e->window_start);
        uint16_t word = words[i];
        if (j < e->kept)
            words[kept++] = word;
        else
            residual[word >> 1] += q[word & 1];
    }
    chunk->count = kept;
}

static void apply_cap(encoder *e)
{
    gtcb_staged *s = &e->staged;
    e->kept = e->job->max_sent;
    e->window_start = e->job->sequence * e->kept % s->sent;
    gtcb_run(s->executor, cap_chunk, e, s->chunk_count);
    number_words(s);
}

/* -- the message ------------------------------------------------------------------------------------------------ */

gtcb_status gtcb_encode(const gtcb_variant *v, const gtcb_encode_job *job, const gtcb_executor *executor,
                        void *message, size_t capacity, size_t *message_bytes)
{
    if (v == NULL || message == NULL || message_bytes == NULL || !job_is_sound(job))
        return GTCB_BAD_ARGUMENT;
    if (capacity < gtcb_message_capacity(job->elements))
        return GTCB_TOO_SMALL;

    encoder e = { .job = job, .staged = { .variant = v, .executor = executor, .elements = job->elements,
                                          .chunk_count = chunk_count(job->elements) } };
    gtcb_staged *s = &e.staged;
    e.stream = job->residual_in != job->residual_out && job->elements >= GTCB_STREAM_ELEMENTS;
    lay_out_scratch(s, job->scratch);
    find_segments(&e);
    gtcb_run(executor, stage_chunk, &e, s->chunk_count);

    gtcb_header h = { .kind = GTCB_WORDS, .element = GTCB_QUANTA, .elements = job->elements,
                      .sequence = job->sequence, .bucket = job->bucket, .sender = job->sender,
                      .threshold = job->threshold };
    uint64_t bad = first_non_finite(s);
    if (bad != UINT64_MAX) {
        h.flags = GTCB_FLAG_NON_FINITE;
        h.sent = bad;
    } else {
        number_words(s);
        if (s->sent > job->max_sent)
            apply_cap(&e);
        h.sent = s->sent;
        h.kind = (uint8_t)gtcb_choose_body(s, &h.body_bytes);
        h.body_checksum = gtcb_write_body(s, (gtcb_kind)h.kind, h.body_bytes, (uint8_t *)message + GTCB_HEADER_BYTES);
    }
    gtcb_write_header(&h, message);
    *message_bytes = (size_t)(GTCB_HEADER_BYTES + h.body_bytes);
    return GTCB_OK;
}
