#pragma once

// A page that code of the same process finds by a name, floor 0: what several copies of this library in one process,
// which share no symbol, have in common.

#include <string_view>

namespace pmr_debug::os {

/// Returns: the page of that name, made and zeroed if there is none yet; null if the system refuses. It stays to the
/// end of the process; a forked child has a copy. \p name: letters, digits and underlines, at most 40.
/// Allocates nothing, keeps errno; reads the list of the process's mappings.
[[nodiscard]] void* named_page(std::string_view name) noexcept;

}  // namespace pmr_debug::os
