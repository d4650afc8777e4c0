// Memory stays in proportion to what lives, whatever the pattern: at most twice what the same live blocks take in a
// fresh resource of the kind, and the stated budgets.

#include "support/run.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <tuple>

namespace {

constexpr unsigned long mib = 1024;  // in KiB

/// What a program says of itself.
struct numbers {
    unsigned long resident = 0;
    unsigned long counted = 0;
    unsigned long fresh = 0;
    unsigned long live = 0;
    [[nodiscard]] bool read(const std::string& out) {
        const std::size_t at = out.rfind("resident=");
        return at != std::string::npos && std::sscanf(out.c_str() + at, "resident=%lu counted=%lu fresh=%lu live=%lu",
                                                      &resident, &counted, &fresh, &live) == 4;
    }
};

class bounded_memory : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(bounded_memory, after_a_bad_pattern) {
    const auto [kind, pattern] = GetParam();
    const faults::outcome o = faults::run("bounded_memory", {kind, pattern}, 120);
    ASSERT_EQ(o.status, 0) << o.err;
    numbers n;
    ASSERT_TRUE(n.read(o.out)) << o.out;
    // The quarantine, records of retired blocks, pages kept ready, and the units that threads have in hand.
    const unsigned long budgets = 16 * mib + 16 * mib + 4 * mib + 4 * mib;
    const bool threads = std::string(pattern) == "many_threads" || std::string(pattern) == "producer_and_consumer";
    const bool many = std::string(pattern) == "many_resources";
    // Eight threads have units in hand; each of 24 resources has.
    const unsigned long in_hand = threads ? 8 * 2 * mib : many ? 23 * 2 * mib : 0;
    // A survivor keeps its page and that of its records; over a heap each class's freed units wait, too.
    const unsigned long waiting = std::string(kind) == "default_over_heap" ? 8 * mib : 0;
    EXPECT_LE(n.counted, 2 * n.fresh + budgets + in_hand + waiting) << o.out;
    // Threads and their stacks leave some memory behind, too, and so does the heap below.
    if (std::string(kind) != "default_over_heap") {  // whose heap keeps what it was given back
        EXPECT_LE(n.resident, 2 * n.fresh + budgets + in_hand + 12 * mib) << o.out;
    }
}

std::string name_of(const ::testing::TestParamInfo<bounded_memory::ParamType>& info) {
    return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
}

const char* const all_patterns[] = {
    "sawtooth",     "survivors",         "growing",    "shrinking",     "large_among_small", "producer_and_consumer",
    "many_threads", "alternating_large", "heavy_tail", "many_resources"};

// The program knows all patterns for all kinds, and `thorough`; here are those in which a kind differs from others, as
// each takes a second or more.
INSTANTIATE_TEST_SUITE_P(general_purpose, bounded_memory,
                         ::testing::Combine(::testing::Values("default"), ::testing::ValuesIn(all_patterns)), name_of);
INSTANTIATE_TEST_SUITE_P(without_pages, bounded_memory,
                         ::testing::Combine(::testing::Values("default_over_heap"),
                                            ::testing::Values("sawtooth", "survivors", "growing", "shrinking",
                                                              "heavy_tail")),
                         name_of);
INSTANTIATE_TEST_SUITE_P(without_traces, bounded_memory,
                         ::testing::Combine(::testing::Values("fast", "release"),
                                            ::testing::Values("survivors", "growing", "many_threads")),
                         name_of);
INSTANTIATE_TEST_SUITE_P(others, bounded_memory,
                         ::testing::Combine(::testing::Values("canary", "end_of_page", "tracking"),
                                            ::testing::Values("survivors", "shrinking", "alternating_large")),
                         name_of);

}  // namespace
