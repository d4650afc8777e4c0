#pragma once

// What resources ask of a page_resource that its users cannot, floor 4.

#include <cstddef>
#include <memory_resource>

namespace pmr_debug::detail {

/// Effects: as allocate() of \p pages, but without permissions: to be committed piece by piece, so that nothing large
/// is charged or locked before it is used. It is returned by deallocate(). Preconditions: \p pages is a page_resource.
/// Returns: null if there is no memory, or a limit is in the way.
[[nodiscard]] void* reserve_pages(std::pmr::memory_resource& pages, std::size_t bytes, std::size_t alignment) noexcept;

}  // namespace pmr_debug::detail
