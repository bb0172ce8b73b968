// Runs CUDA C++ kernels on a processor, for tests: a fiber for each thread of a block, one block after the other.
//
// A fiber runs until it ends or meets __syncthreads(); then the next one runs.  So a thread gets as far ahead of the others as
// barriers let it, forwards or backwards, and a barrier that is missing shows in the result.  Threads of a block that do not all
// meet at the same barrier are an error.  Shared memory keeps what the block before left in it.
#pragma once
#include <math.h>
#include <stddef.h>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __builtin_assume(what) ((void)0)
#define __isGlobal(pointer) true
#define __syncthreads() shim::barrier(__LINE__)

struct double2 {
    alignas(16) double x;
    double y;
};
struct float4 {
    alignas(16) float x;
    float y, z, w;
};
struct uint4 {
    alignas(16) unsigned x;
    unsigned y, z, w;
};
struct Index {
    unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

// Each rounds once: the file is compiled with -ffp-contract=off.
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
template <class T>
T __ldcg(const T* at) {
    return *at;
}

namespace shim {
constexpr unsigned MOST = 1024;
constexpr size_t STACK = 64 << 10;
struct Fiber {
    ucontext_t context;
    int waits;  // line of the barrier it waits at, 0: runs, -1: has ended
};
static Fiber fibers[MOST];
static ucontext_t outside;
static unsigned current;
static void (*kernel)(void**);
static void** arguments;

static void barrier(int line) {
    const unsigned me = current;
    fibers[me].waits = line;
    swapcontext(&fibers[me].context, &outside);
}

static void body() {
    kernel(arguments);
    fibers[current].waits = -1;
}

static bool run_block(unsigned threads, bool backwards) {
    static char* stacks = static_cast<char*>(
        mmap(nullptr, MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (unsigned t = 0; t < threads; ++t) {
        getcontext(&fibers[t].context);
        fibers[t].context.uc_stack.ss_sp = stacks + t * STACK;
        fibers[t].context.uc_stack.ss_size = STACK;
        fibers[t].context.uc_link = &outside;
        makecontext(&fibers[t].context, body, 0);
    }
    for (;;) {
        for (unsigned i = 0; i < threads; ++i) {
            current = backwards ? threads - 1 - i : i;
            threadIdx.x = current;
            fibers[current].waits = 0;
            swapcontext(&outside, &fibers[current].context);
        }
        for (unsigned t = 1; t < threads; ++t)
            if (fibers[t].waits != fibers[0].waits) return false;
        if (fibers[0].waits == -1) return true;
    }
}

template <class... A, size_t... I>
void call(void (*f)(A...), void** a, std::index_sequence<I...>) {
    f(*static_cast<A*>(a[I])...);
}
template <class... A>
void call(void (*f)(A...), void** a) {
    call(f, a, std::index_sequence_for<A...>{});
}

// Are these the parameters?  A letter each: d for double, l for a pointer or an integer of 8 bytes.
template <class... A>
bool fits(void (*)(A...), const char* kinds) {
    static_assert(((sizeof(A) == 8) && ...), "every parameter of a kernel is 8 bytes");
    const char expected[] = {(std::is_floating_point_v<A> ? 'd' : 'l')..., '\0'};
    for (size_t i = 0; i <= sizeof...(A); ++i)
        if (kinds[i] != expected[i]) return false;
    return true;
}

static int launch(unsigned grid, unsigned block, void** a, bool backwards, void (*f)(void**)) {
    if (grid == 0 || block == 0 || block > MOST) return 3;
    gridDim.x = grid, blockDim.x = block, arguments = a, kernel = f;
    for (unsigned i = 0; i < grid; ++i) {
        blockIdx.x = backwards ? grid - 1 - i : i;
        if (!run_block(block, backwards)) return 2;
    }
    return 0;
}
}  // namespace shim

// 0: done, 1: arguments do not fit, 2: threads did not meet at one barrier, 3: impossible grid or block.
#define LAUNCHER(SPACE, NAME)                                                                                           \
    extern "C" int launch_##SPACE##_##NAME(unsigned grid, unsigned block, void** a, const char* kinds, int backwards) { \
        if (!shim::fits(SPACE::NAME, kinds)) return 1;                                                                  \
        return shim::launch(grid, block, a, backwards != 0, [](void** p) { shim::call(SPACE::NAME, p); });              \
    }
