#pragma once

// Calls with arguments that the standard library declares impossible: hidden from the compiler, and from the sanitizer
// that would stop at the call.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>

namespace test_support {

/// Stands behind a call whose function is looked for in a trace: a tail call would not be in it.
__attribute__((always_inline)) inline void* after_call(void* p) {
    asm volatile("" : "+r"(p) : : "memory");
    return p;
}

/// Frees a null pointer.
__attribute__((noinline, no_sanitize("undefined"))) inline void free_null(std::pmr::memory_resource& r,
                                                                          std::size_t bytes, std::size_t alignment) {
    void* volatile nothing = nullptr;
    r.deallocate(nothing, bytes, alignment);
    after_call(nullptr);
}

/// Asks for a size that cannot be, or an alignment that is no power of two.
__attribute__((noinline, no_sanitize("undefined"))) inline void* allocate_odd(std::pmr::memory_resource& r,
                                                                              std::size_t bytes,
                                                                              std::size_t alignment) {
    volatile std::size_t hidden_bytes = bytes;
    volatile std::size_t hidden_alignment = alignment;
    return after_call(r.allocate(hidden_bytes, hidden_alignment));
}

/// True if an object destroyed at \p place can still be called: a sanitizer may have wiped its type.
__attribute__((noinline)) inline bool still_callable(const void* place) {
    asm volatile("" : "+r"(place) : : "memory");  // the compiler knows that it may not be read
    std::uintptr_t first = 0;
    std::memcpy(&first, place, sizeof first);
    return first != 0;
}

/// Calls the dead resource at \p place.
__attribute__((noinline, no_sanitize("undefined"))) inline void free_late(void* place, void* p, std::size_t bytes,
                                                                          std::size_t alignment) {
    auto* volatile late = static_cast<std::pmr::memory_resource*>(place);
    late->deallocate(p, bytes, alignment);
    after_call(nullptr);
}
__attribute__((noinline, no_sanitize("undefined"))) inline void* allocate_late(void* place, std::size_t bytes,
                                                                               std::size_t alignment) {
    auto* volatile late = static_cast<std::pmr::memory_resource*>(place);
    return after_call(late->allocate(bytes, alignment));
}

}  // namespace test_support
