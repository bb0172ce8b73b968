// C = A * B^T in float32 on the plain (SIMT) units: A is MxK, B is NxK, C is MxN, all row-major without gaps.
//
// A block of 256 threads computes a tile of 128x128, a thread 8x8 of it.  K is walked in steps of 8 through two buffers in shared
// memory: while one is multiplied, the next step is on its way from global memory through registers.  Each element of C is one
// chain of fused multiply-adds over ascending k.  Tiles are walked in groups of 8 rows of tiles, which keeps operands in L2.
// M, N and K are below 2^31 - 128.

constexpr int THREADS = 256;
constexpr int TILE = 128;
constexpr int STEP = 8;
constexpr int PITCH = TILE + 4;  // keeps rows aligned to 16 bytes, and two columns that are stored at once fill all banks
constexpr int GROUP = 8;

// 4 elements of a row from column `k` on, zeros beyond K.  WIDE: rows are aligned to 16 bytes and K is a multiple of 4.
template <bool WIDE>
__device__ __forceinline__ float4 fetch(const float* row, int k, int K) {
    float4 v = {};
    if (WIDE) {
        if (k < K) v = *reinterpret_cast<const float4*>(row + k);
    } else {
        if (k < K) v.x = row[k];
        if (k + 1 < K) v.y = row[k + 1];
        if (k + 2 < K) v.z = row[k + 2];
        if (k + 3 < K) v.w = row[k + 3];
    }
    return v;
}

// Put 4 elements of one row into 4 rows of a transposed tile.
__device__ __forceinline__ void put(float (*tile)[PITCH], int k, int row, const float4& v) {
    tile[k][row] = v.x;
    tile[k + 1][row] = v.y;
    tile[k + 2][row] = v.z;
    tile[k + 3][row] = v.w;
}

__device__ __forceinline__ void get(float (&x)[8], const float* row, int at) {
    const float4 low = *reinterpret_cast<const float4*>(row + at);
    const float4 high = *reinterpret_cast<const float4*>(row + at + TILE / 2);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }

template <bool WIDE>
__device__ __forceinline__ void sgemm(const float* a, const float* b, float* c, int M, int N, int K) {
    alignas(16) __shared__ float as[2][STEP][PITCH], bs[2][STEP][PITCH];

    const int tiles_m = (M + TILE - 1) / TILE, tiles_n = (N + TILE - 1) / TILE;
    const int block = blockIdx.x, group = GROUP * tiles_n, first = block / group * GROUP, inside = block % group;
    const int rows = least(tiles_m - first, GROUP);
    const int m0 = (first + inside % rows) * TILE, n0 = inside / rows * TILE;

    // Loading: 2 threads a row.  Past the edge the last row is read again: those sums are never stored.
    const int row = threadIdx.x / 2, column = threadIdx.x % 2 * 4;
    const float* a_row = a + static_cast<long long>(least(m0 + row, M - 1)) * K;
    const float* b_row = b + static_cast<long long>(least(n0 + row, N - 1)) * K;

    // Multiplying: a warp has 4x8 threads, so that its reads of shared memory are broadcasts or fill all banks.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int tm = (warp / 2 * 4 + lane / 8) * 4, tn = (warp % 2 * 8 + lane % 8) * 4;

    float sums[8][8] = {};
    float4 a_next, b_next;
    const auto load = [&](int k) {
        a_next = fetch<WIDE>(a_row, k + column, K);
        b_next = fetch<WIDE>(b_row, k + column, K);
    };
    const auto store = [&](int buffer) {
        put(as[buffer], column, row, a_next);
        put(bs[buffer], column, row, b_next);
    };
    load(0);
    store(0);
    __syncthreads();
    int buffer = 0;
    for (int k = 0; k < K; k += STEP) {
        load(k + STEP);  // zeros after the last step: a condition here would let the compiler move the loads down to their use
#pragma unroll
        for (int s = 0; s < STEP; ++s) {
            float x[8], y[8];
            get(x, as[buffer][s], tm);
            get(y, bs[buffer][s], tn);
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
        }
        store(1 - buffer);
        __syncthreads();
        buffer = 1 - buffer;
    }

#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int m = m0 + tm + i % 4 + i / 4 * (TILE / 2);
        if (m >= M) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int n = n0 + tn + half * (TILE / 2);
            float* to = c + static_cast<long long>(m) * N + n;
            if (N % 4 == 0) {
                float4 v;
                v.x = sums[i][half * 4], v.y = sums[i][half * 4 + 1], v.z = sums[i][half * 4 + 2], v.w = sums[i][half * 4 + 3];
                if (n < N) *reinterpret_cast<float4*>(to) = v;
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (n + j < N) to[j] = sums[i][half * 4 + j];
            }
        }
    }
}

// K a multiple of 4, so that rows are aligned to 16 bytes.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    sgemm_wide(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, long long M, long long N,
               long long K) {
    sgemm<true>(a, b, c, static_cast<int>(M), static_cast<int>(N), static_cast<int>(K));
}

// Any K.  One block a multiprocessor: with the registers of half a multiprocessor this one would spill.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sgemm_ragged(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, long long M, long long N,
                 long long K) {
    sgemm<false>(a, b, c, static_cast<int>(M), static_cast<int>(N), static_cast<int>(K));
}
