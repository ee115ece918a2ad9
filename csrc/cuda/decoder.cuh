// What the kernels that validate and that add up share: messages as kernels see them, and where their blocks are.
#pragma once

#include "cuda/device.cuh"

constexpr unsigned BATCH = 64;                             // messages to a kernel: its arguments take less than 4 KB
constexpr uint64_t MAX_ELEMENTS = (uint64_t)1 << 40;       // more than a device holds; so no sum of spans or grid overflows

struct Message {
    const uint64_t *body;
    uint64_t elements, sent, body_bytes, body_checksum;
    float threshold;
    uint32_t kind;
};

struct Batch { Message of[BATCH]; };

struct Found {                     // of a message, on the device
    uint64_t blocks;               // of a packed body whose directory is sound; else 0
    uint64_t checksum, codes;
    uint32_t bad;                  // the body breaks a rule
};

// Scratch memory. The blocks of message i of a batch begin at i * places in both tables.
struct Decoder { Found *found; uint64_t *bases, *offsets; uint64_t places; };

inline bool decoder_is_sound(const void *scratch, const gtcb_cuda_launch *launch)
{
    return scratch != nullptr && (uintptr_t)scratch % 16 == 0 && launch != nullptr && launch->blocks > 0;
}

Decoder lay_out_decoder(void *scratch, uint64_t elements, size_t messages);
// Headers and pointers of all messages are sound, and they are of that many elements.
gtcb_status check_messages(const gtcb_cuda_message *messages, size_t count, uint64_t elements);
Batch read_messages(const gtcb_cuda_message *messages, size_t count);      // that passed
void launch_locate(const Decoder &decoder, const Batch &batch, size_t count, const gtcb_cuda_launch &launch);

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

__device__ inline uint64_t get_long_bits(const uint64_t *body, uint64_t at, unsigned count)
{
    if (count <= 32)
        return get_bits(body, at, count);
    return get_bits(body, at, 32) | (uint64_t)get_bits(body, at + 32, count - 32) << 32;
}
