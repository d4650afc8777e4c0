#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "support/call_here.hpp"
#include "support/odd_calls.hpp"
#include "support/sanitizers.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <memory_resource>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

using pmr_debug::basic_temp_resource;
using pmr_debug::block_state;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::policy;
using pmr_debug::report;
using pmr_debug::statistics;
using pmr_debug::temp_advice;
using pmr_debug::temp_mark;
using pmr_debug::temp_options;
using pmr_debug::temp_overflow;
using pmr_debug::temp_resource;
using pmr_debug::temp_resource_base;
using pmr_debug::threading;
using pmr_debug::tracking_options;
using pmr_debug::tracking_resource;
using test_support::allocate_here;
using test_support::free_again_here;
using test_support::free_here;
using test_support::trace_contains;

constexpr policy counts_only(threading t) {
    return {.threads = t, .alloc_frames = 0, .free_frames = 0, .checks = false, .guard_bytes = 0, .fill = false};
}

// Writes that the compiler must neither see through nor object to.
__attribute__((noinline)) void write_through(void* p, std::size_t offset, unsigned char value) {
    asm volatile("" : "+r"(p) : : "memory");
    static_cast<unsigned char*>(p)[offset] = value;
    asm volatile("# write_through" ::: "memory");
}
__attribute__((noinline)) unsigned char read_through(const void* p, std::size_t offset) {
    asm volatile("" : "+r"(p) : : "memory");
    return static_cast<const unsigned char*>(p)[offset];
}

__attribute__((noinline)) void release_here(temp_resource_base& arena) {
    arena.release();
    asm volatile("# release_here" ::: "memory");
}
__attribute__((noinline)) void rewind_here(temp_mark& m) {
    m.rewind();
    asm volatile("# rewind_here" ::: "memory");
}
__attribute__((noinline)) void make_mark_here(std::optional<temp_mark>& m, temp_resource_base& arena) {
    m.emplace(arena);
    asm volatile("# make_mark_here" ::: "memory");
}

struct temp : ::testing::Test {
    collecting_handler errors;
    temp_options options{.name = "frame", .handler = &errors};

    [[nodiscard]] const report& only() {
        EXPECT_EQ(errors.count(), 1U);
        static const report none{};
        return errors.size() != 0 ? errors[0].facts : none;
    }
};

// ---- Correct programs, in every shape ----------------------------------------------------------------------------

template <class Resource>
class temp_shape : public ::testing::Test {};

#ifdef TEST_ALL_POLICIES
using every_shape = ::testing::Types<
    temp_resource<>, temp_resource<4096>, temp_resource<0, policy{.threads = threading::unchecked}>,
    temp_resource<64, pmr_debug::default_policy>, temp_resource<0, pmr_debug::thorough_policy>,
    temp_resource<0, pmr_debug::fast_policy>, temp_resource<0, pmr_debug::release_policy>,
    temp_resource<100, policy{.threads = threading::single_checked, .alloc_frames = 0, .free_frames = 0}>,
    temp_resource<0, policy{.threads = threading::unchecked, .alloc_frames = 0, .free_frames = 0, .guard_bytes = 1}>,
    temp_resource<0, policy{.threads = threading::single_checked, .guard_bytes = 0, .fill = false}>,
    temp_resource<0, policy{.threads = threading::unchecked, .free_frames = 0, .guard_bytes = 24, .fill = false}>,
    temp_resource<
        0,
        policy{.threads = threading::unchecked, .alloc_frames = 0, .free_frames = 0, .guard_bytes = 0, .fill = false}>,
    temp_resource<256, counts_only(threading::unchecked)>, temp_resource<0, counts_only(threading::single_checked)>,
    temp_resource<0, counts_only(threading::synchronized)>,
    basic_temp_resource<policy{.threads = threading::unchecked,
                               .alloc_frames = 0,
                               .free_frames = 0,
                               .checks = false,
                               .guard_bytes = 0,
                               .fill = false,
                               .freed = pmr_debug::reuse::immediate},
                        512>>;
#else
using every_shape =
    ::testing::Types<temp_resource<64, pmr_debug::default_policy>, temp_resource<0, pmr_debug::thorough_policy>,
                     temp_resource<0, pmr_debug::release_policy>,
                     temp_resource<0, policy{.threads = threading::single_checked, .guard_bytes = 0, .fill = false}>,
                     temp_resource<256, counts_only(threading::unchecked)>>;
#endif
TYPED_TEST_SUITE(temp_shape, every_shape);

TYPED_TEST(temp_shape, containers_run_without_a_report_and_upstream_gets_all_back) {
    collecting_handler errors;
    tracking_resource upstream(tracking_options{.handler = &errors});
    {
        TypeParam arena(&upstream, temp_options{.handler = &errors, .overflow = temp_overflow::silent});
        for (int round = 0; round < 3; ++round) {
            {
                std::pmr::map<int, std::pmr::string> words(&arena);
                for (int i = 0; i < 300; ++i) {
                    words[i % 70] += "a piece of text that does not fit into the object itself";
                }
                std::pmr::list<std::pmr::vector<int>> numbers(20, std::pmr::vector<int>(10, &arena), &arena);
                {
                    const temp_mark here(arena);
                    std::pmr::vector<int> more(&arena);
                    more.resize(round == 1 ? 100'000 : 10, 7);
                    EXPECT_EQ(more.back(), 7);
                }
                EXPECT_EQ(words[3].substr(0, 7), "a piece");
            }
            EXPECT_EQ(arena.check(), 0U);
            arena.release();
        }
        EXPECT_TRUE(arena.ok());
    }
    EXPECT_EQ(upstream.stats().live_blocks, 0U);
    EXPECT_GT(upstream.stats().total_allocations, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(temp_shape, blocks_are_aligned_apart_and_keep_their_contents) {
    collecting_handler errors;
    TypeParam arena(temp_options{.handler = &errors, .overflow = temp_overflow::silent});
    struct block {
        unsigned char* p;
        std::size_t bytes;
        std::size_t alignment;
    };
    std::vector<block> blocks;
    std::mt19937 random(11);
    for (int i = 0; i < 2000; ++i) {
        const std::size_t bytes = i % 100 == 0 ? 0 : random() % 300;
        const std::size_t alignment = std::size_t{1} << (random() % (i % 50 == 0 ? 14 : 7));
        auto* const p = static_cast<unsigned char*>(arena.allocate(bytes, alignment));
        ASSERT_NE(p, nullptr);
        ASSERT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
        std::memset(p, i & 255, bytes);
        blocks.push_back({p, bytes, alignment});
    }
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        const auto is_mine = [i](unsigned char c) { return c == (i & 255); };
        ASSERT_TRUE(std::all_of(blocks[i].p, blocks[i].p + blocks[i].bytes, is_mine)) << i;
    }
    std::vector<block> sorted = blocks;
    std::sort(sorted.begin(), sorted.end(), [](const block& a, const block& b) { return a.p < b.p; });
    for (std::size_t i = 1; i < sorted.size(); ++i) {
        ASSERT_GE(sorted[i].p - sorted[i - 1].p,
                  static_cast<std::ptrdiff_t>(std::max(sorted[i - 1].bytes, std::size_t{1})));
    }
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (const block& b : blocks) {
        arena.deallocate(b.p, b.bytes, b.alignment);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(temp_shape, impossible_sizes_are_refused_without_a_report) {
    collecting_handler errors;
    TypeParam arena(temp_options{.handler = &errors, .overflow = temp_overflow::silent});
    EXPECT_THROW(static_cast<void>(test_support::allocate_odd(arena, SIZE_MAX, SIZE_MAX / 2 + 1)), std::bad_alloc);
    EXPECT_THROW(static_cast<void>(test_support::allocate_odd(arena, SIZE_MAX, 8)), std::bad_alloc);
    EXPECT_THROW(static_cast<void>(test_support::allocate_odd(arena, SIZE_MAX / 2, 1)), std::bad_alloc);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, both_spellings_declare_one) {
    temp_resource growing(options);
    temp_resource<64> within(options);
    std::array<std::byte, 100> buffer;
    temp_resource given(buffer.data(), buffer.size(), options);
    std::array<temp_resource_base*, 3> all{&growing, &within, &given};
    for (temp_resource_base* const r : all) {
        r->deallocate(r->allocate(8, 8), 8, 8);
        EXPECT_EQ(r->name(), "frame");
        EXPECT_EQ(r->upstream_resource(), std::pmr::new_delete_resource());
        EXPECT_TRUE(r->is_equal(*r));
        EXPECT_FALSE(r->is_equal(*std::pmr::new_delete_resource()));
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, statistics_follow_allocation_free_rewind_and_release) {
    temp_resource arena(options);
    void* const a = arena.allocate(100, 8);
    {
        const temp_mark here(arena);
        static_cast<void>(arena.allocate(50, 8));
        void* const c = arena.allocate(30, 8);
        arena.deallocate(c, 30, 8);
        EXPECT_EQ(arena.stats().live_bytes, 150U);
        EXPECT_EQ(arena.advice().dead_bytes, 30U);
    }
    statistics s = arena.stats();
    EXPECT_EQ(s.live_blocks, 1U);
    EXPECT_EQ(s.live_bytes, 100U);
    EXPECT_EQ(s.peak_blocks, 3U);
    EXPECT_EQ(s.peak_bytes, 180U);
    EXPECT_EQ(s.total_allocations, 3U);
    EXPECT_EQ(s.total_deallocations, 1U);
    EXPECT_EQ(s.total_bytes, 180U);
    EXPECT_GE(s.upstream_bytes, 4096U);
    EXPECT_EQ(arena.advice().dead_bytes, 0U);
    arena.deallocate(a, 100, 8);
    arena.release();
    s = arena.stats();
    EXPECT_EQ(s.live_bytes, 0U);
    EXPECT_EQ(arena.advice().needed_bytes, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

// ---- Deallocation contract -----------------------------------------------------------------------------------------

TEST_F(temp, double_free_has_three_traces) {
    temp_resource arena(options);
    void* const p = allocate_here(arena, 48, 8);
    free_here(arena, p, 48, 8);
    free_again_here(arena, p, 48, 8);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::double_free);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 48U);
    EXPECT_EQ(r.block.state, block_state::freed);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_again_here"));
}

TEST_F(temp, wrong_size_and_alignment_are_reported_and_freed_as_recorded) {
    temp_resource arena(options);
    void* const p = allocate_here(arena, 64, 16);
    arena.deallocate(p, 32, 8);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::size_mismatch);
    EXPECT_EQ(errors[0].facts.block.size, 64U);
    EXPECT_EQ(errors[0].facts.given_size, 32U);
    EXPECT_TRUE(trace_contains(errors[0].facts.allocated, "allocate_here"));
    EXPECT_EQ(errors[1].facts.kind, error_kind::alignment_mismatch);
    EXPECT_EQ(errors[1].facts.block.alignment, 16U);
    EXPECT_EQ(arena.stats().live_blocks, 0U);
}

TEST_F(temp, interior_null_and_stray_pointers) {
    temp_resource arena(options);
    auto* const p = static_cast<std::byte*>(allocate_here(arena, 64, 16));
    arena.deallocate(p + 16, 48, 16);
    test_support::free_null(arena, 8, 8);
    long on_the_stack = 0;
    arena.deallocate(&on_the_stack, 8, 8);
    arena.deallocate(p + 64, 8, 8);  // in the guard
    ASSERT_EQ(errors.count(), 4U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::interior_free);
    EXPECT_EQ(errors[0].facts.block.address, p);
    EXPECT_TRUE(trace_contains(errors[0].facts.allocated, "allocate_here"));
    EXPECT_EQ(errors[1].facts.kind, error_kind::null_free);
    EXPECT_EQ(errors[2].facts.kind, error_kind::invalid_free);
    EXPECT_EQ(errors[2].facts.block.address, nullptr);
    EXPECT_EQ(errors[3].facts.kind, error_kind::invalid_free);
    EXPECT_TRUE(errors[3].facts.nearest_only);
    EXPECT_EQ(errors[3].facts.block.address, p);
    arena.deallocate(p, 64, 16);
    EXPECT_EQ(errors.count(), 4U);
}

TEST_F(temp, owners_are_named_both_ways) {
    temp_resource arena(options);
    tracking_resource other(tracking_options{.name = "other", .handler = &errors});
    void* const a = allocate_here(arena, 64, 8);
    void* const b = other.allocate(32, 8);
    other.deallocate(a, 64, 8);
    arena.deallocate(b, 32, 8);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::wrong_resource);
    EXPECT_EQ(errors[0].facts.owner.name, "frame");
    EXPECT_EQ(errors[0].facts.owner.type, "temp_resource");
    EXPECT_TRUE(trace_contains(errors[0].facts.allocated, "allocate_here"));
    EXPECT_EQ(errors[1].facts.kind, error_kind::wrong_resource);
    EXPECT_EQ(errors[1].facts.owner.name, "other");
    other.deallocate(b, 32, 8);
    arena.deallocate(a, 64, 8);
}

TEST_F(temp, an_alignment_that_is_no_power_of_two_is_reported) {
    temp_resource arena(options);
    EXPECT_THROW(static_cast<void>(test_support::allocate_odd(arena, 8, 3)), std::bad_alloc);
    EXPECT_EQ(only().kind, error_kind::bad_alignment);
    EXPECT_EQ(only().given_alignment, 3U);
    EXPECT_EQ(arena.stats().failed_allocations, 1U);
}

// ---- Memory safety -------------------------------------------------------------------------------------------------

TEST_F(temp, fresh_memory_is_filled_and_freed_memory_too) {
    temp_resource arena(options);
    void* const p = arena.allocate(32, 8);
    EXPECT_EQ(read_through(p, 0), 0xAA);
    EXPECT_EQ(read_through(p, 31), 0xAA);
    arena.deallocate(p, 32, 8);
    EXPECT_EQ(read_through(p, 0), 0xDD);
    EXPECT_EQ(read_through(p, 31), 0xDD);
}

TEST_F(temp, off_by_one_into_the_neighbour_is_an_overrun) {
    temp_resource arena(options);
    void* const p = allocate_here(arena, 20, 4);
    void* const q = arena.allocate(20, 4);
    write_through(p, 20, 0x41);
    free_here(arena, p, 20, 4);
    arena.deallocate(q, 20, 4);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::overrun);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.first_bad, static_cast<std::byte*>(p) + 20);
    EXPECT_EQ(r.bad_bytes, 1U);
    EXPECT_EQ(r.bad_value, 0x41);
    EXPECT_EQ(r.expected_value, 0xBB);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
}

TEST_F(temp, an_overrun_is_found_by_check_rewind_and_the_end_and_told_once) {
    {
        temp_resource<512> arena(options);
        write_through(arena.allocate(8, 8), 8 + 15, 1);
        EXPECT_EQ(arena.check(), 1U);
        EXPECT_EQ(arena.check(), 0U);
        {
            const temp_mark here(arena);
            write_through(arena.allocate(8, 8), 8, 2);
        }
        EXPECT_EQ(errors.count(error_kind::overrun), 2U);
        write_through(arena.allocate(0, 1), 0, 3);  // no byte of it may be written
    }
    EXPECT_EQ(errors.count(error_kind::overrun), 3U);
}

TEST_F(temp, a_write_before_the_first_block_of_a_chunk_is_an_underrun) {
    for (const std::size_t alignment : {std::size_t{1}, std::size_t{16}, std::size_t{256}}) {
        SCOPED_TRACE(alignment);
        tracking_resource upstream(tracking_options{.handler = &errors});
        {
            temp_resource arena(&upstream, options);
            void* const p = allocate_here(arena, 20, alignment);
            write_through(p, std::size_t{0} - 1, 0x41);
            EXPECT_EQ(arena.check(), 1U);
            EXPECT_EQ(arena.check(), 0U);
            const report& r = only();
            EXPECT_EQ(r.kind, error_kind::underrun);
            EXPECT_EQ(r.block.address, p);
            EXPECT_EQ(r.first_bad, static_cast<std::byte*>(p) - 1);
            EXPECT_EQ(r.bad_value, 0x41);
            EXPECT_EQ(r.expected_value, 0xBB);
            EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
            write_through(p, std::size_t{0} - 1, 0x41);
            free_here(arena, p, 20, alignment);
            arena.release();  // verifies it
            EXPECT_EQ(errors.count(), 2U);
            write_through(p, std::size_t{0} - 1, 0x41);  // the chunk waits in quarantine
        }
        EXPECT_EQ(errors.count(), 3U);
        EXPECT_EQ(errors.count(error_kind::underrun), 3U);
        EXPECT_EQ(errors.back().facts.block.address, errors[0].facts.block.address);
        EXPECT_EQ(upstream.stats().live_blocks, 0U);
        errors.clear();
    }
}

TEST_F(temp, a_stale_pointer_after_vector_growth_is_a_write_after_free) {
    temp_resource arena(options);
    {
        std::pmr::vector<int> v({1, 2, 3, 4}, &arena);
        int* const stale = v.data();
        v.push_back(5);
        write_through(stale, sizeof(int), 9);
    }
    release_here(arena);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::write_after_free);
    EXPECT_EQ(r.block.size, 4 * sizeof(int));
    EXPECT_EQ(r.first_bad, static_cast<const std::byte*>(r.block.address) + sizeof(int));
    EXPECT_EQ(r.expected_value, 0xDD);
    EXPECT_TRUE(trace_contains(r.freed, "push_back"));
    EXPECT_TRUE(trace_contains(r.here, "release_here"));
}

TEST_F(temp, use_after_release_of_a_stack_buffer_is_found_when_the_memory_is_used_again) {
    alignas(16) std::array<std::byte, 1024> buffer;
    temp_resource arena(buffer.data(), buffer.size(), options);
    void* const p = allocate_here(arena, 100, 4);
    release_here(arena);
    EXPECT_EQ(read_through(p, 50), 0xDD);
    write_through(p, 50, 7);
    void* const q = arena.allocate(64, 4);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::use_after_free);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_EQ(r.first_bad, static_cast<std::byte*>(p) + 50);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "release_here"));
    EXPECT_GE(q, static_cast<void*>(static_cast<std::byte*>(p) + 51)) << "damaged memory is not used again";
    arena.deallocate(q, 64, 4);
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(temp, use_after_release_of_a_chunk_is_found_before_the_upstream_gets_it) {
    tracking_resource upstream(tracking_options{.handler = &errors});
    {
        temp_resource arena(&upstream, options);
        void* const p = allocate_here(arena, 100, 4);
        arena.release();
        EXPECT_EQ(upstream.stats().live_blocks, 1U) << "it waits in quarantine";
        write_through(p, 3, 7);
        EXPECT_EQ(arena.check(), 1U);
        EXPECT_EQ(arena.check(), 0U);
        write_through(p, 4, 7);
    }
    EXPECT_EQ(upstream.stats().live_blocks, 0U);
    ASSERT_EQ(errors.count(error_kind::use_after_free), 2U);
    EXPECT_EQ(errors.count(), 2U);
    EXPECT_TRUE(trace_contains(errors[1].facts.allocated, "allocate_here"));
}

TEST_F(temp, use_after_release_of_a_chunk_is_found_when_it_leaves_the_quarantine) {
    options.quarantine_bytes = 4096;
    temp_resource arena(options);
    void* const p = allocate_here(arena, 100, 4);
    arena.release();
    write_through(p, 3, 7);
    EXPECT_EQ(errors.count(), 0U);
    static_cast<void>(arena.allocate(100, 4));
    arena.release();  // there is room for one chunk only
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::use_after_free);
    EXPECT_EQ(errors[0].facts.first_bad, static_cast<std::byte*>(p) + 3);
}

TEST_F(temp, chunks_side_by_side_do_not_overlap) {
    alignas(16) static std::byte memory[1 << 16];
    std::pmr::monotonic_buffer_resource row(memory, sizeof memory, std::pmr::null_memory_resource());
    temp_resource arena(&row, options);
    for (int i = 0; i < 50; ++i) {
        static_cast<void>(arena.allocate(500, 8));
    }
    arena.release();
    EXPECT_EQ(errors.count(error_kind::upstream_overlap), 0U);
}

TEST_F(temp, without_quarantine_the_upstream_gets_chunks_at_once) {
    tracking_resource upstream(tracking_options{.handler = &errors});
    options.quarantine_bytes = 0;
    temp_resource arena(&upstream, options);
    static_cast<void>(arena.allocate(10'000, 4));
    EXPECT_EQ(upstream.stats().live_blocks, 1U);
    arena.release();
    EXPECT_EQ(upstream.stats().live_blocks, 0U);
    EXPECT_EQ(arena.stats().upstream_bytes, 0U);
}

TEST_F(temp, the_quarantine_gives_way_when_the_upstream_has_no_more) {
    tracking_resource upstream(tracking_options{.limit_blocks = 1});
    collecting_handler limits;
    tracking_resource limited(tracking_options{.handler = &limits, .limit_blocks = 1});
    temp_resource arena(&limited, options);
    static_cast<void>(arena.allocate(100, 4));
    arena.release();
    static_cast<void>(arena.allocate(100, 4));
    EXPECT_EQ(limited.stats().live_blocks, 1U);
    EXPECT_THROW(static_cast<void>(arena.allocate(1'000'000, 4)), std::bad_alloc);
    arena.release();
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, a_free_after_release_is_invalid_and_names_the_release) {
    temp_resource<256> arena(options);
    void* const p = allocate_here(arena, 40, 8);
    release_here(arena);
    free_here(arena, p, 40, 8);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::invalid_free);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.state, block_state::freed);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "release_here"));
    EXPECT_NE(errors[0].text.find("went away with release()"), std::string::npos);
}

// ---- Lifetime ------------------------------------------------------------------------------------------------------

struct wrong_order {  // the resource dies first
    explicit wrong_order(const temp_options& o) : v(&arena_of(o)) {}
    std::pmr::memory_resource& arena_of(const temp_options& o) {
        arena = std::make_unique<temp_resource<512>>(o);
        return *arena;
    }
    std::unique_ptr<temp_resource<512>> arena;
    std::pmr::vector<int> v;
};

__attribute__((noinline)) void fill_vector_here(std::pmr::vector<int>& v) {
    v.reserve(10);
    asm volatile("# fill_vector_here" ::: "memory");
}

TEST_F(temp, an_arena_that_dies_before_its_vector_reports_what_was_live) {
    {
        wrong_order both(options);
        fill_vector_here(both.v);
        both.arena.reset();
        ASSERT_EQ(errors.count(), 1U);
        // The vector's block is gone: not to be given back.
        std::construct_at(&both.v, std::pmr::new_delete_resource());
    }
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::live_at_destruction);
    EXPECT_EQ(r.resource.name, "frame");
    EXPECT_EQ(r.leaked_blocks, 1U);
    EXPECT_EQ(r.leaked_bytes, 10 * sizeof(int));
    ASSERT_EQ(r.leaks.size(), 1U);
    EXPECT_TRUE(trace_contains(r.leaks[0].allocated, "fill_vector_here"));
}

TEST_F(temp, live_blocks_are_reported_on_demand) {
    temp_resource<512> arena(options);
    EXPECT_EQ(arena.report_leaks(), 0U);
    EXPECT_EQ(errors.count(), 0U);
    static_cast<void>(allocate_here(arena, 40, 8));
    arena.deallocate(arena.allocate(8, 8), 8, 8);
    EXPECT_EQ(arena.report_leaks(), 1U);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::leak);
    EXPECT_EQ(r.leaked_bytes, 40U);
    ASSERT_EQ(r.leaks.size(), 1U);
    EXPECT_TRUE(trace_contains(r.leaks[0].allocated, "allocate_here"));
    arena.release();
    EXPECT_EQ(arena.report_leaks(), 0U);
    EXPECT_EQ(errors.count(), 1U);

    basic_temp_resource<counts_only(threading::unchecked)> unchecked;
    static_cast<void>(unchecked.allocate(8, 8));
    EXPECT_EQ(unchecked.report_leaks(), 0U);
}

TEST_F(temp, a_right_order_is_silent) {
    {
        temp_resource<512> arena(options);
        std::pmr::vector<int> v(&arena);
        fill_vector_here(v);
    }
    {
        temp_resource<512> arena(options);
        static_cast<void>(arena.allocate(100, 8));
        arena.release();  // the blocks were given up knowingly
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, the_buffer_is_filled_at_the_end) {
    alignas(16) std::array<std::byte, 256> buffer;
    void* p = nullptr;
    {
        temp_resource arena(buffer.data(), buffer.size(), options);
        p = arena.allocate(16, 8);
        std::memset(p, 1, 16);
    }
    EXPECT_EQ(read_through(p, 5), 0xDD);
    EXPECT_EQ(only().kind, error_kind::live_at_destruction);
}

TEST_F(temp, calls_after_death_are_reported) {
    collecting_handler last;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&last);
    alignas(temp_resource<64>) std::array<std::byte, sizeof(temp_resource<64>)> place;
    auto* const arena = ::new (static_cast<void*>(place.data())) temp_resource<64>(options);
    void* const p = arena->allocate(8, 8);
    arena->release();
    std::destroy_at(arena);
    if (test_support::still_callable(place.data())) {
        test_support::free_late(place.data(), p, 8, 8);
        EXPECT_THROW(static_cast<void>(test_support::allocate_late(place.data(), 8, 8)), std::bad_alloc);
        EXPECT_EQ(last.count(error_kind::destroyed_resource), 2U);
    }
    pmr_debug::set_default_report_handler(&before);
}

TEST_F(temp, winked_out_owners_are_told_if_asked_for) {
    options.audit_winked_out = true;
    temp_resource<1024> arena(options);
    auto* const winked = ::new (allocate_here(arena, sizeof(std::string), alignof(std::string)))
        std::string("a string that owns memory of the heap, not of the arena");
    winked->~basic_string();  // so that this test itself leaks nothing
    release_here(arena);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::live_at_destruction);
    EXPECT_EQ(r.leaked_bytes, sizeof(std::string));
    EXPECT_TRUE(trace_contains(r.leaks[0].allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "release_here"));
    {
        const temp_mark here(arena);
        static_cast<void>(arena.allocate(5, 1));
    }
    EXPECT_EQ(errors.count(error_kind::live_at_destruction), 2U);
    arena.deallocate(arena.allocate(8, 8), 8, 8);
    arena.release();
    EXPECT_EQ(errors.count(), 2U);
}

// ---- Overflow, size advice -----------------------------------------------------------------------------------------

__attribute__((noinline)) void overflow_here(temp_resource_base& arena) {
    static_cast<void>(arena.allocate(40, 8));
    asm volatile("# overflow_here" ::: "memory");
}

TEST_F(temp, a_buffer_that_overflows_is_reported_with_the_size_it_needed) {
    alignas(16) std::array<std::byte, 64> buffer;
    tracking_resource upstream(tracking_options{.handler = &errors});
    {
        temp_resource arena(buffer.data(), buffer.size(), &upstream, options);
        static_cast<void>(arena.allocate(30, 8));
        overflow_here(arena);
        static_cast<void>(arena.allocate(10, 8));  // told once
        const report& r = only();
        EXPECT_EQ(r.kind, error_kind::arena_overflow);
        EXPECT_EQ(r.given_size, 40U);
        EXPECT_EQ(r.limit, 64U);
        EXPECT_EQ(r.in_use, 30U);
        EXPECT_TRUE(trace_contains(r.here, "overflow_here"));
        EXPECT_NE(errors[0].text.find("a buffer of 72 bytes"), std::string::npos) << errors[0].text;
        EXPECT_EQ(upstream.stats().live_blocks, 1U);
        const temp_advice a = arena.advice();
        EXPECT_EQ(a.buffer_bytes, 64U);
        EXPECT_EQ(a.most_needed, 82U);
        EXPECT_EQ(a.suggested_bytes, 128U);
        EXPECT_EQ(a.overflows, 1U);
        std::string line;
        arena.write_advice([](std::string_view t, void* s) noexcept { static_cast<std::string*>(s)->append(t); },
                           &line);
        EXPECT_EQ(line,
                  "frame: buffer of 64 bytes, overflowed 1 time; most needed 82 bytes; 0 % of 80 bytes dead: give it "
                  "128 bytes\n");
        arena.release();
        overflow_here(arena);
        EXPECT_EQ(errors.count(), 1U) << "40 bytes fit";
        overflow_here(arena);
        EXPECT_EQ(errors.count(error_kind::arena_overflow), 2U) << "a new generation, a new overflow";
        arena.release();
    }
    EXPECT_EQ(errors.count(), 2U);
}

TEST_F(temp, what_fits_without_guards_is_no_overflow) {
    tracking_resource upstream(tracking_options{.handler = &errors});
    temp_resource<64> arena(&upstream, options);
    for (int i = 0; i < 4; ++i) {
        static_cast<void>(arena.allocate(16, 8));
    }
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(upstream.stats().total_allocations, 0U) << "guards find room elsewhere";
    static_cast<void>(arena.allocate(1, 1));
    EXPECT_EQ(only().kind, error_kind::arena_overflow);
    EXPECT_EQ(upstream.stats().total_allocations, 1U);
    arena.release();
}

TEST_F(temp, overflow_can_be_refused_or_silent) {
    options.overflow = temp_overflow::refuse;
    tracking_resource upstream(tracking_options{.handler = &errors});
    temp_resource<64> arena(&upstream, options);
    static_cast<void>(arena.allocate(40, 8));
    EXPECT_THROW(overflow_here(arena), std::bad_alloc);
    EXPECT_EQ(only().kind, error_kind::arena_overflow);
    EXPECT_EQ(arena.stats().failed_allocations, 1U);
    static_cast<void>(arena.allocate(24, 8));
    EXPECT_EQ(errors.count(), 1U) << "the rest of the buffer is still there";
    EXPECT_EQ(upstream.stats().total_allocations, 0U);
    arena.release();
    options.overflow = temp_overflow::silent;
    temp_resource<64> quiet(&upstream, options);
    static_cast<void>(quiet.allocate(400, 8));
    EXPECT_EQ(errors.count(), 1U);
    EXPECT_EQ(quiet.advice().overflows, 1U);
    quiet.release();
    temp_resource<64, counts_only(threading::unchecked)> plain(&upstream, {.overflow = temp_overflow::refuse});
    static_cast<void>(plain.allocate(64, 1));
    EXPECT_THROW(static_cast<void>(plain.allocate(1, 1)), std::bad_alloc);
}

TEST_F(temp, assigning_in_a_loop_shows_as_dead_bytes) {
    temp_resource arena(options);
    std::pmr::string s(&arena);
    for (int i = 0; i < 100; ++i) {
        s = std::pmr::string(static_cast<std::size_t>(100 + i), 'x', &arena);
    }
    const temp_advice a = arena.advice();
    EXPECT_LT(a.live_bytes, 500U);
    EXPECT_GT(a.dead_bytes, 10'000U);
    EXPECT_GT(a.dead_ratio, 0.9);
    std::string line;
    arena.write_advice([](std::string_view t, void* to) noexcept { static_cast<std::string*>(to)->append(t); }, &line);
    EXPECT_NE(line.find("rewind or release more often"), std::string::npos) << line;
    EXPECT_EQ(errors.count(), 0U);
}

// ---- Buffers -------------------------------------------------------------------------------------------------------

TEST_F(temp, two_arenas_on_one_buffer) {
    alignas(16) std::array<std::byte, 512> buffer;
    temp_resource first(buffer.data(), buffer.size(), temp_options{.name = "first", .handler = &errors});
    {
        temp_resource second(buffer.data() + 256, 256, options);
        const report& r = only();
        EXPECT_EQ(r.kind, error_kind::upstream_overlap);
        EXPECT_EQ(r.owner.name, "first");
        EXPECT_EQ(r.pointer, buffer.data() + 256);
        EXPECT_EQ(r.given_size, 256U);
        EXPECT_NE(errors[0].text.find("of 256 bytes is in use by \"first\""), std::string::npos) << errors[0].text;
        void* const p = second.allocate(16, 8);  // from elsewhere
        EXPECT_FALSE(p >= buffer.data() && p < buffer.data() + buffer.size());
        second.deallocate(p, 16, 8);
    }
    EXPECT_EQ(errors.count(), 1U);
}

// The destructor of an arena on the stack, or within a buffer, need not run before its storage is used again.
TEST_F(temp, storage_used_again_without_a_destructor_is_free) {
    alignas(64) static std::byte place[sizeof(temp_resource<1024>)];
    auto* first = ::new (place) temp_resource<1024>(options);
    static_cast<void>(first->allocate(100, 8));
    auto* const second = ::new (place) temp_resource<1024>(options);
    void* const p = second->allocate(100, 8);
    EXPECT_TRUE(p >= place && p < place + sizeof place);
    second->deallocate(p, 100, 8);
    std::destroy_at(second);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, arenas_side_by_side_in_turn_and_within_a_block_are_fine) {
    alignas(16) std::array<std::byte, 512> buffer;
    {
        temp_resource left(buffer.data(), 256, options);
        temp_resource right(buffer.data() + 256, 256, options);
        void* const block = left.allocate(200, 16);
        {
            temp_resource nested(block, 200, options);
            nested.deallocate(nested.allocate(8, 8), 8, 8);
        }
        left.deallocate(block, 200, 16);
    }
    temp_resource later(buffer.data(), 512, options);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, an_under_aligned_buffer_is_told_if_asked_for_and_works_anyway) {
    alignas(16) std::array<std::byte, 257> buffer;
    {
        temp_resource quiet(buffer.data() + 1, 256, options);
        void* const p = quiet.allocate(8, 8);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 8, 0U);
        quiet.deallocate(p, 8, 8);
    }
    EXPECT_EQ(errors.count(), 0U);
    options.buffer_alignment = 16;
    { temp_resource fine(buffer.data(), 256, options); }
    EXPECT_EQ(errors.count(), 0U);
    { temp_resource odd(buffer.data() + 1, 256, options); }
    EXPECT_EQ(only().kind, error_kind::bad_alignment);
    EXPECT_EQ(only().pointer, buffer.data() + 1);
    EXPECT_EQ(only().given_alignment, 16U);
    EXPECT_NE(errors[0].text.find("is not aligned to 16"), std::string::npos) << errors[0].text;
}

// ---- Marks ---------------------------------------------------------------------------------------------------------

TEST_F(temp, marks_in_order_give_memory_back) {
    temp_resource arena(options);
    static_cast<void>(arena.allocate(16, 8));
    void* first = nullptr;
    {
        const temp_mark outer = arena.mark();
        first = arena.allocate(16, 8);
        {
            const temp_mark inner(arena);
            static_cast<void>(arena.allocate(100'000, 8));  // a chunk of its own
        }
        static_cast<void>(arena.allocate(16, 8));
    }
    EXPECT_EQ(arena.allocate(16, 8), first);
    EXPECT_EQ(arena.stats().live_blocks, 2U);
    arena.release();
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, an_older_mark_is_not_rewound_while_a_younger_one_is_open) {
    temp_resource arena(options);
    std::optional<temp_mark> older;
    make_mark_here(older, arena);
    static_cast<void>(arena.allocate(16, 8));
    std::optional<temp_mark> younger;
    younger.emplace(arena);
    static_cast<void>(arena.allocate(16, 8));
    rewind_here(*older);
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::out_of_order_rewind);
    EXPECT_TRUE(trace_contains(r.allocated, "make_mark_here"));
    EXPECT_TRUE(trace_contains(r.here, "rewind_here"));
    EXPECT_EQ(arena.stats().live_blocks, 2U) << "ignored";
    younger.reset();
    EXPECT_EQ(arena.stats().live_blocks, 1U);
    older.reset();
    EXPECT_EQ(arena.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(temp, a_mark_destroyed_before_a_younger_one_is_reported_and_leaves_the_arena_sound) {
    temp_resource arena(options);
    std::optional<temp_mark> older;
    std::optional<temp_mark> younger;
    make_mark_here(older, arena);
    static_cast<void>(arena.allocate(16, 8));
    younger.emplace(arena);
    older.reset();
    EXPECT_EQ(only().kind, error_kind::out_of_order_rewind);
    younger.reset();
    {
        const temp_mark next(arena);
        static_cast<void>(arena.allocate(16, 8));
    }
    EXPECT_EQ(arena.stats().live_blocks, 1U);
    arena.release();
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(temp, a_mark_rewound_twice_or_after_release_is_reported) {
    temp_resource arena(options);
    {
        std::optional<temp_mark> m;
        make_mark_here(m, arena);
        m->rewind();
        EXPECT_EQ(errors.count(), 0U);
        static_cast<void>(arena.allocate(16, 8));
        rewind_here(*m);
        EXPECT_EQ(only().kind, error_kind::out_of_order_rewind);
        EXPECT_TRUE(trace_contains(only().allocated, "make_mark_here"));
        EXPECT_EQ(arena.stats().live_blocks, 1U);
    }
    {
        temp_mark m(arena);
        arena.release();
        static_cast<void>(arena.allocate(16, 8));
        m.rewind();
        EXPECT_EQ(errors.count(error_kind::out_of_order_rewind), 2U);
    }
    EXPECT_EQ(arena.stats().live_blocks, 1U);
    arena.release();
    EXPECT_EQ(errors.count(), 2U);
}

TEST_F(temp, a_mark_of_another_arena_is_reported_and_names_it) {
    temp_resource arena(options);
    temp_resource other(temp_options{.name = "other", .handler = &errors});
    temp_mark m(other);
    static_cast<void>(arena.allocate(16, 8));
    arena.rewind(m);
    EXPECT_EQ(only().kind, error_kind::out_of_order_rewind);
    EXPECT_EQ(only().resource.name, "frame");
    EXPECT_EQ(only().owner.name, "other");
    EXPECT_EQ(arena.stats().live_blocks, 1U);
    other.rewind(m);
    arena.release();
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(temp, a_mark_may_outlive_its_arena) {
    std::optional<temp_resource<>> arena(std::in_place, options);
    const temp_mark m(*arena);
    arena.reset();
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(temp, use_after_rewind_is_found_and_a_late_free_too) {
    temp_resource<512> arena(options);
    temp_mark m(arena);
    void* const p = allocate_here(arena, 32, 8);
    rewind_here(m);
    write_through(p, 0, 5);
    free_here(arena, p, 32, 8);
    EXPECT_EQ(only().kind, error_kind::invalid_free);
    EXPECT_TRUE(trace_contains(only().freed, "rewind_here"));
    static_cast<void>(arena.allocate(8, 8));
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[1].facts.kind, error_kind::use_after_free);
    EXPECT_EQ(errors[1].facts.first_bad, p);
    arena.release();
}

TEST_F(temp, frees_out_of_order_are_fine_unless_lifo_is_asked_for) {
    for (const bool lifo : {false, true}) {
        options.lifo = lifo;
        temp_resource arena(options);
        void* const a = allocate_here(arena, 16, 8);
        void* const b = arena.allocate(16, 8);
        void* const c = arena.allocate(16, 8);
        arena.deallocate(c, 16, 8);
        free_here(arena, a, 16, 8);
        arena.deallocate(b, 16, 8);
        EXPECT_EQ(errors.count(), lifo ? 1U : 0U);
        EXPECT_EQ(arena.stats().live_blocks, 0U);
    }
    EXPECT_EQ(only().kind, error_kind::out_of_order_rewind);
    EXPECT_TRUE(trace_contains(only().allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(only().here, "free_here"));
    EXPECT_NE(errors[0].text.find("was freed before a younger one"), std::string::npos) << errors[0].text;
}

// ---- Threads -------------------------------------------------------------------------------------------------------

TEST_F(temp, a_second_thread_is_reported_with_both_traces) {
    temp_resource arena(options);
    std::optional<temp_mark> m;
    m.emplace(arena);
    static_cast<void>(allocate_here(arena, 16, 8));
    std::thread([&] {
        void* const p = arena.allocate(8, 8);  // a block of another thread's arena
        asm volatile("" : : "r"(p) : "memory");
    }).join();
    const report& r = only();
    EXPECT_EQ(r.kind, error_kind::foreign_thread);
    EXPECT_NE(r.thread, r.other_thread);
    EXPECT_TRUE(trace_contains(r.other, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.here, "second_thread"));
    EXPECT_EQ(arena.stats().live_blocks, 2U) << "carried out";
    m.reset();
    EXPECT_EQ(arena.stats().live_blocks, 0U);
    std::thread([&] { arena.release(); }).join();
    EXPECT_EQ(errors.count(error_kind::foreign_thread), 2U);
}

TEST_F(temp, a_synchronized_arena_serves_many_threads) {
    temp_resource<128, pmr_debug::default_policy> arena(
        temp_options{.handler = &errors, .overflow = temp_overflow::silent});
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&arena, t] {
            std::pmr::map<int, std::pmr::string> m(&arena);
            for (int i = 0; i < 200; ++i) {
                m[i] = std::pmr::string(static_cast<std::size_t>(20 + t), 'x', &arena);
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(arena.stats().live_blocks, 0U);
    EXPECT_EQ(arena.check(), 0U);
}

// ---- Upstreams that lie --------------------------------------------------------------------------------------------

class lying_upstream final : public std::pmr::memory_resource {
public:
    void* answer = nullptr;

private:
    void* do_allocate(std::size_t, std::size_t) override { return answer; }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

class tally_upstream final : public std::pmr::memory_resource {
public:
    std::size_t calls = 0;
    std::size_t largest = 0;
    std::size_t last = 0;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        ++calls;
        last = bytes;
        largest = std::max(largest, bytes);
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

TEST_F(temp, upstreams_are_not_believed) {
    lying_upstream liar;
    alignas(4096) static std::array<std::byte, 65536> memory;
    temp_resource arena(&liar, options);
    EXPECT_THROW(static_cast<void>(arena.allocate(8, 8)), std::bad_alloc);
    EXPECT_EQ(errors.back().facts.kind, error_kind::upstream_null);
    liar.answer = memory.data() + 8;
    EXPECT_THROW(static_cast<void>(arena.allocate(8, 8)), std::bad_alloc);
    EXPECT_EQ(errors.back().facts.kind, error_kind::upstream_misaligned);
    liar.answer = memory.data();
    static_cast<void>(arena.allocate(8, 8));
    EXPECT_EQ(errors.count(), 2U);
    liar.answer = memory.data() + 1024;
    EXPECT_THROW(static_cast<void>(arena.allocate(5000, 8)), std::bad_alloc);
    EXPECT_EQ(errors.back().facts.kind, error_kind::upstream_overlap);
    EXPECT_EQ(errors.count(), 3U);
    arena.release();
    // What was released waits in quarantine: it is in use still.
    liar.answer = memory.data() + 512;
    EXPECT_THROW(static_cast<void>(arena.allocate(8, 8)), std::bad_alloc);
    EXPECT_EQ(errors.back().facts.kind, error_kind::upstream_overlap);
    EXPECT_EQ(errors.count(), 4U);
}

TEST_F(temp, chunks_grow) {
    tally_upstream upstream;
    temp_resource arena(&upstream, options);
    for (int i = 0; i < 40'000; ++i) {
        static_cast<void>(arena.allocate(100, 8));
    }
    EXPECT_LE(upstream.calls, 20U) << "4 MB from 64 KiB or less";
    EXPECT_GE(upstream.calls, 2U);
}

// A frame of a game loop that does not fit what the first chunk has left: the same chunk each time, not twice as much.
TEST_F(temp, rounds_of_a_mark_ask_for_the_same_chunk) {
    const auto run = [](auto& arena, tally_upstream& upstream) {
        static_cast<void>(arena.allocate(100, 8));
        for (int frame = 0; frame < 100; ++frame) {
            const temp_mark m = arena.mark();
            static_cast<void>(arena.allocate(5'000, 8));
            {
                const temp_mark inner = arena.mark();
                static_cast<void>(arena.allocate(10'000, 8));
            }
            static_cast<void>(arena.allocate(10'000, 8));
        }
        EXPECT_LE(upstream.largest, std::size_t{32} << 10);
        EXPECT_LE(arena.stats().upstream_bytes, std::size_t{200} << 10) << "the quarantine has 64 KiB";
        // What is not gone counts: chunks still grow.
        const std::size_t before = upstream.largest;
        for (int i = 0; i < 1'000; ++i) {
            static_cast<void>(arena.allocate(1'000, 8));
        }
        EXPECT_GE(upstream.largest, 4 * before);
        arena.release();
        static_cast<void>(arena.allocate(100, 8));
        EXPECT_EQ(upstream.last, 4'096U);
        arena.release();
    };
    {
        tally_upstream upstream;
        temp_resource arena(&upstream, options);
        run(arena, upstream);
    }
    {
        tally_upstream upstream;
        basic_temp_resource<pmr_debug::default_policy> arena(&upstream, options);
        run(arena, upstream);
    }
    {
        tally_upstream upstream;
        basic_temp_resource<pmr_debug::release_policy> arena(&upstream, options);
        run(arena, upstream);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST(temp_death, a_null_upstream_is_reported_and_ends_the_process) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            auto* volatile nothing = static_cast<std::pmr::memory_resource*>(nullptr);
            temp_resource<64> arena(nothing);
        },
        "null_upstream");
}

TEST(temp_release, the_last_block_freed_is_used_again) {
    temp_resource<256, policy{.threads = threading::unchecked,
                              .alloc_frames = 0,
                              .free_frames = 0,
                              .checks = false,
                              .guard_bytes = 0,
                              .fill = false,
                              .freed = pmr_debug::reuse::immediate}>
        arena;
    void* const p = arena.allocate(16, 8);
    arena.deallocate(p, 16, 8);
    EXPECT_EQ(arena.allocate(16, 8), p);
    static_cast<void>(arena.allocate(16, 8));
    arena.deallocate(p, 16, 8);
    EXPECT_NE(arena.allocate(16, 8), p);
}

}  // namespace
