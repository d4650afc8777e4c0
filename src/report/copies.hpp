#pragma once

// Other copies of this library in the process, floor 3: a program and its plug-in that were each linked with one. Each
// has resources, and an address map, that the other knows nothing of.

#include "metadata/registry.hpp"

#include <cstdint>

namespace pmr_debug::detail {

/// Returns: as metadata::find_owner(). With below::ask the other copies are asked, too, if this one knows no owner.
/// Traces of another copy's block are copied into this one's depot.
[[nodiscard]] resource_ref find_owner_anywhere(const void* p, const metadata::resource_record* self,
                                               metadata::below upstreams, metadata::owned_block* out) noexcept;

/// Returns: as metadata::find_at(), from this copy or, if that knows nothing of \p address, from another one. For
/// signal handlers, too.
[[nodiscard]] resource_ref find_at_anywhere(std::uintptr_t address, metadata::address_finding* out) noexcept;

/// True if \p r is a resource of another copy.
[[nodiscard]] bool is_of_another_copy(const resource_ref& r) noexcept;

}  // namespace pmr_debug::detail
