// statistics::peak_blocks and peak_bytes, of all resources.

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <memory_resource>
#include <thread>
#include <vector>

namespace {

using namespace pmr_debug;

// Effects: has \p blocks of \p size bytes live at once, twice. Returns: the resource's statistics.
template <class Resource>
statistics use(Resource& r, std::size_t blocks, std::size_t size) {
    for (int i = 0; i < 2; ++i) {
        std::vector<void*> held(blocks);
        for (void*& p : held) {
            p = r.allocate(size, 8);
        }
        for (void* const p : held) {
            r.deallocate(p, size, 8);
        }
    }
    return r.stats();
}

struct shape {
    std::size_t blocks;
    std::size_t size;
};

constexpr shape shapes[] = {{1, 64},      {1000, 64}, {3000, 64},    {100, 1000},  {10, 4000},
                            {1000, 1},    {10, 8000}, {10, 100'000}, {40, 65'536}, {4, std::size_t{1} << 20},
                            {1, 300'000}, {3, 9000}};

template <class Resource>
void expect_exact() {
    for (const shape s : shapes) {
        Resource r;
        const statistics now = use(r, s.blocks, s.size);
        EXPECT_EQ(now.peak_blocks, s.blocks) << s.size;
        EXPECT_EQ(now.peak_bytes, s.blocks * s.size) << s.size;
    }
}

TEST(peaks, are_exact_in_tracking) {
    expect_exact<tracking_resource>();
}
TEST(peaks, are_exact_in_canary) {
    expect_exact<canary_resource>();
}
TEST(peaks, are_exact_in_end_of_page) {
    expect_exact<end_of_page_resource>();
}
TEST(peaks, are_exact_in_temp) {
    expect_exact<temp_resource<>>();
}
TEST(peaks, are_exact_in_limit) {
    expect_exact<limit_resource>();
}

TEST(peaks, are_exact_in_a_heap_of_one_thread) {
    constexpr policy single{.threads = threading::single_checked};
    constexpr policy unchecked{.threads = threading::unchecked};
    expect_exact<basic_general_purpose_resource<single>>();
    expect_exact<basic_general_purpose_resource<unchecked>>();
}

TEST(peaks, are_exact_in_a_heap_with_limits) {
    for (const shape s : shapes) {
        general_purpose_resource r({.limit_bytes = std::size_t{1} << 40});
        const statistics now = use(r, s.blocks, s.size);
        EXPECT_EQ(now.peak_blocks, s.blocks) << s.size;
        EXPECT_EQ(now.peak_bytes, s.blocks * s.size) << s.size;
    }
}

// What was taken since the last few small blocks were prepared may be missing, for each size class and thread.
template <policy P>
void expect_close(std::size_t most_bytes, std::size_t most_blocks) {
    for (const shape s : shapes) {
        basic_general_purpose_resource<P> r;
        const statistics now = use(r, s.blocks, s.size);
        EXPECT_LE(now.peak_blocks, s.blocks) << s.size;
        EXPECT_LE(now.peak_bytes, s.blocks * s.size) << s.size;
        const bool large = s.size > 8192 - 16;
        EXPECT_GE(now.peak_blocks + (large ? 0 : most_blocks), s.blocks) << s.size;
        EXPECT_GE(now.peak_bytes + (large ? 0 : most_bytes), s.blocks * s.size) << s.size;
        EXPECT_GE(now.peak_blocks, 1u);
    }
}

TEST(peaks, of_a_synchronized_heap_are_exact_for_large_blocks_and_close_for_small_ones) {
    expect_close<default_policy>(16'384, 16'384 / 16);
    expect_close<fast_policy>(std::size_t{1} << 16, (std::size_t{1} << 16) / 16);
    constexpr policy immediate{.freed = reuse::immediate};
    expect_close<immediate>(63 * 8192, 63);
}

// Of all threads together.
TEST(peaks, of_a_synchronized_heap_count_all_threads) {
    general_purpose_resource r;
    std::vector<std::thread> threads;
    std::vector<std::vector<void*>> held(4);
    for (std::vector<void*>& mine : held) {
        threads.emplace_back([&r, &mine] {
            for (int i = 0; i < 50; ++i) {
                mine.push_back(r.allocate(20'000, 8));
            }
        });
        threads.back().join();
    }
    for (const std::vector<void*>& theirs : held) {
        for (void* const p : theirs) {
            r.deallocate(p, 20'000, 8);
        }
    }
    EXPECT_EQ(r.stats().peak_blocks, 200u);
    EXPECT_EQ(r.stats().peak_bytes, 200u * 20'000u);
}

}  // namespace
