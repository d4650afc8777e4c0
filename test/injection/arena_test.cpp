// Private memory by itself: guard pages, pieces, protection, and the end of it.

#include "metadata/arena.hpp"

#include "os/virtual_memory.hpp"
#include "support/accessible.hpp"
#include "system_calls.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <set>

namespace {

using namespace pmr_debug;
using injection::call;
using injection::faults;
using injection::only;
using metadata::arena;
using test_support::is_readable;
using test_support::is_writable;

constexpr std::size_t megabyte = std::size_t{1} << 20;

struct arena_test : ::testing::Test {
    arena a;
    void SetUp() override { ASSERT_TRUE(a.open(megabyte)); }
    void TearDown() override { a.close(); }
};

TEST_F(arena_test, lies_between_guard_pages) {
    auto* const first = static_cast<unsigned char*>(a.allocate(megabyte));
    ASSERT_NE(first, nullptr);
    EXPECT_TRUE(is_writable(first));
    EXPECT_TRUE(is_writable(first + megabyte - 1));
    EXPECT_FALSE(is_readable(first - 1));
    EXPECT_FALSE(is_readable(first + megabyte));
}

TEST_F(arena_test, pieces_are_aligned_apart_and_used_again) {
    auto* const small = static_cast<unsigned char*>(a.allocate(1));
    auto* const next = static_cast<unsigned char*>(a.allocate(64));
    auto* const large = static_cast<unsigned char*>(a.allocate(5000));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(small) % 64, 0U);
    EXPECT_EQ(next, small + 64);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large) % os::page_size(), 0U);
    EXPECT_EQ(a.used(), 64U + 64U + 8192U);
    std::memset(large, 1, 5000);
    a.free(large, 5000);
    EXPECT_EQ(a.used(), 128U);
    auto* const again = static_cast<unsigned char*>(a.allocate_zeroed(8192));
    EXPECT_EQ(again, large);
    EXPECT_EQ(again[0], 0);
    EXPECT_EQ(again[8191], 0);
}

TEST_F(arena_test, small_pieces_share_pages_with_each_other_only) {
    const std::size_t page = 4096;
    std::set<std::uintptr_t> pages;
    for (int i = 0; i < 16; ++i) {
        pages.insert(reinterpret_cast<std::uintptr_t>(a.allocate(256)) / page);
        EXPECT_NE(a.allocate(page), nullptr);
    }
    EXPECT_EQ(pages.size(), 1U);
    // What a page has left when a larger piece is asked for is not lost.
    auto* const small = static_cast<unsigned char*>(a.allocate(64));
    EXPECT_NE(a.allocate(2048), nullptr);
    EXPECT_NE(a.allocate(2048), nullptr);
    for (std::size_t size = 64; size < 2048; size *= 2) {
        auto* const rest = static_cast<unsigned char*>(a.allocate(size));
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(rest) / page, reinterpret_cast<std::uintptr_t>(small) / page);
    }
}

TEST_F(arena_test, sizes_of_some_pages_are_not_doubled) {
    const std::size_t page = 4096;
    for (std::size_t pages = 1; pages <= 16; ++pages) {
        const std::size_t before = a.used();
        void* const p = a.allocate(pages * page - 1);
        EXPECT_EQ(a.used() - before, pages * page);
        a.free(p, pages * page - 1);
        EXPECT_EQ(a.used(), before);
        EXPECT_EQ(a.allocate(pages * page), p);
    }
    a.free(a.allocate(17 * page), 17 * page);
    auto* const twice = static_cast<unsigned char*>(a.allocate(32 * page));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(twice) % page, 0U);
}

TEST_F(arena_test, refuses_what_it_has_no_room_for) {
    EXPECT_EQ(a.allocate(2 * megabyte), nullptr);
    EXPECT_EQ(a.allocate(SIZE_MAX), nullptr);
    std::set<void*> all;
    while (void* const p = a.allocate(4096)) {
        EXPECT_TRUE(all.insert(p).second);
    }
    EXPECT_EQ(all.size(), megabyte / 4096);
    EXPECT_EQ(a.allocate(64), nullptr);
    EXPECT_EQ(a.allocate_zeroed(64), nullptr);
    a.free(*all.begin(), 4096);
    EXPECT_EQ(a.allocate(4096), *all.begin());
}

TEST_F(arena_test, survives_a_refused_commit) {
    {
        const faults armed({.calls = only(call::protect), .first = 1, .last = 1});
        EXPECT_EQ(a.allocate(64), nullptr);
    }
    EXPECT_EQ(a.used(), 0U);
    EXPECT_NE(a.allocate(64), nullptr);
}

TEST_F(arena_test, is_read_only_while_protected) {
    void* const p = a.allocate(64);
    EXPECT_TRUE(a.protect());
    EXPECT_TRUE(is_readable(p));
    EXPECT_FALSE(is_writable(p));
    EXPECT_TRUE(a.unprotect());
    EXPECT_TRUE(is_writable(p));
}

TEST_F(arena_test, takes_huge_pages_where_protection_is_expected) {
    arena b;
    ASSERT_TRUE(b.open(64 * os::huge_page));
    b.expect_protection();
    std::uintptr_t last = 0;
    for (std::size_t used = 0; used < megabyte / 4; used += 4096) {
        last = reinterpret_cast<std::uintptr_t>(b.allocate(4096));
        EXPECT_NE(last, 0U);
    }
    {
        const faults armed({.calls = only(call::protect), .first = 1, .last = UINT64_MAX});
        EXPECT_EQ(b.allocate(4096), nullptr);
    }
    std::uintptr_t beyond = 0;
    {
        const faults armed({.calls = only(call::protect), .first = 1, .last = 1});
        beyond = reinterpret_cast<std::uintptr_t>(b.allocate(4096));  // less than a huge page is to be had
        EXPECT_TRUE(is_writable(reinterpret_cast<void*>(beyond)));
        EXPECT_FALSE(is_writable(reinterpret_cast<void*>(beyond + os::huge_page - 1)));
    }
    EXPECT_NE(b.allocate(megabyte), nullptr);
    EXPECT_EQ(beyond % os::huge_page, 0U);
    EXPECT_GE(beyond, last + 4096);
    EXPECT_TRUE(is_writable(reinterpret_cast<void*>(beyond + os::huge_page - 1)));  // committed as a whole
    EXPECT_TRUE(b.protect());
    EXPECT_FALSE(is_writable(reinterpret_cast<void*>(beyond)));
    EXPECT_TRUE(b.unprotect());
    EXPECT_TRUE(is_writable(reinterpret_cast<void*>(beyond)));
    b.close();

    // No room for that in a small one: all of it is used.
    a.expect_protection();
    std::size_t pieces = 0;
    while (a.allocate(4096) != nullptr) {
        ++pieces;
    }
    EXPECT_EQ(pieces, megabyte / 4096);
}

TEST_F(arena_test, takes_less_if_there_is_not_so_much) {
    arena b;
    {
        const faults armed({.calls = only(call::map), .first = 1, .last = 1});
        EXPECT_TRUE(b.open(256 * megabyte));
    }
    EXPECT_NE(b.allocate(4 * megabyte), nullptr);
    b.close();
    const faults armed({.calls = only(call::map), .first = 1, .last = UINT64_MAX});
    EXPECT_FALSE(b.open(16 * megabyte));
}

TEST_F(arena_test, adds_ranges_until_its_limit) {
    arena b;
    ASSERT_TRUE(b.open(512 * megabyte));
    EXPECT_LE(injection::bytes_of(injection::mapped()), 80 * megabyte) << "little is reserved at first";
    std::set<void*> all;
    while (void* const p = b.allocate(16 * megabyte)) {
        EXPECT_TRUE(all.insert(p).second);
        EXPECT_TRUE(is_writable(static_cast<unsigned char*>(p) + 16 * megabyte - 1));
    }
    EXPECT_EQ(all.size(), 32U);
    EXPECT_TRUE(b.protect());
    EXPECT_FALSE(is_writable(*all.begin()));
    EXPECT_FALSE(is_writable(*all.rbegin()));
    EXPECT_TRUE(b.unprotect());
    EXPECT_TRUE(is_writable(*all.begin()));
    EXPECT_TRUE(is_writable(*all.rbegin()));
    b.close();
}

TEST_F(arena_test, a_piece_larger_than_a_range_gets_one_that_fits) {
    arena b;
    ASSERT_TRUE(b.open(std::size_t{1} << 30));
    auto* const p = static_cast<unsigned char*>(b.allocate(256 * megabyte));
    ASSERT_NE(p, nullptr);
    EXPECT_TRUE(is_writable(p + 256 * megabyte - 1));
    EXPECT_NE(b.allocate(64), nullptr);
    b.close();
}

TEST_F(arena_test, starts_in_the_processs_arena_zeroed_and_gives_back) {
    const auto* const all = pmr_debug::metadata::process_arena();
    void* before = nullptr;
    for (int i = 0; i < 3; ++i) {
        const std::size_t used = all->used();
        arena* const b = arena::open_within(std::size_t{1} << 30, arena::home::shared);
        ASSERT_NE(b, nullptr);
        EXPECT_GT(all->used(), used);
        auto* const p = static_cast<unsigned char*>(b->allocate(megabyte / 4));
        EXPECT_EQ(p[0], 0);
        EXPECT_EQ(p[megabyte / 4 - 1], 0);
        std::memset(p, 1, megabyte / 4);
        EXPECT_NE(b->allocate(megabyte), nullptr);  // in a range of its own
        EXPECT_TRUE(before == nullptr || before == b);
        before = b;
        arena::close_within(b);
        EXPECT_EQ(all->used(), used);
        EXPECT_EQ(os::resident(reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(b) & ~(os::page_size() - 1)),
                               megabyte / 2),
                  os::page_size());
    }
}

TEST(arena_within, lives_in_its_own_pages) {
    const auto before = injection::mapped();
    arena* const a = arena::open_within(megabyte);
    ASSERT_NE(a, nullptr);
    EXPECT_TRUE(a->protect());
    EXPECT_FALSE(is_writable(a));
    EXPECT_TRUE(a->unprotect());
    EXPECT_NE(a->allocate(64), nullptr);
    arena::close_within(a);
    EXPECT_FALSE(is_readable(a));
    EXPECT_EQ(injection::to_string(injection::without(injection::mapped(), before)), "");
    for (const call kind : {call::map, call::protect}) {
        const faults armed({.calls = only(kind), .first = 1, .last = UINT64_MAX});
        EXPECT_EQ(arena::open_within(megabyte), nullptr);
    }
    EXPECT_EQ(injection::to_string(injection::without(injection::mapped(), before)), "");
}

}  // namespace
