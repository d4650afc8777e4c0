#include "metadata/address_map.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace {

using pmr_debug::metadata::address_map;
using pmr_debug::metadata::address_range;

// Addresses are never followed, so any will do.
constexpr std::uintptr_t base = std::uintptr_t{0x1234} << 30;

TEST(address_map, finds_a_range_at_each_of_its_pages_and_no_farther) {
    int owner = 0;
    address_range r{.base = base, .size = 3 * 4096, .owner = &owner};
    EXPECT_EQ(address_map::find(base), nullptr);
    ASSERT_TRUE(address_map::insert(r));
    EXPECT_EQ(address_map::find(base), &r);
    EXPECT_EQ(address_map::find(base + 3 * 4096 - 1), &r);
    EXPECT_EQ(address_map::find(base - 1), nullptr);
    EXPECT_EQ(address_map::find(base + 3 * 4096), nullptr);
    EXPECT_EQ(address_map::find(base, &owner), &r);
    EXPECT_EQ(address_map::find(base, &r), nullptr);
    address_map::erase(r);
    EXPECT_EQ(address_map::find(base), nullptr);
}

TEST(address_map, a_part_of_a_page_counts_as_one) {
    address_range r{.base = base, .size = 4097};
    ASSERT_TRUE(address_map::insert(r));
    EXPECT_EQ(address_map::find(base + 8191), &r);
    address_map::erase(r);
    EXPECT_EQ(address_map::find(base + 8191), nullptr);
}

TEST(address_map, ranges_that_cross_leaves_are_found_on_both_sides) {
    constexpr std::uintptr_t leaf = std::uintptr_t{1} << (address_map::page_bits + address_map::leaf_bits);
    address_range r{.base = 77 * leaf - 4096, .size = 2 * 4096};
    ASSERT_TRUE(address_map::insert(r));
    EXPECT_EQ(address_map::find(77 * leaf - 1), &r);
    EXPECT_EQ(address_map::find(77 * leaf), &r);
    address_map::erase(r);
    EXPECT_EQ(address_map::find(77 * leaf), nullptr);
}

TEST(address_map, stacked_ranges_are_found_by_owner_and_uncovered_in_any_order) {
    int low = 0, middle = 0, high = 0;
    for (int order = 0; order < 3; ++order) {
        address_range bottom{.base = base, .size = 4 * 4096, .owner = &low};
        address_range between{.base = base + 4096, .size = 2 * 4096, .owner = &middle};
        address_range top{.base = base + 4096, .size = 4096, .owner = &high};
        ASSERT_TRUE(address_map::insert(bottom));
        ASSERT_TRUE(address_map::insert(between));
        ASSERT_TRUE(address_map::insert(top));
        EXPECT_EQ(address_map::find(base), &bottom);
        EXPECT_EQ(address_map::find(base + 4096), &top);
        EXPECT_EQ(address_map::find(base + 2 * 4096), &between);
        EXPECT_EQ(address_map::find(base + 4096, &low), &bottom);
        EXPECT_EQ(address_map::find(base + 4096, &middle), &between);
        address_range* const first = order == 0 ? &top : order == 1 ? &between : &bottom;
        address_map::erase(*first);
        EXPECT_EQ(address_map::find(base + 4096, first->owner), nullptr);
        for (address_range* const r : {&top, &between, &bottom}) {
            if (r != first) {
                EXPECT_EQ(address_map::find(base + 4096, r->owner), r);
                address_map::erase(*r);
            }
        }
        EXPECT_EQ(address_map::find(base + 4096), nullptr);
        EXPECT_EQ(address_map::find(base + 2 * 4096), nullptr);
    }
}

TEST(address_map, the_far_end_of_a_huge_range_is_not_entered) {
    address_range r{.base = base, .size = 2 * address_map::indexed_bytes};
    ASSERT_TRUE(address_map::insert(r));
    EXPECT_EQ(address_map::find(base + address_map::indexed_bytes - 1), &r);
    EXPECT_EQ(address_map::find(base + address_map::indexed_bytes), nullptr);
    address_map::erase(r);
    EXPECT_EQ(address_map::find(base), nullptr);
}

TEST(address_map, addresses_beyond_the_users_are_refused) {
    constexpr std::uintptr_t end = std::uintptr_t{1} << 47;
    address_range beyond{.base = end, .size = 4096};
    EXPECT_FALSE(address_map::insert(beyond));
    address_range across{.base = end - 4096, .size = 2 * 4096};
    EXPECT_FALSE(address_map::insert(across));
    EXPECT_EQ(address_map::find(end - 4096), nullptr);
    EXPECT_EQ(address_map::find(end), nullptr);
    EXPECT_EQ(address_map::find(UINTPTR_MAX), nullptr);
}

}  // namespace
