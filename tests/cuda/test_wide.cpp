// Buckets of about 2^31 elements and more, whose blocks need more than 32 bits, beside the oracle. To stage so many elements would take the
// emulation an hour: the words are put where stage_chunks would have left them. Little memory is behind the tables.
#include <sys/mman.h>

#include "cuda/encoder.cuh"
#include "cuda/tile.cuh"

extern "C" uint8_t *oracle_message(const gtcb_encode_job *job, const uint64_t *numbers, uint64_t k, size_t *bytes);

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);  \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

template <class T> static T *zeros(size_t entries)
{
    void *p = mmap(nullptr, entries * sizeof(T) + 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    return (T *)p;
}

template <class T> static void drop(T *p, size_t entries) { munmap((void *)p, entries * sizeof(T) + 64); }

static const gtcb_cuda_launch launch = {nullptr, 3};
constexpr float TAU = 0.5f;

// All tiles of so many elements would take gigabytes.
static void sum_one(const Decoder &d, const Batch &batch, const Sum &s, uint64_t tile)
{
    __shared__ Tile sums;
    sum_tile(&sums, d, batch, 1, s, tile);
}

static void compare(uint64_t n, const std::vector<uint64_t> &numbers, unsigned kind)
{
    const uint64_t chunks = parts(n, CHUNK), blocks = parts(n, BLOCK), capacity = gtcb_cuda_message_bytes(n);
    Encoder e = {};
    e.elements = n, e.chunks = chunks, e.max_sent = GTCB_NO_CAP, e.sequence = 5, e.threshold = TAU;
    e.plan = zeros<Plan>(1), e.starts = zeros<uint64_t>(chunks), e.ends = zeros<uint64_t>(blocks), e.offsets = zeros<uint64_t>(blocks);
    e.counts = zeros<uint32_t>(chunks), e.non_finite = zeros<uint32_t>(chunks), e.words = zeros<uint16_t>(chunks * CHUNK);
    e.message = zeros<uint64_t>(capacity / 8);
    memset(e.non_finite, 0xFF, chunks * sizeof *e.non_finite);
    for (uint64_t number : numbers) {
        const uint64_t chunk = number / 2 / CHUNK;
        e.words[chunk * CHUNK + e.counts[chunk]++] = (uint16_t)(number - 2 * chunk * CHUNK);
    }
    launch_plan(e, launch);
    launch_pack(e, launch);

    gtcb_encode_job job = {};
    job.elements = n, job.threshold = TAU, job.sequence = 5;
    size_t bytes;
    uint8_t *expected = oracle_message(&job, numbers.data(), numbers.size(), &bytes);
    CHECK(expected[5] == kind);
    CHECK(memcmp(e.message, expected, bytes) == 0);

    float *dense = zeros<float>(n);
    uint32_t verdict = 99;
    const gtcb_cuda_message m = {e.message, e.message + GTCB_HEADER_BYTES / 8};
    const size_t scratch_bytes = gtcb_cuda_decode_scratch_bytes(&m, 1, n);
    void *scratch = zeros<uint8_t>(scratch_bytes);
    CHECK(gtcb_cuda_validate(&m, 1, n, &verdict, scratch, &launch) == GTCB_OK && verdict == GTCB_OK);
    const Decoder d = lay_out_decoder(scratch, n, 1);
    const Batch batch = read_messages(&m, 1);
    launch_expand(d, batch, 1, &verdict, 1, launch);
    uint64_t added = 0;
    for (uint64_t i = 0, tile; i < numbers.size(); i++)
        if (i == 0 || numbers[i] / 2 / TILE != tile) {
            tile = numbers[i] / 2 / TILE;
            const Sum sum = {dense, n, false, 1};
            GTCB_LAUNCH(sum_one, 1, WARP, nullptr, d, batch, sum, tile);
            for (uint64_t at = tile * TILE; at < least(n, (tile + 1) * TILE); at++)
                added += dense[at] != 0;
        }
    CHECK(added == numbers.size());
    for (uint64_t number : numbers)
        CHECK(dense[number / 2] == (number & 1 ? -TAU : TAU));

    free(expected);
    drop(dense, n);
    drop((uint8_t *)scratch, scratch_bytes);
    drop(e.plan, 1), drop(e.starts, chunks), drop(e.ends, blocks), drop(e.offsets, blocks);
    drop(e.counts, chunks), drop(e.non_finite, chunks), drop(e.words, chunks * CHUNK), drop(e.message, capacity / 8);
}

int main()
{
    const uint64_t words_max = (uint64_t)1 << 31, n = words_max + 5000011;
    compare(words_max, {7, 2 * (words_max - 1) + 1}, GTCB_WORDS);      // the largest n of a words body
    compare(n, {2 * (n - 1)}, GTCB_PACKED);                            // one element: span n
    compare(n, {0, 3, 2 * words_max - 1, 2 * words_max + 1, 2 * (n - 1) + 1}, GTCB_PACKED);
    std::vector<uint64_t> many;        // a narrow block, then one that is wide, then the rest
    for (uint64_t i = 0; i < 1024 + 1000; i++)
        many.push_back(6 * i + i % 2);
    for (uint64_t i = 0; i < 1024; i++)
        many.push_back(2 * (words_max + 4000 + 4000 * i) + i % 2);
    compare(n, many, GTCB_PACKED);
    many.clear();
    for (uint64_t i = 0; i < LONE_THREADS * BLOCK + 5000; i++)         // more blocks than the threads that lay them out
        many.push_back(6 * i + i % 2);
    compare(words_max - 1, many, GTCB_PACKED);
    printf("5 messages of 2^31 elements, more or less\n");
    return 0;
}
