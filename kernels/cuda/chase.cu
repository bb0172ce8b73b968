// Latency of a load: every address comes from the load before it.

// Follow `steps` pointers from `start` on, and say where that ends.  One thread.
extern "C" __global__ void __launch_bounds__(1)
    chase(const unsigned long long* start, long long steps, unsigned long long* end) {
    const unsigned long long* at = start;
#pragma unroll 16
    for (long long i = 0; i < steps; ++i) {
        __builtin_assume(__isGlobal(at));  // or every load would first look up which memory its address means
        at = reinterpret_cast<const unsigned long long*>(*at);
    }
    *end = reinterpret_cast<unsigned long long>(at);
}
