#pragma once

// Every measurement runs in a process of its own: peak memory belongs to it alone, no resource profits from what the
// one before it left behind, and a crash is a failed measurement.

#include "rows.hpp"
#include "workloads.hpp"

#include <optional>
#include <string>

namespace bench {

struct sample {
    outcome result;
    double peak_mib = 0;  ///< most resident memory, less what was resident before the resource was made
};

/// Returns: what \p r did on \p w, or nothing and why in \p error.
[[nodiscard]] std::optional<sample> measure_in_child(const row& r, const workload& w, std::string& error);

/// The same for an extra figure.
[[nodiscard]] std::optional<extras> measure_in_child(extras (*measure)(), std::string& error);

}  // namespace bench
