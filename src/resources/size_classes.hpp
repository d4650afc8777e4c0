#pragma once

// Slot sizes of the general-purpose resource, floor 4: every multiple of 16 up to 128 bytes, then four steps a doubling
// up to 8 KiB, so at most a fifth of a slot is slack beyond the guard.

#include <array>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::size_classes {

inline constexpr std::size_t granularity = 16;
inline constexpr std::size_t largest = 8192;
/// Units start on a page, so a slot whose size is a multiple of the alignment is aligned, up to this.
inline constexpr std::size_t largest_alignment = 4096;
inline constexpr unsigned count = 32;

inline constexpr auto slot_sizes = [] {
    std::array<std::uint16_t, count> sizes{};
    unsigned at = 0;
    for (std::size_t n = 16; n <= 128; n += 16) {
        sizes[at++] = static_cast<std::uint16_t>(n);
    }
    for (std::size_t base = 128; base < largest; base *= 2) {
        for (std::size_t step = 1; step <= 4; ++step) {
            sizes[at++] = static_cast<std::uint16_t>(base + base / 4 * step);
        }
    }
    return sizes;
}();
static_assert(slot_sizes.back() == largest);

/// Class of the smallest slot that holds 16 · index bytes.
inline constexpr auto by_granules = [] {
    std::array<std::uint8_t, largest / granularity + 1> classes{};
    unsigned cls = 0;
    for (std::size_t i = 0; i < classes.size(); ++i) {
        while (slot_sizes[cls] < i * granularity) {
            ++cls;
        }
        classes[i] = static_cast<std::uint8_t>(cls);
    }
    return classes;
}();

/// As std::has_single_bit, which is a call where the target has no instruction for it.
[[nodiscard]] constexpr bool is_power_of_two(std::size_t n) noexcept {
    return n != 0 && (n & (n - 1)) == 0;
}

/// Preconditions: 1 <= bytes <= largest, alignment a power of two <= largest_alignment.
[[nodiscard]] constexpr unsigned class_of(std::size_t bytes, std::size_t alignment) noexcept {
    unsigned cls = by_granules[(bytes + granularity - 1) / granularity];
    if (alignment > granularity) {
        while (slot_sizes[cls] % alignment != 0) {  // ends: the powers of two are classes
            ++cls;
        }
    }
    return cls;
}

/// Multiplier that turns an offset below 64 KiB into a slot number: (offset * reciprocal) >> 32, exactly.
[[nodiscard]] constexpr std::uint32_t reciprocal_of(std::uint32_t slot_size) noexcept {
    return static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + slot_size - 1) / slot_size);
}

}  // namespace pmr_debug::size_classes
