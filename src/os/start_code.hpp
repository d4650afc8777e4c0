#pragma once

// The code between the system and main or a thread's function, floor 0.

#include <cstdint>

namespace pmr_debug::os {

/// True for an address in the C library or in the program's entry point, the two that the outermost frames belong to.
/// False for all addresses where it cannot be told, as in a static program. Takes no lock, allocates nothing.
[[nodiscard]] bool is_start_code(std::uintptr_t address) noexcept;

/// True for an address in the program's entry point, which nothing calls.
[[nodiscard]] bool is_program_entry(std::uintptr_t address) noexcept;

/// True if \p address lies in the program itself, which is never unloaded. May be false without need where the C
/// library cannot tell without its loader's lock.
[[nodiscard]] bool is_in_program(std::uintptr_t address) noexcept;

}  // namespace pmr_debug::os
