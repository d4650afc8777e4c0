// What an end-of-page resource reports, and what it says about addresses.

#include "metadata/registry.hpp"
#include "support/call_here.hpp"
#include "support/end_of_page.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <list>
#include <memory_resource>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using namespace test_support::end_of_page;
using pmr_debug::block_state;
using test_support::allocate_here;
using test_support::free_again_here;
using test_support::free_here;
using test_support::trace_contains;

// ---- Canaries ---------------------------------------------------------------------------------------------------

TEST_F(fence, alignment_slack_is_a_canary) {
    void* const p = allocate_here(resource, 13, 8);
    bytes(p)[14] = 0x41;
    free_here(resource, p, 13, 8);
    const report r = only(error_kind::overrun);
    EXPECT_EQ(r.first_bad, bytes(p) + 14);
    EXPECT_EQ(r.bad_bytes, 1U);
    EXPECT_EQ(r.bad_value, 0x41);
    EXPECT_EQ(r.expected_value, 0xAA);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 13U);
    EXPECT_EQ(r.block.state, block_state::live);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
}

TEST_F(fence, every_byte_of_the_slack_is_watched) {
    for (std::size_t i = 33; i < 64; ++i) {
        void* const p = resource.allocate(33, 64);
        bytes(p)[i] ^= 1;
        resource.deallocate(p, 33, 64);
        ASSERT_EQ(errors.count(error_kind::overrun), i - 32);
        EXPECT_EQ(errors.back().facts.first_bad, bytes(p) + i);
    }
}

TEST_F(fence, bytes_before_a_block_are_canaries) {
    void* const p = resource.allocate(64, 8);
    bytes(p)[-1] = 0;
    bytes(p)[-256] = 0;
    resource.deallocate(p, 64, 8);
    const report r = only(error_kind::underrun);
    EXPECT_EQ(r.first_bad, bytes(p) - 256);
    EXPECT_EQ(r.bad_bytes, 2U);
}

TEST(fence_at_once, all_of_the_page_is_a_canary) {
    owner<basic_end_of_page_resource<at_once>> o;
    void* const p = o.resource.allocate(64, 8);
    bytes(p)[64 - 4096] = 0;
    o.resource.deallocate(p, 64, 8);
    ASSERT_EQ(o.errors.count(error_kind::underrun), 1U);
    EXPECT_EQ(o.errors[0].facts.first_bad, bytes(p) + 64 - 4096);
}

TEST_F(fence, check_finds_damage_in_live_and_waiting_blocks) {
    void* const a = resource.allocate(13, 8);
    void* const b = resource.allocate(13, 8);
    EXPECT_EQ(resource.check(), 0U);
    resource.deallocate(b, 13, 8);
    bytes(a)[13] = 0;
    bytes(b)[0] = 0;
    EXPECT_EQ(resource.check(), 2U);
    EXPECT_EQ(errors.count(error_kind::overrun), 1U);
    EXPECT_EQ(errors.count(error_kind::write_after_free), 1U);
    bytes(a)[13] = 0xAA;
    resource.deallocate(a, 13, 8);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(fence_end, damage_and_leaks_are_found_at_destruction) {
    collecting_handler errors;
    {
        end_of_page_resource resource({.name = "gone", .handler = &errors});
        void* const damaged = allocate_here(resource, 13, 8);
        bytes(damaged)[13] = 0;
        (void)allocate_here(resource, 100'000, 8);
        void* const written = resource.allocate(8, 8);
        resource.deallocate(written, 8, 8);
        bytes(written)[1] = 0;
    }
    EXPECT_EQ(errors.count(error_kind::overrun), 1U);
    EXPECT_EQ(errors.count(error_kind::write_after_free), 1U);
    ASSERT_EQ(errors.count(error_kind::leak), 1U);
    EXPECT_EQ(errors.back().facts.leaked_blocks, 2U);
    EXPECT_EQ(errors.back().facts.leaked_bytes, 100'013U);
    EXPECT_TRUE(trace_contains(errors.back().facts.leaks[0].allocated, "allocate_here"));
}

TEST_F(fence, fresh_memory_is_filled) {
    auto* const p = bytes(resource.allocate(100, 1));
    EXPECT_EQ(p[0], 0xAA);
    EXPECT_EQ(p[99], 0xAA);
    resource.deallocate(p, 100, 1);
}

// ---- What is handed back ----------------------------------------------------------------------------------------

TEST_F(fence, double_free) {
    void* const p = allocate_here(resource, 24, 8);
    free_here(resource, p, 24, 8);
    free_again_here(resource, p, 24, 8);
    const report r = only(error_kind::double_free);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_again_here"));
    EXPECT_EQ(resource.stats().total_deallocations, 1U);
}

TEST_F(fence, double_free_of_trapped_and_of_large_blocks) {
    std::vector<void*> strip;
    for (int i = 0; i < 256; ++i) {
        strip.push_back(resource.allocate(64, 8));
    }
    for (void* const p : strip) {
        resource.deallocate(p, 64, 8);
    }
    resource.deallocate(strip[7], 64, 8);
    void* const large = resource.allocate(3'000'000, 8);
    resource.deallocate(large, 3'000'000, 8);
    resource.deallocate(large, 3'000'000, 8);
    EXPECT_EQ(errors.count(error_kind::double_free), 2U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(fence_frees, a_double_free_is_still_known_when_the_record_is_gone) {
    owner<end_of_page_resource> o({.retired_record_bytes = 1});
    std::vector<void*> strip;
    for (int i = 0; i < 256; ++i) {
        strip.push_back(o.resource.allocate(64, 8));
    }
    for (void* const p : strip) {
        o.resource.deallocate(p, 64, 8);
    }
    EXPECT_EQ(o.resource.stats().retired_units, 0U);
    o.resource.deallocate(strip[7], 64, 8);
    EXPECT_EQ(o.errors.count(error_kind::double_free), 1U);
    EXPECT_TRUE(faults(strip[7]));
}

TEST_F(fence, interior_and_invalid_frees) {
    void* const p = resource.allocate(64, 8);
    free_here(resource, bytes(p) + 8, 64, 8);
    EXPECT_EQ(errors.count(error_kind::interior_free), 1U);
    EXPECT_EQ(errors.back().facts.block.address, p);
    free_here(resource, bytes(p) + 64, 64, 8);  // the nearest one is named
    EXPECT_EQ(errors.count(error_kind::invalid_free), 1U);
    EXPECT_TRUE(errors.back().facts.nearest_only);
    EXPECT_EQ(errors.back().facts.block.address, p);
    int on_stack = 0;
    free_here(resource, &on_stack, 4, 4);
    EXPECT_EQ(errors.count(error_kind::invalid_free), 2U);
    test_support::free_null(resource, 8, 8);
    EXPECT_EQ(errors.count(error_kind::null_free), 1U);
    resource.deallocate(p, 64, 8);
    EXPECT_EQ(errors.count(), 4U);
    EXPECT_EQ(resource.stats().live_blocks, 0U);
}

TEST_F(fence, size_and_alignment_mismatch_free_all_the_same) {
    void* const p = resource.allocate(64, 8);
    free_here(resource, p, 60, 8);
    EXPECT_EQ(errors.count(error_kind::size_mismatch), 1U);
    EXPECT_EQ(errors.back().facts.block.size, 64U);
    EXPECT_EQ(errors.back().facts.given_size, 60U);
    void* const q = resource.allocate(64, 8);
    free_here(resource, q, 64, 16);
    EXPECT_EQ(errors.count(error_kind::alignment_mismatch), 1U);
    EXPECT_EQ(errors.count(), 2U);
    EXPECT_EQ(resource.stats().live_blocks, 0U);
}

TEST_F(fence, a_block_of_another_resource) {
    owner<end_of_page_resource> other({.name = "other"});
    void* const p = other.resource.allocate(8, 8);
    free_here(resource, p, 8, 8);
    const report r = only(error_kind::wrong_resource);
    EXPECT_EQ(r.owner.name, "other");
    other.resource.deallocate(p, 8, 8);
    EXPECT_EQ(other.errors.count(), 0U);
}

TEST_F(fence, odd_requests) {
    EXPECT_THROW((void)test_support::allocate_odd(resource, 8, 3), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::bad_alignment), 1U);
    EXPECT_THROW((void)test_support::allocate_odd(resource, SIZE_MAX, 8), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(resource, SIZE_MAX, SIZE_MAX / 2 + 1), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(resource, PTRDIFF_MAX, 8), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(resource, 8, SIZE_MAX / 2 + 1), std::bad_alloc);
    EXPECT_EQ(errors.count(), 1U);
}

TEST(fence_limits, are_exact_and_reported) {
    owner<end_of_page_resource> o({.limit_bytes = 1000, .limit_blocks = 3});
    void* const a = o.resource.allocate(900, 8);
    EXPECT_THROW((void)o.resource.allocate(101, 8), std::bad_alloc);
    EXPECT_EQ(o.errors.count(error_kind::limit_exceeded), 1U);
    EXPECT_EQ(o.errors[0].facts.limit, 1000U);
    EXPECT_EQ(o.errors[0].facts.in_use, 900U);
    void* const b = o.resource.allocate(50, 8);
    void* const c = o.resource.allocate(50, 8);
    EXPECT_THROW((void)o.resource.allocate(0, 8), std::bad_alloc);
    EXPECT_EQ(o.errors.count(error_kind::limit_exceeded), 2U);
    o.resource.deallocate(a, 900, 8);
    o.resource.deallocate(b, 50, 8);
    o.resource.deallocate(c, 50, 8);
    EXPECT_EQ(o.resource.stats().live_bytes, 0U);
    EXPECT_EQ(o.resource.stats().peak_bytes, 1000U);
}

TEST(fence_threads, a_second_thread_is_reported_and_served) {
    owner<basic_end_of_page_resource<single>> o;
    void* const p = o.resource.allocate(8, 8);
    std::thread([&] { o.resource.deallocate(p, 8, 8); }).join();
    ASSERT_EQ(o.errors.count(error_kind::foreign_thread), 1U);
    EXPECT_EQ(o.errors.count(), 1U);
    EXPECT_NE(o.errors[0].facts.other, pmr_debug::trace_id::none);
    EXPECT_EQ(o.resource.stats().live_blocks, 0U);
}

template <class Resource>
void use_from_threads() {
    owner<Resource> o({.quarantine_bytes = 200 * page});
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; ++t) {
        threads.emplace_back([&o, t] {
            std::minstd_rand random(t + 1);
            std::deque<std::pair<unsigned char*, std::size_t>> live;
            for (int i = 0; i < 4000; ++i) {
                const std::size_t size = random() % (i % 100 == 0 ? 20'000 : 300);
                auto* const p = bytes(o.resource.allocate(size, 8));
                std::memset(p, static_cast<int>(t), size);
                live.emplace_back(p, size);
                if (live.size() > 100) {
                    const auto [q, bytes] = live[random() % 50];
                    live.erase(std::find(live.begin(), live.end(), std::pair{q, bytes}));
                    EXPECT_TRUE(bytes == 0 || q[bytes - 1] == t);
                    o.resource.deallocate(q, bytes, 8);
                }
            }
            for (const auto& [q, bytes] : live) {
                o.resource.deallocate(q, bytes, 8);
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_EQ(o.resource.stats().total_allocations, 16'000U);
    EXPECT_EQ(o.resource.stats().live_blocks, 0U);
    EXPECT_EQ(o.errors.count(), 0U);
}

TEST(fence_threads, many_share_a_resource) {
    use_from_threads<end_of_page_resource>();
    use_from_threads<basic_end_of_page_resource<at_once>>();
}

TEST(fence_threads, of_two_frees_at_once_one_wins) {
    owner<end_of_page_resource> o;
    for (int i = 0; i < 200; ++i) {
        void* const p = o.resource.allocate(8, 8);
        std::thread other([&] { o.resource.deallocate(p, 8, 8); });
        o.resource.deallocate(p, 8, 8);
        other.join();
    }
    EXPECT_EQ(o.errors.count(error_kind::double_free), 200U);
    EXPECT_EQ(o.resource.stats().live_blocks, 0U);
}

// ---- What lies at an address ------------------------------------------------------------------------------------

using finding = pmr_debug::metadata::address_finding;

finding find(const std::pmr::memory_resource& resource, const void* p) {
    pmr_debug::metadata::resource_record* const r = pmr_debug::metadata::find_resource(&resource);
    finding f;
    EXPECT_TRUE(r->describe_address.load()(r->core, reinterpret_cast<std::uintptr_t>(p), &f));
    return f;
}

TEST_F(fence, says_what_lies_at_an_address) {
    void* const p = allocate_here(resource, 60, 4);
    finding f = find(resource, bytes(p) + 5);
    EXPECT_EQ(f.is, finding::what::live_block);
    EXPECT_EQ(f.distance, 5);
    f = find(resource, bytes(p) + 64);
    EXPECT_EQ(f.is, finding::what::guard_after);
    EXPECT_EQ(f.distance, 4);
    EXPECT_EQ(f.block.address, p);
    EXPECT_TRUE(trace_contains(f.allocated, "allocate_here"));
    f = find(resource, bytes(p) - 10);
    EXPECT_EQ(f.is, finding::what::guard_before);
    EXPECT_EQ(f.distance, -10);
    void* const next = resource.allocate(4000, 4);
    ASSERT_EQ(bytes(next) + 4000, bytes(p) + 60 + 2 * page);
    EXPECT_TRUE(faults(bytes(next) - 200));
    f = find(resource, bytes(next) - 200);  // in the guard of p, but far from it
    EXPECT_EQ(f.is, finding::what::guard_before);
    EXPECT_EQ(f.block.address, next);
    free_here(resource, p, 60, 4);
    f = find(resource, bytes(p) + 1);
    EXPECT_EQ(f.is, finding::what::freed_block);
    EXPECT_TRUE(trace_contains(f.freed, "free_here"));
    EXPECT_EQ(find(resource, bytes(next) + 20 * page).is, finding::what::never_used);
    resource.deallocate(next, 4000, 4);
    int on_stack = 0;
    pmr_debug::metadata::resource_record* const r = pmr_debug::metadata::find_resource(&resource);
    EXPECT_FALSE(r->describe_address.load()(r->core, reinterpret_cast<std::uintptr_t>(&on_stack), &f));
}

TEST(fence_describe, retired_memory_whose_records_are_gone) {
    owner<end_of_page_resource> o({.retired_record_bytes = 1});
    void* const p = o.resource.allocate(3'000'000, 8);
    o.resource.deallocate(p, 3'000'000, 8);
    EXPECT_EQ(find(o.resource, p).is, finding::what::retired_unit);
}

// ---- Correct programs -------------------------------------------------------------------------------------------

template <class Resource>
class fence_silent : public ::testing::Test {};

#ifdef TEST_ALL_POLICIES
using every_shape = ::testing::Types<
    end_of_page_resource, basic_end_of_page_resource<pmr_debug::thorough_policy>,
    basic_end_of_page_resource<pmr_debug::fast_policy>, basic_end_of_page_resource<pmr_debug::release_policy>,
    basic_end_of_page_resource<unchecked>, basic_end_of_page_resource<single>, basic_end_of_page_resource<keeping>,
    // Policies that ship with nobody.
    basic_end_of_page_resource<policy{.threads = threading::single_checked, .alloc_frames = 0, .free_frames = 0}>,
    basic_end_of_page_resource<policy{.threads = threading::unchecked, .alloc_frames = 0, .free_frames = 0}>,
    basic_end_of_page_resource<policy{.threads = threading::unchecked,
                                      .alloc_frames = 0,
                                      .free_frames = 0,
                                      .checks = false,
                                      .guard_bytes = 0,
                                      .fill = false}>>;
#else
using every_shape = ::testing::Types<end_of_page_resource, basic_end_of_page_resource<pmr_debug::thorough_policy>,
                                     basic_end_of_page_resource<pmr_debug::release_policy>,
                                     basic_end_of_page_resource<single>, basic_end_of_page_resource<keeping>>;
#endif
TYPED_TEST_SUITE(fence_silent, every_shape);

TYPED_TEST(fence_silent, containers_run_without_a_report) {
    for (const placement where : {placement::before_guard, placement::after_guard}) {
        owner<TypeParam> o({.where = where, .quarantine_bytes = 100 * page});
        {
            std::pmr::unordered_map<std::pmr::string, std::pmr::vector<int>> words(&o.resource);
            for (int i = 0; i < 2000; ++i) {
                words[std::pmr::string("a word that is not short ") + std::to_string(i % 300).c_str()].push_back(i);
            }
            std::pmr::list<int> numbers(words.begin()->second.begin(), words.begin()->second.end(), &o.resource);
            EXPECT_GT(numbers.size(), 5U);
            EXPECT_EQ(o.resource.check(), 0U);
        }
        const pmr_debug::statistics s = o.resource.stats();
        EXPECT_EQ(s.live_blocks, 0U);
        EXPECT_EQ(s.live_bytes, 0U);
        EXPECT_GT(s.total_allocations, 1000U);
        EXPECT_TRUE(o.resource.ok());
        EXPECT_EQ(o.resource.report_leaks(), 0U);
    }
}

TYPED_TEST(fence_silent, as_upstream_of_a_standard_pool) {
    owner<TypeParam> o;
    {
        std::pmr::unsynchronized_pool_resource pool(&o.resource);
        std::pmr::list<std::string> list(&pool);
        for (int i = 0; i < 1000; ++i) {
            list.emplace_back("x");
        }
    }
    EXPECT_EQ(o.resource.stats().live_blocks, 0U);
    EXPECT_TRUE(o.resource.ok());
}

}  // namespace
