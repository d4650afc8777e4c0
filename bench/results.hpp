#pragma once

// What was measured, and how it is shown.

#include "child.hpp"

#include <iosfwd>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bench {

class results {
public:
    void add(const row& r, const workload& w, const sample& s);
    void add(const extras& e);

    /// Effects: writes the table of all workloads and rows, then every bound with what was measured beside it.
    void write_table(std::ostream& out) const;
    void write_json(std::ostream& out) const;

private:
    /// Medians over the repetitions.
    struct summary {
        double ns = 0;       ///< an operation: processor time where one thread works, else elapsed time
        double wall_ns = 0;  ///< an operation: elapsed time
        double cpu_ns = 0;   ///< an operation: processor time
        double spread = 0;   ///< (slowest - fastest) / median of `ns`
        double peak_mib = 0;
        std::size_t samples = 0;
    };
    /// A promise, and how it stands. Nothing measured: it was not among what ran.
    struct bound {
        std::string_view group;
        std::string what;
        double limit = 0;
        std::string_view unit;
        std::optional<double> measured;
        bool at_least = false;
        [[nodiscard]] bool met() const noexcept { return at_least ? *measured >= limit : *measured <= limit; }
    };

    [[nodiscard]] std::optional<summary> find(std::string_view row_name, workload_id id) const;
    [[nodiscard]] std::optional<double> ratio(std::string_view row_name, workload_id id) const;
    /// Operations a second of \p two, which works twice at once, divided by those of W2; by elapsed or processor time.
    [[nodiscard]] std::optional<double> throughput(std::string_view row_name, double summary::*time,
                                                   workload_id two = workload_id::w6) const;
    [[nodiscard]] std::vector<bound> bounds() const;

    std::map<std::pair<std::string_view, workload_id>, std::vector<sample>> samples_;
    std::optional<extras> metadata_, equal_leaks_, distinct_leaks_;
};

}  // namespace bench
