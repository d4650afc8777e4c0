// Says at the end how many operations were carried out, for ./cmake/dev fuzz; and keeps AddressSanitizer from stopping
// at the misuse that is planted.

#include "os/environment.hpp"

#include <pmr_debug/testing/fuzz.hpp>

#include <cstdio>
#include <cstdlib>

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    ::setenv("PMR_DEBUG_POISON", "0", 1);
    pmr_debug::os::read_environment_again();  // it was read when the program was loaded
    return std::atexit([] {
        std::fprintf(stderr, "operations: %llu\n",
                     static_cast<unsigned long long>(pmr_debug::testing::fuzz_operations.load()));
    });
}
