// Slots that are used again, and guards that are installed many at a time.

#include "support/call_here.hpp"
#include "support/end_of_page.hpp"
#include "support/sanitizers.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory_resource>
#include <new>
#include <set>
#include <thread>
#include <vector>

namespace {

using namespace test_support::end_of_page;
using pmr_debug::reuse;
using test_support::allocate_here;
using test_support::free_here;
using test_support::trace_contains;
namespace os = pmr_debug::os;

constexpr policy quarantined{.freed = reuse::quarantined};
constexpr policy immediate{.freed = reuse::immediate};
constexpr policy quarantined_at_once{.freed = reuse::quarantined, .dead = pmr_debug::dead_unit::trap_at_once};
constexpr policy quarantined_unchecked{.threads = threading::unchecked, .freed = reuse::quarantined};

TEST(fence_reuse, a_slot_is_used_again_after_those_that_were_freed_before_it) {
    owner<basic_end_of_page_resource<quarantined>> o({.quarantine_bytes = 4 * page});
    std::vector<void*> first;
    for (int i = 0; i < 6; ++i) {
        first.push_back(o.resource.allocate(40, 8));
    }
    for (void* const p : first) {
        o.resource.deallocate(p, 40, 8);
    }
    EXPECT_EQ(bytes(first[0])[39], 0xDD);
    EXPECT_EQ(o.resource.stats().resident_bytes, 6 * page);
    void* const again = o.resource.allocate(40, 8);
    EXPECT_EQ(again, first[0]);
    EXPECT_EQ(bytes(again)[0], 0xAA);
    EXPECT_EQ(bytes(again)[39], 0xAA);
    EXPECT_TRUE(faults(bytes(again) + 40)) << "it kept its guard";
    void* const longer = o.resource.allocate(100, 4);
    EXPECT_EQ(bytes(longer) + 100, bytes(first[1]) + 40) << "the same slot, flush with its guard again";
    EXPECT_TRUE(faults(bytes(longer) + 100));
    void* const fresh = o.resource.allocate(40, 8);
    EXPECT_EQ(std::count(first.begin(), first.end(), fresh), 0) << "four wait";
    o.resource.deallocate(again, 40, 8);
    o.resource.deallocate(longer, 100, 4);
    o.resource.deallocate(fresh, 40, 8);
    EXPECT_EQ(o.resource.stats().live_blocks, 0U);
    EXPECT_EQ(o.errors.count(), 0U);
}

TEST(fence_reuse, the_other_side_and_no_lock) {
    owner<basic_end_of_page_resource<quarantined_unchecked>> o(
        {.where = placement::after_guard, .quarantine_bytes = page});
    void* const p = o.resource.allocate(40, 8);
    void* const q = o.resource.allocate(0, 8);
    o.resource.deallocate(p, 40, 8);
    o.resource.deallocate(q, 0, 8);
    void* const again = o.resource.allocate(7, 1);
    EXPECT_EQ(again, p);
    EXPECT_TRUE(faults(bytes(again) - 1));
    o.resource.deallocate(again, 7, 1);
    EXPECT_EQ(o.errors.count(), 0U);
}

TEST(fence_reuse, immediately) {
    owner<basic_end_of_page_resource<immediate>> o;
    void* const p = o.resource.allocate(40, 8);
    for (int i = 0; i < 1000; ++i) {
        o.resource.deallocate(p, 40, 8);
        ASSERT_EQ(o.resource.allocate(40, 8), p);
    }
    o.resource.deallocate(p, 40, 8);
    EXPECT_EQ(o.resource.stats().resident_bytes, page);
    EXPECT_EQ(o.errors.count(), 0U);
}

TEST(fence_reuse, a_write_after_free_is_found_before_the_slot_is_used_again_and_it_is_not) {
    owner<basic_end_of_page_resource<quarantined>> o({.quarantine_bytes = page});
    void* const p = allocate_here(o.resource, 10, 1);
    free_here(o.resource, p, 10, 1);
    bytes(p)[3] = 0x41;
    std::set<void*> seen;
    for (int i = 0; i < 8; ++i) {
        void* const other = o.resource.allocate(10, 1);
        seen.insert(other);
        o.resource.deallocate(other, 10, 1);
    }
    EXPECT_EQ(seen.count(p), 0U);
    ASSERT_EQ(o.errors.count(error_kind::write_after_free), 1U);
    EXPECT_EQ(o.errors.count(), 1U);
    const report r = o.errors[0].facts;
    EXPECT_EQ(r.first_bad, bytes(p) + 3);
    EXPECT_EQ(r.bad_bytes, 1U);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
}

TEST(fence_reuse, what_check_finds_is_told_once_and_not_used_again) {
    owner<basic_end_of_page_resource<quarantined>> o({.quarantine_bytes = 0});
    void* const p = o.resource.allocate(10, 1);
    o.resource.deallocate(p, 10, 1);
    bytes(p)[9] = 0;
    EXPECT_EQ(o.resource.check(), 1U);
    EXPECT_EQ(o.resource.stats().resident_bytes, 0U);
    void* const q = o.resource.allocate(10, 1);
    EXPECT_NE(q, p);
    o.resource.deallocate(q, 10, 1);
    EXPECT_EQ(o.resource.check(), 0U);
    EXPECT_EQ(o.errors.count(error_kind::write_after_free), 1U);
    EXPECT_EQ(o.errors.count(), 1U);
}

TEST(fence_reuse, a_double_free_of_a_block_that_waits) {
    owner<basic_end_of_page_resource<quarantined>> o;
    void* const p = allocate_here(o.resource, 10, 1);
    free_here(o.resource, p, 10, 1);
    o.resource.deallocate(p, 10, 1);
    ASSERT_EQ(o.errors.count(error_kind::double_free), 1U);
    EXPECT_EQ(o.errors.count(), 1U);
    EXPECT_EQ(o.errors[0].facts.block.address, p);
    EXPECT_TRUE(trace_contains(o.errors[0].facts.freed, "free_here"));
    EXPECT_EQ(o.resource.stats().live_blocks, 0U);
}

TEST(fence_reuse, an_overrun_block_is_set_aside) {
    owner<basic_end_of_page_resource<immediate>> o;
    void* const p = o.resource.allocate(10, 16);
    bytes(p)[10] = 0;
    o.resource.deallocate(p, 10, 16);
    EXPECT_EQ(o.errors.count(error_kind::overrun), 1U);
    void* const q = o.resource.allocate(10, 16);
    EXPECT_NE(q, p);
    o.resource.deallocate(q, 10, 16);
    EXPECT_EQ(o.errors.count(), 1U);
}

TEST(fence_reuse, not_for_blocks_above_a_page_nor_where_all_is_trapped_at_once) {
    owner<basic_end_of_page_resource<immediate>> o;
    void* const p = o.resource.allocate(5000, 8);
    o.resource.deallocate(p, 5000, 8);
    EXPECT_TRUE(faults(p));
    owner<basic_end_of_page_resource<quarantined_at_once>> prompt({.quarantine_bytes = 0});
    void* const q = prompt.resource.allocate(50, 8);
    prompt.resource.deallocate(q, 50, 8);
    EXPECT_TRUE(faults(q));
    void* const other = prompt.resource.allocate(50, 8);
    EXPECT_NE(q, other);
    prompt.resource.deallocate(other, 50, 8);
    EXPECT_EQ(o.errors.count() + prompt.errors.count(), 0U);
}

TEST(fence_reuse, what_waits_is_used_early_when_there_is_nothing_else) {
    owner<basic_end_of_page_resource<quarantined>> o({.address_space_bytes = 2 << 20});
    std::vector<void*> all;
    for (int i = 0; i < 256; ++i) {
        all.push_back(o.resource.allocate(8, 8));
    }
    EXPECT_THROW((void)o.resource.allocate(8, 8), std::bad_alloc);
    o.resource.deallocate(all[17], 8, 8);
    EXPECT_EQ(o.resource.allocate(8, 8), all[17]);
    for (void* const p : all) {
        o.resource.deallocate(p, 8, 8);
    }
    EXPECT_EQ(o.errors.count(), 0U);
}

TEST(fence_reuse, threads_never_get_the_same_slot) {
    owner<basic_end_of_page_resource<quarantined>> o({.quarantine_bytes = 16 * page});
    const auto work = [&o](unsigned char mark) {
        std::vector<unsigned char*> mine;
        for (int i = 0; i < 4000; ++i) {
            auto* const p = bytes(o.resource.allocate(32, 8));
            std::memset(p, mark, 32);
            mine.push_back(p);
            if (mine.size() == 20) {
                for (unsigned char* const q : mine) {
                    ASSERT_EQ(std::count(q, q + 32, mark), 32);
                    o.resource.deallocate(q, 32, 8);
                }
                mine.clear();
            }
        }
    };
    std::thread one(work, static_cast<unsigned char>(1));
    std::thread two(work, static_cast<unsigned char>(2));
    one.join();
    two.join();
    EXPECT_EQ(o.resource.stats().live_blocks, 0U);
    EXPECT_LE(o.resource.stats().resident_bytes, 60 * page) << "no more than ever was in use";
    EXPECT_EQ(o.errors.count(), 0U);
}

// ---- Many guards in one call ------------------------------------------------------------------------------------

TEST(markers, many_at_a_time_take_contents_away_and_fault) {
    if (!has_markers()) {
        GTEST_SKIP() << "no guard markers";
    }
    constexpr std::size_t pages = 200;
    auto* const all = static_cast<unsigned char*>(os::map(pages * page, page));
    ASSERT_NE(all, nullptr);
    std::vector<os::page_range> odd;
    for (std::size_t i = 0; i < pages; ++i) {
        all[i * page] = 1;
        if (i % 2 == 1) {
            odd.push_back({all + i * page, page});
        }
    }
    const std::size_t done = os::install_markers(odd.data(), odd.size(), true).guarded;
    if (done != 0) {  // else the kernel is older than 6.15
        EXPECT_EQ(done, odd.size());
        EXPECT_EQ(os::resident(all, pages * page), pages / 2 * page);
        EXPECT_TRUE(faults(all + page));
        EXPECT_TRUE(faults(all + (pages - 1) * page));
        EXPECT_FALSE(faults(all));
    }
    os::unmap(all, pages * page);
}

TEST(markers, stop_at_a_range_that_is_refused) {
    if (!has_markers()) {
        GTEST_SKIP() << "no guard markers";
    }
    auto* const all = static_cast<unsigned char*>(os::map(4 * page, page));
    ASSERT_NE(all, nullptr);
    const os::page_range some[] = {{all, page}, {all + 1, page}, {all + 2 * page, page}};  // not at a page: refused
    EXPECT_LE(os::install_markers(some, 3, false).guarded, 1U);
    EXPECT_FALSE(faults(all + 2 * page));
    os::unmap(all, 4 * page);
}

TEST(markers, none_where_another_tier_is_asked_for) {
    const forced_tier tier(guard_tier::protect);
    void* const p = os::map(page, page);
    const os::page_range all{p, page};
    EXPECT_EQ(os::install_markers(&all, 1, true).guarded, 0U);
    EXPECT_FALSE(faults(p));
    os::unmap(p, page);
}

struct fence_tiers : ::testing::TestWithParam<guard_tier> {};

TEST_P(fence_tiers, freed_blocks_above_the_quarantine_go_one_by_one) {
    const forced_tier tier(GetParam());
    owner<end_of_page_resource> o({.quarantine_bytes = 8 * page});
    std::vector<void*> blocks;
    for (int i = 0; i < 100; ++i) {
        blocks.push_back(o.resource.allocate(10, 1));
    }
    for (std::size_t i = 0; i < blocks.size(); i += 2) {
        o.resource.deallocate(blocks[i], 10, 1);
    }
    const bool guarded = GetParam() != guard_tier::none;
    EXPECT_EQ(faults(blocks[0]), guarded);
    EXPECT_EQ(faults(bytes(blocks[1]) + 10), guarded);
    if (!guarded) {
        EXPECT_EQ(bytes(blocks[0])[0], 0) << "its memory went back at least";
        EXPECT_EQ(o.resource.guards().unguarded_blocks, 100U);
    }
    for (std::size_t i = 1; i < blocks.size(); i += 2) {
        o.resource.deallocate(blocks[i], 10, 1);
    }
    EXPECT_EQ(o.errors.count(), 0U);
}

INSTANTIATE_TEST_SUITE_P(all, fence_tiers,
                         ::testing::Values(guard_tier::marker, guard_tier::protect, guard_tier::none));

}  // namespace
