// pmr_debug_bench: the workloads on every resource, by Google Benchmark. It names, selects, repeats and interleaves the
// measurements; each runs in a child process (child.hpp) and hands its time back. The table at the end is ours.

#include "child.hpp"
#include "results.hpp"

#include <benchmark/benchmark.h>

#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr std::string_view usage = R"(usage: pmr_debug_bench [options]

  --filter=REGEX      only measurements whose name "workload/row" fits, as --filter='W2/(glibc malloc|default)$'
  --repetitions=N     each measurement N times, in mixed order (default 3); medians are shown
  --quick             a few resources, once: are the checksums right?
  --json=PATH         also write results and bounds there
  --help              this text; options of Google Benchmark (--benchmark_...) are taken too

Ends with status 1 if a checksum is wrong or a measurement fails. A bound that is missed is shown, and no failure.
)";

struct options {
    std::string filter = ".";
    std::string repetitions = "3";
    std::string json;
    bool quick = false;
    std::vector<std::string> rest;  ///< for Google Benchmark
};

/// Returns: false if there is nothing more to do.
bool parse(int argc, char** argv, options& o) {
    const auto value = [](std::string_view argument, std::string_view name, std::string& to) {
        const bool mine = argument.starts_with(name);
        if (mine) {
            to = argument.substr(name.size());
        }
        return mine;
    };
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (argument == "--help" || argument == "-h") {
            std::cout << usage;
            return false;
        }
        if (argument == "--quick") {
            o.quick = true;
            o.repetitions = "1";
            o.filter = "/(glibc malloc|fast|traces|default)$";
        } else if (!value(argument, "--filter=", o.filter) && !value(argument, "--repetitions=", o.repetitions) &&
                   !value(argument, "--json=", o.json)) {
            o.rest.emplace_back(argument);
        }
    }
    return true;
}

/// All output is ours.
class silent_reporter final : public benchmark::BenchmarkReporter {
public:
    bool ReportContext(const Context&) override { return true; }
    void ReportRuns(const std::vector<Run>&) override {}
};

/// What is under way.
class progress {
public:
    void show(std::string_view name) {
        ++done_;
        if (!plain_) {
            std::fprintf(stderr, "\r%4u  %-48.*s", done_, static_cast<int>(name.size()), name.data());
        }
    }
    void end() const {
        if (!plain_) {
            std::fprintf(stderr, "\r%60s\r", "");
        }
    }

private:
    bool plain_ = ::isatty(2) == 0;
    unsigned done_ = 0;
};

struct session {
    bench::results found;
    progress shown;
    unsigned failures = 0;

    void fail(std::string_view name, const std::string& why) {
        ++failures;
        std::fprintf(stderr, "\nFAILED %.*s: %s\n", static_cast<int>(name.size()), name.data(), why.c_str());
    }
};

void register_all(session& s) {
    for (const bench::workload& w : bench::workloads) {
        for (const bench::row& r : bench::rows()) {
            if (!bench::suits(r, w)) {
                continue;
            }
            const std::string name = std::string(w.name) + "/" + std::string(r.name);
            const auto measure = [&s, &w, &r, name](benchmark::State& state) {
                for ([[maybe_unused]] const auto once : state) {
                    s.shown.show(name);
                    std::string error;
                    const auto result = bench::measure_in_child(r, w, error);
                    if (!result) {
                        s.fail(name, error);
                        state.SkipWithError(error.c_str());
                        return;
                    }
                    s.found.add(r, w, *result);
                    state.SetIterationTime(result->result.wall_ns * 1e-9);
                    state.counters["ns_per_operation"] = result->result.wall_ns / static_cast<double>(w.operations);
                    state.counters["peak_mib"] = result->peak_mib;
                }
            };
            benchmark::RegisterBenchmark(name.c_str(), measure)
                ->Iterations(1)
                ->UseManualTime()
                ->Unit(benchmark::kMillisecond);
        }
    }
}

void measure_extras(session& s) {
    using measurement = std::pair<std::string_view, bench::extras (*)()>;
    for (const auto& [name, measure] : {measurement{"records of a slot", bench::measure_metadata},
                                        measurement{"equal leaks", bench::measure_equal_leaks},
                                        measurement{"distinct leaks", bench::measure_distinct_leaks}}) {
        s.shown.show(name);
        std::string error;
        if (const auto result = bench::measure_in_child(measure, error)) {
            s.found.add(*result);
        } else {
            s.fail(name, error);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    if (!parse(argc, argv, o)) {
        return 0;
    }
    // Google Benchmark leaves "/iterations:1/manual_time" behind the names it filters; the user's "$" means our end.
    std::string filter = o.filter;
    if (filter.ends_with('$')) {
        filter.replace(filter.size() - 1, 1, "/iterations:");
    }
    std::vector<std::string> arguments{argv[0], "--benchmark_enable_random_interleaving=true",
                                       "--benchmark_repetitions=" + o.repetitions, "--benchmark_filter=" + filter};
    arguments.insert(arguments.end(), o.rest.begin(), o.rest.end());
    std::vector<char*> pointers;
    for (std::string& a : arguments) {
        pointers.push_back(a.data());
    }
    int count = static_cast<int>(pointers.size());
    pointers.push_back(nullptr);
    benchmark::Initialize(&count, pointers.data());
    if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) {
        std::cerr << usage;
        return 2;
    }

    session s;
    register_all(s);
    silent_reporter reporter;
    if (benchmark::RunSpecifiedBenchmarks(&reporter) == 0) {
        std::cerr << "no measurement is named like that\n";
        return 2;
    }
    if (o.filter == "." || o.quick) {
        measure_extras(s);
    }
    s.shown.end();
    std::array<double, 1> load{};
    if (::getloadavg(load.data(), 1) == 1) {
        std::cout << "load average " << load[0] << " on " << std::thread::hardware_concurrency()
                  << " processors (these measurements make 1 of it)\n";
    }
    s.found.write_table(std::cout);
    if (!o.json.empty()) {
        std::ofstream json(o.json);
        s.found.write_json(json);
        if (!json.flush()) {
            std::cerr << "cannot write " << o.json << '\n';
            return 1;
        }
    }
    return s.failures == 0 ? 0 : 1;
}
