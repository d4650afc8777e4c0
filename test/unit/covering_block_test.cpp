// A broken canary whose byte another block covers: the upstream's fault, not that of an index. And one that was broken
// from the block beside.

#include <pmr_debug/pmr_debug.hpp>

#include "support/call_here.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <new>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using test_support::allocate_here;
using test_support::trace_contains;

// A pool whose nodes are smaller than what it is asked for.
class narrow_pool final : public std::pmr::memory_resource {
public:
    explicit narrow_pool(std::size_t stride) : stride_(stride) {}

private:
    void* do_allocate(std::size_t, std::size_t) override { return room_ + stride_ * next_++; }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
    std::size_t stride_;
    std::size_t next_ = 0;
    alignas(64) unsigned char room_[4096]{};
};

TEST(covering_block, a_pool_with_nodes_too_small_is_told_as_such) {
    for (const bool first_freed_first : {true, false}) {
        collecting_handler errors;
        narrow_pool pool(72);
        pmr_debug::canary_resource guarded(&pool, {.name = "guarded", .handler = &errors});
        void* const p = guarded.allocate(64, 8);  // 96 bytes with guards, of 72
        void* const q = allocate_here(guarded, 64, 8);
        if (!first_freed_first) {
            guarded.deallocate(q, 64, 8);
        }
        guarded.deallocate(p, 64, 8);
        ASSERT_GE(errors.size(), 1u);
        const pmr_debug::report& r = errors[0].facts;
        EXPECT_EQ(r.kind, error_kind::overrun);
        EXPECT_EQ(r.covering.address, q);
        EXPECT_EQ(r.covering.size, 64u);
        EXPECT_TRUE(trace_contains(r.other, "allocate_here"));
        EXPECT_NE(errors[0].text.find("covered by"), std::string_view::npos) << errors[0].text;
        EXPECT_NE(errors[0].text.find("the upstream handed out memory that overlaps"), std::string_view::npos)
            << errors[0].text;
        EXPECT_EQ(errors[0].text.find("index"), std::string_view::npos) << errors[0].text;
        if (first_freed_first) {
            guarded.deallocate(q, 64, 8);
        }
    }
}

// Of two resources over one pool that hands out memory twice.
TEST(covering_block, of_another_resource_is_named) {
    collecting_handler errors;
    narrow_pool pool(80);
    pmr_debug::canary_resource one(&pool, {.name = "one", .handler = &errors});
    pmr_debug::canary_resource two(&pool, {.name = "two", .handler = &errors});
    void* const p = one.allocate(88, 8);
    void* const q = two.allocate(88, 8);
    std::memset(q, 1, 88);
    one.deallocate(p, 88, 8);
    ASSERT_GE(errors.size(), 1u);
    EXPECT_EQ(errors[0].facts.kind, error_kind::overrun);
    EXPECT_EQ(errors[0].facts.covering.address, q);
    EXPECT_EQ(errors[0].facts.owner.name, "two");
    two.deallocate(q, 88, 8);
}

// Gives its first block less room than it is asked for, so that the second lies in it; and all others enough.
class once_narrow_pool final : public std::pmr::memory_resource {
public:
    explicit once_narrow_pool(std::size_t first) : second_(first) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        const std::size_t free = calls_ == 0 ? 0 : calls_ == 1 ? second_ : next_;
        const std::size_t at = (free + alignment - 1) & ~(alignment - 1);
        if (at + bytes > sizeof room_) {
            throw std::bad_alloc();
        }
        next_ = std::max(next_, at + bytes);
        ++calls_;
        return room_ + at;
    }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
    std::size_t second_;
    std::size_t next_ = 0;
    int calls_ = 0;
    alignas(4096) unsigned char room_[std::size_t{1} << 20]{};
};

// Who looks at memory of its own and finds another's live block there says so, once, and leaves it alone.
template <class Resource, class Options>
void expect_left_alone(std::size_t room, bool by_check) {
    constexpr std::size_t bytes = 1000;
    collecting_handler errors;
    const auto pool = std::make_unique<once_narrow_pool>(room);
    std::optional<Resource> one(std::in_place, pool.get(), Options{.name = "one", .handler = &errors});
    Resource two(pool.get(), Options{.name = "two", .handler = &errors});
    void* const p = one->allocate(8, 8);
    void* const q = allocate_here(two, bytes, 8);
    std::memset(q, 2, bytes);
    const auto intact = [&] {
        const auto* const first = static_cast<const unsigned char*>(q);
        return std::all_of(first, first + bytes, [](unsigned char c) { return c == 2; });
    };
    if (by_check) {
        EXPECT_EQ(one->check(), 1U);
        EXPECT_TRUE(intact());
        EXPECT_EQ(one->check(), 0U) << "told once";
    }
    one->deallocate(p, 8, 8);
    one.reset();
    EXPECT_TRUE(intact());
    ASSERT_EQ(errors.size(), 1U);
    const pmr_debug::report& r = errors[0].facts;
    EXPECT_EQ(r.kind, error_kind::overrun);
    EXPECT_EQ(r.resource.name, "one");
    EXPECT_EQ(r.owner.name, "two");
    EXPECT_EQ(r.covering.address, q);
    EXPECT_EQ(r.covering.size, bytes);
    EXPECT_TRUE(trace_contains(r.other, "allocate_here"));
    EXPECT_NE(errors[0].text.find("covered by"), std::string_view::npos) << errors[0].text;
    // And nobody else is blamed.
    EXPECT_EQ(two.check(), 0U);
    two.deallocate(q, bytes, 8);
    EXPECT_EQ(two.check(), 0U);
    EXPECT_EQ(errors.size(), 1U) << errors.back().text;
}

TEST(covering_block, in_memory_of_an_arena_is_left_alone) {
    for (const bool by_check : {true, false}) {
        expect_left_alone<pmr_debug::temp_resource<>, pmr_debug::temp_options>(2048, by_check);
        expect_left_alone<pmr_debug::basic_temp_resource<pmr_debug::thorough_policy>, pmr_debug::temp_options>(
            2048, by_check);
    }
}

constexpr pmr_debug::policy quarantined{.freed = pmr_debug::reuse::quarantined};

TEST(covering_block, in_memory_of_a_heap_is_left_alone) {
    for (const bool by_check : {true, false}) {
        expect_left_alone<pmr_debug::general_purpose_resource, pmr_debug::general_purpose_options>(4096, by_check);
        expect_left_alone<pmr_debug::basic_general_purpose_resource<quarantined>, pmr_debug::general_purpose_options>(
            4096, by_check);
    }
}

// An arena goes on elsewhere, and a rewind or release does not fill what is not its own.
TEST(covering_block, an_arena_goes_on_elsewhere) {
    collecting_handler errors;
    const auto pool = std::make_unique<once_narrow_pool>(512);
    pmr_debug::temp_resource<> one(pool.get(), {.name = "one", .handler = &errors});
    pmr_debug::tracking_resource two(pool.get(), {.name = "two", .handler = &errors});
    static_cast<void>(one.allocate(8, 8));
    auto* const q = static_cast<unsigned char*>(two.allocate(1000, 8));
    std::memset(q, 2, 1000);
    for (int round = 0; round < 3; ++round) {
        for (int i = 0; i < 200; ++i) {
            auto* const p = static_cast<unsigned char*>(one.allocate(40, 8));
            EXPECT_TRUE(p + 40 <= q || p >= q + 1000);
            std::memset(p, 3, 40);
            if (i % 2 == 0) {
                one.deallocate(p, 40, 8);
            }
        }
        if (round == 1) {
            one.release();
        } else {
            const auto here = one.mark();
            static_cast<void>(one.allocate(2000, 8));
        }
    }
    one.release();
    EXPECT_TRUE(std::all_of(q, q + 1000, [](unsigned char c) { return c == 2; }));
    ASSERT_EQ(errors.size(), 1U) << errors.back().text;
    EXPECT_EQ(errors[0].facts.kind, error_kind::overrun);
    EXPECT_EQ(errors[0].facts.covering.address, q);
    two.deallocate(q, 1000, 8);
    EXPECT_EQ(errors.size(), 1U);
}

// The twins: memory that is whose it seems to be is silent; and what is written beside it is told, mended, and nobody
// covers it, neither those below nor those above.
TEST(covering_block, a_stray_write_is_mended) {
    collecting_handler errors;
    pmr_debug::tracking_resource below({.handler = &errors});
    pmr_debug::temp_resource<> arena(&below, {.handler = &errors});
    pmr_debug::general_purpose_resource heap(&below, {.handler = &errors});
    pmr_debug::tracking_resource above(&heap, {.handler = &errors});
    auto* const p = static_cast<unsigned char*>(arena.allocate(8, 8));
    auto* const q = static_cast<unsigned char*>(above.allocate(8, 8));
    EXPECT_EQ(arena.check() + heap.check(), 0U);
    static_cast<volatile unsigned char*>(p)[1000] = 1;
    static_cast<volatile unsigned char*>(q)[1000] = 1;
    EXPECT_EQ(arena.check(), 1U);
    EXPECT_EQ(heap.check(), 1U);
    EXPECT_EQ(arena.check() + heap.check(), 0U);
    ASSERT_EQ(errors.size(), 2U);
    for (std::size_t i = 0; i < 2; ++i) {
        EXPECT_EQ(errors[i].facts.kind, error_kind::overrun);
        EXPECT_EQ(errors[i].facts.bad_bytes, 1U);
        EXPECT_EQ(errors[i].facts.covering.address, nullptr);
    }
    above.deallocate(q, 8, 8);
    arena.release();
    EXPECT_EQ(errors.size(), 2U);
}

// The twin: what really runs over is told as ever, also within blocks of resources below.
TEST(covering_block, an_overrun_is_an_overrun) {
    collecting_handler errors;
    pmr_debug::tracking_resource below({.handler = &errors});
    pmr_debug::general_purpose_resource heap(&below, {.handler = &errors});
    pmr_debug::canary_resource guarded(&heap, {.handler = &errors});
    auto* const p = static_cast<volatile unsigned char*>(guarded.allocate(64, 16));
    void* const q = guarded.allocate(64, 16);
    p[64] = 1;
    guarded.deallocate(const_cast<unsigned char*>(p), 64, 16);
    guarded.deallocate(q, 64, 16);
    ASSERT_EQ(errors.size(), 1u);
    EXPECT_EQ(errors[0].facts.kind, error_kind::overrun);
    EXPECT_EQ(errors[0].facts.covering.address, nullptr);
    EXPECT_NE(errors[0].text.find("an index or length is too large"), std::string_view::npos) << errors[0].text;
}

// ---- Blocks side by side

__attribute__((noinline)) void scribble(std::byte* p, std::ptrdiff_t from, std::size_t bytes) {
    asm volatile("" : "+r"(p));
    std::memset(p + from, 'x', bytes);
    asm volatile("" : : : "memory");
}

struct side_by_side : ::testing::Test {
    // 16 bytes of guard on each side, and nothing between.
    std::pmr::monotonic_buffer_resource place;
    collecting_handler errors;
    pmr_debug::canary_resource guarded{&place, {.name = "guarded", .handler = &errors}};
    std::byte* a = static_cast<std::byte*>(guarded.allocate(32, 8));
    std::byte* b = static_cast<std::byte*>(guarded.allocate(32, 8));

    ~side_by_side() override { EXPECT_EQ(errors.size(), errors_expected); }

    void free(std::byte* p) { guarded.deallocate(p, 32, 8); }
    [[nodiscard]] bool says(std::size_t i, const std::string& what) const {
        return errors[i].text.find(what) != std::string_view::npos;
    }
    static std::string block_at(const void* p) {
        std::ostringstream out;
        out << " the 32-byte block at " << p << ", right ";
        return out.str();
    }
    std::size_t errors_expected = 2;
};

TEST_F(side_by_side, what_runs_through_the_first_is_no_negative_index_of_the_second) {
    ASSERT_EQ(b - a, 64);
    scribble(a, 0, 128);
    free(b);
    free(a);
    ASSERT_EQ(errors.size(), 3U);
    errors_expected = 3;
    EXPECT_EQ(errors[0].facts.kind, error_kind::underrun);
    EXPECT_EQ(errors[0].facts.block.address, b);
    EXPECT_EQ(errors[0].facts.first_bad, b - 16);
    EXPECT_TRUE(says(0, "hint: the guard behind" + block_at(a) + "before")) << errors[0].text;
    EXPECT_FALSE(says(0, "an index is negative")) << errors[0].text;
    EXPECT_EQ(errors[1].facts.kind, error_kind::overrun);
    EXPECT_EQ(errors[1].facts.block.address, b);
    EXPECT_TRUE(says(1, "an index or length is too large")) << errors[1].text;
    EXPECT_EQ(errors[2].facts.block.address, a);
    EXPECT_TRUE(says(2, "an index or length is too large")) << errors[2].text;
}

TEST_F(side_by_side, also_when_the_first_was_freed_before) {
    scribble(a, 32, 20);
    free(a);
    free(b);
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_TRUE(says(0, "an index or length is too large")) << errors[0].text;
    EXPECT_EQ(errors[1].facts.kind, error_kind::underrun);
    EXPECT_TRUE(says(1, "hint: the guard behind" + block_at(a) + "before")) << errors[1].text;
}

TEST_F(side_by_side, also_when_the_second_was_freed_before_the_write) {
    free(b);
    scribble(a, 0, 96);
    free(a);
    EXPECT_EQ(guarded.check(), 1U);
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[1].facts.kind, error_kind::write_after_free);
    EXPECT_EQ(errors[1].facts.block.address, b);
    EXPECT_TRUE(says(1, "hint: the guard behind" + block_at(a) + "before")) << errors[1].text;
}

TEST_F(side_by_side, what_runs_below_the_second_is_no_large_index_of_the_first) {
    scribble(b, -20, 20);
    EXPECT_EQ(guarded.check(), 2U);
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::overrun);
    EXPECT_EQ(errors[0].facts.block.address, a);
    EXPECT_TRUE(says(0, "hint: the guard before" + block_at(b) + "behind")) << errors[0].text;
    EXPECT_EQ(errors[1].facts.kind, error_kind::underrun);
    EXPECT_TRUE(says(1, "an index is negative")) << errors[1].text;
    errors_expected = 4;  // they are told at their free, too
    free(a);
    free(b);
}

// The twins: damage of one block's own.
TEST_F(side_by_side, a_gap_says_whose_it_is) {
    scribble(a, 32, 8);
    scribble(b, -8, 8);
    free(b);
    free(a);
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_TRUE(says(0, "an index is negative")) << errors[0].text;
    EXPECT_TRUE(says(1, "an index or length is too large")) << errors[1].text;
}

TEST_F(side_by_side, whole_blocks_are_silent) {
    errors_expected = 0;
    scribble(a, 0, 32);
    scribble(b, 0, 32);
    EXPECT_EQ(guarded.check(), 0U);
    free(b);
    free(a);
}

}  // namespace
