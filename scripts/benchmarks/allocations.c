/* Counts large allocations of the C heap. Preloaded (LD_PRELOAD) into a process, which asks it through ctypes.

   Everything of this process that takes memory by malloc and its kin is seen: the library, NumPy, torch's CPU allocator,
   MPI. What asks the kernel itself is not: Python's pools of small objects, MPI's shared memory. glibc only.

   Blocks below LARGE bytes are passed on without a look. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#define LARGE ((size_t)64 << 10)
#define KEPT 4096

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_size_t count, live, peak;
static struct { size_t bytes; void *caller; } kept[KEPT];

static void *came(void *block, void *caller)
{
    size_t bytes = block ? malloc_usable_size(block) : 0;
    if (bytes < LARGE)
        return block;
    size_t number = atomic_fetch_add(&count, 1), now = atomic_fetch_add(&live, bytes) + bytes, before = atomic_load(&peak);
    if (number < KEPT) {
        kept[number].bytes = bytes;
        kept[number].caller = caller;
    }
    while (before < now && !atomic_compare_exchange_weak(&peak, &before, now))
        ;
    return block;
}

static void goes(size_t bytes)
{
    if (bytes >= LARGE)
        atomic_fetch_sub(&live, bytes);
}

#define CALLER __builtin_return_address(0)

void *malloc(size_t bytes) { return came(__libc_malloc(bytes), CALLER); }
void *calloc(size_t n, size_t bytes) { return came(__libc_calloc(n, bytes), CALLER); }
void *memalign(size_t alignment, size_t bytes) { return came(__libc_memalign(alignment, bytes), CALLER); }
void *aligned_alloc(size_t alignment, size_t bytes) { return came(__libc_memalign(alignment, bytes), CALLER); }

int posix_memalign(void **out, size_t alignment, size_t bytes)
{
    void *block = came(__libc_memalign(alignment, bytes), CALLER);
    if (block)
        *out = block;
    return block ? 0 : ENOMEM;
}

void *realloc(void *old, size_t bytes)
{
    size_t had = old ? malloc_usable_size(old) : 0;
    void *block = __libc_realloc(old, bytes);
    if (!block && bytes)
        return NULL;
    goes(had);
    return came(block, CALLER);
}

void free(void *block)
{
    if (block)
        goes(malloc_usable_size(block));
    __libc_free(block);
}

/* -- what the process asks ---------------------------------------------------------------------------- */

size_t allocations_count(void) { return atomic_load(&count); }
size_t allocations_live(void) { return atomic_load(&live); }
size_t allocations_peak(void) { return atomic_load(&peak); }

/* From now on: no allocation so far, and the peak is what is live. */
void allocations_reset(void)
{
    atomic_store(&count, 0);
    atomic_store(&peak, atomic_load(&live));
}

size_t allocations_bytes(size_t number) { return number < KEPT ? kept[number].bytes : 0; }

/* The file whose code asked for it. */
const char *allocations_caller(size_t number)
{
    Dl_info found;
    return number < KEPT && dladdr(kept[number].caller, &found) && found.dli_fname ? found.dli_fname : "?";
}
