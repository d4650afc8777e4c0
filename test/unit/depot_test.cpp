#include "stack/depot.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <thread>
#include <vector>

namespace {

using namespace pmr_debug;

std::uint32_t add(const std::vector<std::uintptr_t>& frames, std::uint8_t ending = 0) {
    const auto depth = static_cast<unsigned>(frames.size());
    return stack::intern(stack::hash_chain(frames.data(), depth, ending), frames.data(), depth, ending);
}

std::uint32_t look_up(const std::vector<std::uintptr_t>& frames, std::uint8_t ending = 0) {
    const auto depth = static_cast<unsigned>(frames.size());
    return stack::find(stack::hash_chain(frames.data(), depth, ending), frames.data(), depth, ending);
}

TEST(depot, stores_a_chain_once) {
    EXPECT_EQ(look_up({1, 2, 3}), 0U);
    const std::uint32_t id = add({1, 2, 3});
    ASSERT_NE(id, 0U);
    EXPECT_EQ(look_up({1, 2, 3}), id);
    const std::uint64_t bytes = depot_stats().bytes;
    EXPECT_EQ(add({1, 2, 3}), id);
    EXPECT_EQ(depot_stats().bytes, bytes);
}

TEST(depot, tells_chains_apart_by_order_depth_and_ending) {
    const std::set<std::uint32_t> ids{add({1, 2, 3}),    add({3, 2, 1}),
                                      add({1, 2}),       add({1, 2, 3}, stack::ends_at_depth),
                                      add({1, 2, 3, 0}), add({1, 2, 3}, stack::ends_cut_short)};
    EXPECT_EQ(ids.size(), 6U);
}

// Found by its hash alone, a chain might be another one with the same hash.
TEST(depot, compares_what_it_finds) {
    const std::uintptr_t one[] = {10, 11};
    const std::uintptr_t other[] = {10, 12};
    const std::uint32_t hash = 12345;
    const std::uint32_t id = stack::intern(hash, one, 2, 0);
    EXPECT_EQ(stack::find(hash, other, 2, 0), 0U);
    const std::uint32_t second = stack::intern(hash, other, 2, 0);
    EXPECT_NE(second, id);
    EXPECT_EQ(stack::find(hash, one, 2, 0), id);
    EXPECT_EQ(stack::find(hash, other, 2, 0), second);
    EXPECT_EQ(stack::find(hash, one, 1, 0), 0U);
    EXPECT_EQ(stack::find(hash, one, 2, stack::ends_at_depth), 0U);
}

TEST(depot, gives_back_frames_and_flags) {
    const std::vector<std::uintptr_t> frames{100, 200, 300};
    const trace_id id = stack::hand_out(add(frames, stack::ends_at_depth | stack::ends_cut_short));
    const trace_view v = view(id);
    EXPECT_TRUE(std::equal(v.frames.begin(), v.frames.end(), frames.begin(), frames.end()));
    EXPECT_TRUE(v.flags.depth_reached);
    EXPECT_TRUE(v.flags.cut_short);
}

TEST(depot, shows_nothing_for_ids_it_never_gave_out) {
    EXPECT_TRUE(view(trace_id::none).frames.empty());
    const std::uint32_t handed_out = add({7, 8, 9});
    stack::hand_out(handed_out);
    const std::uint32_t kept = add({7, 8, 9, 10});
    EXPECT_EQ(view(static_cast<trace_id>(handed_out)).frames.size(), 3U);
    EXPECT_TRUE(view(static_cast<trace_id>(handed_out + 1)).frames.empty());
    EXPECT_TRUE(view(static_cast<trace_id>(handed_out + 2)).frames.empty());
    // Frames that read like the header of an entry: handed out, with one frame.
    const std::uint32_t misleading = add({0, (std::uintptr_t{1} << 48) | (std::uintptr_t{1} << 32), 5});
    stack::hand_out(misleading);
    EXPECT_TRUE(view(static_cast<trace_id>(misleading + 2)).frames.empty());
    EXPECT_TRUE(view(static_cast<trace_id>(kept)).frames.empty());
    EXPECT_TRUE(view(static_cast<trace_id>(kept + 1000)).frames.empty());
    EXPECT_TRUE(view(static_cast<trace_id>(0xFFFF'FFFF)).frames.empty());
}

TEST(depot, counts_traces_once) {
    const std::uint64_t traces = depot_stats().traces;
    const std::uint64_t cut_short = depot_stats().cut_short;
    for (int i = 0; i < 3; ++i) {
        stack::hand_out(add({41, 42}, stack::ends_cut_short));
    }
    EXPECT_EQ(depot_stats().traces, traces + 1);
    EXPECT_EQ(depot_stats().cut_short, cut_short + 1);
}

TEST(depot, threads_that_add_equal_chains_get_equal_ids) {
    constexpr unsigned count = 4;
    constexpr std::uintptr_t chains = 5'000;
    std::vector<std::vector<std::uint32_t>> ids(count);
    std::vector<std::thread> threads;
    for (auto& mine : ids) {
        threads.emplace_back([&mine] {
            for (std::uintptr_t i = 0; i < chains; ++i) {
                // All in few buckets, so that they meet there.
                const std::uintptr_t frames[] = {5'000'000 + i, i};
                mine.push_back(stack::intern(static_cast<std::uint32_t>(i % 16), frames, 2, 0));
            }
        });
    }
    for (auto& t : threads) {
        t.join();
    }
    for (const auto& mine : ids) {
        EXPECT_EQ(mine, ids[0]);
    }
    EXPECT_EQ(std::set<std::uint32_t>(ids[0].begin(), ids[0].end()).size(), chains);
}

__attribute__((noinline)) trace_id capture_anew() {
    const trace_id id = capture_trace(2);
    asm volatile("");
    return id;
}

TEST(depot, a_full_one_loses_new_traces_only) {
    const std::uint32_t old = add({61, 62});
    const std::uint64_t lost = depot_stats().lost;
    stack::limit_bytes(depot_stats().bytes);
    EXPECT_EQ(add({63, 64}), 0U);
    EXPECT_TRUE(stack::is_full());
    EXPECT_EQ(add({61, 62}), old);
    EXPECT_EQ(capture_anew(), trace_id::none);
    EXPECT_EQ(depot_stats().lost, lost + 1);
    stack::limit_bytes(std::uint64_t{1} << 32);
    EXPECT_NE(capture_anew(), trace_id::none);
}

}  // namespace
