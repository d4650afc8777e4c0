// Guards are believed only if they were seen to work. Some systems answer success and guard nothing.

#include "os/virtual_memory.hpp"
#include "support/accessible.hpp"

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>

#include <sys/resource.h>

namespace {

using namespace pmr_debug;
using os::guard_tier;
using test_support::is_readable;
using test_support::is_writable;

/// The system says yes, and does nothing.
class pretended_guards : public ::testing::Test {
protected:
    void SetUp() override { os::pretend_guards(true); }
    void TearDown() override { os::pretend_guards(false); }

    collecting_handler errors;
};

TEST(guards, work_here) {
    EXPECT_TRUE(os::guards_work());
    auto* const p = static_cast<unsigned char*>(os::map(2 * os::page_size(), os::page_size()));
    const guard_tier tier = os::install_guard(p, os::page_size());
    EXPECT_TRUE(tier == guard_tier::marker || tier == guard_tier::protect);
    EXPECT_FALSE(is_readable(p));
    EXPECT_TRUE(os::remove_guard(p, os::page_size(), tier));
    EXPECT_TRUE(is_writable(p));
    os::unmap(p, 2 * os::page_size());
}

// Without descriptors there is another way to find out.
TEST(guards, are_tried_without_descriptors) {
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    const rlimit none{0, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
    os::pretend_guards(false);  // what was found out is forgotten
    const bool work = os::guards_work();
    ::setrlimit(RLIMIT_NOFILE, &before);
    EXPECT_TRUE(work);
}

TEST_F(pretended_guards, are_not_believed) {
    EXPECT_FALSE(os::guards_work());
    auto* const p = static_cast<unsigned char*>(os::map(os::page_size(), os::page_size()));
    *p = 7;
    EXPECT_EQ(os::install_guard(p, os::page_size()), guard_tier::none);
    EXPECT_EQ(*p, 7);
    const os::page_range one{p, os::page_size()};
    EXPECT_EQ(os::install_markers(&one, 1, true).guarded, 0U);
    os::unmap(p, os::page_size());
}

TEST_F(pretended_guards, are_counted_and_canaries_take_their_place) {
    end_of_page_resource r({.handler = &errors});
    auto* const p = static_cast<unsigned char*>(r.allocate(64));
    p[64] = 1;
    r.deallocate(p, 64);
    EXPECT_EQ(errors.count(error_kind::overrun), 1U);
    EXPECT_EQ(r.guards().unguarded_blocks, 1U);
    EXPECT_EQ(r.guards().marker_blocks, 0U);
    EXPECT_FALSE(r.guards().work);
}

TEST_F(pretended_guards, of_pages_are_refused_and_counted) {
    page_resource pages({.handler = &errors});
    void* const p = pages.allocate(2 * os::page_size());
    EXPECT_FALSE(pages.guard(p, os::page_size()));
    EXPECT_EQ(pages.pages().unguarded_bytes, os::page_size());
    EXPECT_EQ(pages.pages().guarded_bytes, 0U);
    pages.deallocate(p, 2 * os::page_size());
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(pretended_guards, writes_to_freed_blocks_are_found_by_their_fill) {
    page_resource pages({.handler = &errors});
    {
        general_purpose_resource heap(&pages, {.handler = &errors});
        auto* const p = static_cast<unsigned char*>(heap.allocate(std::size_t{1} << 20));
        heap.deallocate(p, std::size_t{1} << 20);
        p[1000] = 1;
        EXPECT_EQ(heap.stats().untrapped_units, 1U);
        EXPECT_EQ(heap.check(), 1U);
        EXPECT_EQ(errors.count(error_kind::write_after_free), 1U);
    }
    EXPECT_EQ(errors.count(), 1U);
}

}  // namespace
