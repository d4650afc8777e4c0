#include "results.hpp"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <ostream>

namespace bench {
namespace {

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t middle = values.size() / 2;
    return values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

template <class Get>
std::vector<double> each(const std::vector<sample>& samples, Get get) {
    std::vector<double> values;
    values.reserve(samples.size());
    for (const sample& s : samples) {
        values.push_back(get(s));
    }
    return values;
}

}  // namespace

void results::add(const row& r, const workload& w, const sample& s) {
    samples_[{r.name, w.id}].push_back(s);
}

void results::add(const extras& e) {
    (e.metadata_bytes_a_slot > 0 ? metadata_ : e.equal_leaks_ms > 0 ? equal_leaks_ : distinct_leaks_) = e;
}

std::optional<results::summary> results::find(std::string_view row_name, workload_id id) const {
    const auto found = samples_.find({row_name, id});
    if (found == samples_.end()) {
        return std::nullopt;
    }
    const workload& w = bench::find(id);
    const auto operations = static_cast<double>(w.operations);
    // Other processes disturb processor time less; but a thread that waits for another one uses none.
    const auto ns = each(found->second, [&](const sample& s) {
        return (w.threads == 1 ? s.result.cpu_ns : s.result.wall_ns) / operations;
    });
    summary result;
    result.ns = median(ns);
    result.wall_ns = median(each(found->second, [&](const sample& s) { return s.result.wall_ns / operations; }));
    result.cpu_ns = median(each(found->second, [&](const sample& s) { return s.result.cpu_ns / operations; }));
    const auto [low, high] = std::minmax_element(ns.begin(), ns.end());
    result.spread = (*high - *low) / result.ns;
    result.peak_mib = median(each(found->second, [](const sample& s) { return s.peak_mib; }));
    result.samples = found->second.size();
    return result;
}

std::optional<double> results::ratio(std::string_view row_name, workload_id id) const {
    const auto mine = find(row_name, id);
    const auto base = find(base_row, id);
    return mine && base ? std::optional(mine->ns / base->ns) : std::nullopt;
}

std::optional<double> results::throughput(std::string_view row_name, double summary::*time,
                                          workload_id two_at_once) const {
    const auto one = find(row_name, workload_id::w2);
    const auto two = find(row_name, two_at_once);
    return one && two ? std::optional(2 * (*one).*time / (*two).*time) : std::nullopt;
}

std::vector<results::bound> results::bounds() const {
    using enum workload_id;
    std::vector<bound> all;
    const auto add_ratio = [&](std::string_view group, std::string_view row_name, workload_id id, double limit) {
        all.push_back({group, std::string(row_name) + ", " + std::string(bench::find(id).name), limit,
                       "times glibc malloc", ratio(row_name, id)});
    };

    constexpr std::string_view first = "bounds: 8-frame traces on both ends, frame pointers kept";
    add_ratio(first, traced_row, w1, 10);
    add_ratio(first, traced_row, w1b, 8);
    add_ratio(first, traced_row, w2, 5);
    add_ratio(first, traced_row, w4, 3);
    add_ratio(first, traced_row, w5, 3);
    for (const auto& [what, time] :
         {std::pair{"traces, W6: a thread's time against W2 alone", &summary::wall_ns},
          std::pair{"the same in processor time, for a machine that is not idle", &summary::cpu_ns}}) {
        const auto two = throughput(traced_row, time);
        all.push_back({first, what, 1, "times", two ? std::optional(2 / *two) : std::nullopt});
    }
    const auto threads = find(traced_row, w6);
    const auto processes = find(traced_row, w2x2);
    all.push_back({first, "traces, W6 against W2 in two processes", 1.1, "times",
                   threads && processes ? std::optional(threads->wall_ns / processes->wall_ns) : std::nullopt});
    // Rounded: the share of a unit's own record, and what is unused at the end of the last unit, are below half a byte.
    all.push_back({first, "records of a slot", 16, "bytes",
                   metadata_ ? std::optional(std::round(metadata_->metadata_bytes_a_slot)) : std::nullopt});
    const auto leaks = [&](const char* what, double limit, std::string_view unit, const std::optional<extras>& e,
                           double extras::*figure) {
        all.push_back({first, what, limit, unit, e ? std::optional((*e).*figure) : std::nullopt});
    };
    leaks("report of 10 000 equal leaks", 50, "ms", equal_leaks_, &extras::equal_leaks_ms);
    leaks("entries of that report", 1, "", equal_leaks_, &extras::equal_leaks_entries);
    leaks("report of 100 000 leaks, all call paths distinct", 1000, "ms", distinct_leaks_, &extras::distinct_leaks_ms);

    constexpr std::string_view later = "targets of later work";
    struct target {
        std::string_view name;
        double pair, churn;
    };
    for (const target& t : {target{"release", 0.6, 0.5}, target{"fast", 1.5, 1.8}, target{traced_row, 3.5, 2.8},
                            target{"traces+canary", 4, 4.2}, target{"default", 4.5, 5}}) {
        add_ratio(later, t.name, w1, t.pair);
        add_ratio(later, t.name, w2, t.churn);
    }
    for (const std::string_view name : {std::string_view("release"), traced_row, std::string_view("default")}) {
        all.push_back({later, std::string(name) + ", W6: throughput of two threads against W2 alone", 1.8, "times",
                       throughput(name, &summary::wall_ns), true});
    }
    const auto upstream = find(base_row, w1);
    for (const auto& [name, limit] : {std::pair<std::string_view, double>{"tracking counts/malloc", 10},
                                      std::pair<std::string_view, double>{"tracking traces/malloc", 35}}) {
        const auto mine = find(name, w1);
        all.push_back({later, std::string(name) + ", W1: added to malloc", limit, "ns",
                       mine && upstream ? std::optional(mine->ns - upstream->ns) : std::nullopt});
    }
    return all;
}

void results::write_table(std::ostream& out) const {
    const auto flags = out.flags();
    out << std::fixed;
    for (const workload& w : workloads) {
        const bool any =
            std::any_of(samples_.begin(), samples_.end(), [&](const auto& s) { return s.first.second == w.id; });
        if (!any) {
            continue;
        }
        out << '\n' << w.name << "  " << w.what << '\n';
        out << "  " << std::left << std::setw(24) << "" << std::right << std::setw(10) << "x glibc" << std::setw(12)
            << "ns/op" << std::setw(10) << "spread" << std::setw(12) << "peak MiB";
        out << (w.threads > 1 ? "    x one thread of W2 (in processor time)\n" : "\n");
        for (const row& r : rows()) {
            const auto s = find(r.name, w.id);
            if (!s) {
                continue;
            }
            out << "  " << std::left << std::setw(24) << r.name << std::right << std::setprecision(2) << std::setw(10);
            if (const auto x = ratio(r.name, w.id)) {
                out << *x;
            } else {
                out << '-';
            }
            out << std::setprecision(1) << std::setw(12) << s->ns << std::setprecision(0) << std::setw(9)
                << s->spread * 100 << '%' << std::setprecision(1) << std::setw(12) << s->peak_mib;
            if (const auto x = throughput(r.name, &summary::wall_ns, w.id); x && w.threads > 1) {
                out << std::setprecision(2) << std::setw(10) << *x << " ("
                    << *throughput(r.name, &summary::cpu_ns, w.id) << ')';
            }
            out << '\n';
        }
    }
    std::string_view group;
    for (const bound& b : bounds()) {
        if (!b.measured) {
            continue;
        }
        if (group != b.group) {
            group = b.group;
            out << '\n' << group << '\n';
        }
        out << "  " << std::left << std::setw(58) << b.what << std::right << std::setprecision(2) << std::setw(9)
            << *b.measured << (b.at_least ? "  >= " : "  <= ") << std::setprecision(1) << std::setw(6) << b.limit << ' '
            << std::left << std::setw(20) << b.unit << std::right << (b.met() ? "met" : "MISSED") << '\n';
    }
    out.flags(flags);
}

void results::write_json(std::ostream& out) const {
    const auto flags = out.flags();
    out << std::setprecision(6) << "{\n  \"results\": [";
    const char* separator = "\n";
    for (const workload& w : workloads) {
        for (const row& r : rows()) {
            const auto s = find(r.name, w.id);
            if (!s) {
                continue;
            }
            out << separator << "    {\"workload\": \"" << w.name << "\", \"row\": \"" << r.name
                << "\", \"ns_per_operation\": " << s->ns << ", \"elapsed_ns_per_operation\": " << s->wall_ns
                << ", \"processor_ns_per_operation\": " << s->cpu_ns;
            if (const auto x = ratio(r.name, w.id)) {
                out << ", \"times_glibc\": " << *x;
            }
            if (const auto x = throughput(r.name, &summary::wall_ns, w.id); x && w.threads > 1) {
                out << ", \"throughput_times_one_thread\": " << *x;
            }
            out << ", \"spread\": " << s->spread << ", \"peak_mib\": " << s->peak_mib << ", \"samples\": " << s->samples
                << '}';
            separator = ",\n";
        }
    }
    out << "\n  ],\n  \"bounds\": [";
    separator = "\n";
    for (const bound& b : bounds()) {
        if (!b.measured) {
            continue;
        }
        out << separator << "    {\"group\": \"" << b.group << "\", \"what\": \"" << b.what
            << "\", \"measured\": " << *b.measured << ", \"limit\": " << b.limit << ", \"unit\": \"" << b.unit
            << "\", \"met\": " << (b.met() ? "true" : "false") << '}';
        separator = ",\n";
    }
    out << "\n  ]\n}\n";
    out.flags(flags);
}

}  // namespace bench
