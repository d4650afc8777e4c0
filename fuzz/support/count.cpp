// Says at the end how many operations were carried out, for ./cmake/dev fuzz.

#include <pmr_debug/testing/fuzz.hpp>

#include <cstdio>
#include <cstdlib>

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    return std::atexit([] {
        std::fprintf(stderr, "operations: %llu\n",
                     static_cast<unsigned long long>(pmr_debug::testing::fuzz_operations.load()));
    });
}
