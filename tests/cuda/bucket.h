/* What test_kernels.c is made of: arrays behind which nothing can be touched unnoticed, and buckets in segments. */
#ifndef BUCKET_H
#define BUCKET_H

#include <sys/mman.h>

#include "../codec/data.h"

#define TAU 0.5f
#define PAGE 4096

static uint64_t rng;

/* -- memory that ends at a page which must not be touched ------------------------------------------------------------ */

typedef struct array { void *data; void *memory; size_t bytes; } array;

static array exact(size_t bytes, size_t alignment)
{
    const size_t pages = (bytes + PAGE - 1) / PAGE + 1;
    uint8_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap");
    CHECK(mprotect(memory + (pages - 1) * PAGE, PAGE, PROT_NONE) == 0, "mprotect");
    memset(memory, 0x5A, (pages - 1) * PAGE);
    return (array){memory + (((pages - 1) * PAGE - bytes) & ~(alignment - 1)), memory, pages * PAGE};
}

static void drop(array a) { munmap(a.memory, a.bytes); }

/* -- one bucket --------------------------------------------------------------------------------------------------------- */

typedef struct bucket {
    gtcb_encode_job job;
    gtcb_segment segments[200];
    array gradient, residual, pieces[200];
} bucket;

/* The gradients in segments of random lengths, each in memory of its own; an odd start spoils alignment to 16 bytes. */
static void cut(bucket *b, size_t most)
{
    const size_t width = dtype_bytes[b->job.dtype], n = b->job.elements;
    b->job.segment_count = 0;
    for (size_t at = 0, i = 0; at < n || i == 0; i++) {
        size_t count = i + 1 == most ? n - at : below(&rng, 3) == 0 ? below(&rng, 5) : below(&rng, n - at + 1);
        if (count > n - at)
            count = n - at;
        b->pieces[i] = exact(count * width, width);
        memcpy(b->pieces[i].data, (uint8_t *)b->gradient.data + at * width, count * width);
        b->segments[i] = (gtcb_segment){b->pieces[i].data, count};
        b->job.segment_count = i + 1;
        at += count;
    }
    b->job.segments = b->segments;
}

static bucket make(size_t n, gtcb_dtype dtype, pattern p, double density, size_t most_segments)
{
    bucket b = {.job = {.dtype = dtype, .elements = n, .threshold = TAU, .max_sent = GTCB_NO_CAP,
                        .sequence = random64(&rng) >> below(&rng, 64), .bucket = (uint32_t)below(&rng, 1u << 24),
                        .sender = (uint32_t)below(&rng, 1000)}};
    b.gradient = exact(n * dtype_bytes[dtype], dtype_bytes[dtype]);
    b.residual = exact(n * 4, below(&rng, 2) ? 16 : 4);
    fill(&rng, p, density, TAU, n, dtype, b.gradient.data, b.residual.data);
    if (below(&rng, 2)) {       /* the last block then ends where the bucket does */
        put_gradient(b.gradient.data, n - 1, dtype, 2 * TAU);
        ((float *)b.residual.data)[n - 1] = 0;
    }
    b.job.residual_in = b.residual.data;
    cut(&b, most_segments);
    return b;
}

static void drop_bucket(bucket *b)
{
    for (size_t i = 0; i < b->job.segment_count; i++)
        drop(b->pieces[i]);
    drop(b->gradient);
    drop(b->residual);
}

/* -- its message, and what it left ------------------------------------------------------------------------------------- */

typedef struct encoded { array message, residual; size_t bytes; } encoded;

static encoded encode_scalar(const bucket *b)
{
    gtcb_encode_job job = b->job;
    encoded out = {.message = exact(gtcb_cuda_message_bytes(job.elements), 16), .residual = exact(4 * job.elements, 4)};
    job.scratch = must(malloc(4 * gtcb_scratch_words(job.elements)));
    job.residual_out = out.residual.data;
    CHECK(gtcb_encode(&gtcb_scalar, &job, NULL, out.message.data, gtcb_message_capacity(job.elements), &out.bytes) == GTCB_OK, "scalar");
    free(job.scratch);
    return out;
}

static void drop_encoded(encoded *e)
{
    drop(e->message);
    drop(e->residual);
}

#endif
