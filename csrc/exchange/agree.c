/* What the headers say, and whether all ranks say the same. Every rank sees the same headers here, in the same
   order, so every rank comes to the same verdict in the same words. */
#include <stdio.h>
#include <stdlib.h>

#include "exchange/internal.h"

typedef struct { unsigned operation, element; uint32_t bucket, root; uint64_t elements, sequence; } post;

uint32_t gtcb_pack_bucket(gtcb_operation operation, gtcb_element element, uint32_t bucket)
{
    return operation == GTCB_ENCODE ? bucket : (uint32_t)operation << 28 | (uint32_t)element << 24 | bucket;
}

static post post_of(const gtcb_header *h)
{
    post p = {.bucket = h->bucket & (GTCB_BUCKETS - 1), .elements = h->elements, .sequence = h->sequence};
    if (h->kind != GTCB_RAW) {
        p.bucket = h->bucket;
        return p;
    }
    p.operation = h->bucket >> 28;
    p.element = h->bucket >> 24 & 15;
    if (gtcb_raw_bytes(p.element) && (p.operation == GTCB_BROADCAST || p.operation == GTCB_ALLGATHER))
        p.elements /= gtcb_raw_bytes(p.element);                            /* these travel as bytes */
    if (p.operation == GTCB_BROADCAST)
        p.root = (uint32_t)h->sent;
    return p;
}

static bool lengths_may_differ(const post *p) { return p->operation == GTCB_ALLGATHER || p->operation == GTCB_DIRECT; }

static bool same(const post *a, const post *b)
{
    return a->operation == b->operation && a->element == b->element && a->bucket == b->bucket && a->root == b->root &&
           a->sequence == b->sequence && (lengths_may_differ(a) || a->elements == b->elements);
}

static const char *describe(const post *p, char *text, size_t bytes)
{
    static const char *const names[] = {"post_encode", "post_allgather", "post_allreduce(mean=False)",
                                        "post_allreduce(mean=True)", "post_broadcast", [GTCB_OWNERS] = "post_owners",
                                        [GTCB_DIRECT] = "post_direct"};
    static const char *const types[] = {"", " uint8", " float32", " float64", " bfloat16"};
    if (p->operation >= sizeof names / sizeof *names || !names[p->operation]) {
        snprintf(text, bytes, "operation %u", p->operation);
        return text;
    }
    char root[32] = "";
    if (p->operation == GTCB_BROADCAST)
        snprintf(root, sizeof root, " from root %u", p->root);
    char elements[24] = "";
    if (!lengths_may_differ(p))
        snprintf(elements, sizeof elements, " %llu", (unsigned long long)p->elements);
    snprintf(text, bytes, "%s of%s%s%s (bucket %u)", names[p->operation], elements, p->element < sizeof types / sizeof *types ? types[p->element] : "",
             root, p->bucket);
    return text;
}

const char *gtcb_op_describe(const gtcb_op *op, char *text, size_t bytes)
{
    post p = {.operation = op->operation, .element = op->operation == GTCB_ENCODE ? 0 : op->element, .bucket = op->bucket,
              .root = op->root, .elements = op->elements};
    return describe(&p, text, bytes);
}

/* "rank 2" or "ranks 0, 1, 3": those whose post is like[which]; long lists are cut. */
static size_t name_ranks(const uint32_t *like, uint32_t which, uint32_t size, char *text, size_t bytes)
{
    size_t length = 0;
    uint32_t count = 0, named = 0;
    for (uint32_t r = 0; r < size; r++)
        count += like[r] == which;
    length += (size_t)snprintf(text, bytes, count == 1 ? "rank" : "ranks");
    for (uint32_t r = 0; r < size && named < 16 && length + 16 < bytes; r++)
        if (like[r] == which)
            length += (size_t)snprintf(text + length, bytes - length, "%s %u", named++ ? "," : "", r);
    if (named < count && length + 24 < bytes)
        length += (size_t)snprintf(text + length, bytes - length, " ... (%u)", count);
    return length;
}

/* The odd ones against the majority; if there is none, against what rank 0 posted. */
static gtcb_status mismatch(gtcb_op *op, const post *posts, const uint32_t *like)
{
    uint32_t size = op->exchange->size, usual = 0, most = 0, odd = 0;
    bool sequences = false;
    for (uint32_t r = 0; r < size; r++) {
        uint32_t count = 0;
        for (uint32_t s = 0; s < size; s++)
            count += like[s] == r;
        if (count > most) {
            most = count;
            usual = r;
        }
        sequences |= posts[r].sequence != posts[0].sequence;
    }
    char text[768], what[160];
    size_t length = 0;
    for (uint32_t r = 0; r < size && length + 320 < sizeof text; r++) {
        if (like[r] != r || r == usual)
            continue;
        if (!length)
            odd = r;
        length += name_ranks(like, r, size, text + length, 120);
        length += (size_t)snprintf(text + length, sizeof text - length, " posted %s", describe(&posts[r], what, sizeof what));
        if (sequences)
            length += (size_t)snprintf(text + length, sizeof text - length, " at sequence %llu",
                                       (unsigned long long)posts[r].sequence);
        length += (size_t)snprintf(text + length, sizeof text - length, "; ");
    }
    length += name_ranks(like, usual, size, text + length, 120);
    snprintf(text + length, sizeof text - length, " posted %s", describe(&posts[usual], what, sizeof what));
    gtcb_op_fail(op, GTCB_MISMATCH, odd, "%s; sequence %llu", text, (unsigned long long)posts[usual].sequence);
    op->failure.index = usual;
    op->failure.posts_differ = true;
    return GTCB_MISMATCH;
}

static gtcb_status judge(gtcb_op *op, const gtcb_header *headers, post *posts, uint32_t *like)
{
    gtcb_exchange *x = op->exchange;
    bool differ = false;
    op->complete = true;           /* whatever the verdict: all ranks come to the same one */
    for (uint32_t r = 0; r < x->size; r++) {
        posts[r] = post_of(&headers[r]);
        like[r] = 0;
        while (!same(&posts[like[r]], &posts[r]))
            like[r]++;
        differ |= like[r] != 0;
    }
    if (differ)
        return mismatch(op, posts, like);
    for (uint32_t r = 0; r < x->size; r++)
        if (headers[r].sender != r)
            return gtcb_op_fail(op, GTCB_MISMATCH, r, "the header from rank %u says that it is rank %u's; sequence %llu", r,
                                headers[r].sender, (unsigned long long)op->sequence);
    for (uint32_t r = 0; r < x->size; r++)
        if (headers[r].flags & GTCB_FLAG_NON_FINITE) {
            gtcb_op_fail(op, GTCB_NON_FINITE, r, "rank %u: element %llu of bucket %u is NaN or infinite", r,
                         (unsigned long long)headers[r].sent, op->bucket);
            op->failure.index = headers[r].sent;
            return GTCB_NON_FINITE;
        }
    return GTCB_OK;
}

gtcb_status gtcb_agree(gtcb_op *op)
{
    uint32_t size = op->exchange->size;
    gtcb_header *headers = calloc(size, sizeof(gtcb_header) + sizeof(post) + sizeof(uint32_t));
    if (!headers)
        return gtcb_op_fail(op, GTCB_NO_MEMORY, op->exchange->rank, "no memory for %u headers", size);
    post *posts = (post *)(headers + size);
    gtcb_status status = GTCB_OK;
    for (uint32_t r = 0; r < size && !status; r++) {
        status = gtcb_read_header(gtcb_op_header_of(op, r), &headers[r]);
        uint64_t longest = gtcb_message_capacity(headers[r].elements) - GTCB_HEADER_BYTES;
        if (!status && headers[r].kind != GTCB_RAW && headers[r].body_bytes > longest)
            status = GTCB_BAD_HEADER;
        if (status)
            gtcb_op_fail(op, status, r, "header from rank %u at sequence %llu: %s", r, (unsigned long long)op->sequence,
                         gtcb_status_text(status));
    }
    if (!status)
        status = judge(op, headers, posts, (uint32_t *)(posts + size));
    free(headers);
    return status;
}

gtcb_status gtcb_check_part(gtcb_op *op, const void *header, const void *body, uint64_t bytes, gtcb_operation operation,
                            uint64_t shard, uint32_t sender, uint32_t from)
{
    gtcb_header h;
    gtcb_status status = gtcb_read_header(header, &h);
    if (!status && h.kind == GTCB_RAW && h.bucket >> 28 == GTCB_FAREWELL) {
        gtcb_failure failure = gtcb_read_farewell(&h);
        return gtcb_op_fail(op, failure.status, failure.rank, "%s", failure.text);
    }
    if (!status)
        status = gtcb_validate(op->exchange->engine->settings.variant, header, body, bytes);
    if (!status && (h.kind != GTCB_RAW || h.bucket != gtcb_pack_bucket(operation, op->element, op->bucket) ||
                    h.sequence != op->sequence || h.sent != shard || h.sender != sender || (h.flags & GTCB_FLAG_NON_FINITE)))
        status = GTCB_MISMATCH;
    if (status)
        gtcb_op_fail(op, status, from, "shard %llu from rank %u at sequence %llu: %s", (unsigned long long)shard, from,
                     (unsigned long long)op->sequence, gtcb_status_text(status));
    return status;
}
