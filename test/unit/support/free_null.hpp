#pragma once

// Frees a null pointer, which the standard library declares impossible: hidden from the compiler, and from the
// sanitizer that would stop at the call.

#include <cstddef>
#include <memory_resource>

namespace test_support {

__attribute__((noinline, no_sanitize("undefined"))) inline void free_null(std::pmr::memory_resource& r,
                                                                          std::size_t bytes, std::size_t alignment) {
    void* volatile nothing = nullptr;
    r.deallocate(nothing, bytes, alignment);
}

}  // namespace test_support
