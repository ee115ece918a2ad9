/* The table of variants, and the texts of the statuses. */
#include "variant.h"

static const gtcb_variant *const variants[] = {     /* slowest first */
    &gtcb_scalar,
#ifdef GTCB_X86
    &gtcb_avx2,
    &gtcb_avx512,
#endif
};
#define VARIANTS (sizeof variants / sizeof variants[0])

size_t gtcb_variant_count(void) { return VARIANTS; }
const gtcb_variant *gtcb_variant_at(size_t i) { return i < VARIANTS ? variants[i] : NULL; }
const char *gtcb_variant_name(const gtcb_variant *v) { return v->name; }
bool gtcb_variant_supported(const gtcb_variant *v) { return v->supported(); }

const gtcb_variant *gtcb_variant_best(void)
{
    size_t i = VARIANTS - 1;
    while (!variants[i]->supported())
        i--;
    return variants[i];
}

const gtcb_variant *gtcb_variant_named(const char *name)
{
    for (size_t i = 0; name != NULL && i < VARIANTS; i++)
        if (strcmp(variants[i]->name, name) == 0)
            return variants[i];
    return NULL;
}

const char *gtcb_status_text(gtcb_status status)
{
    switch (status) {
    case GTCB_OK: return "ok";
    case GTCB_BAD_ARGUMENT: return "bad argument";
    case GTCB_TOO_SMALL: return "buffer too small for the longest message";
    case GTCB_TRUNCATED: return "message is shorter than its header says";
    case GTCB_BAD_MAGIC: return "not a gtcbmuf message";
    case GTCB_BAD_VERSION: return "message of another format version";
    case GTCB_BAD_HEADER: return "damaged or contradictory message header";
    case GTCB_BAD_CHECKSUM: return "message body does not match its checksum";
    case GTCB_BAD_BODY: return "message body breaks a rule of its kind";
    case GTCB_MISMATCH: return "message belongs to another bucket, sequence, sender or size";
    case GTCB_NON_FINITE: return "a sum of residual and gradient is NaN or infinite";
    case GTCB_NO_MEMORY: return "out of memory";
    case GTCB_MPI_ERROR: return "MPI reported an error";
    case GTCB_DEADLINE: return "deadline passed";
    case GTCB_CLOSED: return "already closed";
    case GTCB_CUDA_ERROR: return "CUDA reported an error";
    }
    return "unknown status";
}

uint64_t gtcb_checksum(const gtcb_variant *v, const void *data, size_t bytes) { return v->checksum(data, bytes, 0); }
