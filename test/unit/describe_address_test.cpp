// What canary and temp resources know of an address, as a fault report would ask them.

#include "metadata/registry.hpp"
#include "support/call_here.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string>

namespace {

using pmr_debug::basic_canary_resource;
using pmr_debug::block_state;
using pmr_debug::collecting_handler;
using pmr_debug::policy;
using pmr_debug::metadata::address_finding;
using test_support::allocate_here;
using test_support::free_here;
using test_support::trace_contains;
using what = address_finding::what;

constexpr policy at_once{.freed = pmr_debug::reuse::immediate};
constexpr policy trap_at_once{.dead = pmr_debug::dead_unit::trap_at_once};

/// An upstream that hands one buffer out again and again.
class one_buffer final : public std::pmr::memory_resource {
public:
    alignas(64) unsigned char memory[4096]{};

private:
    void* do_allocate(std::size_t, std::size_t) override { return memory; }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

struct known {
    address_finding at;
    std::string who;
};

known ask(const void* p, std::ptrdiff_t offset = 0) {
    known k;
    const pmr_debug::resource_ref who =
        pmr_debug::metadata::find_at(reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(offset), &k.at);
    k.who = who.id != 0 ? who.name : "";
    return k;
}

TEST(describe_address, a_live_block_of_a_canary_resource_and_its_guards) {
    collecting_handler errors;
    pmr_debug::canary_resource guarded({.name = "guarded", .handler = &errors});
    void* const p = allocate_here(guarded, 100, 8);
    known k = ask(p, 42);
    EXPECT_EQ(k.who, "guarded");
    EXPECT_EQ(k.at.is, what::live_block);
    EXPECT_EQ(k.at.block.address, p);
    EXPECT_EQ(k.at.block.size, 100U);
    EXPECT_EQ(k.at.distance, 42);
    EXPECT_TRUE(trace_contains(k.at.allocated, "allocate_here"));
    k = ask(p, 100);
    EXPECT_EQ(k.at.is, what::guard_after);
    EXPECT_EQ(k.at.distance, 0);
    k = ask(p, -16);
    EXPECT_EQ(k.at.is, what::guard_before);
    EXPECT_EQ(k.at.distance, -16);
    EXPECT_EQ(ask(p, -17).who, "");
    EXPECT_EQ(ask(p, 100 + 4 + 16).who, "") << "rounded up to 8, and 16 of guard";
    guarded.deallocate(p, 100, 8);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(describe_address, a_block_in_quarantine) {
    collecting_handler errors;
    pmr_debug::canary_resource guarded({.name = "guarded", .handler = &errors, .freed_records = 0});
    void* const p = allocate_here(guarded, 100, 8);
    free_here(guarded, p, 100, 8);
    const known k = ask(p, 99);
    EXPECT_EQ(k.who, "guarded");
    EXPECT_EQ(k.at.is, what::freed_block);
    EXPECT_EQ(k.at.block.state, block_state::freed);
    EXPECT_FALSE(k.at.gone_back);
    EXPECT_TRUE(trace_contains(k.at.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(k.at.freed, "free_here"));
    EXPECT_EQ(errors.count(), 0U);
}

TEST(describe_address, a_damaged_block_that_was_set_aside) {
    collecting_handler errors;
    pmr_debug::canary_resource guarded({.name = "guarded", .handler = &errors, .freed_records = 0});
    void* const p = guarded.allocate(100, 8);
    static_cast<unsigned char*>(p)[100] = 0;
    guarded.deallocate(p, 100, 8);
    EXPECT_EQ(errors.count(pmr_debug::error_kind::overrun), 1U);
    EXPECT_EQ(ask(p).at.block.address, p);
    EXPECT_FALSE(ask(p).at.gone_back);
}

TEST(describe_address, what_went_back_to_the_upstream_counts_if_nobody_else_has_it) {
    collecting_handler errors;
    one_buffer memory;
    basic_canary_resource<at_once> first(&memory, {.name = "first", .handler = &errors});
    void* const p = allocate_here(first, 100, 8);
    free_here(first, p, 100, 8);
    known k = ask(p, 7);
    EXPECT_EQ(k.who, "first");
    EXPECT_EQ(k.at.is, what::freed_block);
    EXPECT_TRUE(k.at.gone_back);
    EXPECT_TRUE(trace_contains(k.at.freed, "free_here"));
    // The same memory, in somebody else's hands: constructed before, or after.
    basic_canary_resource<at_once> second(&memory, {.name = "second", .handler = &errors});
    void* const q = second.allocate(50, 8);
    ASSERT_EQ(p, q);
    k = ask(p, 7);
    EXPECT_EQ(k.who, "second");
    EXPECT_EQ(k.at.is, what::live_block);
    EXPECT_EQ(k.at.block.size, 50U);
    second.deallocate(q, 50, 8);
    void* const r = first.allocate(60, 8);
    ASSERT_EQ(p, r);
    k = ask(p, 7);
    EXPECT_EQ(k.who, "first");
    EXPECT_EQ(k.at.is, what::live_block);
    EXPECT_EQ(k.at.block.size, 60U);
    first.deallocate(r, 60, 8);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(describe_address, what_the_upstream_trapped_is_named_by_who_had_it) {
    collecting_handler errors;
    pmr_debug::basic_end_of_page_resource<trap_at_once> fence({.name = "fence", .handler = &errors});
    basic_canary_resource<at_once> guarded(&fence, {.name = "guarded", .handler = &errors});
    void* const p = allocate_here(guarded, 100, 8);
    EXPECT_EQ(ask(p, 100 + 4 + 16).who, "fence") << "behind the guards is the upstream's guard page";
    EXPECT_EQ(ask(p, 100 + 4 + 16).at.is, what::guard_after);
    free_here(guarded, p, 100, 8);
    const known k = ask(p, 99);
    EXPECT_EQ(k.who, "guarded");
    EXPECT_EQ(k.at.is, what::freed_block);
    EXPECT_EQ(k.at.block.address, p);
    EXPECT_EQ(k.at.block.size, 100U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(describe_address, blocks_of_a_temp_resource_live_freed_and_rewound) {
    collecting_handler errors;
    alignas(64) unsigned char buffer[4096];
    pmr_debug::temp_resource arena(buffer, sizeof buffer, {.name = "arena", .handler = &errors});
    void* const p = allocate_here(arena, 100, 8);
    known k = ask(p, 99);
    EXPECT_EQ(k.who, "arena");
    EXPECT_EQ(k.at.is, what::live_block);
    EXPECT_EQ(k.at.block.address, p);
    EXPECT_EQ(k.at.distance, 99);
    EXPECT_EQ(ask(p, 100).at.is, what::guard_after);
    EXPECT_EQ(ask(buffer, 3000).at.is, what::never_used);
    free_here(arena, p, 100, 8);
    k = ask(p);
    EXPECT_EQ(k.at.is, what::freed_block);
    EXPECT_TRUE(trace_contains(k.at.freed, "free_here"));
    void* q = nullptr;
    {
        pmr_debug::temp_mark here(arena);
        q = allocate_here(arena, 200, 8);
    }
    k = ask(q, 199);
    EXPECT_EQ(k.who, "arena");
    EXPECT_EQ(k.at.is, what::freed_block);
    EXPECT_EQ(k.at.block.address, q);
    EXPECT_EQ(k.at.block.size, 200U);
    EXPECT_FALSE(k.at.gone_back);
    EXPECT_EQ(ask(buffer + sizeof buffer).who, "");
    EXPECT_EQ(errors.count(), 0U);
}

TEST(describe_address, a_released_block_of_a_temp_resource_over_pages_that_fault) {
    collecting_handler errors;
    pmr_debug::basic_end_of_page_resource<trap_at_once> fence({.name = "fence", .handler = &errors});
    pmr_debug::temp_resource<> arena(&fence, {.name = "arena", .handler = &errors, .quarantine_bytes = 0});
    void* const p = allocate_here(arena, 100, 8);
    arena.release();
    const known k = ask(p, 5);
    EXPECT_EQ(k.who, "arena");
    EXPECT_EQ(k.at.is, what::freed_block);
    EXPECT_EQ(k.at.block.address, p);
    EXPECT_TRUE(trace_contains(k.at.allocated, "allocate_here"));
    EXPECT_EQ(errors.count(), 0U);
}

}  // namespace
