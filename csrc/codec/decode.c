/* dense[i] += q for every element of every message, or the mean of all messages into where it is wanted. The elements
   are cut into ranges, one task each, and a range into tiles that stay in a cache while all messages are applied to
   them in the order given; so each element sees its messages in that order, whatever the cut and whatever the order of
   the tasks. */
#include "apply.h"

#define BATCH 64                    /* messages whose places are remembered at once, on the stack */
#define MAX_RANGES 32
#define CACHED_TILE (UINT64_C(1) << 17)     /* half a megabyte stays in a second level cache */
#define WIDE_TILE (4 * CACHED_TILE)          /* as few elements of it are touched, it may be wider than that */
#define MAX_TILE (UINT64_C(1) << 21)
#define LINE 16                     /* floats in a cache line */

typedef struct decoder {
    const gtcb_variant *variant;
    uint64_t elements, range, tile;
    size_t ranges, count;           /* of messages that are applied together */
    gtcb_source *sources;           /* [count] */
    gtcb_cursor *cursors;           /* [ranges][count] */
    float *dense;                   /* decode_add: the sum */
    const gtcb_mean_job *mean;      /* decode_mean */
    float *tiles;                   /* [tasks] of its tasks */
    size_t tasks;
} decoder;

/* -- tiles, ranges, batches --------------------------------------------------------------------------------- */

/* In order, because only then the processor fetches at full bandwidth; with loads, as prefetches do not set off the
   prefetcher. */
static void fetch(const float *dense, uint64_t count)
{
    for (uint64_t i = 0; i < count; i += LINE)
        (void)*(const volatile float *)(dense + i);
}

static uint64_t end_of(const decoder *d, size_t range) { return gtcb_least((range + 1) * d->range, d->elements); }

static void apply_all(const decoder *d, size_t range, gtcb_tile tile)
{
    gtcb_cursor *cursors = d->cursors + range * d->count;
    for (size_t i = 0; i < d->count; i++) {
        if (i + 1 < d->count)
            gtcb_ask_for_body(&d->sources[i + 1], &cursors[i + 1]);
        gtcb_apply(d->variant, &d->sources[i], &cursors[i], tile);
    }
}

/* With two elements or more for each cache line, the whole tile is fetched in order, at full bandwidth. With fewer, each
   element's line is fetched alone. Those of real gradients crowd in some tiles. */
static bool is_crowded(const decoder *d, gtcb_cursor *ahead, uint64_t low, uint64_t high)
{
    uint64_t sent = 0;
    for (size_t i = 0; i < d->count; i++)
        sent += gtcb_pass(&d->sources[i], &ahead[i], low, high);
    return sent > (high - low) / (LINE / 2);
}

static void add_tile(const decoder *d, size_t range, uint64_t low, uint64_t high, bool crowded)
{
    if (crowded)
        fetch(d->dense + low, high - low);
    apply_all(d, range, (gtcb_tile){d->dense + low, low, high, crowded});
}

/* Tiles that are not crowded need fit no cache: several are one, as a block that lies in two costs more. */
static void add_range(void *context, size_t r)
{
    const decoder *d = context;
    const uint64_t end = end_of(d, r);
    gtcb_cursor ahead[BATCH];       /* of each message, where the next tile begins */
    memcpy(ahead, d->cursors + r * d->count, d->count * sizeof *ahead);
    uint64_t begun = r * d->range;  /* from here on nothing is added yet */
    for (uint64_t low = begun, high; low < end; low = high) {
        high = gtcb_least(low + d->tile, end);
        const bool crowded = is_crowded(d, ahead, low, high);
        if (begun < low && (crowded || high - begun > MAX_TILE)) {
            add_tile(d, r, begun, low, false);
            begun = low;
        }
        if (crowded || high == end) {
            add_tile(d, r, begun, high, crowded);
            begun = high;
        }
    }
}

/* For each range, where message i reaches it. */
static void place_cursors(void *context, size_t i)
{
    const decoder *d = context;
    gtcb_cursor at = gtcb_start_of(&d->sources[i]);
    for (size_t r = 0; r < d->ranges; r++) {
        gtcb_advance(&d->sources[i], &at, r * d->range);
        d->cursors[r * d->count + i] = at;
    }
}

static size_t tasks_of(const gtcb_executor *executor) { return executor && executor->threads > 1 ? executor->threads : 1; }

/* Several threads want more ranges than they are, as not all are equally much work. */
static void cut(decoder *d, uint64_t tile, size_t tasks)
{
    const uint64_t tiles = (d->elements + tile - 1) / tile, ranges = tasks > 1 ? gtcb_least(8 * tasks, MAX_RANGES) : 1;
    d->tile = tile;
    d->range = (tiles + ranges - 1) / ranges * tile;
    d->ranges = (size_t)((d->elements + d->range - 1) / d->range);
}

/* Of messages of which `sent` elements were sent in all: wider where their blocks are, as a block that lies in two tiles
   costs more. */
static uint64_t cached_tile(uint64_t elements, uint64_t sent, uint64_t messages)
{
    return sent / messages <= elements / (2 * CACHED_TILE / GTCB_BLOCK) ? WIDE_TILE : CACHED_TILE;
}

static void place(decoder *d, const gtcb_message *messages, const gtcb_executor *executor)
{
    for (size_t i = 0; i < d->count; i++)
        d->sources[i] = gtcb_source_of(&messages[i]);
    gtcb_run(executor, place_cursors, d, d->count);
}

static gtcb_status check(const gtcb_message *messages, size_t count, uint64_t elements, uint64_t *sent)
{
    gtcb_header h;
    *sent = 0;
    for (size_t i = 0; i < count; i++) {
        gtcb_status status = gtcb_read_header(messages[i].header, &h);
        if (status != GTCB_OK)
            return status;
        if (h.kind == GTCB_RAW)
            return GTCB_MISMATCH;
        if (h.flags & GTCB_FLAG_NON_FINITE)
            return GTCB_NON_FINITE;
        if (h.elements != elements)
            return GTCB_MISMATCH;
        if (messages[i].body == NULL && h.body_bytes > 0)
            return GTCB_BAD_ARGUMENT;
        *sent += h.sent;
    }
    return GTCB_OK;
}

gtcb_status gtcb_decode_add(const gtcb_variant *v, const gtcb_message *messages, size_t count,
                            float *dense, uint64_t elements, const gtcb_executor *executor)
{
    if (v == NULL || (messages == NULL && count > 0) || (dense == NULL && elements > 0))
        return GTCB_BAD_ARGUMENT;
    uint64_t sent;
    gtcb_status status = check(messages, count, elements, &sent);
    if (status != GTCB_OK || sent == 0)
        return status;

    gtcb_source sources[BATCH];
    gtcb_cursor cursors[BATCH * MAX_RANGES];
    decoder d = {.variant = v, .elements = elements, .dense = dense, .sources = sources, .cursors = cursors};
    cut(&d, cached_tile(elements, sent, count), tasks_of(executor));
    for (size_t first = 0; first < count; first += d.count) {
        d.count = gtcb_least(count - first, BATCH);
        place(&d, messages + first, executor);
        gtcb_run(executor, add_range, &d, d.ranges);
    }
    return GTCB_OK;
}

/* -- the mean: added up in a tile of the task's own, and from there, divided, to its place --------------------- */

static void write_tile(const decoder *d, const float *tile, uint64_t low, uint64_t high)
{
    const gtcb_mean_job *job = d->mean;
    const bool stream = d->elements >= GTCB_STREAM_ELEMENTS;
    const size_t width = job->dtype == GTCB_BF16 ? 2 : 4;
    uint64_t begin = 0, at = job->first + low;
    const uint64_t end = job->first + high;
    for (const gtcb_target *t = job->targets; at < end; begin += t++->count) {
        if (begin + t->count <= at)
            continue;
        const size_t count = gtcb_least(begin + t->count, end) - at;
        d->variant->divide(tile, count, job->divisor, job->dtype, (uint8_t *)t->data + (at - begin) * width, stream);
        tile += count;
        at += count;
    }
}

static void write_ranges(void *context, size_t task)
{
    const decoder *d = context;
    float *tile = d->tiles + task * WIDE_TILE;
    for (size_t r = task; r < d->ranges; r += d->tasks)
        for (uint64_t low = r * d->range, high; low < end_of(d, r); low = high) {
            high = gtcb_least(low + d->tile, end_of(d, r));
            memset(tile, 0, (high - low) * sizeof *tile);
            apply_all(d, r, (gtcb_tile){tile, low, high, true});
            write_tile(d, tile, low, high);
        }
}

size_t gtcb_mean_scratch_bytes(size_t count, const gtcb_executor *executor)
{
    return WIDE_TILE * sizeof(float) * tasks_of(executor) + count * (sizeof(gtcb_source) + MAX_RANGES * sizeof(gtcb_cursor));
}

gtcb_status gtcb_decode_mean(const gtcb_variant *v, const gtcb_mean_job *job, const gtcb_executor *executor)
{
    if (v == NULL || job->scratch == NULL || (job->messages == NULL && job->count > 0) || !(job->divisor > 0) || !gtcb_is_mean_dtype(job->dtype))
        return GTCB_BAD_ARGUMENT;
    uint64_t sent, room = 0;
    for (size_t i = 0; i < job->target_count; i++)
        room += job->targets[i].count;
    if (job->first > room || job->elements > room - job->first)
        return GTCB_BAD_ARGUMENT;
    gtcb_status status = check(job->messages, job->count, job->elements, &sent);
    if (status != GTCB_OK || job->elements == 0)
        return status;

    const size_t tasks = tasks_of(executor);
    decoder d = {.variant = v, .elements = job->elements, .count = job->count, .mean = job, .tasks = tasks};
    cut(&d, job->count ? cached_tile(job->elements, sent, job->count) : CACHED_TILE, tasks);
    d.tiles = (float *)job->scratch;
    d.cursors = (gtcb_cursor *)(d.tiles + tasks * WIDE_TILE);
    d.sources = (gtcb_source *)(d.cursors + job->count * MAX_RANGES);
    place(&d, job->messages, executor);
    gtcb_run(executor, write_ranges, &d, tasks);
    return GTCB_OK;
}
