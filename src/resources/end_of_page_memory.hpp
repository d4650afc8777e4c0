#pragma once

// Pages and granules, floor 4: what the making of units and their end share. All of it runs under the resource's lock,
// but guard_range and what calls the upstream.

#include "resources/end_of_page_core.hpp"

#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail::fence {

[[nodiscard]] inline void* at(std::uintptr_t address) noexcept {
    return reinterpret_cast<void*>(address);
}

[[nodiscard]] inline std::size_t granule_of(const fence_core& core, std::uintptr_t address) noexcept {
    return (address - core.base) >> granule_shift;
}

/// Effects: guards pages of a unit, and notes in it what that takes. Thread safety: any thread.
[[nodiscard]] os::guard_tier guard_range(unit& u, std::uintptr_t from, std::size_t bytes) noexcept;

/// Effects: keeps count of the mappings that sealing, or using, [first, first + count) costs or saves.
void note_use(fence_core& core, std::size_t first, std::size_t count, granule_use use) noexcept;

/// Effects: hands out \p count granules. \p usable: readable and writable; else anything may be mapped there.
/// Returns: their address, or 0.
[[nodiscard]] std::uintptr_t carve(fence_core& core, std::size_t count, bool usable) noexcept;

/// Effects: forgets a retired unit: index, records, descriptor; what is trapped stays trapped.
void forget(fence_core& core, unit& u) noexcept;

/// Effects: returns the memory of a unit to the upstream, which is no page_resource. No lock held: it may use this
/// resource.
void give_back(fence_core& core, unit& u) noexcept;

/// Effects, over such an upstream: if more than \p keep bytes of retired units wait, verifies the oldest and returns
/// it, unless it is damaged. No lock held. Returns: false if there is none.
bool return_oldest(fence_core& core, std::size_t keep) noexcept;

/// Effects, over such an upstream: retires the strip whose slots are being handed out, if all that were are freed. No
/// lock held. Returns: false if there is none.
bool retire_open(fence_core& core) noexcept;

}  // namespace pmr_debug::detail::fence
