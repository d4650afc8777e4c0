#pragma once

// For tests of what happens when private memory is used up.

#include <cstddef>
#include <cstdint>

namespace pmr_debug::metadata {

/// Effects: arenas opened from now on hold at most \p bytes. SIZE_MAX: what they were asked for.
void limit_arenas(std::size_t bytes) noexcept;

}  // namespace pmr_debug::metadata
