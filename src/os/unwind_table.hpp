#pragma once

// The unwind tables of the code that is loaded, floor 0.

#include <cstdint>

namespace pmr_debug::os {

/// Of one file that is loaded. All zero: there is none.
struct unwind_table {
    const unsigned char* header = nullptr;  ///< its .eh_frame_hdr
    std::uintptr_t low = 0;                 ///< the file's mappings: [low, high)
    std::uintptr_t high = 0;
    const void* entry = nullptr;  ///< the loader's for it; null: not known

    bool operator==(const unwind_table&) const = default;
};

/// Returns: the table for the code at \p address. Takes no lock, allocates nothing; safe in signal handlers and
/// whatever the loader is doing. Where the C library does not tell without its loader's lock (glibc before 2.35,
/// others), there is none.
[[nodiscard]] unwind_table find_unwind_table(std::uintptr_t address) noexcept;

/// True if the code of \p table is never unloaded: it is the program, or was loaded with it. May be false without need.
[[nodiscard]] bool is_permanent(const unwind_table& table) noexcept;

}  // namespace pmr_debug::os
