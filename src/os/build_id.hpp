#pragma once

// Build ids, floor 0: what the linker put into a file to tell it from all others.

#include <cstdint>

namespace pmr_debug::os {

/// Returns: where the build id is of the file that is loaded at [low, high), of 8 bytes at least; 0: it has none.
/// Preconditions: its headers can be read, as they can while it is loaded.
[[nodiscard]] std::uintptr_t find_build_id(std::uintptr_t low, std::uintptr_t high) noexcept;

/// Returns: the first 8 bytes of the build id of the file that is loaded there, read by way of the kernel, as it may be
/// unloaded meanwhile; 0: it has none.
[[nodiscard]] std::uint64_t loaded_build_id(std::uintptr_t low, std::uintptr_t high) noexcept;

/// Returns: the same of the file on disk; 0: it has none, or cannot be read.
[[nodiscard]] std::uint64_t file_build_id(const char* path) noexcept;

}  // namespace pmr_debug::os
