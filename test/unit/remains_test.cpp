// What is known of the blocks and the memory of resources that are dead.

#include "metadata/remains.hpp"
#include "support/call_here.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <type_traits>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::tracking_resource;
using test_support::allocate_here;
using test_support::free_here;
using test_support::trace_contains;
namespace metadata = pmr_debug::metadata;

// Never hands out an address twice, so that each test has memory that no other one knew.
class hoard final : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        static std::pmr::monotonic_buffer_resource memory;
        return memory.allocate(bytes, alignment);
    }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

template <class R>
std::unique_ptr<R> make(std::pmr::memory_resource& upstream, collecting_handler& errors) {
    if constexpr (std::is_same_v<R, pmr_debug::end_of_page_resource>) {
        static_cast<void>(upstream);
        return std::make_unique<R>(pmr_debug::end_of_page_options{.name = "gone", .handler = &errors});
    } else if constexpr (std::is_same_v<R, pmr_debug::canary_resource>) {
        return std::make_unique<R>(&upstream, pmr_debug::canary_options{.name = "gone", .handler = &errors});
    } else if constexpr (std::is_same_v<R, pmr_debug::general_purpose_resource>) {
        return std::make_unique<R>(&upstream, pmr_debug::general_purpose_options{.name = "gone", .handler = &errors});
    } else if constexpr (std::is_same_v<R, tracking_resource>) {
        return std::make_unique<R>(&upstream, pmr_debug::tracking_options{.name = "gone", .handler = &errors});
    } else {
        return std::make_unique<R>(&upstream, pmr_debug::temp_options{.name = "gone", .handler = &errors});
    }
}

template <class R>
__attribute__((noinline)) void destroy_here(std::unique_ptr<R>& r) {
    r.reset();
    asm volatile("# destroy_here" ::: "memory");
}

template <class R>
class remains_of : public testing::Test {};
using resources = testing::Types<pmr_debug::canary_resource, pmr_debug::end_of_page_resource,
                                 pmr_debug::general_purpose_resource, pmr_debug::temp_resource<>, tracking_resource>;
TYPED_TEST_SUITE(remains_of, resources);

TYPED_TEST(remains_of, a_block_freed_into_another_resource_is_known) {
    hoard memory;
    collecting_handler of_the_dead;
    collecting_handler errors;
    tracking_resource alive({.name = "alive", .handler = &errors});
    void* const own = alive.allocate(40, 8);
    auto gone = make<TypeParam>(memory, of_the_dead);
    void* const p = allocate_here(*gone, 200, 8);
    destroy_here(gone);
    EXPECT_TRUE(of_the_dead.count(error_kind::leak) == 1 || of_the_dead.count(error_kind::live_at_destruction) == 1);
    free_here(alive, p, 200, 8);
    ASSERT_EQ(errors.count(), 1U);
    // Whether the upstream handed the memory out anew since is not known.
    EXPECT_EQ(errors[0].facts.kind, error_kind::invalid_free);
    EXPECT_EQ(errors[0].facts.owner.name, "gone");
    EXPECT_FALSE(errors[0].facts.owner.alive);
    EXPECT_EQ(errors[0].facts.block.address, p);
    EXPECT_EQ(errors[0].facts.block.state, pmr_debug::block_state::unknown);
    EXPECT_EQ(errors[0].facts.block.size, 200U);
    EXPECT_EQ(errors[0].facts.block.alignment, 8U);
    EXPECT_TRUE(trace_contains(errors[0].facts.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(errors[0].facts.here, "free_here"));
    EXPECT_TRUE(trace_contains(errors[0].facts.owner.born, "make"));
    EXPECT_TRUE(trace_contains(errors[0].facts.owner.died, "destroy_here"));
    const std::string text(errors[0].text);
    EXPECT_NE(text.find("that lives; it was one of 200 bytes of \"gone\""), std::string::npos) << text;
    EXPECT_NE(text.find("  once "), std::string::npos) << text;
    EXPECT_NE(text.find("that block was allocated"), std::string::npos) << text;
    EXPECT_EQ(text.find("live,"), std::string::npos) << text;
    EXPECT_NE(text.find("resource constructed"), std::string::npos) << text;
    EXPECT_NE(text.find("resource destroyed"), std::string::npos) << text;
    EXPECT_NE(text.find("unless the memory was handed out to somebody else since"), std::string::npos) << text;
    alive.deallocate(own, 40, 8);
    EXPECT_EQ(errors.count(), 1U);
}

// The twin: what was freed in time is nobody's, and blocks of the living are theirs.
TYPED_TEST(remains_of, blocks_freed_in_time_are_not) {
    hoard memory;
    collecting_handler errors;
    auto gone = make<TypeParam>(memory, errors);
    void* const p = gone->allocate(200, 8);
    gone->deallocate(p, 200, 8);
    destroy_here(gone);
    metadata::owned_block out;
    EXPECT_EQ(metadata::find_owner(p, nullptr, metadata::below::ask, &out).id, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(remains, a_block_of_a_dead_scope_is_its_and_not_its_upstreams) {
    collecting_handler errors;
    pmr_debug::general_purpose_resource heap({.name = "heap", .handler = &errors});
    tracking_resource other(&heap, {.name = "other", .handler = &errors});
    std::optional<tracking_resource> scope(std::in_place, &heap,
                                           pmr_debug::tracking_options{.name = "scope", .handler = &errors});
    void* const p = allocate_here(*scope, 40, 8);
    scope.reset();
    errors.clear();
    other.deallocate(p, 40, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::wrong_resource);
    EXPECT_EQ(errors[0].facts.owner.name, "scope");
    EXPECT_FALSE(errors[0].facts.owner.alive);
    // Its upstream has it still, and takes it.
    errors.clear();
    heap.deallocate(p, 40, 8);
    EXPECT_EQ(errors.count(), 0U);
}

// The upstream's owner freed it, and the upstream handed the memory out anew, in the same size.
TEST(remains, a_block_that_its_upstream_handed_out_anew_is_not_a_dead_scopes) {
    constexpr pmr_debug::policy again{.freed = pmr_debug::reuse::immediate};
    collecting_handler errors;
    std::pmr::unsynchronized_pool_resource pool;
    pmr_debug::basic_tracking_resource<again> low(&pool, {.name = "low", .handler = &errors});
    tracking_resource other({.name = "other", .handler = &errors});
    std::optional<tracking_resource> scope(std::in_place, &low,
                                           pmr_debug::tracking_options{.name = "scope", .handler = &errors});
    void* const p = scope->allocate(40, 8);
    scope.reset();
    low.deallocate(p, 40, 8);
    ASSERT_EQ(low.allocate(40, 8), p);
    errors.clear();
    other.deallocate(p, 40, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::wrong_resource);
    EXPECT_EQ(errors[0].facts.owner.name, "low");
    low.deallocate(p, 40, 8);
}

// Nobody saw the upstream free it and hand it out anew.
TEST(remains, a_block_that_malloc_may_have_handed_out_anew_is_told_as_a_former_one) {
    collecting_handler errors;
    std::pmr::unsynchronized_pool_resource pool;  // as malloc would: the last one freed is the next one handed out
    void* p = nullptr;
    {
        tracking_resource gone(&pool, {.name = "gone", .handler = &errors});
        p = gone.allocate(64, 16);
    }
    pool.deallocate(p, 64, 16);
    ASSERT_EQ(pool.allocate(64, 16), p);
    tracking_resource alive({.name = "alive", .handler = &errors});
    errors.clear();
    alive.deallocate(p, 64, 16);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::invalid_free);
    EXPECT_EQ(errors[0].text.find(", live"), std::string::npos) << errors[0].text;
    EXPECT_NE(errors[0].text.find("unless the memory was handed out"), std::string::npos) << errors[0].text;
}

// A second free, after the upstream handed the memory out to somebody else: which of the two erred is not known.
TEST(remains, a_second_free_after_reuse_blames_nobody_alone) {
    collecting_handler errors;
    std::pmr::unsynchronized_pool_resource pool;
    tracking_resource one(&pool, {.name = "one", .handler = &errors});
    tracking_resource two(&pool, {.name = "two", .handler = &errors});
    void* const p = one.allocate(40, 8);
    free_here(one, p, 40, 8);
    ASSERT_EQ(two.allocate(40, 8), p);
    one.deallocate(p, 40, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::wrong_resource);
    EXPECT_TRUE(trace_contains(errors[0].facts.freed, "free_here"));
    EXPECT_NE(errors[0].text.find("this is a second free of that one, or"), std::string::npos) << errors[0].text;
    EXPECT_NE(errors[0].text.find("freed there before"), std::string::npos) << errors[0].text;
    two.deallocate(p, 40, 8);
}

TEST(remains, a_second_free_after_reuse_in_another_size_names_the_first_one) {
    collecting_handler errors;
    std::pmr::unsynchronized_pool_resource pool;
    tracking_resource one(&pool, {.name = "one", .handler = &errors});
    void* const p = one.allocate(40, 8);
    free_here(one, p, 40, 8);
    ASSERT_EQ(one.allocate(48, 8), p);
    one.deallocate(p, 40, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::size_mismatch);
    EXPECT_TRUE(trace_contains(errors[0].facts.freed, "free_here"));
    EXPECT_NE(errors[0].text.find("this is a second free of that one, or"), std::string::npos) << errors[0].text;
    EXPECT_NE(errors[0].text.find("freed there before"), std::string::npos) << errors[0].text;
}

TEST(remains, who_has_the_block_now_comes_first) {
    hoard memory;
    collecting_handler errors;
    alignas(64) unsigned char buffer[1024];
    std::optional<pmr_debug::temp_resource<>> gone(std::in_place, buffer, sizeof buffer,
                                                   pmr_debug::temp_options{.name = "gone", .handler = &errors});
    void* const p = gone->allocate(40, 8);
    gone.reset();
    pmr_debug::temp_resource next(buffer, sizeof buffer, {.name = "next", .handler = &errors});
    ASSERT_EQ(next.allocate(40, 8), p);
    tracking_resource alive({.name = "alive", .handler = &errors});
    errors.clear();
    alive.deallocate(p, 40, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::wrong_resource);
    EXPECT_EQ(errors[0].facts.owner.name, "next");
    next.release();
}

TEST(remains, a_pointer_into_memory_of_a_dead_one_names_who_had_it) {
    hoard memory;
    collecting_handler errors;
    tracking_resource alive({.name = "alive", .handler = &errors});
    void* const own = alive.allocate(40, 8);
    auto gone = make<pmr_debug::temp_resource<>>(memory, errors);
    auto* const p = static_cast<unsigned char*>(gone->allocate(200, 8));
    gone->deallocate(p, 200, 8);
    destroy_here(gone);
    errors.clear();
    alive.deallocate(p + 8, 16, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::invalid_free);
    EXPECT_EQ(errors[0].facts.owner.name, "gone");
    EXPECT_FALSE(errors[0].facts.nearest_only);
    EXPECT_NE(errors[0].text.find("it lies in memory that a resource had which is destroyed"), std::string::npos)
        << errors[0].text;
    EXPECT_NE(errors[0].text.find("resource destroyed"), std::string::npos) << errors[0].text;
    alive.deallocate(own, 40, 8);
}

// Memory that a dead arena gave back, and that is the living one's now.
TEST(remains, memory_that_was_handed_out_anew_is_not_its_any_more) {
    collecting_handler errors;
    alignas(64) unsigned char buffer[4096];
    {
        pmr_debug::temp_resource gone(buffer, sizeof buffer, {.name = "gone", .handler = &errors});
        gone.deallocate(gone.allocate(8, 8), 8, 8);
    }
    std::pmr::monotonic_buffer_resource again(buffer, sizeof buffer, std::pmr::null_memory_resource());
    tracking_resource alive(&again, {.name = "alive", .handler = &errors});
    auto* const own = static_cast<unsigned char*>(alive.allocate(40, 8));
    alive.deallocate(own + 64, 8, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::invalid_free);
    EXPECT_EQ(errors[0].facts.owner.id, 0U);
    EXPECT_TRUE(errors[0].facts.nearest_only);
    EXPECT_EQ(errors[0].facts.block.address, own);
    alive.deallocate(own, 40, 8);
}

TEST(remains, are_bounded_for_each_resource_and_in_all) {
    static std::byte places[metadata::left_blocks_kept + 2];
    const auto leave = [](const void* resource, const std::byte* from, std::size_t blocks) {
        metadata::resource_record* const r = metadata::register_resource(
            metadata::resource_kind::other, "thing", "thing", resource, nullptr, nullptr, pmr_debug::trace_id{1});
        metadata::remains left;
        for (std::size_t i = 0; i < blocks; ++i) {
            left.add_block({.address = from + i, .size = 1}, pmr_debug::trace_id{2});
        }
        EXPECT_EQ(left.full(), blocks >= metadata::remains_of_one);
        left.add_range(reinterpret_cast<std::uintptr_t>(from), 1);
        left.add_range(reinterpret_cast<std::uintptr_t>(from) + 1, 1);
        metadata::leave_behind(r, left);
        const std::uint64_t id = r->id;
        metadata::unregister_resource(r, pmr_debug::trace_id{3});
        return id;
    };
    const auto owner = [](const void* p) {
        metadata::owned_block out;
        EXPECT_EQ(metadata::find_owner(p, nullptr, metadata::below::ask, &out).id, 0U);
        const std::uint64_t id = metadata::find_former_owner(p, nullptr, &out).id;
        if (out.block.address == nullptr) {
            return std::uint64_t{0};
        }
        EXPECT_EQ(out.block.address, p);
        return id;
    };
    int place = 0;
    const std::uint64_t first = leave(&place, places, metadata::remains_of_one + 1);
    EXPECT_EQ(owner(places), first);
    EXPECT_EQ(owner(places + metadata::remains_of_one - 1), first);
    EXPECT_EQ(owner(places + metadata::remains_of_one), 0U) << "one too many";
    EXPECT_EQ(metadata::find_former_owner(places).id, first);
    EXPECT_EQ(metadata::find_former_owner(places + 1).id, first);
    EXPECT_EQ(metadata::find_former_owner(places + 2).id, 0U);
    for (std::size_t i = 0; i < metadata::left_blocks_kept; i += metadata::remains_of_one) {
        EXPECT_NE(owner(places + metadata::remains_of_one - 1), 0U);
        static_cast<void>(leave(&place, places + 2 + i, metadata::remains_of_one));
    }
    EXPECT_EQ(owner(places), 0U) << "the oldest are given up";
    metadata::leave_behind(nullptr, {});
}

}  // namespace
