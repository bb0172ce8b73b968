// Reads that stay in a cache: a working set is read over and over and summed up as 32-bit integers, which wrap.
//
// Integers, because fp64 units are too few on many devices to keep up with a cache; and sums, because they show in the end which
// words were read and how often: all sums together are `rounds` times the sum of the words, modulo 2^32.

constexpr int THREADS = 1024;
constexpr int UNROLL = 4;

__device__ __forceinline__ unsigned total(const uint4& v) { return v.x + v.y + v.z + v.w; }

// Sum of every `step`-th of n 16-byte words, the first at `from`.  Load: which caches serve it.
template <class Load>
__device__ __forceinline__ unsigned sweep(const uint4* data, long long from, long long n, long long step) {
    unsigned sum = 0;
    long long i = from;
#pragma unroll 1
    for (; i + (UNROLL - 1) * step < n; i += UNROLL * step) {
        uint4 x[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) x[u] = Load::from(data + i + u * step);
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) sum += total(x[u]);
    }
#pragma unroll 1
    for (; i < n; i += step) sum += total(Load::from(data + i));
    return sum;
}

struct Nearest {  // every cache
    static __device__ __forceinline__ uint4 from(const uint4* at) { return *at; }
};
struct Shared {  // L2 alone
    static __device__ __forceinline__ uint4 from(const uint4* at) { return __ldcg(at); }
};

// sums[block] = what the threads of the block found.
__device__ __forceinline__ void add_up(unsigned* sums, unsigned sum) {
    __shared__ unsigned part[THREADS];
    part[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}

// L1: every block reads its own window of n 16-byte words, each warp another part in each round.
extern "C" __global__ void __launch_bounds__(THREADS)
    cache_l1(unsigned* __restrict__ sums, const uint4* __restrict__ data, long long n, long long rounds) {
    const uint4* window = data + blockIdx.x * n;
    unsigned sum = 0;
    for (long long round = 0; round < rounds; ++round)
        sum += sweep<Nearest>(window, (threadIdx.x + 32 * round) % THREADS, n, THREADS);
    add_up(sums, sum);
}

// L2: all blocks together read all n 16-byte words, each block another part in each round.
extern "C" __global__ void __launch_bounds__(THREADS)
    cache_l2(unsigned* __restrict__ sums, const uint4* __restrict__ data, long long n, long long rounds) {
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    unsigned sum = 0;
    unsigned part = blockIdx.x;
    for (long long round = 0; round < rounds; ++round) {
        sum += sweep<Shared>(data, static_cast<long long>(part) * THREADS + threadIdx.x, n, step);
        part = part + 1 < gridDim.x ? part + 1 : 0;
    }
    add_up(sums, sum);
}
