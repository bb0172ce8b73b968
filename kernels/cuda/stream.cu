// STREAM's operations and a pure read, float64.
//
// A block works on chunks of 4 x blockDim.x pairs, the next one gridDim.x chunks further on: any grid covers any n.  All accesses
// of a chunk are 16 bytes wide and issued before the first of them is used.  The last chunk may be short, and the last element
// of an odd n stands alone.  Arrays are aligned to 16 bytes.  Products and sums round separately (no fused multiply-add), so that
// the result is the same, bit for bit, as that of any other IEEE machine.

constexpr int THREADS = 256;
constexpr int UNROLL = 4;

struct Write {
    static constexpr int inputs = 0;
    static __device__ double apply(double, double, double s) { return s; }
};
struct Copy {
    static constexpr int inputs = 1;
    static __device__ double apply(double b, double, double) { return b; }
};
struct Scale {
    static constexpr int inputs = 1;
    static __device__ double apply(double b, double, double s) { return __dmul_rn(s, b); }
};
struct Add {
    static constexpr int inputs = 2;
    static __device__ double apply(double b, double c, double) { return __dadd_rn(b, c); }
};
struct Triad {
    static constexpr int inputs = 2;
    static __device__ double apply(double b, double c, double s) { return __dadd_rn(b, __dmul_rn(s, c)); }
};

// One chunk from pair `at` on; WHOLE: all of it lies before pair `pairs`.
template <class Op, bool WHOLE>
__device__ __forceinline__ void stream_chunk(double2* a, const double2* b, const double2* c, double s, long long at,
                                             long long pairs) {
    double2 x[UNROLL] = {}, y[UNROLL] = {};
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (WHOLE || at + u * THREADS < pairs) {
            if (Op::inputs > 0) x[u] = b[at + u * THREADS];
            if (Op::inputs > 1) y[u] = c[at + u * THREADS];
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (WHOLE || at + u * THREADS < pairs) {
            double2 r;
            r.x = Op::apply(x[u].x, y[u].x, s);
            r.y = Op::apply(x[u].y, y[u].y, s);
            a[at + u * THREADS] = r;
        }
    }
}

template <class Op>
__device__ __forceinline__ void stream(double* a, const double* b, const double* c, double s, long long n) {
    constexpr long long CHUNK = UNROLL * THREADS;
    const long long pairs = n / 2;
    double2* a2 = reinterpret_cast<double2*>(a);
    const double2* b2 = reinterpret_cast<const double2*>(b);
    const double2* c2 = reinterpret_cast<const double2*>(c);
    for (long long from = blockIdx.x * CHUNK; from < pairs; from += gridDim.x * CHUNK) {
        if (from + CHUNK <= pairs)
            stream_chunk<Op, true>(a2, b2, c2, s, from + threadIdx.x, pairs);
        else
            stream_chunk<Op, false>(a2, b2, c2, s, from + threadIdx.x, pairs);
    }
    if (n % 2 && blockIdx.x == 0 && threadIdx.x == 0)
        a[n - 1] = Op::apply(Op::inputs > 0 ? b[n - 1] : 0.0, Op::inputs > 1 ? c[n - 1] : 0.0, s);
}

// a = s
extern "C" __global__ void __launch_bounds__(THREADS) stream_write(double* __restrict__ a, double s, long long n) {
    stream<Write>(a, nullptr, nullptr, s, n);
}

// a = b
extern "C" __global__ void __launch_bounds__(THREADS)
    stream_copy(double* __restrict__ a, const double* __restrict__ b, long long n) {
    stream<Copy>(a, b, nullptr, 0.0, n);
}

// a = s * b
extern "C" __global__ void __launch_bounds__(THREADS)
    stream_scale(double* __restrict__ a, const double* __restrict__ b, double s, long long n) {
    stream<Scale>(a, b, nullptr, s, n);
}

// a = b + c
extern "C" __global__ void __launch_bounds__(THREADS)
    stream_add(double* __restrict__ a, const double* __restrict__ b, const double* __restrict__ c, long long n) {
    stream<Add>(a, b, c, 0.0, n);
}

// a = b + s * c
extern "C" __global__ void __launch_bounds__(THREADS)
    stream_triad(double* __restrict__ a, const double* __restrict__ b, const double* __restrict__ c, double s, long long n) {
    stream<Triad>(a, b, c, s, n);
}

// sums[block] = the sum of the block's chunks; together the sum of b.
extern "C" __global__ void __launch_bounds__(THREADS)
    stream_read(double* __restrict__ sums, const double* __restrict__ b, long long n) {
    constexpr long long CHUNK = UNROLL * THREADS;
    __shared__ double part[THREADS];
    const long long pairs = n / 2;
    const double2* b2 = reinterpret_cast<const double2*>(b);
    double2 total = {};
    for (long long from = blockIdx.x * CHUNK; from < pairs; from += gridDim.x * CHUNK) {
        const long long at = from + threadIdx.x;
        double2 x[UNROLL] = {};
        if (from + CHUNK <= pairs) {
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) x[u] = b2[at + u * THREADS];
        } else {
#pragma unroll
            for (int u = 0; u < UNROLL; ++u)
                if (at + u * THREADS < pairs) x[u] = b2[at + u * THREADS];
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            total.x += x[u].x;
            total.y += x[u].y;
        }
    }
    double sum = total.x + total.y;
    if (n % 2 && blockIdx.x == 0 && threadIdx.x == 0) sum += b[n - 1];
    part[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}
