#pragma once

// What resources do so that a chain can be followed, floor 4.

#include "metadata/registry.hpp"
#include "report/dispatch.hpp"

#include <pmr_debug/statistics.hpp>

#include <memory_resource>

namespace pmr_debug::detail {

/// Effects: raises error_kind::cycle if the upstreams of \p self, as far as they are this library's, lead back to it:
///   somebody below was built on its address before it stood there. Null is allowed.
void report_cycle(const metadata::resource_record* self, error_tally& errors) noexcept;

/// For the registry: the counters of the \p Resource at \p address (a std::pmr::memory_resource*).
template <class Resource>
statistics stats_by_address(const void* address) noexcept {
    return static_cast<const Resource*>(static_cast<const std::pmr::memory_resource*>(address))->stats();
}

}  // namespace pmr_debug::detail
