// Resources over and under an arena, whose first block starts where the chunk does.

#include "support/call_here.hpp"
#include "support/canary_fixture.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <gtest/gtest.h>

#include <memory_resource>

namespace {

using pmr_debug::canary_resource;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::report;
using pmr_debug::tracking_resource;
using test_support::allocate_here;
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

}  // namespace
