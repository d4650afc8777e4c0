#pragma once

// Asking an upstream for memory without believing it, floor 4.

#include <cstddef>
#include <memory_resource>

namespace pmr_debug::detail {

/// Returns: whatever \p upstream returns, null and misaligned pointers included. Throws: what it throws.
///
/// memory_resource::allocate promises the compiler a non-null, aligned result, so a test of what it returned may be
/// optimised away, and a sanitizer ends the program before it.
void* ask_upstream(std::pmr::memory_resource& upstream, std::size_t bytes, std::size_t alignment);

}  // namespace pmr_debug::detail
