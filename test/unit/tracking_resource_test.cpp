#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "os/thread.hpp"
#include "support/call_here.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <list>
#include <memory_resource>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

using pmr_debug::basic_tracking_resource;
using pmr_debug::block_state;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::page_resource;
using pmr_debug::policy;
using pmr_debug::report;
using pmr_debug::statistics;
using pmr_debug::threading;
using pmr_debug::trace_id;
using pmr_debug::tracking_options;
using pmr_debug::tracking_resource;
using test_support::allocate_here;
using test_support::free_again_here;
using test_support::free_here;
using test_support::trace_contains;

constexpr policy with_traces(threading t) {
    return {.threads = t};
}
constexpr policy without_traces(threading t) {
    return {.threads = t, .alloc_frames = 0, .free_frames = 0};
}
constexpr policy counts_only(threading t) {
    return {.threads = t, .alloc_frames = 0, .free_frames = 0, .checks = false, .guard_bytes = 0, .fill = false};
}

// An upstream that answers what it is told to, and notes what it gets back.
class scripted_upstream final : public std::pmr::memory_resource {
public:
    std::function<void*(std::size_t, std::size_t)> answer;
    struct returned {
        void* p;
        std::size_t bytes;
        std::size_t alignment;
        friend bool operator==(const returned&, const returned&) = default;
    };
    std::vector<returned> back;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override { return answer(bytes, alignment); }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        back.push_back({p, bytes, alignment});
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

struct tracking : ::testing::Test {
    collecting_handler errors;
    tracking_resource scope{tracking_options{.name = "scope", .handler = &errors}};

    [[nodiscard]] const report& only() {
        EXPECT_EQ(errors.count(), 1U);
        static const report none{};
        return errors.size() != 0 ? errors[0].facts : none;
    }
};

// ---- Correct programs, in every shape ----------------------------------------------------------------------------

template <class Resource>
class tracking_shape : public ::testing::Test {};

#ifdef TEST_ALL_POLICIES
using every_shape = ::testing::Types<
    basic_tracking_resource<with_traces(threading::unchecked)>,
    basic_tracking_resource<with_traces(threading::single_checked)>,
    basic_tracking_resource<with_traces(threading::synchronized)>,
    basic_tracking_resource<without_traces(threading::unchecked)>,
    basic_tracking_resource<without_traces(threading::single_checked)>,
    basic_tracking_resource<without_traces(threading::synchronized)>,
    basic_tracking_resource<counts_only(threading::unchecked)>,
    basic_tracking_resource<counts_only(threading::single_checked)>,
    basic_tracking_resource<counts_only(threading::synchronized)>, basic_tracking_resource<pmr_debug::thorough_policy>,
    basic_tracking_resource<pmr_debug::fast_policy>, basic_tracking_resource<pmr_debug::release_policy>,
    // A policy that ships with nobody.
    basic_tracking_resource<policy{.threads = threading::single_checked, .alloc_frames = 3, .free_frames = 0}>>;
#else
using every_shape = ::testing::Types<basic_tracking_resource<with_traces(threading::synchronized)>,
                                     basic_tracking_resource<without_traces(threading::single_checked)>,
                                     basic_tracking_resource<counts_only(threading::unchecked)>,
                                     basic_tracking_resource<pmr_debug::thorough_policy>,
                                     basic_tracking_resource<pmr_debug::release_policy>>;
#endif
TYPED_TEST_SUITE(tracking_shape, every_shape);

TYPED_TEST(tracking_shape, containers_run_without_a_report) {
    collecting_handler errors;
    TypeParam scope(tracking_options{.name = "scope", .handler = &errors});
    {
        std::pmr::unordered_map<std::pmr::string, std::pmr::vector<int>> words(&scope);
        for (int i = 0; i < 2000; ++i) {
            words[std::pmr::string("a word that is not short ") + std::to_string(i % 500).c_str()].push_back(i);
        }
        std::pmr::list<int> numbers(words.begin()->second.begin(), words.begin()->second.end(), &scope);
        EXPECT_EQ(numbers.size(), 4U);
        EXPECT_GT(scope.stats().live_bytes, 500U * sizeof(std::pmr::string));
    }
    const statistics s = scope.stats();
    EXPECT_EQ(s.live_blocks, 0U);
    EXPECT_EQ(s.live_bytes, 0U);
    EXPECT_GT(s.total_allocations, 1000U);
    EXPECT_EQ(s.total_deallocations, s.total_allocations);
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_TRUE(scope.ok());
    EXPECT_EQ(scope.report_leaks(), 0U);
}

TYPED_TEST(tracking_shape, statistics_agree_with_a_model) {
    collecting_handler errors;
    TypeParam scope(tracking_options{.handler = &errors});
    struct block {
        void* p;
        std::size_t bytes;
    };
    std::vector<block> live;
    statistics want;
    std::array<std::uint64_t, 65> sizes{};
    std::mt19937 random(7);
    for (int i = 0; i < 5000; ++i) {
        if (live.empty() || random() % 5 < 3) {
            const std::size_t n = random() % 5 == 0 ? random() % 3 : random() % 3000;
            live.push_back({scope.allocate(n, 16), n});
            std::memset(live.back().p, 1, n);
            want.live_bytes += n;
            want.total_bytes += n;
            ++want.total_allocations;
            ++sizes[n <= 1 ? 0 : 64 - static_cast<std::size_t>(__builtin_clzll(n - 1))];
        } else {
            const std::size_t k = random() % live.size();
            scope.deallocate(live[k].p, live[k].bytes, 16);
            want.live_bytes -= live[k].bytes;
            ++want.total_deallocations;
            live[k] = live.back();
            live.pop_back();
        }
        want.live_blocks = live.size();
        want.peak_blocks = std::max(want.peak_blocks, want.live_blocks);
        want.peak_bytes = std::max(want.peak_bytes, want.live_bytes);
    }
    const statistics s = scope.stats();
    EXPECT_EQ(s.live_blocks, want.live_blocks);
    EXPECT_EQ(s.live_bytes, want.live_bytes);
    EXPECT_EQ(s.peak_blocks, want.peak_blocks);
    EXPECT_EQ(s.peak_bytes, want.peak_bytes);
    EXPECT_EQ(s.total_allocations, want.total_allocations);
    EXPECT_EQ(s.total_deallocations, want.total_deallocations);
    EXPECT_EQ(s.total_bytes, want.total_bytes);
    EXPECT_EQ(s.failed_allocations, 0U);
    EXPECT_EQ(scope.histogram().counts, sizes);
    for (const block& b : live) {
        scope.deallocate(b.p, b.bytes, 16);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(tracking_shape, limits_hold_to_the_byte_and_block) {
    collecting_handler errors;
    TypeParam scope(tracking_options{.name = "small", .handler = &errors, .limit_bytes = 1010});
    void* const a = scope.allocate(4, 4);
    void* const b = scope.allocate(1000, 4);
    EXPECT_THROW((void)scope.allocate(8, 4), std::bad_alloc);
    EXPECT_EQ(scope.stats().live_bytes, 1004U);
    scope.deallocate(a, 4, 4);
    EXPECT_EQ(scope.stats().live_bytes, 1000U);
    void* const c = scope.allocate(10, 4);
    scope.deallocate(b, 1000, 4);
    scope.deallocate(c, 10, 4);
    void* const all = scope.allocate(1010, 4);
    EXPECT_THROW((void)scope.allocate(1, 1), std::bad_alloc);
    scope.deallocate(all, 1010, 4);
    EXPECT_EQ(scope.stats().failed_allocations, 2U);
    EXPECT_EQ(scope.stats().peak_bytes, 1010U);

    TypeParam two(tracking_options{.handler = &errors, .limit_blocks = 2});
    void* const d = two.allocate(0, 1);
    void* const e = two.allocate(50, 1);
    EXPECT_THROW((void)two.allocate(0, 1), std::bad_alloc);
    two.deallocate(d, 0, 1);
    two.deallocate(two.allocate(1, 1), 1, 1);
    two.deallocate(e, 50, 1);

    if (errors.count() != 0) {  // counts only: in silence
        ASSERT_EQ(errors.count(error_kind::limit_exceeded), 3U);
        EXPECT_EQ(errors[0].facts.resource.name, "small");
        EXPECT_EQ(errors[0].facts.limit, 1010U);
        EXPECT_EQ(errors[0].facts.in_use, 1004U);
        EXPECT_EQ(errors[0].facts.given_size, 8U);
        EXPECT_EQ(errors[2].facts.limit, 2U);
        EXPECT_EQ(errors[2].facts.in_use, 2U);
    }
}

TYPED_TEST(tracking_shape, a_failing_upstream_leaves_everything_as_it_was) {
    collecting_handler errors;
    scripted_upstream upstream;
    int left = 2;
    upstream.answer = [&left](std::size_t n, std::size_t a) {
        if (left-- == 0) {
            throw std::runtime_error("not bad_alloc");
        }
        return std::pmr::new_delete_resource()->allocate(n, a);
    };
    TypeParam scope(&upstream, tracking_options{.handler = &errors, .limit_bytes = 1000});
    void* const a = scope.allocate(100, 8);
    void* const b = scope.allocate(200, 8);
    EXPECT_THROW((void)scope.allocate(700, 8), std::runtime_error);
    EXPECT_EQ(scope.stats().live_bytes, 300U);
    EXPECT_EQ(scope.stats().peak_bytes, 300U);
    EXPECT_EQ(scope.stats().failed_allocations, 1U);
    left = 1;
    void* const c = scope.allocate(700, 8);  // the limit must not count the failed one
    scope.deallocate(a, 100, 8);
    scope.deallocate(b, 200, 8);
    scope.deallocate(c, 700, 8);
    EXPECT_EQ(upstream.back.size(), 3U);
    for (const auto& r : upstream.back) {
        std::pmr::new_delete_resource()->deallocate(r.p, r.bytes, r.alignment);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(tracking_shape, sizes_that_cannot_be_are_refused_without_a_report) {
    collecting_handler errors;
    TypeParam scope(tracking_options{.handler = &errors});
    EXPECT_THROW((void)test_support::allocate_odd(scope, SIZE_MAX, SIZE_MAX / 2 + 1), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(scope, SIZE_MAX, 1), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(scope, SIZE_MAX - 7, 8), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(scope, 1, SIZE_MAX / 2 + 1), std::bad_alloc);
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(scope.stats().failed_allocations, 4U);
    scope.deallocate(scope.allocate(8, 8), 8, 8);
}

TYPED_TEST(tracking_shape, over_aligned_blocks) {
    collecting_handler errors;
    TypeParam scope(tracking_options{.handler = &errors});
    for (std::size_t alignment = 1; alignment <= 1U << 18U; alignment *= 2) {
        void* const p = scope.allocate(10, alignment);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
        scope.deallocate(p, 10, alignment);
    }
    EXPECT_EQ(errors.count(), 0U);
}

// ---- Wrong programs ------------------------------------------------------------------------------------------------

TEST_F(tracking, double_free_with_three_traces) {
    void* const p = allocate_here(scope, 100, 8);
    free_here(scope, p, 100, 8);
    free_again_here(scope, p, 100, 8);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::double_free);
    EXPECT_EQ(r.resource.name, "scope");
    EXPECT_EQ(r.resource.type, "tracking_resource");
    EXPECT_EQ(r.pointer, p);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_EQ(r.block.alignment, 8U);
    EXPECT_EQ(r.block.serial, 1U);
    EXPECT_EQ(r.block.state, block_state::freed);
    const std::uint32_t me = pmr_debug::os::this_thread().number;
    EXPECT_EQ(r.block.alloc_thread, me);
    EXPECT_EQ(r.block.free_thread, me);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_again_here"));
    EXPECT_FALSE(scope.ok());
    EXPECT_EQ(scope.errors()[error_kind::double_free], 1U);
    EXPECT_EQ(scope.stats().total_deallocations, 1U);
}

TEST_F(tracking, an_address_handed_out_again_is_no_double_free) {
    std::byte buffer[64];
    scripted_upstream upstream;
    upstream.answer = [&buffer](std::size_t, std::size_t) { return buffer; };
    tracking_resource again(&upstream, {.handler = &errors});
    for (int i = 0; i < 10'000; ++i) {
        void* const p = again.allocate(8, 1);
        again.deallocate(p, 8, 1);
    }
    EXPECT_EQ(errors.count(), 0U);
    free_again_here(again, buffer, 8, 1);
    EXPECT_EQ(only().kind, error_kind::double_free);
    EXPECT_EQ(only().block.serial, 10'000U);
}

TEST_F(tracking, wrong_size_reaches_the_upstream_corrected) {
    scripted_upstream upstream;
    alignas(64) std::byte buffer[256];
    upstream.answer = [&buffer](std::size_t, std::size_t) { return buffer; };
    tracking_resource watched(&upstream, {.name = "watched", .handler = &errors});
    void* const p = allocate_here(watched, 100, 8);
    free_here(watched, p, 96, 8);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::size_mismatch);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_EQ(r.given_size, 96U);
    EXPECT_TRUE(r.has_given);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
    EXPECT_EQ(upstream.back, (std::vector<scripted_upstream::returned>{{p, 100, 8}}));
    EXPECT_EQ(watched.stats().live_bytes, 0U);
}

TEST_F(tracking, wrong_alignment_reaches_the_upstream_corrected) {
    scripted_upstream upstream;
    alignas(64) std::byte buffer[256];
    upstream.answer = [&buffer](std::size_t, std::size_t) { return buffer; };
    tracking_resource watched(&upstream, {.handler = &errors});
    void* const p = allocate_here(watched, 100, 32);
    free_here(watched, p, 100, 8);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::alignment_mismatch);
    EXPECT_EQ(r.block.alignment, 32U);
    EXPECT_EQ(r.given_alignment, 8U);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_EQ(upstream.back, (std::vector<scripted_upstream::returned>{{p, 100, 32}}));
}

TEST_F(tracking, interior_pointer) {
    auto* const p = static_cast<std::byte*>(allocate_here(scope, 100, 8));
    free_here(scope, p + 16, 8, 8);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::interior_free);
    EXPECT_EQ(r.pointer, p + 16);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_FALSE(r.nearest_only);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_EQ(scope.stats().live_blocks, 1U);
    scope.deallocate(p, 100, 8);
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(tracking, invalid_pointer_names_the_nearest_block) {
    std::byte buffer[256];
    scripted_upstream upstream;
    upstream.answer = [&buffer](std::size_t, std::size_t) { return buffer + 64; };
    tracking_resource watched(&upstream, {.handler = &errors});
    void* const p = allocate_here(watched, 32, 1);
    free_here(watched, buffer + 128, 8, 1);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::invalid_free);
    EXPECT_TRUE(r.nearest_only);
    EXPECT_EQ(r.block.address, p);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
    watched.deallocate(p, 32, 1);
    EXPECT_EQ(upstream.back.size(), 1U);
}

TEST_F(tracking, null_pointer) {
    test_support::free_null(scope, 8, 8);
    EXPECT_EQ(only().kind, error_kind::null_free);
    EXPECT_EQ(scope.stats().total_deallocations, 0U);
}

TEST_F(tracking, another_ones_block_names_the_owner) {
    tracking_resource other(tracking_options{.name = "other", .handler = &errors});
    void* const p = allocate_here(other, 40, 8);
    free_here(scope, p, 40, 8);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::wrong_resource);
    EXPECT_EQ(r.resource.name, "scope");
    EXPECT_EQ(r.owner.name, "other");
    EXPECT_EQ(r.owner.address, static_cast<std::pmr::memory_resource*>(&other));
    EXPECT_TRUE(r.owner.alive);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 40U);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
    EXPECT_TRUE(other.ok());
    other.deallocate(p, 40, 8);
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(tracking, an_upstreams_block_names_the_upstream) {
    page_resource pages({.name = "pages", .handler = &errors});
    tracking_resource child(&pages, {.name = "child", .handler = &errors});
    void* const p = pages.allocate(100, 8);
    free_here(child, p, 100, 8);
    EXPECT_EQ(only().kind, error_kind::wrong_resource);
    EXPECT_EQ(only().owner.name, "pages");
    pages.deallocate(p, 100, 8);
}

TEST_F(tracking, a_childs_block_freed_to_its_parent_names_the_child) {
    tracking_resource child(&scope, {.name = "child", .handler = &errors});
    void* const p = child.allocate(100, 8);
    // The parent knows the block, too, as it passed through: it takes it for its own. The child finds out.
    scope.deallocate(p, 100, 8);
    EXPECT_EQ(errors.count(), 0U);
    child.deallocate(p, 100, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::double_free);
    EXPECT_EQ(errors[0].facts.resource.name, "scope");
}

TEST_F(tracking, an_unchecked_owner_is_named_on_its_own_thread_only) {
    basic_tracking_resource<with_traces(threading::unchecked)> other(
        tracking_options{.name = "other", .handler = &errors});
    void* const p = other.allocate(40, 8);
    std::thread([&] { scope.deallocate(p, 40, 8); }).join();
    scope.deallocate(p, 40, 8);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::invalid_free);
    EXPECT_EQ(errors[1].facts.kind, error_kind::wrong_resource);
    other.deallocate(p, 40, 8);
}

TEST_F(tracking, alignment_that_is_no_power_of_two) {
    EXPECT_THROW((void)test_support::allocate_odd(scope, 8, 3), std::bad_alloc);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::bad_alignment);
    EXPECT_EQ(r.given_alignment, 3U);
    EXPECT_EQ(r.given_size, 8U);
    EXPECT_THROW((void)test_support::allocate_odd(scope, 8, 0), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::bad_alignment), 2U);
}

TEST_F(tracking, leaks_are_grouped_by_call_path_and_reported_at_the_end) {
    std::vector<void*> leaked;
    {
        tracking_resource leaky(tracking_options{.name = "leaky", .handler = &errors});
        const volatile int times = 3;  // unrolled, the loop would be three call paths
        for (int i = 0; i < times; ++i) {
            leaked.push_back(allocate_here(leaky, 100, 8));
        }
        leaked.push_back(leaky.allocate(1000, 8));
        leaky.deallocate(allocate_here(leaky, 5, 1), 5, 1);
        EXPECT_EQ(leaky.report_leaks(), 4U);
        EXPECT_EQ(errors.count(error_kind::leak), 1U);
        errors.clear();
    }
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::leak);
    EXPECT_EQ(r.resource.name, "leaky");
    EXPECT_EQ(r.leaked_blocks, 4U);
    EXPECT_EQ(r.leaked_bytes, 1300U);
    ASSERT_EQ(r.leaks.size(), 2U);
    EXPECT_EQ(r.leaks[0].bytes, 1000U);
    EXPECT_EQ(r.leaks[1].blocks, 3U);
    EXPECT_EQ(r.leaks[1].bytes, 300U);
    EXPECT_EQ(r.leaks[1].example, leaked[0]);
    EXPECT_TRUE(trace_contains(r.leaks[1].allocated, "allocate_here"));
    // They stay with the upstream.
    for (void* const p : leaked) {
        std::memset(p, 1, 100);
        std::pmr::new_delete_resource()->deallocate(p, p == leaked[3] ? 1000 : 100, 8);
    }
}

// ---- Wrong upstreams -----------------------------------------------------------------------------------------------

TEST_F(tracking, upstream_returns_null) {
    scripted_upstream upstream;
    upstream.answer = [](std::size_t, std::size_t) { return nullptr; };
    tracking_resource watched(&upstream, {.handler = &errors});
    EXPECT_THROW((void)watched.allocate(100, 8), std::bad_alloc);
    EXPECT_EQ(only().kind, error_kind::upstream_null);
    EXPECT_EQ(only().given_size, 100U);
    EXPECT_TRUE(upstream.back.empty());
    EXPECT_EQ(watched.stats().failed_allocations, 1U);
    basic_tracking_resource<pmr_debug::release_policy> silent(&upstream, {.handler = &errors});
    EXPECT_THROW((void)silent.allocate(100, 8), std::bad_alloc);
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(tracking, upstream_returns_misaligned_memory) {
    alignas(64) std::byte buffer[256];
    scripted_upstream upstream;
    upstream.answer = [&buffer](std::size_t, std::size_t) { return buffer + 8; };
    tracking_resource watched(&upstream, {.handler = &errors});
    EXPECT_THROW((void)watched.allocate(100, 64), std::bad_alloc);
    EXPECT_EQ(only().kind, error_kind::upstream_misaligned);
    EXPECT_EQ(only().pointer, buffer + 8);
    EXPECT_EQ(only().given_alignment, 64U);
    EXPECT_EQ(upstream.back, (std::vector<scripted_upstream::returned>{{buffer + 8, 100, 64}}));
    EXPECT_EQ(watched.stats().live_blocks, 0U);
}

TEST_F(tracking, upstream_returns_memory_in_use) {
    std::byte buffer[256];
    scripted_upstream upstream;
    upstream.answer = [&buffer](std::size_t, std::size_t) { return buffer; };
    tracking_resource watched(&upstream, {.handler = &errors});
    void* const p = allocate_here(watched, 100, 1);
    EXPECT_THROW((void)watched.allocate(50, 1), std::bad_alloc);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::upstream_overlap);
    EXPECT_EQ(r.pointer, p);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_EQ(r.given_size, 50U);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(upstream.back.empty()) << "giving it back would free the block in use";
    EXPECT_EQ(watched.stats().live_blocks, 1U);
    EXPECT_EQ(watched.stats().total_allocations, 1U);
    watched.deallocate(p, 100, 1);
}

TEST(tracking_death, null_upstream_is_reported_and_ends_the_process) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    EXPECT_DEATH(
        {
            std::pmr::memory_resource* nothing = nullptr;
            tracking_resource scope(nothing, {.name = "orphan"});
        },
        "null_upstream");
}

TEST(tracking_death, the_default_handler_ends_the_process_after_a_double_free) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    EXPECT_DEATH(
        {
            tracking_resource scope(tracking_options{.name = "strict"});
            void* const p = scope.allocate(8, 8);
            scope.deallocate(p, 8, 8);
            scope.deallocate(p, 8, 8);
        },
        "double_free: 8-byte block");
}

// ---- Threads -------------------------------------------------------------------------------------------------------

template <class Resource>
void use_from_a_second_thread(bool traced) {
    collecting_handler errors;
    Resource scope(tracking_options{.name = "mine", .handler = &errors});
    void* const p = allocate_here(scope, 64, 8);
    std::uint32_t other = 0;
    std::thread([&] {
        other = pmr_debug::os::this_thread().number;
        free_here(scope, p, 64, 8);
    }).join();
    ASSERT_EQ(errors.count(), 1U);
    const report& r = errors[0].facts;
    EXPECT_EQ(r.kind, error_kind::foreign_thread);
    EXPECT_EQ(r.pointer, p);
    EXPECT_EQ(r.thread, other);
    EXPECT_EQ(r.other_thread, pmr_debug::os::this_thread().number);
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
    EXPECT_TRUE(trace_contains(r.other, "allocate_here")) << traced;
    EXPECT_EQ(scope.stats().live_blocks, 0U) << "the call is carried out";
    scope.deallocate(scope.allocate(1, 1), 1, 1);
    EXPECT_EQ(errors.count(), 1U);
}

TEST(tracking_threads, single_checked_reports_a_second_thread_with_both_traces) {
    use_from_a_second_thread<basic_tracking_resource<with_traces(threading::single_checked)>>(true);
    use_from_a_second_thread<basic_tracking_resource<without_traces(threading::single_checked)>>(false);
}

TEST(tracking_threads, single_checked_is_bound_by_its_first_use_not_its_construction) {
    collecting_handler errors;
    basic_tracking_resource<with_traces(threading::single_checked)> scope(tracking_options{.handler = &errors});
    std::thread([&] { scope.deallocate(scope.allocate(8, 8), 8, 8); }).join();
    EXPECT_EQ(errors.count(), 0U);
    scope.deallocate(scope.allocate(8, 8), 8, 8);
    EXPECT_EQ(errors.count(error_kind::foreign_thread), 2U);
}

// Each thread keeps some blocks, frees some itself and leaves some to the next one.
template <class Resource>
void stress(Resource& scope, unsigned threads, int rounds) {
    struct block {
        void* p = nullptr;
        std::size_t bytes = 0;
    };
    constexpr std::size_t places = 64;
    std::vector<std::array<std::atomic<block*>, places>> shared(threads);
    std::vector<std::thread> running;
    for (unsigned t = 0; t < threads; ++t) {
        running.emplace_back([&, t] {
            std::mt19937 random(t);
            for (int i = 0; i < rounds; ++i) {
                const std::size_t n = random() % 200;
                auto* const mine = new block{scope.allocate(n, 8), n};
                std::memset(mine->p, static_cast<int>(t), n);
                auto& place = shared[(t + random() % 2) % threads][random() % places];
                if (block* const old = place.exchange(mine); old != nullptr) {
                    scope.deallocate(old->p, old->bytes, 8);
                    delete old;
                }
            }
        });
    }
    for (std::thread& t : running) {
        t.join();
    }
    for (auto& row : shared) {
        for (auto& place : row) {
            if (block* const left = place.load(); left != nullptr) {
                scope.deallocate(left->p, left->bytes, 8);
                delete left;
            }
        }
    }
}

TEST(tracking_threads, any_number_of_threads_without_a_report_and_with_exact_counts) {
    collecting_handler errors;
    tracking_resource parent(tracking_options{.name = "parent", .handler = &errors});
    tracking_resource child(&parent, {.name = "child", .handler = &errors});
    stress(child, 4, 4000);
    for (const tracking_resource* const r : {&parent, &child}) {
        const statistics s = r->stats();
        EXPECT_EQ(s.total_allocations, 16'000U);
        EXPECT_EQ(s.total_deallocations, 16'000U);
        EXPECT_EQ(s.live_blocks, 0U);
        EXPECT_EQ(s.live_bytes, 0U);
        EXPECT_GE(s.peak_blocks, 100U);
        EXPECT_LE(s.peak_blocks, 4U * 64U + 4U + 4U);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST(tracking_threads, counts_only_with_threads) {
    basic_tracking_resource<counts_only(threading::synchronized)> scope;
    stress(scope, 4, 4000);
    EXPECT_EQ(scope.stats().total_allocations, 16'000U);
    EXPECT_EQ(scope.stats().live_blocks, 0U);
    EXPECT_EQ(scope.stats().live_bytes, 0U);
}

TEST(tracking_threads, single_checked_records_stay_sound_with_foreign_threads) {
    collecting_handler errors;
    {
        basic_tracking_resource<without_traces(threading::single_checked)> scope(
            tracking_options{.name = "mine", .handler = &errors});
        stress(scope, 3, 500);
        EXPECT_EQ(scope.stats().total_allocations, 1500U);
        EXPECT_EQ(scope.stats().live_blocks, 0U);
    }
    EXPECT_GT(errors.count(error_kind::foreign_thread), 0U);
    EXPECT_EQ(errors.count(), errors.count(error_kind::foreign_thread));
}

TEST(tracking_threads, limits_are_exact) {
    collecting_handler errors;
    tracking_resource scope(tracking_options{.handler = &errors, .limit_blocks = 100});
    std::atomic<int> got{0};
    std::vector<std::thread> running;
    std::array<std::vector<void*>, 4> blocks;
    for (std::vector<void*>& mine : blocks) {
        running.emplace_back([&] {
            for (int i = 0; i < 50; ++i) {
                try {
                    mine.push_back(scope.allocate(8, 8));
                    ++got;
                } catch (const std::bad_alloc&) {
                }
            }
        });
    }
    for (std::thread& t : running) {
        t.join();
    }
    EXPECT_EQ(got, 100);
    EXPECT_EQ(errors.count(error_kind::limit_exceeded), 100U);
    EXPECT_EQ(scope.stats().peak_blocks, 100U);
    for (const std::vector<void*>& mine : blocks) {
        for (void* const p : mine) {
            scope.deallocate(p, 8, 8);
        }
    }
}

// ---- Chains and trees ----------------------------------------------------------------------------------------------

TEST_F(tracking, a_chain_down_to_pages_is_silent_and_counts_on_every_level) {
    page_resource pages({.name = "pages", .handler = &errors});
    tracking_resource outer(&pages, {.name = "outer", .handler = &errors});
    tracking_resource inner(&outer, {.name = "inner", .handler = &errors});
    {
        std::pmr::vector<int> v(100, &inner);
        std::pmr::vector<int> w(50, &outer);
        EXPECT_EQ(inner.stats().live_bytes, 400U);
        EXPECT_EQ(outer.stats().live_bytes, 600U);
        EXPECT_EQ(pages.stats().live_bytes, 600U);
    }
    EXPECT_EQ(pages.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(inner.upstream_resource(), &outer);
    EXPECT_EQ(inner.name(), "inner");
}

std::string tree_of(const pmr_debug::tracking_resource_base& r) {
    std::string text;
    r.write_tree([](std::string_view piece, void* context) noexcept { *static_cast<std::string*>(context) += piece; },
                 &text);
    return text;
}

TEST_F(tracking, the_tree_of_scopes_as_text) {
    tracking_resource game(tracking_options{.name = "game", .handler = &errors});
    tracking_resource textures(&game, {.name = "textures", .handler = &errors});
    tracking_resource script(&game, {.name = "skript für 日", .handler = &errors});
    basic_tracking_resource<pmr_debug::release_policy> mips(&textures, {.handler = &errors});
    tracking_resource unrelated(tracking_options{.name = "unrelated"});
    void* const a = mips.allocate(3000, 8);
    void* const b = script.allocate(100, 8);
    void* const c = game.allocate(10, 8);
    script.deallocate(script.allocate(50, 8), 50, 8);
    EXPECT_EQ(tree_of(game),
              "scope                     live      blocks   most bytes   allocations\n"
              "game                   3.0 KiB           3      3.1 KiB             4\n"
              "├── textures           2.9 KiB           1      2.9 KiB             1\n"
              "│   └── (unnamed)      2.9 KiB           1      2.9 KiB             1\n"
              "└── skript für 日     100 bytes           1    150 bytes             2\n");
    EXPECT_EQ(tree_of(mips),
              "scope             live      blocks   most bytes   allocations\n"
              "(unnamed)      2.9 KiB           1      2.9 KiB             1\n");
    mips.deallocate(a, 3000, 8);
    script.deallocate(b, 100, 8);
    game.deallocate(c, 10, 8);
}

TEST_F(tracking, a_deep_and_a_wide_tree_are_drawn_whole) {
    std::list<tracking_resource> chain;
    const tracking_resource& root = chain.emplace_back(tracking_options{.name = "root"});
    for (int i = 0; i < 100; ++i) {
        std::pmr::memory_resource* const up = &chain.back();
        chain.emplace_back(up, tracking_options{});
    }
    const std::string deep = tree_of(root);
    EXPECT_EQ(std::count(deep.begin(), deep.end(), '\n'), 102);
    std::list<tracking_resource> wide;
    for (int i = 0; i < 100; ++i) {
        wide.emplace_back(&scope, tracking_options{});
    }
    const std::string broad = tree_of(scope);
    EXPECT_EQ(std::count(broad.begin(), broad.end(), '\n'), 102);
    while (!chain.empty()) {
        chain.pop_back();
    }
}

TEST_F(tracking, an_address_used_again_makes_no_circle_of_the_tree) {
    alignas(tracking_resource) unsigned char place[sizeof(tracking_resource)];
    auto* const a = ::new (place) tracking_resource(tracking_options{.name = "a"});
    tracking_resource c(a, {.name = "c"});
    a->~basic_tracking_resource();
    auto* const b = ::new (place) tracking_resource(&c, {.name = "b", .handler = &errors});
    EXPECT_EQ(errors.count(error_kind::cycle), 1U) << "a request would go round for ever";
    const std::string tree = tree_of(*b);
    EXPECT_EQ(std::count(tree.begin(), tree.end(), '\n'), 2);
    b->~basic_tracking_resource();
}

// ---- Odds and ends -------------------------------------------------------------------------------------------------

TEST_F(tracking, works_as_the_default_resource) {
    std::pmr::memory_resource* const before = std::pmr::set_default_resource(&scope);
    {
        std::pmr::vector<std::pmr::string> v;
        for (int i = 0; i < 100; ++i) {
            v.emplace_back("a string too long to sit in the object itself");
        }
        EXPECT_EQ(scope.stats().live_blocks, 101U);
    }
    std::pmr::set_default_resource(before);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(tracking, is_equal_to_itself_only) {
    tracking_resource other;
    EXPECT_TRUE(scope == scope);
    EXPECT_FALSE(scope == other);
}

TEST_F(tracking, size_mismatch_and_alignment_mismatch_at_once_are_two_reports) {
    void* const p = scope.allocate(10, 16);
    scope.deallocate(p, 11, 8);
    EXPECT_EQ(errors.count(error_kind::size_mismatch), 1U);
    EXPECT_EQ(errors.count(error_kind::alignment_mismatch), 1U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(tracking_after_death, calls_are_reported) {
    collecting_handler errors;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&errors);
    alignas(tracking_resource) static unsigned char place[sizeof(tracking_resource)];
    auto* const r = ::new (place) tracking_resource(tracking_options{.name = "late"});
    void* const p = r->allocate(100, 8);
    r->deallocate(p, 100, 8);
    r->~basic_tracking_resource();
    if (!test_support::still_callable(place)) {
        pmr_debug::set_default_report_handler(&before);
        GTEST_SKIP() << "the sanitizer wiped the object";
    }
    test_support::free_late(place, p, 100, 8);
    EXPECT_THROW((void)test_support::allocate_late(place, 100, 8), std::bad_alloc);
    pmr_debug::set_default_report_handler(&before);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::destroyed_resource);
    EXPECT_EQ(errors[0].facts.resource.name, "late");
    EXPECT_FALSE(errors[0].facts.resource.alive);
    EXPECT_EQ(errors[1].facts.kind, error_kind::destroyed_resource);
}

}  // namespace
