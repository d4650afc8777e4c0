// Leaks by call path: grouping, order, totals, and how long a report of many takes.

#include "report/leaks.hpp"
#include "support/sample_reports.hpp"
#include "support/sanitizers.hpp"

#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace pmr_debug;
using detail::leak_grouper;
using test_support::at;
using test_support::text_of;

#ifdef __OPTIMIZE__
constexpr int slower = TEST_SANITIZED != 0 ? 10 : 1;
#else
constexpr int slower = 10;
#endif

using milliseconds = std::chrono::duration<double, std::milli>;

template <class F>
double milliseconds_of(const F& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return milliseconds(std::chrono::steady_clock::now() - start).count();
}

// 2^depth different call paths, one for each value of the bits of \p path.
trace_id left(unsigned depth, unsigned path);
trace_id right(unsigned depth, unsigned path);

__attribute__((noinline)) trace_id left(unsigned depth, unsigned path) {
    trace_id id = trace_id::none;
    if (depth == 0) {
        id = capture_trace(32);
    } else if ((path & 1U) != 0) {
        id = right(depth - 1, path / 2);
    } else {
        id = left(depth - 1, path / 2);
    }
    asm volatile("# left");  // no tail call, and no merging with right()
    return id;
}

__attribute__((noinline)) trace_id right(unsigned depth, unsigned path) {
    trace_id id = trace_id::none;
    if (depth == 0) {
        id = capture_trace(32);
    } else if ((path & 1U) != 0) {
        id = right(depth - 1, path / 2);
    } else {
        id = left(depth - 1, path / 2);
    }
    asm volatile("# right");
    return id;
}

report leak_report(leak_grouper& groups) {
    report r;
    r.kind = error_kind::leak;
    r.leaks = groups.finish();
    r.leaked_blocks = groups.total_blocks();
    r.leaked_bytes = groups.total_bytes();
    return r;
}

TEST(leak_grouper, of_nothing_is_empty) {
    leak_grouper groups;
    EXPECT_TRUE(groups.finish().empty());
    EXPECT_EQ(groups.total_blocks(), 0U);
    EXPECT_EQ(groups.total_bytes(), 0U);
}

TEST(leak_grouper, sums_by_trace_and_names_the_oldest_block) {
    leak_grouper groups;
    EXPECT_TRUE(groups.add(trace_id{5}, 10, at(0x100), 3));
    EXPECT_TRUE(groups.add(trace_id{9}, 1, at(0x200), 2));
    EXPECT_TRUE(groups.add(trace_id{5}, 20, at(0x300), 1));
    EXPECT_TRUE(groups.add(trace_id{5}, 30, at(0x400), 4));
    const std::span<const leak_group> found = groups.finish();
    ASSERT_EQ(found.size(), 2U);
    EXPECT_EQ(found[0].allocated, trace_id{5});
    EXPECT_EQ(found[0].blocks, 3U);
    EXPECT_EQ(found[0].bytes, 60U);
    EXPECT_EQ(found[0].example, at(0x300));
    EXPECT_EQ(found[0].example_size, 20U);
    EXPECT_EQ(found[1].allocated, trace_id{9});
    EXPECT_EQ(groups.total_blocks(), 4U);
    EXPECT_EQ(groups.total_bytes(), 61U);
}

TEST(leak_grouper, tells_blocks_without_trace_apart_by_size) {
    leak_grouper groups;
    for (std::uint64_t serial = 1; serial <= 10; ++serial) {
        groups.add(trace_id::none, serial % 2 == 0 ? 64 : 100, at(serial), serial);
    }
    const std::span<const leak_group> found = groups.finish();
    ASSERT_EQ(found.size(), 2U);
    EXPECT_EQ(found[0].bytes, 500U);
    EXPECT_EQ(found[0].example_size, 100U);
    EXPECT_EQ(found[0].example, at(1));
    EXPECT_EQ(found[1].bytes, 320U);
}

TEST(leak_grouper, sorts_most_bytes_first) {
    leak_grouper groups;
    std::uint32_t random = 1;
    for (std::uint32_t i = 1; i <= 5000; ++i) {
        random = random * 1'664'525U + 1'013'904'223U;
        groups.add(trace_id{i}, random % 4096, at(i), i);
    }
    const std::span<const leak_group> found = groups.finish();
    ASSERT_EQ(found.size(), 5000U);
    EXPECT_TRUE(std::is_sorted(found.begin(), found.end(),
                               [](const leak_group& a, const leak_group& b) { return a.bytes > b.bytes; }));
    std::set<trace_id> seen;
    std::size_t bytes = 0;
    for (const leak_group& g : found) {
        seen.insert(g.allocated);
        bytes += g.bytes;
        EXPECT_EQ(g.example, at(static_cast<std::uintptr_t>(g.allocated)));
    }
    EXPECT_EQ(seen.size(), 5000U);
    EXPECT_EQ(bytes, groups.total_bytes());
}

TEST(leak_grouper, keeps_totals_when_memory_runs_out) {
    for (const std::size_t limit : {std::size_t{0}, std::size_t{10}}) {
        leak_grouper groups;
        groups.limit_groups(limit);
        std::size_t kept = 0;
        for (std::uint32_t i = 1; i <= 100; ++i) {
            kept += groups.add(trace_id{i}, i, at(i), i) ? 1U : 0U;
        }
        EXPECT_EQ(kept, limit);
        EXPECT_EQ(groups.add(trace_id{1}, 1, at(1), 1), limit != 0);  // a known path still counts into its group
        ASSERT_EQ(groups.finish().size(), limit + 1);
        const std::span<const leak_group> found = groups.finish();  // a second time changes nothing
        ASSERT_EQ(found.size(), limit + 1);
        EXPECT_EQ(found[0].allocated, trace_id::none);  // the rest has most bytes here
        std::size_t blocks = 0;
        std::size_t bytes = 0;
        for (const leak_group& g : found) {
            blocks += g.blocks;
            bytes += g.bytes;
        }
        EXPECT_EQ(blocks, 101U);
        EXPECT_EQ(bytes, 5051U);
        EXPECT_EQ(groups.total_blocks(), 101U);
        EXPECT_EQ(groups.total_bytes(), 5051U);
    }
}

TEST(leak_report, of_10000_equal_leaks_is_one_entry_within_50_ms) {
    const trace_id id = left(4, 5);
    std::string text;
    // The first report of a process reads the debug information of the program and its libraries. That takes as long
    // as there is much of it, whatever the leaks.
    report any;
    any.here = id;
    const double first = milliseconds_of([&] { text = text_of(any); });
    std::cout << "first report of the process, one trace: " << first << " ms\n";
    // Grouping, symbolising, writing.
    const double taken = milliseconds_of([&] {
        leak_grouper groups;
        for (std::uint64_t i = 1; i <= 10'000; ++i) {
            groups.add(id, 16, at(0x1000 + 16 * i), i);
        }
        text = text_of(leak_report(groups));
    });
    std::cout << "10 000 equal leaks: " << taken << " ms\n";
    EXPECT_LE(taken, 50.0 * slower);
    EXPECT_TRUE(text.starts_with("pmr_debug: leak: 160000 bytes (156.3 KiB) in 10000 blocks were never freed\n"))
        << text;
    EXPECT_NE(text.find("  leak 1 of 1: 160000 bytes (156.3 KiB) in 10000 blocks, for example 0x1010 (16 bytes)"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("left(unsigned int, unsigned int)"), std::string::npos) << text;
    EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 50) << text;
}

TEST(leak_report, of_100000_call_paths_takes_at_most_a_second) {
    constexpr unsigned paths = 100'000;
    std::vector<trace_id> ids;
    for (unsigned path = 0; path < paths; ++path) {
        ids.push_back(left(17, path));
    }
    ASSERT_EQ(std::set<trace_id>(ids.begin(), ids.end()).size(), paths);
    std::string text;
    const double taken = milliseconds_of([&] {
        leak_grouper groups;
        for (std::size_t i = 0; i < paths; ++i) {
            groups.add(ids[i], i + 1, at(16 * i), i + 1);
        }
        EXPECT_EQ(groups.finish().size(), paths);
        text = text_of(leak_report(groups));
    });
    std::cout << "100 000 distinct call paths: " << taken << " ms\n";
    EXPECT_LE(taken, 1000.0 * slower);
    EXPECT_NE(text.find("  leak 1 of 100000: 100000 bytes (97.7 KiB) in 1 block, "), std::string::npos) << text;
    EXPECT_NE(text.find("  … and 99990 more call paths ("), std::string::npos) << text;
    EXPECT_EQ(text.find("leak 11 of"), std::string::npos) << text;
}

}  // namespace
