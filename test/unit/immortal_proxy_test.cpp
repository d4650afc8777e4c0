#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/immortal_proxy.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "metadata/registry.hpp"
#include "support/call_here.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory_resource>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::immortal_proxy;
using pmr_debug::make_proxy;
using pmr_debug::report;
using pmr_debug::tracking_resource;
using test_support::allocate_here;
using test_support::free_here;
using test_support::trace_contains;

__attribute__((noinline)) void retire_here(immortal_proxy& proxy) {
    proxy.retire();
    asm volatile("# retire_here" ::: "memory");
}

__attribute__((noinline)) void destroy_here(std::optional<tracking_resource>& r) {
    r.reset();
    asm volatile("# destroy_here" ::: "memory");
}

__attribute__((noinline)) immortal_proxy construct_here(std::pmr::memory_resource* target, collecting_handler& errors) {
    immortal_proxy proxy = make_proxy(target, {.name = "proxy", .handler = &errors});
    asm volatile("# construct_here" ::: "memory");
    return proxy;
}

TEST(immortal_proxy, forwards_while_its_target_lives) {
    collecting_handler errors;
    tracking_resource target({.handler = &errors});
    {
        const immortal_proxy proxy = make_proxy(&target, {.handler = &errors});
        {
            std::pmr::vector<std::pmr::string> v(proxy.resource());
            v.emplace_back("a word that does not fit the small buffer of a string");
            EXPECT_EQ(target.stats().live_blocks, 2U);
            EXPECT_EQ(proxy.stats().live_blocks, 2U);
        }
        EXPECT_EQ(target.stats().live_blocks, 0U);
        EXPECT_FALSE(proxy.retired());
        EXPECT_TRUE(proxy.ok());
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST(immortal_proxy, knows_its_name_and_target_after_the_end_too) {
    tracking_resource target({.name = "target"});
    tracking_resource other({.name = "other"});
    immortal_proxy proxy = make_proxy(&target, {.name = "proxy"});
    EXPECT_EQ(proxy.name(), "proxy");
    EXPECT_EQ(proxy.upstream_resource(), &target);
    EXPECT_TRUE(proxy.retarget(&other));
    EXPECT_EQ(proxy.upstream_resource(), &other);
    proxy.retire();
    EXPECT_EQ(proxy.name(), "proxy");
    EXPECT_EQ(proxy.upstream_resource(), &other);
    const immortal_proxy nameless = make_proxy(&target);
    EXPECT_EQ(nameless.name(), "");
}

TEST(immortal_proxy, a_free_after_retirement_is_reported_with_three_traces_9) {
    collecting_handler errors;
    std::pmr::memory_resource* late = nullptr;
    void* p = nullptr;
    {
        std::pmr::unsynchronized_pool_resource pool;  // nothing of this library
        immortal_proxy proxy = construct_here(&pool, errors);
        late = proxy.resource();
        p = allocate_here(*late, 40, 8);
        retire_here(proxy);
        EXPECT_TRUE(proxy.retired());
        ASSERT_EQ(errors.count(), 1U);
        EXPECT_EQ(errors[0].facts.kind, error_kind::live_at_destruction);
        EXPECT_EQ(errors[0].facts.leaked_bytes, 40U);
        EXPECT_TRUE(trace_contains(errors[0].facts.leaks[0].allocated, "allocate_here"));
    }
    free_here(*late, p, 40, 8);
    ASSERT_EQ(errors.count(error_kind::destroyed_resource), 1U);
    const report& r = errors.back().facts;
    EXPECT_EQ(r.resource.name, "proxy");
    EXPECT_FALSE(r.resource.alive);
    EXPECT_EQ(r.block.size, 40U);
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.resource.born, "construct_here"));
    EXPECT_TRUE(trace_contains(r.resource.died, "retire_here"));
    EXPECT_THROW(allocate_here(*late, 8, 8), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::destroyed_resource), 2U);
    EXPECT_EQ(errors.count(), 3U);
}

// The record of a dead resource is used again some thousand deaths later, perhaps by one that lives.
TEST(immortal_proxy, a_death_long_ago_is_noticed_too) {
    collecting_handler errors;
    std::optional<tracking_resource> target(std::in_place, pmr_debug::tracking_options{.handler = &errors});
    const immortal_proxy proxy = construct_here(&*target, errors);
    const auto* const record = pmr_debug::metadata::find_resource(&*target);
    ASSERT_NE(record, nullptr);
    target.reset();
    bool used_again = false;
    for (std::size_t i = 0; i < 2 * pmr_debug::metadata::dead_records_kept && !used_again; ++i) {
        const pmr_debug::limit_resource another(pmr_debug::limit_options{});
        used_again = pmr_debug::metadata::find_resource(&another) == record;
        if (used_again) {
            EXPECT_TRUE(proxy.retired());
        }
    }
    EXPECT_TRUE(used_again);
}

TEST(immortal_proxy, the_death_of_one_of_ours_is_noticed_without_a_word_9) {
    collecting_handler errors;
    std::optional<tracking_resource> target(std::in_place, pmr_debug::tracking_options{.handler = &errors});
    const immortal_proxy proxy = construct_here(&*target, errors);
    void* const p = allocate_here(*proxy.resource(), 40, 8);
    target->deallocate(p, 40, 8);  // so that the target is content
    destroy_here(target);
    target.emplace(pmr_debug::tracking_options{.handler = &errors});  // another one at the same place
    free_here(*proxy.resource(), p, 40, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::destroyed_resource);
    EXPECT_TRUE(trace_contains(errors[0].facts.resource.died, "destroy_here"));
    EXPECT_TRUE(proxy.retired());
}

TEST(immortal_proxy, the_end_of_the_handle_is_the_end_of_the_target_8) {
    collecting_handler errors;
    std::pmr::memory_resource* late = nullptr;
    {
        std::pmr::monotonic_buffer_resource arena;
        immortal_proxy first = make_proxy(&arena, {.handler = &errors, .report_live = false});
        const immortal_proxy moved(std::move(first));
        late = moved.resource();
        static_cast<void>(allocate_here(*late, 8, 8));
    }
    EXPECT_EQ(errors.count(), 0U) << "winked out, as it was told to expect";
    EXPECT_THROW(allocate_here(*late, 8, 8), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::destroyed_resource), 1U);
}

TEST(immortal_proxy, an_arena_that_starts_over_is_no_error) {
    collecting_handler errors;
    alignas(16) std::byte buffer[64];
    std::pmr::monotonic_buffer_resource arena(buffer, sizeof buffer);
    const immortal_proxy proxy = make_proxy(&arena, {.handler = &errors});
    // libc++'s begins at the end of its buffer, where only blocks of one size are in one place.
#if defined(__GLIBCXX__)
    constexpr std::size_t first = 8;
#else
    constexpr std::size_t first = 16;
#endif
    void* const p = allocate_here(*proxy.resource(), first, 8);
    arena.release();
    void* const q = allocate_here(*proxy.resource(), 16, 8);
    EXPECT_EQ(p, q);
    EXPECT_EQ(proxy.stats().live_blocks, 1U);
    EXPECT_EQ(proxy.stats().live_bytes, 16U);
    free_here(*proxy.resource(), q, 16, 8);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(immortal_proxy, retargeting_onto_itself_is_a_cycle_c) {
    collecting_handler errors;
    tracking_resource bottom({.handler = &errors});
    immortal_proxy proxy = make_proxy(&bottom, {.handler = &errors});
    tracking_resource top(proxy.resource(), {.handler = &errors});
    EXPECT_FALSE(proxy.retarget(&top));
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::cycle);
    EXPECT_FALSE(proxy.retarget(proxy.resource()));
    free_here(top, allocate_here(top, 8, 8), 8, 8);
    EXPECT_EQ(bottom.stats().total_allocations, 1U) << "it still goes where it went";

    tracking_resource other({.handler = &errors});
    EXPECT_TRUE(proxy.retarget(&other));
    free_here(top, allocate_here(top, 8, 8), 8, 8);
    EXPECT_EQ(other.stats().total_allocations, 1U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(immortal_proxy, null_is_handled_as_everywhere_21_31) {
    collecting_handler errors;
    tracking_resource target({.handler = &errors});
    const immortal_proxy proxy = make_proxy(&target, {.handler = &errors});
    test_support::free_null(*proxy.resource(), 8, 8);
    EXPECT_EQ(errors.count(error_kind::null_free), 1U);
    EXPECT_EQ(errors.count(), 1U);
    std::pmr::memory_resource* nothing = nullptr;
    EXPECT_DEATH(static_cast<void>(make_proxy(nothing, {.name = "lost"})), "null_upstream: \"lost\"");
}

}  // namespace
