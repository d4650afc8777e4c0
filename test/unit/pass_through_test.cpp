// limit_resource, failing_resource, logging_resource: what they share, and each one's own.

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/failing_resource.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/logging_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "support/call_here.hpp"
#include "support/mask.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <new>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::failing_options;
using pmr_debug::failing_resource;
using pmr_debug::failure_plan;
using pmr_debug::induced_failure;
using pmr_debug::limit_options;
using pmr_debug::limit_resource;
using pmr_debug::logging_options;
using pmr_debug::logging_resource;
using pmr_debug::tracking_resource;
using test_support::allocate_here;
using test_support::allocate_odd;
using test_support::free_here;
using test_support::free_null;

// An upstream that gives what it is told to give.
class lying_upstream final : public std::pmr::memory_resource {
public:
    void* answer = nullptr;
    int taken_back = 0;

private:
    void* do_allocate(std::size_t, std::size_t) override { return answer; }
    void do_deallocate(void*, std::size_t, std::size_t) override { ++taken_back; }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

bool refused(std::pmr::memory_resource& r, std::size_t bytes, std::size_t alignment = 8) {
    try {
        void* const p = allocate_here(r, bytes, alignment);
        r.deallocate(p, bytes, alignment);
        return false;
    } catch (const std::bad_alloc&) {
        return true;
    }
}

// ---- What all three promise ----------------------------------------------------------------------------------------

void discard(std::string_view /*line*/, void* /*context*/) noexcept {}

template <class Resource>
struct make;
template <>
struct make<limit_resource> {
    static limit_options options(collecting_handler& errors) { return {.name = "thin", .handler = &errors}; }
};
template <>
struct make<failing_resource> {
    static failing_options options(collecting_handler& errors) { return {.name = "thin", .handler = &errors}; }
};
template <>
struct make<logging_resource> {
    static logging_options options(collecting_handler& errors) {
        return {.name = "thin", .handler = &errors, .sink = discard};
    }
};

template <class Resource>
class pass_through : public ::testing::Test {
protected:
    collecting_handler errors;
    tracking_resource below{{.name = "below", .handler = &errors}};
    Resource thin{&below, make<Resource>::options(errors)};
};
using thin_resources = ::testing::Types<limit_resource, failing_resource, logging_resource>;
TYPED_TEST_SUITE(pass_through, thin_resources);

TYPED_TEST(pass_through, hands_everything_to_the_upstream) {
    EXPECT_EQ(this->thin.name(), "thin");
    EXPECT_EQ(this->thin.upstream_resource(), &this->below);
    EXPECT_TRUE(this->thin.is_equal(this->thin));
    EXPECT_FALSE(this->thin.is_equal(this->below));
    static_assert(!std::is_copy_constructible_v<TypeParam> && !std::is_copy_assignable_v<TypeParam>);
    {
        std::pmr::vector<std::pmr::string> v(&this->thin);
        for (int i = 0; i < 100; ++i) {
            v.emplace_back("a word that does not fit the small buffer of a string");
        }
        EXPECT_EQ(this->thin.stats().live_bytes, this->below.stats().live_bytes);
        EXPECT_EQ(this->thin.stats().live_blocks, 101U);
    }
    EXPECT_EQ(this->thin.stats().live_bytes, 0U);
    EXPECT_EQ(this->thin.stats().live_blocks, 0U);
    EXPECT_EQ(this->thin.stats().total_allocations, this->below.stats().total_allocations);
    EXPECT_TRUE(this->thin.ok());
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(pass_through, a_null_pointer_is_reported_and_ignored_21) {
    free_null(this->thin, 8, 8);
    EXPECT_EQ(this->errors.count(error_kind::null_free), 1U);
    EXPECT_EQ(this->errors.count(), 1U) << "the upstream saw it";
    EXPECT_EQ(this->errors[0].facts.resource.name, "thin");
    EXPECT_FALSE(this->thin.ok());
}

TYPED_TEST(pass_through, an_alignment_of_three_is_reported_22) {
    EXPECT_THROW(allocate_odd(this->thin, 8, 3), std::bad_alloc);
    EXPECT_EQ(this->errors.count(error_kind::bad_alignment), 1U);
    EXPECT_EQ(this->errors.count(), 1U);
    EXPECT_EQ(this->errors[0].facts.given_alignment, 3U);
    EXPECT_EQ(this->thin.stats().failed_allocations, 1U);
}

TYPED_TEST(pass_through, sizes_that_cannot_be_are_plain_bad_alloc_c) {
    EXPECT_THROW(allocate_odd(this->thin, SIZE_MAX, 8), std::bad_alloc);
    EXPECT_THROW(allocate_odd(this->thin, SIZE_MAX, SIZE_MAX / 2 + 1), std::bad_alloc);
    EXPECT_EQ(this->errors.count(), 0U);
    EXPECT_EQ(this->thin.stats().live_bytes, 0U);
}

TYPED_TEST(pass_through, an_upstream_that_returns_null_is_reported_b) {
    lying_upstream liar;
    TypeParam other(&liar, make<TypeParam>::options(this->errors));
    EXPECT_TRUE(refused(other, 8));
    EXPECT_EQ(this->errors.count(error_kind::upstream_null), 1U);
    alignas(64) char memory[128];
    liar.answer = memory + 1;
    EXPECT_TRUE(refused(other, 8));
    EXPECT_EQ(this->errors.count(error_kind::upstream_misaligned), 1U);
    EXPECT_EQ(liar.taken_back, 1);
    EXPECT_EQ(other.stats().live_blocks, 0U);
    EXPECT_EQ(other.stats().failed_allocations, 2U);
}

TYPED_TEST(pass_through, more_back_than_went_out_leaves_the_counters_sound) {
    lying_upstream liar;
    alignas(64) char memory[128];
    liar.answer = memory;
    TypeParam other(&liar, make<TypeParam>::options(this->errors));
    other.deallocate(other.allocate(8, 8), 16, 8);
    other.deallocate(memory, 16, 8);
    EXPECT_EQ(other.stats().live_bytes, 0U);
    EXPECT_EQ(other.stats().live_blocks, 0U);
}

TYPED_TEST(pass_through, a_call_after_the_end_is_reported_9) {
    pmr_debug::set_default_report_handler(&this->errors);
    alignas(TypeParam) std::byte place[sizeof(TypeParam)];
    auto* const other = ::new (place) TypeParam(&this->below, make<TypeParam>::options(this->errors));
    std::destroy_at(other);
    if (test_support::still_callable(place)) {
        test_support::free_late(place, place, 8, 8);
        EXPECT_THROW(test_support::allocate_late(place, 8, 8), std::bad_alloc);
        EXPECT_EQ(this->errors.count(error_kind::destroyed_resource), 2U);
        EXPECT_EQ(this->errors.back().facts.resource.name, "thin");
    }
    pmr_debug::set_default_report_handler(nullptr);
}

TYPED_TEST(pass_through, a_null_upstream_ends_the_process_with_a_report_31) {
    std::pmr::memory_resource* nothing = nullptr;
    EXPECT_DEATH(TypeParam(nothing, make<TypeParam>::options(this->errors)), "null_upstream: \"thin\"");
}

TYPED_TEST(pass_through, two_that_stand_on_each_other_are_a_cycle_c) {
    // The first is built on the second's address before that stands there.
    alignas(TypeParam) std::byte place[sizeof(TypeParam)];
    auto* const second_to_be = reinterpret_cast<TypeParam*>(place);
    TypeParam first(static_cast<std::pmr::memory_resource*>(second_to_be), make<TypeParam>::options(this->errors));
    EXPECT_EQ(this->errors.count(), 0U);
    auto* const second = ::new (place) TypeParam(&first, make<TypeParam>::options(this->errors));
    EXPECT_EQ(this->errors.count(error_kind::cycle), 1U);
    EXPECT_FALSE(second->ok());
    std::destroy_at(second);
}

// ---- limit_resource ------------------------------------------------------------------------------------------------

TEST(limit_resource, refuses_what_goes_over_its_bytes) {
    collecting_handler errors;
    limit_resource budget({.name = "budget", .handler = &errors, .limit_bytes = 1010});
    EXPECT_EQ(budget.limit_bytes(), 1010U);
    void* const a = budget.allocate(4, 4);
    void* const b = budget.allocate(1000, 8);
    EXPECT_TRUE(refused(budget, 8));
    ASSERT_EQ(errors.count(error_kind::limit_exceeded), 1U);
    EXPECT_EQ(errors[0].facts.limit, 1010U);
    EXPECT_EQ(errors[0].facts.in_use, 1004U);
    EXPECT_EQ(errors[0].facts.given_size, 8U);
    EXPECT_TRUE(test_support::trace_contains(errors[0].facts.here, "allocate_here"));
    EXPECT_FALSE(refused(budget, 6)) << "exactly the limit fits";
    budget.deallocate(b, 1000, 8);
    EXPECT_FALSE(refused(budget, 1000)) << "what was freed may be used again";
    budget.deallocate(a, 4, 4);
    EXPECT_EQ(errors.count(), 1U);
    EXPECT_EQ(budget.stats().failed_allocations, 1U);
    EXPECT_EQ(budget.stats().peak_bytes, 1010U);
}

TEST(limit_resource, refuses_what_goes_over_its_blocks) {
    collecting_handler errors;
    limit_resource budget({.handler = &errors, .limit_blocks = 2});
    EXPECT_EQ(budget.limit_blocks(), 2U);
    void* const a = budget.allocate(1, 1);
    void* const b = budget.allocate(1, 1);
    EXPECT_TRUE(refused(budget, 1));
    ASSERT_EQ(errors.count(error_kind::limit_exceeded), 1U);
    EXPECT_EQ(errors[0].facts.limit, 2U);
    EXPECT_EQ(errors[0].facts.in_use, 2U);
    budget.deallocate(a, 1, 1);
    EXPECT_FALSE(refused(budget, 1));
    budget.deallocate(b, 1, 1);
}

TEST(limit_resource, an_upstream_that_throws_gives_the_reserve_back) {
    collecting_handler errors;
    failing_resource below({.handler = &errors, .plan = {.fail_only = 1}});
    limit_resource budget(&below, {.handler = &errors, .limit_bytes = 64, .limit_blocks = 1});
    EXPECT_TRUE(refused(budget, 64));
    EXPECT_FALSE(refused(budget, 64));
    EXPECT_EQ(errors.count(), 0U);
}

// An upstream that asks again before it answers, as another thread might at that moment.
class nesting_upstream final : public std::pmr::memory_resource {
public:
    std::pmr::memory_resource* above = nullptr;
    std::size_t bytes = 0;
    bool was_refused = false;

private:
    void* do_allocate(std::size_t n, std::size_t alignment) override {
        if (above != nullptr) {
            std::pmr::memory_resource& again = *above;
            above = nullptr;
            was_refused = refused(again, bytes);
        }
        return std::pmr::new_delete_resource()->allocate(n, alignment);
    }
    void do_deallocate(void* p, std::size_t n, std::size_t alignment) override {
        std::pmr::new_delete_resource()->deallocate(p, n, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

TEST(limit_resource, requests_under_way_count) {
    collecting_handler errors;
    nesting_upstream below;
    limit_resource blocks(&below, {.handler = &errors, .limit_blocks = 1});
    below.above = &blocks;
    below.bytes = 8;
    EXPECT_FALSE(refused(blocks, 8));
    EXPECT_TRUE(below.was_refused);

    below.was_refused = false;
    limit_resource bytes(&below, {.handler = &errors, .limit_bytes = 100});
    below.above = &bytes;
    below.bytes = 41;
    EXPECT_FALSE(refused(bytes, 60));
    EXPECT_TRUE(below.was_refused);
    EXPECT_EQ(errors.count(error_kind::limit_exceeded), 2U);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.in_use, 1U);
    EXPECT_EQ(errors[1].facts.in_use, 60U);
}

TEST(limit_resource, is_exact_with_threads) {
    collecting_handler errors;
    limit_resource budget({.handler = &errors, .limit_bytes = 8 * 16});
    std::atomic<int> live{0};
    std::atomic<int> most{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 500; ++i) {
                try {
                    void* const p = budget.allocate(16, 8);
                    const int now = ++live;
                    int seen = most;
                    while (now > seen && !most.compare_exchange_weak(seen, now)) {
                    }
                    --live;
                    budget.deallocate(p, 16, 8);
                } catch (const std::bad_alloc&) {
                }
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_LE(most, 8);
    EXPECT_LE(budget.stats().peak_bytes, 8U * 16U);
    EXPECT_EQ(budget.stats().live_bytes, 0U);
}

// ---- failing_resource ----------------------------------------------------------------------------------------------

std::string pattern(failing_resource& r, int requests, std::size_t bytes = 8) {
    std::string s;
    for (int i = 0; i < requests; ++i) {
        s += refused(r, bytes) ? 'x' : '.';
    }
    return s;
}

TEST(failing_resource, fails_by_number) {
    failing_resource r({.plan = {.fail_from = 4}});
    EXPECT_EQ(pattern(r, 8), "...xxxxx");
    EXPECT_EQ(r.requests(), 8U);
    EXPECT_EQ(r.failures(), 5U);
    r.restart({.fail_only = 4});
    EXPECT_EQ(pattern(r, 8), "...x....");
    r.restart({.fail_every = 3});
    EXPECT_EQ(pattern(r, 8), "..x..x..");
    r.restart({.fail_from = 2, .most_failures = 3});
    EXPECT_EQ(pattern(r, 8), ".xxx....");
    r.restart({});
    EXPECT_EQ(pattern(r, 8), "........");
    EXPECT_EQ(r.failures(), 0U);
    EXPECT_TRUE(r.ok()) << "an induced failure is no error";
}

TEST(failing_resource, fails_over_a_budget_of_bytes) {
    failing_resource r({.plan = {.budget_bytes = 30}});
    EXPECT_EQ(pattern(r, 5, 8), "...xx") << "the bytes of all allocations, freed or not";
    EXPECT_FALSE(refused(r, 6));
    EXPECT_TRUE(refused(r, 1));
}

TEST(failing_resource, fails_by_chance_and_by_seed) {
    failing_resource r({.plan = {.probability = 0.25, .seed = 7}});
    const std::string first = pattern(r, 400);
    const auto failed = static_cast<double>(r.failures());
    EXPECT_GT(failed, 60.0);
    EXPECT_LT(failed, 140.0);
    r.restart({.probability = 0.25, .seed = 7});
    EXPECT_EQ(pattern(r, 400), first);
    r.restart({.probability = 0.25, .seed = 8});
    EXPECT_NE(pattern(r, 400), first);
    r.restart({.probability = 1});
    EXPECT_EQ(pattern(r, 20), std::string(20, 'x'));
}

TEST(failing_resource, keeps_the_trace_of_what_it_refused) {
    failing_resource r({.plan = {.fail_every = 2}});
    EXPECT_EQ(r.last_failure().request, 0U);
    EXPECT_EQ(pattern(r, 5, 24), ".x.x.");
    const induced_failure first = r.first_failure();
    const induced_failure last = r.last_failure();
    EXPECT_EQ(first.request, 2U);
    EXPECT_EQ(last.request, 4U);
    EXPECT_EQ(last.bytes, 24U);
    EXPECT_EQ(last.alignment, 8U);
    EXPECT_TRUE(test_support::trace_contains(last.where, "allocate_here"));
    EXPECT_EQ(r.stats().failed_allocations, 2U);
}

// ---- logging_resource ----------------------------------------------------------------------------------------------

void add_line(std::string_view line, void* context) noexcept {
    static_cast<std::vector<std::string>*>(context)->emplace_back(line);
}

TEST(logging_resource, writes_a_line_a_call) {
    std::vector<std::string> lines;
    limit_resource small({.handler = nullptr, .limit_bytes = 0});
    failing_resource below(&small, {.plan = {.fail_only = 2}});
    logging_resource log(&below, {.name = "in\"dex", .sink = add_line, .context = &lines});
    void* const p = log.allocate(64, 16);
    EXPECT_TRUE(refused(log, 1));
    log.deallocate(p, 64, 16);
    ASSERT_EQ(lines.size(), 3U);
    const std::string thread = lines[0].substr(lines[0].rfind(' '));
    EXPECT_EQ(test_support::mask(lines[0]), "\"in\\\"dex\": allocate 0x*, 64 bytes, alignment 16, thread" + thread);
    EXPECT_EQ(test_support::mask(lines[1]), "\"in\\\"dex\": allocate failed, 1 byte, alignment 8, thread" + thread);
    EXPECT_EQ(test_support::mask(lines[2]), "\"in\\\"dex\": deallocate 0x*, 64 bytes, alignment 16, thread" + thread);
    EXPECT_EQ(thread.back(), '\n');
    const std::size_t at = lines[0].find("0x");
    EXPECT_NE(lines[2].find(lines[0].substr(at, lines[0].find(',') - at)), std::string::npos) << "the same address";
}

TEST(logging_resource, an_unnamed_one_goes_by_its_number_to_standard_error) {
    ::testing::internal::CaptureStderr();
    {
        logging_resource log(logging_options{});
        log.deallocate(log.allocate(2, 2), 2, 2);
    }
    const std::string text = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(text.rfind("logging_resource #", 0), 0U) << text;
    EXPECT_NE(text.find("deallocate 0x"), std::string::npos) << text;
}

TEST(logging_resource, a_long_name_keeps_the_line_whole) {
    std::vector<std::string> lines;
    const std::string name(200, '\x01');
    logging_resource log({.name = name, .sink = add_line, .context = &lines});
    log.deallocate(log.allocate(2, 2), 2, 2);
    ASSERT_EQ(lines.size(), 2U);
    EXPECT_EQ(lines[0].back(), '\n');
}

}  // namespace
