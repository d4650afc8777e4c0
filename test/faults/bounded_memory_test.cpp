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
    EXPECT_LE(n.counted, 2 * n.fresh + budgets + in_hand) << o.out;
    // Threads and their stacks leave some memory behind, too, and so does the heap below.
    EXPECT_LE(n.resident, 2 * n.fresh + budgets + in_hand + 12 * mib) << o.out;
}

std::string name_of(const ::testing::TestParamInfo<bounded_memory::ParamType>& info) {
    return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(all, bounded_memory,
                         ::testing::Combine(::testing::Values("default", "default_over_heap", "fast", "thorough",
                                                              "release", "canary", "end_of_page", "tracking"),
                                            ::testing::Values("sawtooth", "survivors", "growing", "shrinking",
                                                              "large_among_small", "producer_and_consumer",
                                                              "many_threads", "alternating_large", "heavy_tail",
                                                              "many_resources")),
                         name_of);

}  // namespace
