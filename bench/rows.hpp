#pragma once

// The resources that are measured: what is compared with, and this library under its policies.

#include "workloads.hpp"

#include <memory_resource>
#include <span>
#include <string_view>

namespace bench {

/// Called with a fresh resource.
using resource_user = void (*)(std::pmr::memory_resource& resource, void* context);

struct row {
    std::string_view name;
    /// Effects: makes the resource, calls \p use with it, destroys it.
    void (*with)(resource_user use, void* context);
    bool many_threads = true;  ///< two threads may use it at once
    bool frees = true;         ///< freed memory can be used again
    bool one_pair = false;     ///< so slow that W1 says all
    bool a_page_each = false;  ///< a million live blocks would take gigabytes
};

/// The row all others are divided by.
inline constexpr std::string_view base_row = "glibc malloc";
/// The row the bounds speak of.
inline constexpr std::string_view traced_row = "traces";

[[nodiscard]] std::span<const row> rows() noexcept;

/// True if \p r makes sense on \p w.
[[nodiscard]] constexpr bool suits(const row& r, const workload& w) noexcept {
    const bool only_grows = w.id == workload_id::w2 || w.id == workload_id::w3 ||
                            w.id == workload_id::w2x2;  // to gigabytes, if nothing is freed
    const bool million = w.id == workload_id::w4 || w.id == workload_id::w5;
    return (r.many_threads || w.threads == 1) && (r.frees || !only_grows) && (!r.one_pair || w.id == workload_id::w1) &&
           (!r.a_page_each || !million);
}

/// Figures that are no workload. Each runs in the calling process.
struct extras {
    double metadata_bytes_a_slot = 0;  ///< records of 1 000 000 live blocks, divided by them
    double equal_leaks_ms = 0;         ///< report of 10 000 leaks of one call path
    double equal_leaks_entries = 0;
    double distinct_leaks_ms = 0;  ///< report of 100 000 leaks, each of a call path of its own
    double distinct_leaks_entries = 0;
};
[[nodiscard]] extras measure_metadata();
[[nodiscard]] extras measure_equal_leaks();
[[nodiscard]] extras measure_distinct_leaks();

}  // namespace bench
