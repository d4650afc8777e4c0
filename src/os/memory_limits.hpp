#pragma once

// How much memory this process may have, floor 0.

#include <cstddef>

namespace pmr_debug::os {

inline constexpr std::size_t no_limit = static_cast<std::size_t>(-1);

/// Returns: the soft limit of this process's address space (RLIMIT_AS); no_limit if there is none.
[[nodiscard]] std::size_t address_space_limit() noexcept;

/// Returns: the least memory limit of this process's control group and those above it, version 2 or 1; no_limit if
///   there is none, or it cannot be read. Reads files by system calls alone; changes no errno.
[[nodiscard]] std::size_t control_group_limit() noexcept;

/// The same for tests: \p membership stands for /proc/self/cgroup, \p root for /sys/fs/cgroup.
[[nodiscard]] std::size_t control_group_limit(const char* membership, const char* root) noexcept;

}  // namespace pmr_debug::os
