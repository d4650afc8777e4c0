#pragma once

// Reading memory that may go away meanwhile, floor 0.

#include <cstddef>

namespace pmr_debug::os {

/// Effects: copies \p bytes from \p from to \p to by way of the kernel, which refuses what is not mapped. Where a
/// filter
///   forbids that call, as any copy. Returns: false if not all of it could be read. Leaves errno alone.
bool safe_copy(void* to, const void* from, std::size_t bytes) noexcept;

}  // namespace pmr_debug::os
