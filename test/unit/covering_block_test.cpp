// A broken canary whose byte another block covers: the upstream's fault, not that of an index. And one that was broken
// from the block beside.

#include <pmr_debug/pmr_debug.hpp>

#include "support/call_here.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <memory_resource>
#include <sstream>
#include <string>

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
