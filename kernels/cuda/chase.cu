// Latency of a load: every address comes from the load before it.

// Follow `steps` pointers from cell[0] on, leave there where that ended, and add the steps to cell[1].  One thread.
extern "C" __global__ void __launch_bounds__(1) chase(unsigned long long* cell, long long steps) {
    const unsigned long long* at = reinterpret_cast<const unsigned long long*>(cell[0]);
#pragma unroll 16
    for (long long i = 0; i < steps; ++i) {
        __builtin_assume(__isGlobal(at));  // or every load would first look up which memory its address means
        at = reinterpret_cast<const unsigned long long*>(*at);
    }
    cell[0] = reinterpret_cast<unsigned long long>(at);
    cell[1] += steps;
}
