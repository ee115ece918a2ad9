// What the kernels that validate and that add up share: messages as kernels see them, and where their blocks are.
#pragma once

#include "cuda/device.cuh"

constexpr unsigned BATCH = 64;                             // messages to a kernel: its arguments take less than 4 KB
constexpr uint64_t MAX_ELEMENTS = (uint64_t)1 << 40;       // more than a device holds; so no sum of spans or grid overflows

constexpr unsigned DECODE_THREADS = 128, TILE = 2048;      // elements whose sum one warp keeps in shared memory: 8 KB

struct Message {
    const uint64_t *body;
    uint64_t elements, sent, body_bytes, body_checksum;
    uint64_t first_entry;          // where its entries begin, if it is expanded
    float threshold;
    uint32_t kind;
};

struct Batch {
    Message of[BATCH];             // behind the last: zeros
    uint64_t expanded, dense;      // bit i: message i has entries; has codes
    uint64_t entries;              // of all messages
};
static_assert(BATCH <= 64, "a bit for each");

struct Found {                     // of a message, on the device
    uint64_t blocks;               // of a packed body whose directory is sound; else 0
    uint64_t checksum, codes;
    uint32_t bad;                  // the body breaks a rule
};

// Scratch memory. The blocks of message i of a batch begin at i * places in both tables, its starts at i * (tiles + 1).
struct Decoder {
    Found *found;
    uint64_t *bases, *offsets;
    uint64_t *starts;              // [tile] the first entry of the message in that tile or a later one; [tiles] the end of its entries
    uint16_t *entries;             // 2 * (element % TILE) + negative, of one message after the other, in order
    uint64_t places, tiles;
};

inline bool decoder_is_sound(const void *scratch, const gtcb_cuda_launch *launch)
{
    return scratch != nullptr && (uintptr_t)scratch % 16 == 0 && launch != nullptr && launch->blocks > 0;
}

Decoder lay_out_decoder(void *scratch, uint64_t elements, size_t messages);
// Headers and pointers of all messages are sound, and they are of that many elements.
gtcb_status check_messages(const gtcb_cuda_message *messages, size_t count, uint64_t elements);
// Of messages that passed: of the first so many a batch is made whose entries find room. At least 1, if there is one.
size_t count_at_once(const gtcb_cuda_message *messages, size_t count, uint64_t elements);
Batch read_messages(const gtcb_cuda_message *messages, size_t count);
void launch_locate(const Decoder &decoder, const Batch &batch, size_t count, const gtcb_cuda_launch &launch);
// After locate. Nothing is done if one of the verdicts is not GTCB_OK.
void launch_expand(const Decoder &decoder, const Batch &batch, size_t count, const uint32_t *verdicts, uint64_t verdict_count,
                   const gtcb_cuda_launch &launch);

// To be reached by the whole block.
__device__ inline bool one_is_refused(const uint32_t *verdicts, uint64_t count)
{
    bool refused = false;
    for (uint64_t i = threadIdx.x; verdicts != nullptr && i < count; i += blockDim.x)
        refused |= verdicts[i] != GTCB_OK;
    return __syncthreads_or(refused);
}

// Up to 32 bits of a body.
__device__ inline uint32_t get_bits(const uint64_t *body, uint64_t at, unsigned count)
{
    const uint32_t *words = (const uint32_t *)body;
    const unsigned shift = (unsigned)(at % 32);
    uint64_t two = words[at / 32];
    if (shift + count > 32)
        two |= (uint64_t)words[at / 32 + 1] << 32;
    return (uint32_t)(two >> shift & (((uint64_t)1 << count) - 1));
}

// Up to 63.
__device__ inline uint64_t get_long_bits(const uint64_t *body, uint64_t at, unsigned count)
{
    const unsigned shift = (unsigned)(at % 64);
    uint64_t bits = body[at / 64] >> shift;
    if (shift + count > 64)
        bits |= body[at / 64 + 1] << (64 - shift);
    return bits & (((uint64_t)1 << count) - 1);
}

// The upper bits of a block of a packed body that thread t looks at: at most three for each element, so 96 threads see all.
static_assert(THREADS * 32 >= 3 * BLOCK && DECODE_THREADS * 32 >= 3 * BLOCK, "see above");
__device__ inline uint32_t upper_bits_of_thread(const uint64_t *body, uint64_t uppers, const Layout &y)
{
    const uint64_t first = 32 * (uint64_t)threadIdx.x;
    return first < y.upper_bits ? get_bits(body, uppers + first, (unsigned)least(32, y.upper_bits - first)) : 0;
}
