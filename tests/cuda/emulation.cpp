// The scheduler of emulation.h: fibers that take turns in one thread of the processor.
#include "emulation.h"

#include <algorithm>

extern "C" char __start_cuda_shared[], __stop_cuda_shared[];

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned LANES = 32;
constexpr size_t STACK = 64 << 10;

struct Barrier { unsigned expected, arrived, turn; };

struct Warp {
    Barrier barrier;
    uint64_t values[2][LANES];      // of this turn and of the next: a lane can be one ahead of another
    Exchange what[2][LANES];
};

struct Fiber {
    jmp_buf at;
    std::vector<char> stack;
    Barrier *waits_for = nullptr;
    unsigned turn = 0;              // of the barrier that it waits for
    bool begun = false, ended = false;
};

static unsigned order;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Barrier whole;
static bool said[2];
static unsigned last_turn[1024];    // of the block's barrier, for each thread
static jmp_buf scheduler;
static ucontext_t home, first_entry;
static unsigned current;
static const std::function<void()> *running;

[[noreturn]] static void fail(const char *what)
{
    fprintf(stderr, "emulation: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
    abort();
}

static void leave(Barrier *barrier)         // of a thread that has ended
{
    barrier->expected--;
    if (barrier->arrived > 0)
        fail("a thread has ended while others wait for it at a barrier");
}

static void enter()
{
    (*running)();
    fibers[current].ended = true;
    leave(&whole);
    _longjmp(scheduler, 1);
}

static unsigned wait(Barrier *barrier)      // returns the turn that it waited for
{
    const unsigned turn = barrier->turn;
    Fiber &fiber = fibers[current];
    if (++barrier->arrived == barrier->expected) {
        barrier->arrived = 0;
        barrier->turn++;
        return turn;
    }
    fiber.waits_for = barrier;
    fiber.turn = turn;
    if (_setjmp(fiber.at) == 0)
        _longjmp(scheduler, 1);
    return turn;
}

void wait_for_block(bool predicate)
{
    const unsigned self = current, turn = whole.turn;
    if (whole.arrived == 0)
        said[turn % 2] = false;
    said[turn % 2] |= predicate;
    last_turn[self] = wait(&whole);
}

bool said_by_any() { return said[last_turn[current] % 2]; }

void exchange(Exchange what, uint64_t value, uint64_t *of_lanes)
{
    Warp &warp = warps[threadIdx.x / LANES];
    if (warp.barrier.expected != LANES)
        fail("an exchange in a warp that is not whole");
    const unsigned side = warp.barrier.turn % 2, lane = threadIdx.x % LANES;
    warp.values[side][lane] = value;
    warp.what[side][lane] = what;
    wait(&warp.barrier);
    for (unsigned i = 0; i < LANES; i++)
        if (warp.what[side][i] != what)
            fail("lanes of one warp are in different exchanges");
    memcpy(of_lanes, warp.values[side], sizeof warp.values[side]);
}

static bool can_go_on(const Fiber &fiber)
{
    return !fiber.ended && (fiber.waits_for == nullptr || fiber.waits_for->turn != fiber.turn);
}

static void go_on(unsigned thread)
{
    Fiber &fiber = fibers[thread];
    current = thread;
    threadIdx = {thread};
    fiber.waits_for = nullptr;
    if (_setjmp(scheduler) != 0)
        return;
    if (fiber.begun)
        _longjmp(fiber.at, 1);
    fiber.begun = true;
    getcontext(&first_entry);
    first_entry.uc_stack.ss_sp = fiber.stack.data();
    first_entry.uc_stack.ss_size = fiber.stack.size();
    first_entry.uc_link = nullptr;
    makecontext(&first_entry, enter, 0);
    swapcontext(&home, &first_entry);
}

static void arrange(std::vector<unsigned> &turns)
{
    static uint64_t state = 88172645463325252ull;
    for (unsigned i = 0; i < turns.size(); i++)
        turns[i] = order == 1 ? (unsigned)turns.size() - 1 - i : i;
    for (unsigned i = (unsigned)turns.size(); order > 1 && i > 1; i--) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        std::swap(turns[i - 1], turns[(state + order) % i]);
    }
}

// One warp runs as far as it can before another does: so a barrier that is missing between warps shows.
static bool run_warp(unsigned warp, unsigned threads)
{
    const unsigned first = warp * LANES, end = std::min(first + LANES, threads);
    bool moved = false;
    for (bool again = true; again; moved |= again) {
        again = false;
        for (unsigned i = first; i < end; i++) {
            const unsigned t = order == 1 ? end - 1 - (i - first) : i;
            if (can_go_on(fibers[t])) {
                go_on(t);
                again = true;
            }
        }
    }
    return moved;
}

static void run_block(unsigned threads, std::vector<unsigned> &turns)
{
    whole = {threads, 0, 0};
    for (unsigned t = 0; t < threads; t++) {
        fibers[t].begun = fibers[t].ended = false;
        fibers[t].waits_for = nullptr;
    }
    for (unsigned w = 0; w < warps.size(); w++)
        warps[w].barrier = {std::min(LANES, threads - w * LANES), 0, 0};
    memset(__start_cuda_shared, 0xA5, (size_t)(__stop_cuda_shared - __start_cuda_shared));
    for (bool moved = true; moved;) {
        moved = false;
        arrange(turns);
        for (unsigned t : turns)
            moved |= run_warp(t / LANES, threads);
    }
    for (unsigned t = 0; t < threads; t++)
        if (!fibers[t].ended)
            fail("threads wait for others that never come");
}

void launch(unsigned blocks, unsigned threads, const std::function<void()> &kernel)
{
    if (threads == 0 || threads > 1024 || blocks == 0)
        fail("a launch that CUDA refuses");
    running = &kernel;
    gridDim = {blocks}, blockDim = {threads};
    if (fibers.size() < threads)
        fibers.resize(threads);
    for (unsigned t = 0; t < threads; t++)
        fibers[t].stack.resize(STACK);
    warps.resize((threads + LANES - 1) / LANES);
    std::vector<unsigned> grid(blocks), turns(threads);
    arrange(grid);
    for (unsigned b : grid) {
        blockIdx = {b};
        run_block(threads, turns);
    }
}

}  // namespace emulation

extern "C" void emulation_order(unsigned order) { emulation::order = order; }

extern "C" void emulation_fail(const char *call, long sound, int error)
{
    snprintf(fault.call, sizeof fault.call, "%s", call);
    fault.sound = sound;
    fault.error = error;
}

extern "C" void emulation_devices(int count) { device_count = count; }
extern "C" int emulation_devices_set_beside() { return devices_set_beside; }
