#pragma once

// Pages of a unit that lives: where they are, what they hold, and giving the dead ones back, floor 4. Of the
// general-purpose resource's own sources only.

#include "resources/general_purpose_memory.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

/// Pages of a unit, a bit each.
using page_set = std::uint16_t;
static_assert(largest_unit / unit_page == 16);

/// Bytes that the pages in \p pages take.
[[nodiscard]] inline std::size_t bytes_in(page_set pages) noexcept {
    return static_cast<std::size_t>(std::popcount(pages)) * unit_page;
}

/// The pages that slot \p slot lies in; what is before the first slot, and what the last one leaves, belong to those.
[[nodiscard]] page_set pages_of(const unit& u, std::uint32_t slot) noexcept;

[[nodiscard]] page_set all_pages(const unit& u) noexcept;

/// Freed slots of a unit all of whose slots were handed out.
[[nodiscard]] std::uint32_t freed_slots(const unit& u) noexcept;

/// Freed slots of such a unit that can be used again.
[[nodiscard]] std::uint32_t reusable_slots(const general_purpose_core& core, const unit& u) noexcept;

/// Of those, slots that lie in memory which was not given back, or a few less.
[[nodiscard]] std::uint32_t reusable_in_memory(const general_purpose_core& core, const unit& u) noexcept;

/// Bytes of freed slots that are in memory, or a little less.
[[nodiscard]] std::size_t freed_bytes(const unit& u) noexcept;

/// Bytes of records of a unit that lives which are in memory.
[[nodiscard]] std::size_t records_kept(const general_purpose_core& core, const unit& u) noexcept;

/// Effects: gives records up all of whose slots are freed and lie in memory that was given back, but for pages that
/// they share with others, while too much is remembered. \p u is in no line. Lock held.
void forget_gone(general_purpose_core& core, unit& u) noexcept;

/// The pages of a unit that hold freed slots only, and were not given back.
[[nodiscard]] page_set dead_pages(const general_purpose_core& core, unit& u) noexcept;

/// As dead_pages, under reuse::immediate: pages of free slots only, whose fills are whole. Others are fresh, or were
/// written to: whoever takes those will see.
[[nodiscard]] page_set free_pages(const general_purpose_core& core, const unit& u) noexcept;

/// Effects: verifies the slots in \p pages, and what is around all slots; what is broken is reported. Returns: true if
/// nothing is.
[[nodiscard]] bool verify_pages(general_purpose_core& core, unit& u, page_set pages) noexcept;

/// Effects: gives the memory of \p pages back, and guards them where dead memory is to fault. Returns: bytes.
std::size_t give_pages_back(general_purpose_core& core, unit& u, page_set pages) noexcept;

/// Effects: makes pages that were given back usable again, with the fill of freed slots. By whoever has the unit.
/// Returns: false if the system refuses.
bool bring_back(const general_purpose_core& core, unit& u, page_set pages) noexcept;

}  // namespace pmr_debug::detail
