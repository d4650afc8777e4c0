#pragma once

// Ranges that should hold one and the same byte, floor 4.

#include "os/other_tools.hpp"

#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

[[nodiscard]] inline std::size_t bytes_between(const unsigned char* from, const unsigned char* to) noexcept {
    return static_cast<std::size_t>(to - from);
}

#if PMR_DEBUG_INSTRUMENTED

/// As below, and not seen by the sanitizer.
[[nodiscard]] PMR_DEBUG_UNSEEN_BY_ASAN inline bool all_bytes(const unsigned char* p, std::size_t n,
                                                             unsigned char value) noexcept {
    for (std::size_t i = 0; i < n; ++i) {
        if (p[i] != value) {
            return false;
        }
    }
    return true;
}

#else

/// Returns: true if all of [p, p + n) is \p value. Wide, branch-free per word.
[[nodiscard]] inline bool all_bytes(const unsigned char* p, std::size_t n, unsigned char value) noexcept {
    const std::uint64_t pattern = value * 0x0101010101010101ULL;
    if (n < sizeof pattern) {
        for (std::size_t i = 0; i < n; ++i) {
            if (p[i] != value) {
                return false;
            }
        }
        return true;
    }
    const auto word = [p](std::size_t at) {
        std::uint64_t w;
        __builtin_memcpy(&w, p + at, sizeof w);
        return w;
    };
    std::uint64_t different = word(n - sizeof pattern) ^ pattern;  // the last, perhaps overlapping, word
    std::size_t at = 0;
    // Four vectors a step where there is much to look at: a whole unit is verified when it retires.
    using vector [[gnu::vector_size(16)]] = std::uint64_t;
    vector wide{};
    for (constexpr std::size_t step = 4 * sizeof(vector); at + step <= n; at += step) {
        vector v[4];
        __builtin_memcpy(v, p + at, sizeof v);
        wide |= (v[0] ^ pattern) | (v[1] ^ pattern) | (v[2] ^ pattern) | (v[3] ^ pattern);
    }
    different |= wide[0] | wide[1];
    for (; at + sizeof pattern <= n; at += sizeof pattern) {
        different |= word(at) ^ pattern;
    }
    return different == 0;
}

#endif

/// Returns: true if each byte of [p, p + n) is \p value or 0: memory that was given back and, here and there, filled.
[[nodiscard]] PMR_DEBUG_UNSEEN_BY_ASAN inline bool all_bytes_or_zero(const unsigned char* p, std::size_t n,
                                                                     unsigned char value) noexcept {
    bool held = all_bytes(p, n, 0);
    for (std::size_t i = 0; !held && (p[i] == value || p[i] == 0); ++i) {
        held = i + 1 == n;
    }
    return held;
}

}  // namespace pmr_debug::detail
