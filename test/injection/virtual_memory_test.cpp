// Floor 0 by itself: pages, guards of each tier, moved and sealed ranges, and what is left when the system refuses.

#include "os/virtual_memory.hpp"
#include "support/accessible.hpp"
#include "system_calls.hpp"

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

namespace {

using namespace pmr_debug;
using injection::call;
using injection::faults;
using injection::only;
using os::guard_tier;
using test_support::is_readable;
using test_support::is_writable;

constexpr std::size_t range = std::size_t{1} << 18;

class virtual_memory : public ::testing::Test {
protected:
    void SetUp() override {
        page = os::page_size();
        p = static_cast<unsigned char*>(os::map(range, page));
        ASSERT_NE(p, nullptr);
    }
    void TearDown() override {
        os::force_guard_tier(guard_tier::marker);
        EXPECT_TRUE(os::unmap(p, range));
    }
    /// A range to move pages to.
    static unsigned char* target() { return static_cast<unsigned char*>(os::map(range, os::page_size())); }

    std::size_t page = 0;
    unsigned char* p = nullptr;
};

TEST_F(virtual_memory, maps_zeroed_pages_at_any_alignment) {
    for (std::size_t alignment = 1; alignment <= std::size_t{4} << 20; alignment *= 2) {
        auto* const q = static_cast<unsigned char*>(os::map(page + 1, alignment));
        ASSERT_NE(q, nullptr);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(q) % alignment, 0U);
        EXPECT_EQ(q[0], 0);
        q[2 * page - 1] = 1;
        EXPECT_TRUE(os::unmap(q, page + 1));
        EXPECT_FALSE(is_readable(q));
    }
}

TEST_F(virtual_memory, refuses_what_cannot_be) {
    EXPECT_EQ(os::map(SIZE_MAX, 1), nullptr);
    EXPECT_EQ(os::map(SIZE_MAX - 2 * page, std::size_t{1} << 20), nullptr);
    EXPECT_EQ(os::map(SIZE_MAX / 4, 1), nullptr);
    EXPECT_EQ(os::map(page, std::size_t{1} << 62), nullptr);
    EXPECT_EQ(os::reserve(SIZE_MAX / 4, 1), nullptr);
    EXPECT_FALSE(os::unmap(p + 1, page));
    EXPECT_FALSE(os::commit(p + 1, page));
    EXPECT_FALSE(os::protect_read(p + 1, page));
    EXPECT_FALSE(os::discard(p + 1, page));
}

TEST_F(virtual_memory, what_is_reserved_is_accessible_once_it_is_committed) {
    auto* const q = static_cast<unsigned char*>(os::reserve(2 * page, page));
    EXPECT_FALSE(is_readable(q));
    EXPECT_TRUE(os::commit(q, page));
    EXPECT_TRUE(is_writable(q));
    EXPECT_FALSE(is_readable(q + page));
    EXPECT_TRUE(os::protect_read(q, page));
    EXPECT_TRUE(is_readable(q));
    EXPECT_FALSE(is_writable(q));
    EXPECT_TRUE(os::protect_read_write(q, page));
    EXPECT_TRUE(is_writable(q));
    EXPECT_TRUE(os::unmap(q, 2 * page));
}

TEST_F(virtual_memory, maps_at_an_address_only_if_it_is_free) {
    std::memset(p, 1, range);
    EXPECT_FALSE(os::map_at(p, page));
    EXPECT_EQ(p[0], 1);
    EXPECT_TRUE(os::unmap(p, page));
    EXPECT_TRUE(os::map_at(p, page));
    EXPECT_EQ(p[0], 0);
    EXPECT_EQ(p[page], 1);
}

TEST_F(virtual_memory, tells_and_takes_residency) {
    EXPECT_EQ(os::resident(p, range), 0U);
    p[0] = p[page] = 1;
    EXPECT_EQ(os::resident(p, range), 2 * page);
    EXPECT_TRUE(os::discard(p, page));
    EXPECT_EQ(p[0], 0);
    if (os::populate(p, range)) {
        EXPECT_EQ(os::resident(p, range), range);
    }
    EXPECT_GT(os::peak_resident(), range);
    const faults armed({.calls = only(call::look), .first = 1, .last = 1});
    EXPECT_EQ(os::resident(p, range), 0U);
}

class guards : public virtual_memory, public ::testing::WithParamInterface<guard_tier> {};

TEST_P(guards, fault_and_come_back_as_zeros) {
    os::force_guard_tier(GetParam());
    std::memset(p, 1, range);
    const guard_tier tier = os::install_guard(p + page, page);
    if (GetParam() == guard_tier::marker && tier != guard_tier::marker) {
        GTEST_SKIP() << "the kernel has no markers";
    }
    ASSERT_EQ(tier, GetParam());
    EXPECT_EQ(is_readable(p + page), tier == guard_tier::none);
    EXPECT_TRUE(is_writable(p));
    EXPECT_TRUE(is_writable(p + 2 * page));
    EXPECT_TRUE(os::remove_guard(p + page, page, tier));
    EXPECT_TRUE(is_writable(p + page));
    EXPECT_EQ(p[page], tier == guard_tier::none ? 1 : 0);
    EXPECT_EQ(p[0], 1);
}

INSTANTIATE_TEST_SUITE_P(tiers, guards, ::testing::Values(guard_tier::marker, guard_tier::protect, guard_tier::none));

// The kernel says EINVAL for a locked range, as one without markers does for any.
TEST_F(virtual_memory, a_locked_range_does_not_turn_markers_off) {
    if (::mlock(p, page) != 0) {
        GTEST_SKIP() << "no memory may be locked";
    }
    const guard_tier before = os::install_guard(p + 4 * page, page);
    EXPECT_EQ(os::install_guard(p, page), guard_tier::protect);
    EXPECT_FALSE(is_readable(p));
    EXPECT_EQ(os::install_guard(p + 8 * page, page), before);
    EXPECT_TRUE(os::remove_guard(p, page, guard_tier::protect));
    ::munlock(p, page);
}

TEST_F(virtual_memory, a_refused_guard_falls_to_the_next_tier) {
    {
        const faults armed({.calls = only(call::advise), .first = 1, .last = UINT64_MAX});
        EXPECT_EQ(os::install_guard(p, page), guard_tier::protect);
    }
    EXPECT_FALSE(is_readable(p));
    {
        const faults armed({.calls = only(call::protect), .first = 1, .last = 1});
        EXPECT_FALSE(os::remove_guard(p, page, guard_tier::protect));
    }
    EXPECT_TRUE(os::remove_guard(p, page, guard_tier::protect));
    const faults armed({.first = 1, .last = UINT64_MAX});
    EXPECT_EQ(os::install_guard(p, page), guard_tier::none);
    faults::stop();
    EXPECT_TRUE(is_writable(p));
}

// ---- moving ---------------------------------------------------------------------------------------------------------

TEST_F(virtual_memory, moved_pages_are_there_and_the_old_place_faults) {
    std::memset(p, 7, range);
    unsigned char* const to = target();
    const os::move_result r = os::move_pages(p, to, range);
    ASSERT_TRUE(r.moved);
    EXPECT_EQ(r.trap, guard_tier::moved);
    EXPECT_EQ(to[0], 7);
    EXPECT_EQ(to[range - 1], 7);
    EXPECT_FALSE(is_readable(p));
    EXPECT_TRUE(os::remove_guard(p, range, r.trap));
    EXPECT_EQ(p[0], 0);
    EXPECT_TRUE(os::unmap(to, range));
}

TEST_F(virtual_memory, refused_moves_leave_both_places_taken) {
    std::memset(p, 7, range);
    unsigned char* const to = target();
    for (const std::uint64_t refused :
         {std::uint64_t{1}, std::uint64_t{2}}) {  // the move, and then the new mapping of its target, too
        {
            const faults armed({.calls = only(call::remap) | only(call::map), .first = 1, .last = refused});
            EXPECT_FALSE(os::move_pages(p, to, range).moved);
        }
        EXPECT_EQ(p[0], 7);
        EXPECT_EQ(p[range - 1], 7);
        EXPECT_FALSE(os::map_at(to, range)) << "somebody else could have it now";
        EXPECT_EQ(is_writable(to), refused == 1);
    }
    EXPECT_TRUE(os::unmap(to, range));
}

TEST_F(virtual_memory, an_old_place_that_cannot_be_sealed_is_guarded_and_says_how) {
    std::memset(p, 7, range);
    unsigned char* const to = target();
    {
        const faults armed({.calls = only(call::map), .first = 1, .last = 1});
        const os::move_result r = os::move_pages(p, to, range);
        ASSERT_TRUE(r.moved);
        ASSERT_TRUE(r.trap == guard_tier::marker || r.trap == guard_tier::protect);
        EXPECT_FALSE(is_readable(p));
        EXPECT_TRUE(os::remove_guard(p, range, r.trap));
        EXPECT_TRUE(is_writable(p));
    }
    {
        const faults armed({.first = 2, .last = UINT64_MAX});
        const os::move_result r = os::move_pages(to, p, range);
        ASSERT_TRUE(r.moved);
        EXPECT_EQ(r.trap, guard_tier::none);
    }
    EXPECT_TRUE(is_readable(to));
    EXPECT_EQ(p[0], 7);
    EXPECT_TRUE(os::unmap(to, range));
}

TEST_F(virtual_memory, one_invalid_move_does_not_turn_moving_off) {
    unsigned char* const to = target();
    ASSERT_TRUE(os::move_pages(p, to, range).moved);
    {
        const faults armed({.calls = only(call::remap), .first = 1, .last = 1, .error = EINVAL});
        EXPECT_FALSE(os::move_pages(to, p, range).moved);
    }
    EXPECT_TRUE(os::move_pages(to, p, range).moved);
    EXPECT_TRUE(os::unmap(to, range));
}

TEST_F(virtual_memory, sealed_ranges_lose_their_contents_and_fault) {
    std::memset(p, 7, range);
    ASSERT_TRUE(os::seal(p, range));
    EXPECT_FALSE(is_readable(p));
    EXPECT_TRUE(os::commit(p, range));
    EXPECT_EQ(p[0], 0);
    const faults armed({.calls = only(call::map), .first = 1, .last = 1});
    EXPECT_FALSE(os::seal(p, range));
}

}  // namespace
