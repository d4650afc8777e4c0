#pragma once

// Functions to look for in traces. They differ in their instructions, or the linker keeps only one of them, and end
// with some, or the call is the last and leaves no frame.

#include <cstddef>
#include <memory_resource>

namespace test_support {

__attribute__((noinline)) inline void* allocate_here(std::pmr::memory_resource& r, std::size_t bytes,
                                                     std::size_t alignment) {
    void* const p = r.allocate(bytes, alignment);
    asm volatile("# allocate_here" ::: "memory");
    return p;
}

__attribute__((noinline)) inline void free_here(std::pmr::memory_resource& r, void* p, std::size_t bytes,
                                                std::size_t alignment) {
    r.deallocate(p, bytes, alignment);
    asm volatile("# free_here" ::: "memory");
}

__attribute__((noinline)) inline void free_again_here(std::pmr::memory_resource& r, void* p, std::size_t bytes,
                                                      std::size_t alignment) {
    r.deallocate(p, bytes, alignment);
    asm volatile("# free_again_here" ::: "memory");
}

}  // namespace test_support
