#pragma once

// Files of code that were loaded while the program ran, and may be unloaded, floor 2. Each has a number, which is not
// used again, so that what was found out of its code means the same forever. 0 stands for all code that stays.

#include "os/unwind_table.hpp"

#include <cstdint>

namespace pmr_debug::stack {

/// Numbers below this are given.
inline constexpr unsigned most_loaded_files = 1U << 12;

/// Returns: the number of the file of \p table, which holds the code at \p address; 0 if there are too many. Takes no
/// lock.
[[nodiscard]] unsigned number_of_file(const os::unwind_table& table, std::uintptr_t address) noexcept;

struct loaded_file_info {
    std::uintptr_t low = 0;  ///< where it was: [low, high)
    std::uintptr_t high = 0;
    std::uintptr_t base = 0;  ///< what to take off an address to get the one in the file
    const char* path = "";    ///< stays valid
};
[[nodiscard]] loaded_file_info file_info(std::uint16_t file) noexcept;

/// True if file \p file is still what is loaded at \p address.
[[nodiscard]] bool is_still_loaded(std::uint16_t file, std::uintptr_t address) noexcept;

}  // namespace pmr_debug::stack
