// Resources over and under an arena: its first block starts where the chunk does, and it takes all back at once.

#include "support/call_here.hpp"
#include "support/canary_fixture.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/immortal_proxy.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <memory_resource>
#include <new>
#include <string_view>
#include <thread>

namespace {

using pmr_debug::canary_resource;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::report;
using pmr_debug::tracking_resource;
using test_support::allocate_here;
using test_support::free_again_here;
using test_support::free_here;
using test_support::only;
using test_support::trace_contains;

template <class Heap>
class below_an_arena : public ::testing::Test {
protected:
    collecting_handler errors;
    Heap heap{{.name = "heap", .handler = &errors}};
};

using heaps =
    ::testing::Types<tracking_resource, canary_resource, pmr_debug::page_resource, pmr_debug::general_purpose_resource>;
TYPED_TEST_SUITE(below_an_arena, heaps);

TYPED_TEST(below_an_arena, the_arenas_first_block_is_not_taken_for_the_chunk) {
    std::pmr::monotonic_buffer_resource buffer(&this->heap);
    tracking_resource arena(&buffer, {.name = "arena", .handler = &this->errors});
    void* const p = allocate_here(arena, 40, 8);
    free_here(this->heap, p, 40, 8);
    const report& r = only(this->errors);
    EXPECT_EQ(r.kind, error_kind::wrong_resource);
    EXPECT_EQ(r.resource.name, "heap");
    EXPECT_EQ(r.owner.name, "arena");
    EXPECT_EQ(r.pointer, p);
    EXPECT_EQ(r.given_size, 40U);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 40U);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
    // The chunk stayed, so all goes on as if nothing had happened.
    EXPECT_EQ(this->heap.stats().live_blocks, 1U);
    arena.deallocate(p, 40, 8);
    buffer.release();
    EXPECT_EQ(this->heap.stats().live_blocks, 0U);
    EXPECT_EQ(this->errors.count(), 1U);
}

TYPED_TEST(below_an_arena, the_chunk_itself_given_back_with_another_size_is_a_mismatch) {
    void* const p = allocate_here(this->heap, 100, 8);
    {
        tracking_resource past(&this->heap, {.name = "past", .handler = &this->errors});
        past.deallocate(past.allocate(100, 8), 100, 8);
        free_here(this->heap, p, 60, 8);
    }
    EXPECT_EQ(only(this->errors).kind, error_kind::size_mismatch);
    EXPECT_EQ(only(this->errors).given_size, 60U);
    EXPECT_EQ(only(this->errors).block.size, 100U);
    EXPECT_EQ(this->heap.stats().live_blocks, 0U);
}

TYPED_TEST(below_an_arena, a_wrong_size_given_to_the_arena_is_not_blamed_on_the_heap) {
    std::pmr::monotonic_buffer_resource buffer(&this->heap);
    tracking_resource arena(&buffer, {.name = "arena", .handler = &this->errors});
    void* const p = allocate_here(arena, 40, 8);
    free_here(arena, p, 24, 8);
    EXPECT_EQ(only(this->errors).kind, error_kind::size_mismatch);
    EXPECT_EQ(only(this->errors).resource.name, "arena");
    EXPECT_EQ(arena.stats().live_blocks, 0U);
}

// ---- release() below ------------------------------------------------------------------------------------------------

/// An arena on a buffer of its own, so that release() makes its addresses come again.
struct standard_arena {
    alignas(16) unsigned char buffer[8192];
    std::pmr::monotonic_buffer_resource resource{buffer, sizeof buffer, std::pmr::null_memory_resource()};
    void use_otherwise() { std::memset(buffer, 3, sizeof buffer); }
};
struct temp_arena {
    alignas(16) unsigned char buffer[8192];
    pmr_debug::temp_resource<> resource{
        buffer, sizeof buffer, std::pmr::null_memory_resource(), {.quarantine_bytes = 0}};
    ~temp_arena() { resource.release(); }  // what is live is meant to be
    void use_otherwise() {}                // it fills released memory itself, and would find this
};

template <class Above, class Below>
struct over {
    using above = Above;
    using below = Below;
};

template <class Chain>
class above_an_arena : public ::testing::Test {
protected:
    collecting_handler errors;
    typename Chain::below arena;
    typename Chain::above guarded{&arena.resource, {.name = "guarded", .handler = &errors}};
};

using chains = ::testing::Types<over<tracking_resource, standard_arena>, over<tracking_resource, temp_arena>,
                                over<canary_resource, standard_arena>, over<canary_resource, temp_arena>>;
TYPED_TEST_SUITE(above_an_arena, chains);

template <class R>
__attribute__((noinline)) std::size_t forget_here(R& r) {
    const std::size_t forgotten = r.before_upstream_release();
    asm volatile("# forget_here" ::: "memory");
    return forgotten;
}

TYPED_TEST(above_an_arena, that_was_told_of_the_release_goes_on_as_if_new) {
    void* first = nullptr;
    for (int round = 0; round < 3; ++round) {
        void* const freed = this->guarded.allocate(40, 8);
        void* const winked_out = this->guarded.allocate(48, 8);
        if (round == 0) {
            first = freed;
        }
        EXPECT_EQ(freed, first) << "the arena's addresses do not come again";
        std::memset(freed, 1, 40);
        std::memset(winked_out, 2, 48);
        this->guarded.deallocate(freed, 40, 8);
        EXPECT_EQ(forget_here(this->guarded), 1U);
        this->arena.resource.release();
        this->arena.use_otherwise();
    }
    const pmr_debug::statistics s = this->guarded.stats();
    EXPECT_EQ(s.live_blocks, 0U);
    EXPECT_EQ(s.live_bytes, 0U);
    EXPECT_EQ(s.upstream_bytes, 0U);
    EXPECT_EQ(s.total_allocations, 6U);
    EXPECT_EQ(s.total_deallocations, 6U);
    EXPECT_EQ(this->guarded.report_leaks(), 0U);
    EXPECT_TRUE(this->guarded.ok());
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(above_an_arena, that_was_not_told_takes_addresses_that_come_again_for_an_overlap) {
    void* const p = this->guarded.allocate(40, 8);
    this->arena.resource.release();
    EXPECT_THROW(static_cast<void>(this->guarded.allocate(40, 8)), std::bad_alloc);
    EXPECT_EQ(only(this->errors).kind, error_kind::upstream_overlap);
    EXPECT_EQ(only(this->errors).block.address, p);
    forget_here(this->guarded);
}

TYPED_TEST(above_an_arena, reports_a_free_after_the_release_with_the_trace_of_that) {
    void* const freed = allocate_here(this->guarded, 40, 8);
    void* const winked_out = allocate_here(this->guarded, 48, 8);
    free_here(this->guarded, freed, 40, 8);
    EXPECT_EQ(forget_here(this->guarded), 1U);
    this->arena.resource.release();
    free_here(this->guarded, winked_out, 48, 8);
    {
        const report& r = only(this->errors);
        EXPECT_EQ(r.kind, error_kind::invalid_free);
        EXPECT_EQ(r.resource.name, "guarded");
        EXPECT_EQ(r.pointer, winked_out);
        EXPECT_EQ(r.given_size, 48U);
        EXPECT_EQ(r.block.address, winked_out);
        EXPECT_EQ(r.block.size, 48U);
        EXPECT_FALSE(r.nearest_only);
        EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
        EXPECT_TRUE(trace_contains(r.freed, "forget_here"));
        EXPECT_TRUE(trace_contains(r.here, "free_here"));
        EXPECT_NE(r.hint.find("release()"), std::string_view::npos) << r.hint;
    }
    // What was freed in time is still known as freed by its owner.
    free_again_here(this->guarded, freed, 40, 8);
    ASSERT_EQ(this->errors.count(), 2U);
    EXPECT_EQ(this->errors[1].facts.kind, error_kind::double_free);
    EXPECT_TRUE(trace_contains(this->errors[1].facts.freed, "free_here"));
    EXPECT_EQ(this->guarded.stats().live_blocks, 0U);
}

TYPED_TEST(above_an_arena, reports_live_blocks_before_the_release_if_asked_to) {
    typename TypeParam::above audited(&this->arena.resource,
                                      {.name = "audited", .handler = &this->errors, .audit_winked_out = true});
    free_here(audited, allocate_here(audited, 40, 8), 40, 8);
    EXPECT_EQ(forget_here(audited), 0U);
    EXPECT_EQ(this->errors.count(), 0U);
    void* const p = allocate_here(audited, 24, 8);
    EXPECT_EQ(forget_here(audited), 1U);
    const report& r = only(this->errors);
    EXPECT_EQ(r.kind, error_kind::live_at_destruction);
    EXPECT_EQ(r.resource.name, "audited");
    EXPECT_EQ(r.leaked_blocks, 1U);
    EXPECT_EQ(r.leaked_bytes, 24U);
    ASSERT_EQ(r.leaks.size(), 1U);
    EXPECT_EQ(r.leaks[0].example, p);
    EXPECT_TRUE(trace_contains(r.leaks[0].allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "forget_here"));
    EXPECT_NE(r.hint.find("released while they are in use"), std::string_view::npos) << r.hint;
}

class canary_above_an_arena : public ::testing::Test {
protected:
    collecting_handler errors;
    test_support::noting_upstream upstream;
    canary_resource guarded{&upstream, {.name = "guarded", .handler = &errors}};
    alignas(16) unsigned char buffer[8192]{};
    std::size_t used = 0;

    canary_above_an_arena() {
        upstream.answer = [this](std::size_t bytes, std::size_t) {
            void* const p = buffer + used;
            used += (bytes + 15) / 16 * 16;
            return p;
        };
    }
};

TEST_F(canary_above_an_arena, looks_at_guards_and_quarantine_before_the_release) {
    void* const run_over = allocate_here(guarded, 40, 8);
    void* const written_late = allocate_here(guarded, 48, 8);
    free_here(guarded, written_late, 48, 8);
    test_support::damage(run_over, 41);
    test_support::damage(written_late, 7);
    EXPECT_EQ(forget_here(guarded), 1U);
    ASSERT_EQ(errors.count(), 2U);
    const report& over = errors[0].facts;
    EXPECT_EQ(over.kind, error_kind::overrun);
    EXPECT_EQ(over.block.address, run_over);
    EXPECT_EQ(over.first_bad, static_cast<std::byte*>(run_over) + 41);
    EXPECT_TRUE(trace_contains(over.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(over.here, "forget_here"));
    const report& late = errors[1].facts;
    EXPECT_EQ(late.kind, error_kind::write_after_free);
    EXPECT_EQ(late.block.address, written_late);
    EXPECT_EQ(late.first_bad, static_cast<std::byte*>(written_late) + 7);
    EXPECT_TRUE(trace_contains(late.freed, "free_here"));
    // Neither is told again: what was there is no longer looked at.
    EXPECT_EQ(guarded.check(), 0U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST_F(canary_above_an_arena, gives_nothing_back_that_the_arena_takes_by_itself) {
    void* const damaged = guarded.allocate(16, 8);
    test_support::damage(damaged, 16);
    guarded.deallocate(damaged, 16, 8);
    EXPECT_EQ(only(errors).kind, error_kind::overrun);
    guarded.deallocate(guarded.allocate(40, 8), 40, 8);
    static_cast<void>(guarded.allocate(48, 8));
    EXPECT_EQ(guarded.quarantine().blocks, 1U);
    EXPECT_EQ(guarded.quarantine().damaged_blocks, 1U);
    EXPECT_EQ(forget_here(guarded), 1U);
    const pmr_debug::quarantine_statistics q = guarded.quarantine();
    EXPECT_EQ(q.blocks, 0U);
    EXPECT_EQ(q.bytes, 0U);
    EXPECT_EQ(q.damaged_blocks, 0U);
    EXPECT_EQ(q.damaged_bytes, 0U);
    EXPECT_EQ(guarded.stats().upstream_bytes, 0U);
    std::memset(buffer, 3, sizeof buffer);
    guarded.deallocate(guarded.allocate(40, 8), 40, 8);
    EXPECT_EQ(guarded.stats().upstream_bytes, 40U + 2 * 16);
    EXPECT_EQ(forget_here(guarded), 0U);
    EXPECT_EQ(upstream.back.size(), 0U);
    EXPECT_EQ(errors.count(), 1U);
}

TEST(before_upstream_release, of_a_resource_for_one_thread_is_for_that_thread) {
    collecting_handler errors;
    pmr_debug::basic_tracking_resource<pmr_debug::policy{.threads = pmr_debug::threading::single_checked}> mine(
        {.name = "mine", .handler = &errors});
    void* const p = mine.allocate(16, 8);
    std::thread([&] { forget_here(mine); }).join();
    EXPECT_EQ(only(errors).kind, error_kind::foreign_thread);
    EXPECT_TRUE(trace_contains(only(errors).here, "forget_here"));
    EXPECT_EQ(mine.stats().live_blocks, 0U);
    std::pmr::new_delete_resource()->deallocate(p, 16, 8);
}

TEST(before_upstream_release, of_a_proxy_leaves_it_nothing_to_report) {
    collecting_handler errors;
    std::pmr::monotonic_buffer_resource arena;
    {
        pmr_debug::immortal_proxy proxy(&arena, {.handler = &errors});
        static_cast<void>(proxy.resource()->allocate(100, 8));
        EXPECT_EQ(proxy.before_upstream_release(), 1U);
        arena.release();
        EXPECT_EQ(proxy.stats().live_blocks, 0U);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST(before_upstream_release, gives_a_limit_its_room_back) {
    collecting_handler errors;
    standard_arena arena;
    pmr_debug::limit_resource budget(&arena.resource, {.name = "budget", .handler = &errors, .limit_bytes = 100});
    for (int round = 0; round < 3; ++round) {
        static_cast<void>(budget.allocate(40, 8));
        static_cast<void>(budget.allocate(50, 8));
        EXPECT_EQ(budget.before_upstream_release(), 2U);
        arena.resource.release();
    }
    EXPECT_EQ(budget.stats().live_bytes, 0U);
    EXPECT_EQ(budget.stats().total_deallocations, 6U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(before_upstream_release, without_checks_is_about_counters) {
    standard_arena arena;
    pmr_debug::basic_canary_resource<pmr_debug::release_policy> guarded(&arena.resource);
    static_cast<void>(guarded.allocate(40, 8));
    EXPECT_EQ(guarded.before_upstream_release(), 1U);
    EXPECT_EQ(guarded.stats().live_blocks, 0U);
    EXPECT_EQ(guarded.stats().upstream_bytes, 0U);
}

}  // namespace
