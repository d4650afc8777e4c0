#include "support/call_here.hpp"
#include "support/canary_fixture.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/canary_resource.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <memory_resource>
#include <new>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using pmr_debug::basic_canary_resource;
using pmr_debug::block_state;
using pmr_debug::canary_options;
using pmr_debug::canary_resource;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::policy;
using pmr_debug::report;
using pmr_debug::statistics;
using pmr_debug::threading;
using test_support::allocate_here;
using test_support::allocate_odd;
using test_support::damage;
using test_support::free_again_here;
using test_support::free_here;
using test_support::noting_upstream;
using test_support::only;
using test_support::stray_read;
using test_support::stray_write;
using test_support::trace_contains;

constexpr policy with_threads(threading t) {
    return {.threads = t};
}

struct canary : ::testing::Test {
    collecting_handler errors;
    canary_resource guarded{canary_options{.name = "guarded", .handler = &errors}};
};

// ---- Correct programs, in every kind of shape ----------------------------------------------------------------------

template <class Resource>
class canary_shape : public ::testing::Test {};

#ifdef TEST_ALL_POLICIES
using every_shape = ::testing::Types<
    canary_resource, basic_canary_resource<pmr_debug::thorough_policy>, basic_canary_resource<pmr_debug::fast_policy>,
    basic_canary_resource<pmr_debug::release_policy>, basic_canary_resource<with_threads(threading::unchecked)>,
    basic_canary_resource<with_threads(threading::single_checked)>,
    // Policies that ship with nobody.
    basic_canary_resource<policy{.alloc_frames = 3, .free_frames = 0, .guard_bytes = 5}>,
    basic_canary_resource<policy{.guard_bytes = 100, .fill = false}>, basic_canary_resource<policy{.guard_bytes = 0}>,
    basic_canary_resource<policy{.alloc_frames = 0, .free_frames = 0, .freed = pmr_debug::reuse::immediate}>,
    basic_canary_resource<policy{.threads = threading::unchecked,
                                 .alloc_frames = 0,
                                 .free_frames = 0,
                                 .checks = false,
                                 .guard_bytes = 0,
                                 .fill = false}>>;
#else
using every_shape = ::testing::Types<
    canary_resource, basic_canary_resource<pmr_debug::fast_policy>, basic_canary_resource<pmr_debug::release_policy>,
    basic_canary_resource<with_threads(threading::single_checked)>,
    basic_canary_resource<policy{.alloc_frames = 0, .free_frames = 0, .freed = pmr_debug::reuse::immediate}>>;
#endif
TYPED_TEST_SUITE(canary_shape, every_shape);

TYPED_TEST(canary_shape, containers_run_without_a_report) {
    collecting_handler errors;
    noting_upstream upstream;
    {
        TypeParam guarded(&upstream, canary_options{.handler = &errors, .quarantine_bytes = 20'000});
        {
            std::pmr::unordered_map<std::pmr::string, std::pmr::vector<int>> words(&guarded);
            for (int i = 0; i < 2000; ++i) {
                words[std::pmr::string("a word that is not short ") + std::to_string(i % 500).c_str()].push_back(i);
            }
            EXPECT_EQ(guarded.check(), 0U);
            EXPECT_GT(guarded.stats().live_bytes, 500U * sizeof(std::pmr::string));
            EXPECT_GE(guarded.stats().upstream_bytes, guarded.stats().live_bytes);
        }
        EXPECT_EQ(guarded.check(), 0U);
        const statistics s = guarded.stats();
        EXPECT_EQ(s.live_blocks, 0U);
        EXPECT_EQ(s.live_bytes, 0U);
        EXPECT_GT(s.total_allocations, 1000U);
        EXPECT_EQ(s.total_deallocations, s.total_allocations);
        EXPECT_TRUE(guarded.ok());
        EXPECT_EQ(guarded.report_leaks(), 0U);
        EXPECT_EQ(guarded.upstream_resource(), &upstream);
    }
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(upstream.back.size(), upstream.given.size());
}

TYPED_TEST(canary_shape, statistics_agree_with_a_model_and_the_upstream_gets_back_what_it_gave) {
    collecting_handler errors;
    noting_upstream upstream;
    struct block {
        void* p;
        std::size_t bytes;
        std::size_t alignment;
    };
    {
        TypeParam guarded(&upstream, canary_options{.handler = &errors, .quarantine_bytes = 100'000});
        std::vector<block> live;
        statistics want;
        std::mt19937 random(7);
        for (int i = 0; i < 3000; ++i) {
            if (live.empty() || random() % 5 < 3) {
                const std::size_t n = random() % 5 == 0 ? random() % 3 : random() % 3000;
                const std::size_t alignment = std::size_t{1} << (random() % 9);
                void* const p = guarded.allocate(n, alignment);
                ASSERT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
                live.push_back({p, n, alignment});
                std::memset(p, 1, n);
                want.live_bytes += n;
                want.total_bytes += n;
                ++want.total_allocations;
            } else {
                const std::size_t k = random() % live.size();
                guarded.deallocate(live[k].p, live[k].bytes, live[k].alignment);
                want.live_bytes -= live[k].bytes;
                live[k] = live.back();
                live.pop_back();
            }
            want.live_blocks = live.size();
            want.peak_bytes = std::max(want.peak_bytes, want.live_bytes);
        }
        const statistics s = guarded.stats();
        EXPECT_EQ(s.live_blocks, want.live_blocks);
        EXPECT_EQ(s.live_bytes, want.live_bytes);
        EXPECT_EQ(s.peak_bytes, want.peak_bytes);
        EXPECT_EQ(s.total_allocations, want.total_allocations);
        EXPECT_EQ(s.total_bytes, want.total_bytes);
        std::size_t held = 0;
        for (const auto& c : upstream.given) {
            held += c.bytes;
        }
        for (const auto& c : upstream.back) {
            held -= c.bytes;
        }
        EXPECT_EQ(s.upstream_bytes, held);
        for (const block& b : live) {
            guarded.deallocate(b.p, b.bytes, b.alignment);
        }
    }
    const auto less = [](const noting_upstream::call& a, const noting_upstream::call& b) {
        return std::tie(a.p, a.bytes, a.alignment) < std::tie(b.p, b.bytes, b.alignment);
    };
    std::sort(upstream.given.begin(), upstream.given.end(), less);
    std::sort(upstream.back.begin(), upstream.back.end(), less);
    EXPECT_EQ(upstream.given, upstream.back);
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(canary_shape, sizes_that_cannot_be_are_refused_without_a_report) {
    collecting_handler errors;
    noting_upstream upstream;
    TypeParam guarded(&upstream, canary_options{.handler = &errors});
    constexpr std::size_t half = SIZE_MAX / 2 + 1;
    const std::pair<std::size_t, std::size_t> impossible[] = {
        {SIZE_MAX, half}, {SIZE_MAX, 1}, {SIZE_MAX - 7, 8}, {SIZE_MAX - 31, 16},  {SIZE_MAX - 32, 1}, {1, half},
        {0, half},        {half, 1},     {half - 1, 1},     {half / 2, half / 2}, {half - 16, 16},
    };
    for (const auto& [bytes, alignment] : impossible) {
        EXPECT_THROW((void)allocate_odd(guarded, bytes, alignment), std::bad_alloc) << bytes << " " << alignment;
    }
    EXPECT_EQ(guarded.stats().failed_allocations, std::size(impossible));
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_TRUE(upstream.given.empty());  // a sum that wrapped round would have got there
    guarded.deallocate(guarded.allocate(8, 8), 8, 8);
}

TYPED_TEST(canary_shape, empty_blocks_have_addresses_of_their_own) {
    collecting_handler errors;
    TypeParam guarded(canary_options{.handler = &errors});
    std::set<void*> seen;
    for (int i = 0; i < 100; ++i) {
        EXPECT_TRUE(seen.insert(guarded.allocate(0, 1)).second);
    }
    for (void* const p : seen) {
        guarded.deallocate(p, 0, 1);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(canary_shape, over_aligned_blocks) {
    collecting_handler errors;
    TypeParam guarded(canary_options{.handler = &errors});
    for (std::size_t alignment = 1; alignment <= 1U << 18U; alignment *= 2) {
        void* const p = guarded.allocate(10, alignment);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
        guarded.deallocate(p, 10, alignment);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(canary_shape, an_upstream_that_throws_leaves_everything_as_it_was) {
    collecting_handler errors;
    noting_upstream upstream;
    upstream.answer = [](std::size_t, std::size_t) -> void* { throw std::runtime_error("not bad_alloc"); };
    TypeParam guarded(&upstream, canary_options{.handler = &errors});
    EXPECT_THROW((void)guarded.allocate(700, 8), std::runtime_error);
    EXPECT_EQ(guarded.stats().live_blocks, 0U);
    EXPECT_EQ(guarded.stats().upstream_bytes, 0U);
    EXPECT_EQ(guarded.stats().failed_allocations, 1U);
    EXPECT_EQ(errors.count(), 0U);
}

// ---- Guards --------------------------------------------------------------------------------------------------------

// Every byte that the upstream gave around a block, one at a time.
TEST(canary_guards, every_byte_is_watched_and_named) {
    for (const std::size_t alignment : {1U, 2U, 8U, 16U, 32U, 64U, 256U}) {
        for (const std::size_t size : {0U, 1U, 3U, 7U, 8U, 13U, 16U, 17U, 64U, 100U}) {
            collecting_handler errors;
            noting_upstream upstream;
            std::size_t planted = 0;
            {
                canary_resource guarded(&upstream, {.handler = &errors});
                guarded.deallocate(guarded.allocate(size, alignment), size, alignment);
                const std::size_t total = upstream.given.back().bytes;
                const std::size_t front = std::max<std::size_t>(16, alignment);
                ASSERT_GE(total, front + size + 16);
                ASSERT_LE(total, front + size + 16 + 7);
                for (std::size_t at = 0; at < total; ++at) {
                    if (at >= front && at < front + size) {
                        continue;
                    }
                    errors.clear();
                    void* const p = guarded.allocate(size, alignment);
                    auto* const base = static_cast<std::byte*>(upstream.given.back().p);
                    ASSERT_EQ(p, base + front);
                    const std::uint8_t was = damage(base, static_cast<std::ptrdiff_t>(at));
                    guarded.deallocate(p, size, alignment);
                    const report& r = only(errors);
                    ASSERT_EQ(r.kind, at < front ? error_kind::underrun : error_kind::overrun) << at;
                    ASSERT_EQ(r.first_bad, base + at);
                    ASSERT_EQ(r.bad_bytes, 1U);
                    ASSERT_EQ(r.expected_value, was);
                    ASSERT_EQ(r.bad_value, was ^ 1U);
                    ASSERT_EQ(r.block.address, p);
                    ASSERT_EQ(r.block.size, size);
                    ++planted;
                    ASSERT_EQ(guarded.quarantine().damaged_blocks, planted);
                }
                errors.clear();
            }
            EXPECT_EQ(errors.count(), 0U);  // no second report at destruction
            EXPECT_EQ(upstream.back.size(), upstream.given.size());
        }
    }
}

TEST_F(canary, the_first_of_several_bytes_and_their_number) {
    void* const p = allocate_here(guarded, 10, 1);
    for (const int offset : {12, 13, 20}) {
        damage(p, offset);
    }
    free_here(guarded, p, 10, 1);
    const report& r = only(errors);
    EXPECT_EQ(r.kind, error_kind::overrun);
    EXPECT_EQ(r.first_bad, static_cast<std::byte*>(p) + 12);
    EXPECT_EQ(r.bad_bytes, 3U);
    EXPECT_EQ(r.resource.name, "guarded");
    EXPECT_EQ(r.resource.type, "canary_resource");
    EXPECT_EQ(r.block.state, block_state::live);
    EXPECT_EQ(r.block.serial, 1U);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
}

TEST_F(canary, both_ends_of_one_block) {
    void* const p = guarded.allocate(10, 8);
    stray_write(p, -1, 0);
    stray_write(p, 10, 0);
    guarded.deallocate(p, 10, 8);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::underrun);
    EXPECT_EQ(errors[0].facts.first_bad, static_cast<std::byte*>(p) - 1);
    EXPECT_EQ(errors[1].facts.kind, error_kind::overrun);
    EXPECT_EQ(errors[1].facts.first_bad, static_cast<std::byte*>(p) + 10);
    EXPECT_EQ(guarded.quarantine().damaged_blocks, 1U);
}

TEST_F(canary, what_strays_most_often_is_never_what_stands_there) {
    for (int i = 0; i < 200; ++i) {
        void* const p = guarded.allocate(24, 8);
        for (int at = -16; at < 40; ++at) {
            if (at < 0 || at >= 24) {
                const std::uint8_t byte = stray_read(p, at);
                EXPECT_GE(byte, 0x80) << "zero or ASCII";
                EXPECT_LE(byte, 0x9F) << "-1 or a fill";
            }
        }
        guarded.deallocate(p, 24, 8);
    }
}

TEST_F(canary, a_guard_copied_from_another_block_is_wrong) {
    constexpr int blocks = 40;
    std::array<void*, blocks> p{};
    for (void*& x : p) {
        x = guarded.allocate(32, 8);
    }
    // Each block is copied with its guards onto the next one, as a copy that starts too early and ends too late does.
    for (int i = 1; i < blocks; ++i) {
        for (int at = -16; at < 48; ++at) {
            stray_write(p[static_cast<std::size_t>(i)], at, stray_read(p[static_cast<std::size_t>(i - 1)], at));
        }
    }
    EXPECT_EQ(guarded.check(), blocks - 1U);
    EXPECT_EQ(errors.count(error_kind::underrun), blocks - 1U);
    EXPECT_EQ(errors.count(error_kind::overrun), blocks - 1U);
    for (void* const x : p) {
        guarded.deallocate(x, 32, 8);
    }
}

TEST_F(canary, check_finds_it_while_the_block_lives) {
    std::vector<void*> p;
    for (int i = 0; i < 100; ++i) {
        p.push_back(allocate_here(guarded, 20, 4));
    }
    EXPECT_EQ(guarded.check(), 0U);
    for (void* const x : p) {
        damage(x, 20);
    }
    EXPECT_EQ(guarded.check(), 100U);
    ASSERT_EQ(errors.count(error_kind::overrun), 100U);
    for (std::size_t i = 0; i < 100; ++i) {
        EXPECT_EQ(errors[i].facts.block.serial, i + 1);
        EXPECT_EQ(errors[i].facts.first_bad, static_cast<std::byte*>(p[i]) + 20);
        EXPECT_EQ(errors[i].facts.block.state, block_state::live);
    }
    EXPECT_TRUE(trace_contains(errors[0].facts.allocated, "allocate_here"));
    for (void* const x : p) {
        guarded.deallocate(x, 20, 4);
    }
    EXPECT_EQ(errors.count(error_kind::overrun), 200U);
    EXPECT_EQ(guarded.check(), 0U);
}

TEST(canary_guards, the_destructor_looks_at_blocks_still_live) {
    collecting_handler errors;
    std::byte buffer[256];
    std::pmr::monotonic_buffer_resource upstream(buffer, sizeof buffer);
    {
        canary_resource guarded(&upstream, {.handler = &errors});
        damage(guarded.allocate(8, 8), -3);
    }
    EXPECT_EQ(errors.count(error_kind::underrun), 1U);
    EXPECT_EQ(errors.count(error_kind::leak), 1U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(canary_guards, a_policy_says_how_many_bytes) {
    collecting_handler errors;
    noting_upstream upstream;
    basic_canary_resource<policy{.guard_bytes = 200}> wide(&upstream, canary_options{.handler = &errors});
    void* const p = wide.allocate(8, 8);
    EXPECT_EQ(upstream.given.back().bytes, 408U);
    damage(p, 8 + 199);
    wide.deallocate(p, 8, 8);
    EXPECT_EQ(only(errors).first_bad, static_cast<std::byte*>(p) + 8 + 199);

    basic_canary_resource<policy{.guard_bytes = 0}> bare(&upstream, canary_options{.handler = &errors});
    void* const q = bare.allocate(8, 8);
    EXPECT_EQ(upstream.given.back(), (noting_upstream::call{q, 8, 8}));
    bare.deallocate(q, 8, 8);
}

// ---- Fills ---------------------------------------------------------------------------------------------------------

TEST_F(canary, fresh_and_freed_bytes_are_filled) {
    for (const std::size_t size : {1U, 7U, 64U, 1000U}) {
        void* const p = guarded.allocate(size, 1);
        for (std::size_t i = 0; i < size; ++i) {
            ASSERT_EQ(stray_read(p, static_cast<std::ptrdiff_t>(i)), 0xAA);
        }
        guarded.deallocate(p, size, 1);
        for (std::size_t i = 0; i < size; ++i) {
            ASSERT_EQ(stray_read(p, static_cast<std::ptrdiff_t>(i)), 0xDD);
        }
    }
}

std::vector<std::uint8_t> fresh_bytes(std::uint64_t seed, std::byte* place, std::vector<std::uint8_t>& freed) {
    collecting_handler errors;
    std::pmr::monotonic_buffer_resource upstream(place, 512, std::pmr::null_memory_resource());
    std::vector<std::uint8_t> fresh;
    {
        canary_resource guarded(&upstream, {.handler = &errors, .fill_seed = seed});
        void* const p = guarded.allocate(101, 1);
        for (std::ptrdiff_t i = 0; i < 101; ++i) {
            fresh.push_back(stray_read(p, i));
        }
        guarded.deallocate(p, 101, 1);
        freed.clear();
        for (std::ptrdiff_t i = 0; i < 101; ++i) {
            freed.push_back(stray_read(p, i));
        }
        damage(p, 50);
        EXPECT_EQ(guarded.check(), 1U);
        const report& r = only(errors);
        EXPECT_EQ(r.kind, error_kind::write_after_free);
        EXPECT_EQ(r.first_bad, static_cast<std::byte*>(p) + 50);
        EXPECT_EQ(r.expected_value, freed[50]);
    }
    return fresh;
}

TEST(canary_fills, a_seed_makes_them_random_and_repeatable) {
    alignas(16) std::byte place[512];
    std::vector<std::uint8_t> freed_1;
    std::vector<std::uint8_t> freed_again;
    std::vector<std::uint8_t> freed_2;
    const auto one = fresh_bytes(1, place, freed_1);
    const auto again = fresh_bytes(1, place, freed_again);
    const auto two = fresh_bytes(2, place, freed_2);
    EXPECT_EQ(one, again);
    EXPECT_EQ(freed_1, freed_again);
    EXPECT_NE(one, two);
    EXPECT_NE(freed_1, freed_2);
    EXPECT_NE(one, freed_1);
    EXPECT_GT(std::set<std::uint8_t>(one.begin(), one.end()).size(), 50U);
}

// ---- Wrong deallocations -------------------------------------------------------------------------------------------

TEST_F(canary, double_free_with_three_traces) {
    void* const p = allocate_here(guarded, 100, 8);
    free_here(guarded, p, 100, 8);
    free_again_here(guarded, p, 100, 8);
    const report& r = only(errors);
    EXPECT_EQ(r.kind, error_kind::double_free);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_EQ(r.block.state, block_state::freed);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_again_here"));
    EXPECT_EQ(guarded.stats().total_deallocations, 1U);
    EXPECT_EQ(guarded.errors()[error_kind::double_free], 1U);
    EXPECT_FALSE(guarded.ok());
}

TEST_F(canary, wrong_size_and_alignment_reach_the_upstream_corrected) {
    noting_upstream upstream;
    canary_resource watched(&upstream, {.handler = &errors, .quarantine_bytes = 0});
    void* const p = allocate_here(watched, 64, 64);
    free_here(watched, p, 32, 8);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::size_mismatch);
    EXPECT_EQ(errors[0].facts.block.size, 64U);
    EXPECT_EQ(errors[0].facts.given_size, 32U);
    EXPECT_TRUE(trace_contains(errors[0].facts.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(errors[0].facts.here, "free_here"));
    EXPECT_EQ(errors[1].facts.kind, error_kind::alignment_mismatch);
    EXPECT_EQ(errors[1].facts.block.alignment, 64U);
    EXPECT_EQ(errors[1].facts.given_alignment, 8U);
    EXPECT_EQ(upstream.back, upstream.given);
    EXPECT_EQ(watched.stats().live_bytes, 0U);
}

TEST_F(canary, pointers_that_are_no_block) {
    auto* const p = static_cast<std::byte*>(allocate_here(guarded, 64, 8));
    free_here(guarded, p + 16, 48, 8);
    EXPECT_EQ(errors.back().facts.kind, error_kind::interior_free);
    EXPECT_EQ(errors.back().facts.block.address, p);
    EXPECT_TRUE(trace_contains(errors.back().facts.allocated, "allocate_here"));
    std::byte local[8];
    free_here(guarded, local, 8, 8);
    EXPECT_EQ(errors.back().facts.kind, error_kind::invalid_free);
    test_support::free_null(guarded, 8, 8);
    EXPECT_EQ(errors.back().facts.kind, error_kind::null_free);
    EXPECT_EQ(errors.count(), 3U);
    EXPECT_EQ(guarded.stats().live_blocks, 1U);
    guarded.deallocate(p, 64, 8);
    EXPECT_EQ(errors.count(), 3U);
}

TEST_F(canary, a_block_of_another_resource_names_it) {
    canary_resource other(canary_options{.name = "other", .handler = &errors});
    void* const p = allocate_here(other, 64, 8);
    free_here(guarded, p, 64, 8);
    const report& r = only(errors);
    EXPECT_EQ(r.kind, error_kind::wrong_resource);
    EXPECT_EQ(r.owner.name, "other");
    EXPECT_EQ(r.resource.name, "guarded");
    EXPECT_EQ(r.block.address, p);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    other.deallocate(p, 64, 8);
}

TEST_F(canary, alignment_that_is_no_power_of_two) {
    EXPECT_THROW((void)allocate_odd(guarded, 8, 3), std::bad_alloc);
    EXPECT_THROW((void)allocate_odd(guarded, 8, 0), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::bad_alignment), 2U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(canary_leaks, are_reported_and_stay_with_the_upstream) {
    collecting_handler errors;
    noting_upstream upstream;
    {
        canary_resource guarded(&upstream, {.name = "leaky", .handler = &errors});
        guarded.deallocate(guarded.allocate(5, 1), 5, 1);
        (void)allocate_here(guarded, 100, 8);
        (void)allocate_here(guarded, 100, 8);
        EXPECT_EQ(guarded.report_leaks(), 2U);
        errors.clear();
    }
    const report& r = only(errors);
    EXPECT_EQ(r.kind, error_kind::leak);
    EXPECT_EQ(r.leaked_blocks, 2U);
    EXPECT_EQ(r.leaked_bytes, 200U);
    ASSERT_EQ(upstream.back.size(), 1U);  // the freed one
    for (std::size_t i = 1; i < upstream.given.size(); ++i) {
        const auto& c = upstream.given[i];
        std::pmr::new_delete_resource()->deallocate(c.p, c.bytes, c.alignment);
    }
}

// ---- Upstreams that lie --------------------------------------------------------------------------------------------

TEST(canary_upstream, null_misaligned_and_twice_the_same) {
    alignas(64) std::byte buffer[256];
    collecting_handler errors;
    noting_upstream upstream;
    canary_resource guarded(&upstream, {.handler = &errors});
    upstream.answer = [](std::size_t, std::size_t) -> void* { return nullptr; };
    EXPECT_THROW((void)guarded.allocate(8, 8), std::bad_alloc);
    EXPECT_EQ(errors.back().facts.kind, error_kind::upstream_null);

    upstream.answer = [&](std::size_t, std::size_t) { return buffer + 8; };
    EXPECT_THROW((void)guarded.allocate(8, 32), std::bad_alloc);
    EXPECT_EQ(errors.back().facts.kind, error_kind::upstream_misaligned);
    EXPECT_EQ(upstream.back.size(), 1U);

    upstream.answer = [&](std::size_t, std::size_t) { return buffer; };
    void* const p = guarded.allocate(8, 8);
    std::memset(p, 0x11, 8);
    EXPECT_THROW((void)guarded.allocate(8, 8), std::bad_alloc);
    EXPECT_EQ(errors.back().facts.kind, error_kind::upstream_overlap);
    EXPECT_EQ(errors.back().facts.block.address, p);
    EXPECT_EQ(stray_read(p, 7), 0x11);  // the block that is there was left alone
    EXPECT_EQ(upstream.back.size(), 1U);
    EXPECT_EQ(errors.count(), 3U);
    EXPECT_EQ(guarded.stats().failed_allocations, 3U);
    guarded.deallocate(p, 8, 8);
    EXPECT_EQ(guarded.check(), 0U);
}

TEST(canary_upstream, blocks_that_overlap_in_part_damage_each_others_guards) {
    collecting_handler errors;
    alignas(64) unsigned char memory[512]{};
    std::size_t next = 0;
    noting_upstream upstream;
    upstream.answer = [&](std::size_t, std::size_t) -> void* { return memory + std::exchange(next, next + 64); };
    canary_resource guarded(&upstream, {.handler = &errors, .quarantine_bytes = 0});
    void* const p = guarded.allocate(64, 8);  // its guard behind begins where the second block does
    void* const q = guarded.allocate(64, 8);
    ASSERT_EQ(static_cast<unsigned char*>(q), static_cast<unsigned char*>(p) + 64);
    EXPECT_EQ(guarded.check(), 1U);
    EXPECT_EQ(errors.count(error_kind::overrun), 1U);
    EXPECT_EQ(errors.back().facts.block.address, p);
    EXPECT_EQ(errors.back().facts.first_bad, q);
    guarded.deallocate(q, 64, 8);
    guarded.deallocate(p, 64, 8);
    EXPECT_EQ(errors.count(error_kind::overrun), 2U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(canary_upstream_death, null_at_construction_is_said_before_the_end) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    EXPECT_DEATH(canary_resource(static_cast<std::pmr::memory_resource*>(nullptr)), "null_upstream");
}

TEST(canary_lifetime, a_call_after_destruction) {
    collecting_handler errors;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&errors);
    alignas(canary_resource) static unsigned char place[sizeof(canary_resource)];
    auto* const r = ::new (place) canary_resource(canary_options{.name = "late"});
    r->~basic_canary_resource();
    if (!test_support::still_callable(place)) {
        pmr_debug::set_default_report_handler(&before);
        GTEST_SKIP() << "the sanitizer wiped the object";
    }
    std::byte local[8];
    test_support::free_late(place, local, 8, 8);
    EXPECT_THROW((void)test_support::allocate_late(place, 8, 8), std::bad_alloc);
    pmr_debug::set_default_report_handler(&before);
    EXPECT_EQ(errors.count(error_kind::destroyed_resource), 2U);
    EXPECT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors.back().facts.resource.name, "late");
}

}  // namespace
