#pragma once

// What the programs of the catalogue share. They are written as their authors would have written them; what keeps the
// compiler from seeing the bug stands here.

#include <pmr_debug/general_purpose_resource.hpp>

#include <cstddef>
#include <cstring>
#include <memory_resource>
#include <new>

// A function to be found in traces. The build forbids tail calls, which leave no frame.
#define CATALOGUE_NOINLINE __attribute__((noinline))
// A call with arguments that the standard library declares impossible, and a sanitizer would stop at.
#define CATALOGUE_ODD __attribute__((noinline, no_sanitize("undefined")))

namespace catalogue {

/// Traces deep enough to see, without optimisation, through a container to the line that used it.
inline constexpr pmr_debug::policy deep{.alloc_frames = 32, .free_frames = 32};
using deep_pool = pmr_debug::basic_general_purpose_resource<deep>;

/// A value the optimiser knows nothing about.
template <class T>
CATALOGUE_NOINLINE T opaque(T value) {
    asm volatile("" : "+r"(value) : : "memory");
    return value;
}

/// Writes a byte that the compiler may think nobody reads.
CATALOGUE_NOINLINE inline void write_byte(void* p, std::size_t offset, unsigned char value) {
    auto* const at = static_cast<unsigned char*>(opaque(p)) + offset;
    std::memset(at, value, 1);
    asm volatile("" : : "r"(at) : "memory");
}

/// Reads a byte although nobody needs it.
CATALOGUE_NOINLINE inline void read_byte(const void* p, std::size_t offset) {
    opaque(static_cast<const volatile unsigned char*>(opaque(p))[offset]);
}

/// True if \p call ends in std::bad_alloc.
template <class Call>
bool refused(Call call) {
    try {
        call();
    } catch (const std::bad_alloc&) {
        return true;
    }
    return false;
}

}  // namespace catalogue
