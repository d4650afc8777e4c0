/// \file
/// An index of every word under /usr/include, in pmr containers on a chain of debug resources, beside the same program
/// on `std::pmr::new_delete_resource()`. With `--plant` it has a bug, and shows what is reported. See options.cpp.

#include "chain.hpp"
#include "index.hpp"
#include "measured.hpp"
#include "options.hpp"
#include "planted.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory_resource>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

// No unnamed namespace: its name in every frame makes reports no easier to read.
namespace demo {

namespace fs = std::filesystem;

constexpr std::size_t words_shown = 8;

struct found_files {
    std::vector<std::string> paths;
    std::uint64_t unreadable = 0;
};

void find_files_in(const fs::path& folder, found_files& found) {
    std::error_code error;
    fs::recursive_directory_iterator at(folder, fs::directory_options::skip_permission_denied, error);
    for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
        std::error_code unknown;
        if (at->is_regular_file(unknown)) {
            found.paths.push_back(at->path().string());
        } else if (unknown) {  // a link that leads nowhere, for one
            ++found.unreadable;
        }
    }
    found.unreadable += error ? 1 : 0;
}

/// Returns: the files named, and those in the folders named, in an order that does not depend on the file system.
found_files find_files(const std::vector<std::string>& roots) {
    found_files found;
    for (const std::string& root : roots) {
        std::error_code error;
        if (fs::is_directory(root, error)) {
            find_files_in(root, found);
        } else {
            found.paths.push_back(root);
        }
    }
    std::sort(found.paths.begin(), found.paths.end());
    return found;
}

/// Returns: how many files could not be read.
std::uint64_t add_all(word_index& index, const found_files& files) {
    std::uint64_t unreadable = files.unreadable;
    for (const std::string& path : files.paths) {
        unreadable += index.add_file(path) ? 0 : 1;
    }
    return unreadable;
}

// ---- What is printed -----------------------------------------------------------------------------------------------

double mebibytes(std::uint64_t bytes) {
    return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

/// Returns: 1234567 as "1 234 567".
std::string grouped(std::uint64_t n) {
    std::string digits = std::to_string(n);
    for (std::size_t i = digits.size(); i > 3; i -= 3) {
        digits.insert(i - 3, 1, ' ');
    }
    return digits;
}

void print_words(const word_index& index) {
    std::printf("%s files, %.1f MiB of text, %s words in %s places; most frequent:\n", grouped(index.files()).c_str(),
                mebibytes(index.bytes()), grouped(index.words().size()).c_str(), grouped(index.postings()).c_str());
    for (const word_index::entry* e : index.most_frequent(words_shown)) {
        std::printf("  %10s  %s\n", grouped(e->second.size()).c_str(), e->first.c_str());
    }
}

void print_piece(std::string_view text, void* /*unused*/) noexcept {
    std::fwrite(text.data(), 1, text.size(), stdout);
}

template <class Checks>
void print_chain(const debug_chain<Checks>& chain) {
    std::printf("\nscopes, while the index stands (their upstream is \"heap\", whose upstream is \"pages\"):\n\n");
    chain.index.write_tree(print_piece, nullptr);

    const pmr_debug::statistics heap = chain.heap.stats();
    const pmr_debug::statistics scope = chain.index.stats();
    const pmr_debug::depot_statistics traces = pmr_debug::depot_stats();
    std::printf("\nheap:  %s blocks allocated, %s freed, %.1f MiB live\n", grouped(heap.total_allocations).c_str(),
                grouped(heap.total_deallocations).c_str(), mebibytes(heap.live_bytes));
    std::printf("       %.1f MiB resident, %.1f MiB of records; %s units retired, not to be used again\n",
                mebibytes(heap.resident_bytes), mebibytes(heap.overhead_bytes), grouped(heap.retired_units).c_str());
    std::printf("index: %.1f MiB of records\n", mebibytes(scope.overhead_bytes));
    std::printf("depot: %s distinct stack traces in %.1f KiB\n", grouped(traces.traces).c_str(),
                static_cast<double>(traces.bytes) / 1024.0);
}

void print_ratio(const char* what, const char* unit, double plain, double debug) {
    std::printf("  %-24s %9.2f %-3s %9.2f %-3s %7.1fx\n", what, plain, unit, debug, unit, debug / plain);
}

void print_comparison(const run_result& plain, const run_result& debug, unsigned runs) {
    std::printf("\n  %-24s %13s %13s %8s\n", runs == 1 ? "one run" : "median of the runs", "new_delete", "debug chain",
                "ratio");
    print_ratio("time, reading included", "s", plain.seconds, debug.seconds);
    print_ratio("peak resident memory", "MiB", mebibytes(plain.peak_resident_bytes),
                mebibytes(debug.peak_resident_bytes));
}

// ---- Runs ----------------------------------------------------------------------------------------------------------

class stopwatch {
public:
    [[nodiscard]] double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void take_down(run_result& result, const word_index& index) {
    result.files = index.files();
    result.text_bytes = index.bytes();
    result.words = index.words().size();
    result.postings = index.postings();
    result.checksum = index.checksum();
}

run_result run_plain(const found_files& files) {
    std::pmr::memory_resource* const memory = std::pmr::new_delete_resource();
    run_result result;
    double building = 0;
    stopwatch taking_down;
    {
        const stopwatch watch;
        word_index index({memory, memory, memory});
        result.unreadable_files = add_all(index, files);
        building = watch.seconds();
        take_down(result, index);
        taking_down = {};
    }
    result.seconds = building + taking_down.seconds();
    return result;
}

template <class Checks>
run_result run_debug(const found_files& files, bool verbose) {
    run_result result;
    leaks_told_once handler(pmr_debug::default_report_handler());
    double building = 0;
    stopwatch taking_down;
    {
        const stopwatch watch;
        debug_chain<Checks> chain(handler);
        {
            word_index index(chain.memory());
            result.unreadable_files = add_all(index, files);
            building = watch.seconds();
            take_down(result, index);
            if (verbose) {
                print_words(index);
                print_chain(chain);
                std::fflush(stdout);
            }
            taking_down = {};
        }
        const pmr_debug::statistics s = chain.heap.stats();
        result.allocations = s.total_allocations;
        result.deallocations = s.total_deallocations;
    }
    result.seconds = building + taking_down.seconds();
    result.errors = handler.errors();
    result.leaked_blocks = handler.leaked_blocks();
    return result;
}

/// Returns: exit status.
template <class Checks>
int compare(const options& o, const found_files& files) {
    std::printf("indexing %s files, on the debug chain and on new_delete_resource in turns, runs of each: %u\n\n",
                grouped(files.paths.size()).c_str(), o.runs);
    std::vector<run_result> plain;
    std::vector<run_result> debug;
    for (unsigned i = 0; i < o.runs; ++i) {  // in turns, so that a busy moment of the machine meets both
        debug.push_back(in_own_process([&] { return run_debug<Checks>(files, i == 0); }));
        plain.push_back(in_own_process([&] { return run_plain(files); }));
    }
    const run_result& first = debug.front();
    print_comparison(median(plain), median(debug), o.runs);
    std::printf("\n");
    if (first.unreadable_files != 0) {
        std::printf("%s files could not be read\n", grouped(first.unreadable_files).c_str());
    }
    if (first.checksum != plain.front().checksum) {
        std::printf("the two runs disagree: some file changed meanwhile\n");
    }
    if (!Checks::rules.checks) {
        std::printf("policy release: nothing was checked\n");
        return EXIT_SUCCESS;
    }
    if (first.errors + first.leaked_blocks != 0) {
        std::printf("%s errors, %s blocks leaked\n", grouped(first.errors).c_str(),
                    grouped(first.leaked_blocks).c_str());
        return EXIT_FAILURE;
    }
    std::printf("no leaks, no errors: %s blocks allocated, as many freed\n", grouped(first.allocations).c_str());
    return EXIT_SUCCESS;
}

/// Returns: exit status.
template <class Checks>
int run_planted(const options& o, const found_files& files) {
    pmr_debug::json_handler json(2);
    pmr_debug::text_handler text({.max_frames = 8});  // the default handler shows all, down to _start
    leaks_told_once handler(o.json ? static_cast<pmr_debug::report_handler&>(json) : text);
    {
        debug_chain<Checks> chain(handler);
        pmr_debug::basic_general_purpose_resource<Checks::rules> other(&chain.pages,
                                                                       {.name = "other", .handler = &handler});
        word_index index(chain.memory());
        const std::uint64_t unreadable = add_all(index, files);
        std::printf("%s files indexed (%s unreadable), %s blocks live; now %s() in %s\n\n",
                    grouped(index.files()).c_str(), grouped(unreadable).c_str(),
                    grouped(chain.heap.stats().live_blocks).c_str(), function_of(o.bug),
                    "examples/word_index/planted.cpp");
        std::fflush(stdout);
        plant(o.bug, {.index = index, .memory = chain.index, .other = other});
    }
    if (handler.errors() + handler.leaked_blocks() == 0) {
        std::printf("the bug went unnoticed: policy %s does not look for it\n",
                    std::string(policy_name(o.policy)).c_str());
        return 3;
    }
    return EXIT_FAILURE;
}

template <class Checks>
int run(const options& o) {
    const found_files files = find_files(o.paths);
    switch (o.bug) {
        case planted_bug::none: return compare<Checks>(o, files);
        case planted_bug::foreign_thread: return run_planted<one_thread_only<Checks>>(o, files);
        default: return run_planted<Checks>(o, files);
    }
}

int run_under_policy(const options& o) {
    switch (o.policy) {
        case shipped_policy::fast: return run<fast_checks>(o);
        case shipped_policy::thorough: return run<thorough_checks>(o);
        case shipped_policy::release: return run<no_checks>(o);
        case shipped_policy::default_: break;
    }
    return run<default_checks>(o);
}

}  // namespace demo

int main(int argc, char** argv) {
    try {
        const std::optional<demo::options> o = demo::parse(argc, argv);
        if (!o.has_value()) {
            return 2;
        }
        if (o->help) {
            demo::print_help(argv[0]);
            return EXIT_SUCCESS;
        }
        return demo::run_under_policy(*o);
    } catch (const std::exception& e) {
        std::cerr << "word_index: " << e.what() << '\n';
        return EXIT_FAILURE;
    }
}
