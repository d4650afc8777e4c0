// Freed blocks of a canary resource: how long they wait, and what is found in them.

#include "support/call_here.hpp"
#include "support/canary_fixture.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <vector>

namespace {

using pmr_debug::basic_canary_resource;
using pmr_debug::block_state;
using pmr_debug::canary_options;
using pmr_debug::canary_resource;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::policy;
using pmr_debug::quarantine_statistics;
using pmr_debug::report;
using test_support::allocate_here;
using test_support::damage;
using test_support::free_again_here;
using test_support::free_here;
using test_support::noting_upstream;
using test_support::only;
using test_support::stray_write;
using test_support::trace_contains;

struct canary_quarantine : ::testing::Test {
    collecting_handler errors;
    noting_upstream upstream;

    /// Frees blocks until \p r holds none of those that wait now.
    static void push_out(canary_resource& r) {
        for (int i = 0; i < 200; ++i) {
            r.deallocate(r.allocate(100, 8), 100, 8);
        }
    }
};

TEST_F(canary_quarantine, first_in_first_out_within_its_bytes) {
    constexpr std::size_t limit = 20'000;
    canary_resource guarded(&upstream, {.handler = &errors, .quarantine_bytes = limit});
    std::deque<noting_upstream::call> waiting;
    std::mt19937 random(3);
    std::size_t waiting_bytes = 0;
    std::size_t returned = 0;
    for (int i = 0; i < 2000; ++i) {
        const std::size_t size = random() % 700;
        guarded.deallocate(guarded.allocate(size, 8), size, 8);
        waiting.push_back(upstream.given.back());
        waiting_bytes += waiting.back().bytes;
        for (; returned < upstream.back.size(); ++returned) {
            ASSERT_FALSE(waiting.empty());
            ASSERT_EQ(upstream.back[returned], waiting.front());
            waiting_bytes -= waiting.front().bytes;
            waiting.pop_front();
        }
        ASSERT_LE(waiting_bytes, limit);
        const quarantine_statistics s = guarded.quarantine();
        ASSERT_EQ(s.blocks, waiting.size());
        ASSERT_EQ(s.bytes, waiting_bytes);
        ASSERT_EQ(s.damaged_blocks, 0U);
        ASSERT_EQ(guarded.stats().retired_units, waiting.size());
        ASSERT_EQ(guarded.stats().upstream_bytes, waiting_bytes);
    }
    EXPECT_GT(waiting_bytes, limit / 2);  // it waits as long as it may
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(canary_quarantine, nothing_waits_where_there_is_no_room_or_no_wish) {
    {
        canary_resource none(&upstream, {.handler = &errors, .quarantine_bytes = 0});
        none.deallocate(none.allocate(8, 8), 8, 8);
        EXPECT_EQ(upstream.back.size(), 1U);
    }
    {
        basic_canary_resource<policy{.freed = pmr_debug::reuse::immediate}> at_once(&upstream,
                                                                                    canary_options{.handler = &errors});
        at_once.deallocate(at_once.allocate(8, 8), 8, 8);
        EXPECT_EQ(upstream.back.size(), 2U);
    }
    canary_resource small(&upstream, {.handler = &errors, .quarantine_bytes = 5000});
    small.deallocate(small.allocate(100, 8), 100, 8);
    EXPECT_EQ(upstream.back.size(), 2U);
    small.deallocate(small.allocate(6000, 8), 6000, 8);  // does not push the others out
    EXPECT_EQ(upstream.back.size(), 3U);
    EXPECT_EQ(upstream.back.back(), upstream.given.back());
    EXPECT_EQ(small.quarantine().blocks, 1U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(canary_quarantine, no_more_blocks_than_asked_for) {
    {
        canary_resource few(&upstream, {.handler = &errors, .quarantine_blocks = 3});
        for (std::size_t i = 1; i <= 10; ++i) {
            few.deallocate(few.allocate(8, 8), 8, 8);
            EXPECT_EQ(few.quarantine().blocks, std::min<std::size_t>(i, 3));
        }
        EXPECT_EQ(upstream.back, (std::vector(upstream.given.begin(), upstream.given.begin() + 7)));
    }
    canary_resource usual(&upstream, {.handler = &errors});
    canary_resource any(&upstream, {.handler = &errors, .quarantine_blocks = 0});
    for (int i = 0; i < 4000; ++i) {
        usual.deallocate(usual.allocate(8, 8), 8, 8);
        any.deallocate(any.allocate(8, 8), 8, 8);
    }
    EXPECT_EQ(usual.quarantine().blocks, 2048U);
    EXPECT_EQ(any.quarantine().blocks, 4000U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(canary_quarantine, a_block_is_not_used_again_while_it_waits) {
    canary_resource guarded(canary_options{.handler = &errors});
    std::vector<void*> seen;
    for (int i = 0; i < 1000; ++i) {
        void* const p = guarded.allocate(48, 8);
        for (void* const q : seen) {
            ASSERT_NE(p, q);
        }
        seen.push_back(p);
        guarded.deallocate(p, 48, 8);
    }
    EXPECT_EQ(guarded.quarantine().blocks, 1000U);
}

TEST_F(canary_quarantine, every_byte_of_a_freed_block_is_watched) {
    canary_resource guarded(&upstream, {.handler = &errors});
    guarded.deallocate(guarded.allocate(21, 8), 21, 8);
    const std::size_t total = upstream.given.back().bytes;
    for (std::size_t at = 0; at < total; ++at) {
        errors.clear();
        void* const p = guarded.allocate(21, 8);
        auto* const base = static_cast<std::byte*>(upstream.given.back().p);
        guarded.deallocate(p, 21, 8);
        const std::uint8_t was = damage(base, static_cast<std::ptrdiff_t>(at));
        ASSERT_EQ(guarded.check(), 1U);
        const report& r = only(errors);
        ASSERT_EQ(r.kind, error_kind::write_after_free);
        ASSERT_EQ(r.first_bad, base + at);
        ASSERT_EQ(r.bad_bytes, 1U);
        ASSERT_EQ(r.expected_value, was);
        ASSERT_EQ(r.bad_value, was ^ 1U);
        ASSERT_EQ(r.block.address, p);
    }
}

TEST_F(canary_quarantine, every_byte_of_a_random_fill_is_watched) {
    canary_resource guarded(&upstream, {.handler = &errors, .fill_seed = 7});
    for (std::size_t bytes = 1; bytes < 30; ++bytes) {
        for (std::size_t at = 0; at < bytes; ++at) {
            errors.clear();
            void* const p = guarded.allocate(bytes, 1);
            guarded.deallocate(p, bytes, 1);
            damage(p, static_cast<std::ptrdiff_t>(at));
            ASSERT_EQ(guarded.check(), 1U) << bytes << " bytes, number " << at;
            ASSERT_EQ(only(errors).first_bad, static_cast<std::byte*>(p) + at);
        }
    }
}

TEST_F(canary_quarantine, a_late_write_is_found_when_the_block_leaves) {
    canary_resource guarded(&upstream, {.name = "guarded", .handler = &errors, .quarantine_bytes = 10'000});
    void* const p = allocate_here(guarded, 100, 8);
    const noting_upstream::call given = upstream.given.back();
    free_here(guarded, p, 100, 8);
    stray_write(p, 40, 0x42);
    stray_write(p, 60, 0x43);
    EXPECT_EQ(errors.count(), 0U);
    push_out(guarded);
    const report& r = only(errors);
    EXPECT_EQ(r.kind, error_kind::write_after_free);
    EXPECT_EQ(r.resource.name, "guarded");
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_EQ(r.block.alignment, 8U);
    EXPECT_EQ(r.block.serial, 1U);
    EXPECT_EQ(r.block.state, block_state::freed);
    EXPECT_NE(r.block.alloc_thread, 0U);
    EXPECT_NE(r.block.free_thread, 0U);
    EXPECT_EQ(r.first_bad, static_cast<std::byte*>(p) + 40);
    EXPECT_EQ(r.bad_bytes, 2U);
    EXPECT_EQ(r.bad_value, 0x42);
    EXPECT_EQ(r.expected_value, 0xDD);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
    // It is not used again.
    for (const auto& c : upstream.back) {
        EXPECT_NE(c, given);
    }
    EXPECT_EQ(guarded.quarantine().damaged_blocks, 1U);
    EXPECT_EQ(guarded.quarantine().damaged_bytes, given.bytes);
    push_out(guarded);
    EXPECT_EQ(guarded.check(), 0U);
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(canary_quarantine, a_late_write_is_found_at_destruction_and_all_memory_goes_back) {
    void* p = nullptr;
    {
        canary_resource guarded(&upstream, {.handler = &errors});
        p = allocate_here(guarded, 100, 8);
        void* const over = guarded.allocate(10, 1);
        damage(over, 11);
        guarded.deallocate(over, 10, 1);
        EXPECT_EQ(errors.count(error_kind::overrun), 1U);
        errors.clear();
        free_here(guarded, p, 100, 8);
        stray_write(p, 99, 0);
    }
    const report& r = only(errors);
    EXPECT_EQ(r.kind, error_kind::write_after_free);
    EXPECT_EQ(r.first_bad, static_cast<std::byte*>(p) + 99);
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
    EXPECT_EQ(upstream.back.size(), 2U);
}

TEST_F(canary_quarantine, many_late_writes_at_once) {
    canary_resource guarded(&upstream, {.handler = &errors});
    std::vector<void*> p;
    for (int i = 0; i < 500; ++i) {
        p.push_back(guarded.allocate(16, 8));
    }
    for (void* const x : p) {
        guarded.deallocate(x, 16, 8);
    }
    for (std::size_t i = 0; i < p.size(); i += 3) {
        damage(p[i], 15);
    }
    EXPECT_EQ(guarded.check(), 167U);
    EXPECT_EQ(errors.count(error_kind::write_after_free), 167U);
    EXPECT_EQ(guarded.quarantine().damaged_blocks, 167U);
    EXPECT_EQ(guarded.quarantine().blocks, 333U);
    EXPECT_EQ(guarded.check(), 0U);
    EXPECT_EQ(errors.count(), 167U);
}

TEST_F(canary_quarantine, without_a_fill_only_guards_are_verified) {
    basic_canary_resource<policy{.fill = false}> unfilled(&upstream, canary_options{.handler = &errors});
    void* const p = unfilled.allocate(32, 8);
    unfilled.deallocate(p, 32, 8);
    stray_write(p, 0, 1);
    EXPECT_EQ(unfilled.check(), 0U);
    damage(p, 32);
    EXPECT_EQ(unfilled.check(), 1U);
    EXPECT_EQ(only(errors).first_bad, static_cast<std::byte*>(p) + 32);
}

TEST_F(canary_quarantine, double_free_of_waiting_gone_and_damaged_blocks) {
    // The table forgets at once: what is known comes from the quarantine.
    canary_resource guarded(&upstream, {.handler = &errors, .quarantine_bytes = 10'000, .freed_records = 0});
    void* const p = allocate_here(guarded, 33, 8);
    free_here(guarded, p, 33, 8);
    for (int i = 0; i < 10; ++i) {
        guarded.deallocate(guarded.allocate(100, 8), 100, 8);
    }
    free_again_here(guarded, p, 33, 8);
    {
        const report& r = only(errors);
        EXPECT_EQ(r.kind, error_kind::double_free);
        EXPECT_EQ(r.block.size, 33U);
        EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
        EXPECT_TRUE(trace_contains(r.freed, "free_here"));
        EXPECT_TRUE(trace_contains(r.here, "free_again_here"));
    }
    errors.clear();
    damage(p, 3);
    EXPECT_EQ(guarded.check(), 1U);
    free_again_here(guarded, p, 33, 8);
    EXPECT_EQ(errors.back().facts.kind, error_kind::double_free);

    canary_resource remembering(&upstream, {.handler = &errors, .quarantine_bytes = 0});
    errors.clear();
    void* const q = allocate_here(remembering, 33, 8);
    free_here(remembering, q, 33, 8);
    free_again_here(remembering, q, 33, 8);
    EXPECT_EQ(only(errors).kind, error_kind::double_free);
    EXPECT_TRUE(trace_contains(only(errors).freed, "free_here"));
}

TEST_F(canary_quarantine, a_stale_pointer_after_growth) {
    canary_resource guarded(canary_options{.handler = &errors});
    std::pmr::vector<int> v(&guarded);
    v.reserve(4);
    v.push_back(1);
    int* const stale = v.data();
    v.reserve(100);
    stray_write(stale, 0, 7);
    EXPECT_EQ(guarded.check(), 1U);
    EXPECT_EQ(only(errors).kind, error_kind::write_after_free);
    EXPECT_EQ(only(errors).first_bad, stale);
}

TEST_F(canary_quarantine, a_read_and_a_write_before_the_free_are_silent) {
    canary_resource guarded(canary_options{.handler = &errors});
    std::pmr::vector<int> v(&guarded);
    v.reserve(4);
    v.push_back(1);
    v.reserve(100);
    v.data()[0] = 7;
    EXPECT_EQ(guarded.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

/// Throws bad_alloc, without a word, rather than have more than so many bytes out.
class small_upstream final : public std::pmr::memory_resource {
public:
    static constexpr std::size_t most = 4096;
    std::size_t out = 0;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (bytes > most - out) {
            throw std::bad_alloc();
        }
        void* const p = std::pmr::new_delete_resource()->allocate(bytes, alignment);
        out += bytes;
        return p;
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        out -= bytes;
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

TEST_F(canary_quarantine, goes_back_when_the_upstream_is_out_of_memory) {
    small_upstream small;
    {
        canary_resource guarded(&small, canary_options{.handler = &errors});
        for (int i = 0; i < 100; ++i) {
            guarded.deallocate(guarded.allocate(1000, 8), 1000, 8);
        }
        EXPECT_EQ(guarded.stats().failed_allocations, 0U);
        EXPECT_GT(guarded.quarantine().blocks, 0U);  // what fits goes on waiting
        EXPECT_EQ(errors.count(), 0U);
    }
    EXPECT_EQ(small.out, 0U);
}

TEST_F(canary_quarantine, is_not_given_up_for_a_request_that_cannot_be) {
    canary_resource guarded(&upstream, {.handler = &errors});
    guarded.deallocate(guarded.allocate(100, 8), 100, 8);
    for (const std::size_t size : {SIZE_MAX / 2 - 4096, std::size_t{1} << 60, (std::size_t{1} << 48) + 1}) {
        EXPECT_THROW((void)guarded.allocate(size, 8), std::bad_alloc) << size;
    }
    EXPECT_THROW((void)test_support::allocate_odd(guarded, 1, std::size_t{1} << 60), std::bad_alloc);
    EXPECT_EQ(guarded.quarantine().blocks, 1U);
    EXPECT_EQ(guarded.stats().failed_allocations, 4U);
    EXPECT_TRUE(guarded.ok());
}

TEST_F(canary_quarantine, a_late_write_is_found_when_memory_is_out) {
    small_upstream small;
    {
        canary_resource guarded(&small, canary_options{.handler = &errors});
        void* const stale = allocate_here(guarded, 1000, 8);
        void* const other = guarded.allocate(1000, 8);
        free_here(guarded, stale, 1000, 8);
        guarded.deallocate(other, 1000, 8);
        stray_write(stale, 3, 1);
        guarded.deallocate(guarded.allocate(2500, 8), 2500, 8);  // in the place of the other one
        EXPECT_EQ(only(errors).kind, error_kind::write_after_free);
        EXPECT_EQ(only(errors).first_bad, static_cast<std::byte*>(stale) + 3);
        EXPECT_EQ(only(errors).block.size, 1000U);
        EXPECT_TRUE(trace_contains(only(errors).allocated, "allocate_here"));
        EXPECT_TRUE(trace_contains(only(errors).freed, "free_here"));
        EXPECT_EQ(guarded.quarantine().damaged_blocks, 1U);
        EXPECT_EQ(guarded.stats().failed_allocations, 0U);
    }
    EXPECT_EQ(small.out, 0U);
}

TEST_F(canary_quarantine, memory_that_is_out_for_good_is_a_bad_alloc) {
    small_upstream small;
    canary_resource guarded(&small, canary_options{.handler = &errors});
    void* const live = guarded.allocate(2000, 8);
    EXPECT_THROW((void)guarded.allocate(3000, 8), std::bad_alloc);  // nothing waits
    guarded.deallocate(guarded.allocate(1000, 8), 1000, 8);
    EXPECT_THROW((void)guarded.allocate(3000, 8), std::bad_alloc);  // not even with what waited
    EXPECT_EQ(guarded.quarantine().blocks, 0U);
    EXPECT_EQ(guarded.stats().failed_allocations, 2U);
    EXPECT_EQ(errors.count(), 0U);
    guarded.deallocate(live, 2000, 8);
}

}  // namespace
