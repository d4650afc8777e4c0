// Which accesses fault, on which system and upstream.

#include "support/call_here.hpp"
#include "support/end_of_page.hpp"
#include "support/mappings.hpp"
#include "support/odd_calls.hpp"
#include "support/sanitizers.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/page_resource.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory_resource>
#include <new>
#include <string>
#include <vector>

namespace {

using namespace test_support::end_of_page;
using pmr_debug::page_resource;
using test_support::allocate_here;
using test_support::free_here;
using test_support::mappings;
using test_support::trace_contains;

TEST_F(fence, the_byte_behind_a_block_faults) {
    for (const std::size_t size :
         std::initializer_list<std::size_t>{1, 7, 8, 64, 100, 4095, 4096, 4097, 8192, 100'000, 3'000'000}) {
        void* const p = resource.allocate(size, 1);
        std::memset(p, 0x11, size);
        EXPECT_FALSE(faults(bytes(p) + size - 1)) << size;
        EXPECT_TRUE(faults(bytes(p) + size)) << size;
        EXPECT_TRUE(faults(bytes(p) + size + 4095)) << size;
        resource.deallocate(p, size, 1);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(fence, the_fault_comes_at_the_next_multiple_of_the_alignment) {
    for (const std::size_t alignment : std::initializer_list<std::size_t>{2, 4, 8, 16, 64, 4096}) {
        const std::size_t size = alignment + 1;
        void* const p = resource.allocate(size, alignment);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
        EXPECT_FALSE(faults(bytes(p) + 2 * alignment - 1)) << alignment;
        EXPECT_TRUE(faults(bytes(p) + 2 * alignment)) << alignment;
        resource.deallocate(p, size, alignment);
    }
}

TEST_F(fence, alignments_above_a_page_are_exact_to_the_page) {
    for (const std::size_t alignment : {std::size_t{8192}, std::size_t{1} << 21, std::size_t{1} << 26}) {
        void* const p = resource.allocate(100, alignment);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
        EXPECT_FALSE(faults(bytes(p) + page - 1));
        EXPECT_TRUE(faults(bytes(p) + page));
        resource.deallocate(p, 100, alignment);
        void* const none = resource.allocate(0, alignment);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(none) % alignment, 0U);
        EXPECT_TRUE(faults(none));
        resource.deallocate(none, 0, alignment);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(fence_before, the_byte_before_a_block_faults) {
    for (const std::size_t size : std::initializer_list<std::size_t>{1, 64, 4096, 5000, 100'000, 3'000'000}) {
        for (const std::size_t alignment : {std::size_t{1}, std::size_t{64}, page, 4 * page}) {
            void* const p = resource.allocate(size, alignment);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
            std::memset(p, 0x11, size);
            EXPECT_FALSE(faults(p)) << size;
            EXPECT_TRUE(faults(bytes(p) - 1)) << size;
            EXPECT_TRUE(faults(bytes(p) - page)) << size;
            resource.deallocate(p, size, alignment);
        }
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(fence_before, bytes_behind_a_block_are_canaries) {
    void* const p = resource.allocate(100, 4);
    bytes(p)[100] = 7;
    bytes(p)[110] = 7;
    resource.deallocate(p, 100, 4);
    ASSERT_EQ(errors.count(error_kind::overrun), 1U);
    EXPECT_EQ(errors[0].facts.first_bad, bytes(p) + 100);
    EXPECT_EQ(errors[0].facts.bad_bytes, 2U);
}

// No byte is left there for a canary: the next slot's guard stands before that slot is handed out.
TEST_F(fence_before, the_byte_behind_a_block_that_fills_its_pages_faults) {
    for (const bool markers : {true, false}) {
        const forced_tier tier(markers ? guard_tier::marker : guard_tier::protect);
        for (const std::size_t size : {page, 3 * page, 7 * page}) {
            std::vector<unsigned char*> all;
            for (int i = 0; i < 5; ++i) {
                all.push_back(bytes(resource.allocate(size, 8)));
                std::memset(all.back(), i, size);
                EXPECT_TRUE(faults(all.back() + size)) << size;
                EXPECT_TRUE(faults(all.back() - 1)) << size;
            }
            for (unsigned char* const p : all) {
                resource.deallocate(p, size, 8);
            }
        }
    }
    EXPECT_EQ(resource.guards().unguarded_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(fence, zero_size_blocks_have_an_address_of_their_own_that_faults) {
    std::vector<void*> all;
    for (int i = 0; i < 600; ++i) {  // more than a strip
        all.push_back(resource.allocate(0, 8));
    }
    std::vector<void*> sorted = all;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
    EXPECT_TRUE(faults(all.front()));
    EXPECT_TRUE(faults(all.back()));
    for (void* const p : all) {
        resource.deallocate(p, 0, 8);
    }
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(resource.stats().live_blocks, 0U);
}

TEST_F(fence_before, zero_size_blocks_fault) {
    void* const p = resource.allocate(0, 16);
    void* const q = resource.allocate(0, 2 * page);
    EXPECT_NE(p, q);
    EXPECT_TRUE(faults(p));
    EXPECT_TRUE(faults(q));
    resource.deallocate(p, 0, 16);
    resource.deallocate(q, 0, 2 * page);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(fence_at_once, a_freed_block_faults_at_once) {
    for (const placement where : {placement::before_guard, placement::after_guard}) {
        owner<basic_end_of_page_resource<at_once>> o({.where = where});
        for (const std::size_t size : std::initializer_list<std::size_t>{1, 4096, 50'000, 3'000'000}) {
            void* const p = o.resource.allocate(size, 1);
            void* const neighbour = o.resource.allocate(size, 1);
            o.resource.deallocate(p, size, 1);
            EXPECT_TRUE(faults(p)) << size;
            EXPECT_TRUE(faults(bytes(p) + size - 1)) << size;
            EXPECT_FALSE(faults(neighbour)) << size;
            o.resource.deallocate(neighbour, size, 1);
        }
        EXPECT_EQ(o.errors.count(), 0U);
    }
}

TEST_F(fence, freed_blocks_fault_when_their_strip_is_dead) {
    std::vector<void*> strip;
    for (int i = 0; i < 256; ++i) {
        strip.push_back(resource.allocate(64, 8));
    }
    for (std::size_t i = 1; i < strip.size(); ++i) {
        resource.deallocate(strip[i], 64, 8);
    }
    EXPECT_FALSE(faults(strip[1]));  // waits
    EXPECT_EQ(bytes(strip[1])[0], 0xDD);
    resource.deallocate(strip[0], 64, 8);
    for (const std::size_t i : std::initializer_list<std::size_t>{0U, 1U, 255U}) {
        EXPECT_TRUE(faults(strip[i]));
    }
    EXPECT_EQ(resource.stats().retired_units, 1U);
    EXPECT_EQ(resource.stats().untrapped_units, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(fence, blocks_above_a_page_fault_as_soon_as_they_are_freed) {
    void* const other = resource.allocate(5000, 8);
    void* const p = resource.allocate(5000, 8);
    resource.deallocate(p, 5000, 8);
    EXPECT_TRUE(faults(p));
    EXPECT_FALSE(faults(other));
    resource.deallocate(other, 5000, 8);
}

TEST(fence_quarantine, above_it_freed_blocks_of_the_oldest_strips_are_trapped_by_themselves) {
    owner<end_of_page_resource> o({.quarantine_bytes = 16 * page});
    std::vector<void*> blocks;
    for (int i = 0; i < 200; ++i) {
        blocks.push_back(o.resource.allocate(10, 1));
    }
    for (std::size_t i = 0; i < blocks.size(); i += 2) {
        o.resource.deallocate(blocks[i], 10, 1);
    }
    EXPECT_TRUE(faults(blocks[0]));
    EXPECT_FALSE(faults(blocks[1]));
    EXPECT_LE(o.resource.stats().resident_bytes, (100 + 17) * page);
    for (std::size_t i = 1; i < blocks.size(); i += 2) {
        bytes(blocks[i])[9] = 1;  // live ones are as before
        o.resource.deallocate(blocks[i], 10, 1);
    }
    EXPECT_EQ(o.errors.count(), 0U);
}

TEST(fence_quarantine, a_write_after_free_is_found_on_the_way_out) {
    owner<end_of_page_resource> o({.quarantine_bytes = 4 * page});
    void* const p = allocate_here(o.resource, 10, 1);
    free_here(o.resource, p, 10, 1);
    bytes(p)[3] = 0x41;
    for (int i = 0; i < 8; ++i) {
        o.resource.deallocate(o.resource.allocate(10, 1), 10, 1);
    }
    ASSERT_EQ(o.errors.count(error_kind::write_after_free), 1U);
    EXPECT_EQ(o.errors.count(), 1U);
    const report r = o.errors[0].facts;
    EXPECT_EQ(r.first_bad, bytes(p) + 3);
    EXPECT_EQ(r.bad_bytes, 1U);
    EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(trace_contains(r.freed, "free_here"));
}

TEST(fence_keep, nothing_is_trapped) {
    owner<basic_end_of_page_resource<keeping>> o;
    std::vector<void*> strip;
    for (int i = 0; i < 256; ++i) {
        strip.push_back(o.resource.allocate(64, 8));
    }
    for (void* const p : strip) {
        o.resource.deallocate(p, 64, 8);
    }
    EXPECT_FALSE(faults(strip[0]));
    EXPECT_EQ(o.resource.stats().untrapped_units, 1U);
    EXPECT_EQ(o.errors.count(), 0U);
}

// ---- Pages that travel ------------------------------------------------------------------------------------------

TEST_F(fence, pages_of_a_dead_strip_go_on_with_their_guards) {
    if (!has_markers()) {
        GTEST_SKIP() << "no guard markers";
    }
    std::vector<void*> seen;
    for (int i = 0; i < 256 * 4; ++i) {
        void* const p = resource.allocate(16, 8);
        std::memset(p, 1, 16);
        seen.push_back(p);
        resource.deallocate(p, 16, 8);
    }
    EXPECT_GE(resource.guards().moved_strips, 3U);
    void* const p = resource.allocate(17, 8);
    EXPECT_FALSE(faults(bytes(p) + 23));
    EXPECT_TRUE(faults(bytes(p) + 24));
    EXPECT_TRUE(faults(seen[0]));
    EXPECT_TRUE(faults(seen[1000]));
    resource.deallocate(p, 17, 8);
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(std::unique(seen.begin(), seen.end()), seen.end()) << "an address was used twice";
    EXPECT_EQ(errors.count(), 0U);
}

TEST(fence_range, retired_addresses_are_used_again_when_the_range_is_used_up) {
    for (const bool immediately : {false, true}) {
        collecting_handler errors;
        end_of_page_resource batched({.handler = &errors, .address_space_bytes = 8 << 20});
        basic_end_of_page_resource<at_once> prompt({.handler = &errors, .address_space_bytes = 8 << 20});
        std::pmr::memory_resource& resource = immediately ? static_cast<std::pmr::memory_resource&>(prompt)
                                                          : static_cast<std::pmr::memory_resource&>(batched);
        void* const kept = resource.allocate(40, 8);
        std::memset(kept, 0x22, 40);
        for (int i = 0; i < 5000; ++i) {
            const std::size_t size = i % 50 == 0 ? 20'000 : 100;
            void* const p = resource.allocate(size, 4);
            std::memset(p, 1, size);
            if (i % 500 == 0) {
                EXPECT_TRUE(faults(bytes(p) + size));
            }
            resource.deallocate(p, size, 4);
        }
        EXPECT_GT(immediately ? prompt.stats().recycled_units : batched.stats().recycled_units, 0U);
        EXPECT_EQ(bytes(kept)[39], 0x22);
        resource.deallocate(kept, 40, 8);
        EXPECT_EQ(errors.count(), 0U);
    }
}

TEST(fence_range, a_range_full_of_live_blocks_is_bad_alloc_and_nothing_else) {
    owner<end_of_page_resource> o({.address_space_bytes = 4 << 20});
    std::vector<void*> all;
    EXPECT_THROW(
        for (;;) { all.push_back(o.resource.allocate(8, 8)); }, std::bad_alloc);
    EXPECT_EQ(all.size(), 512U);
    EXPECT_THROW((void)o.resource.allocate(8 << 20, 8), std::bad_alloc);
    for (void* const p : all) {
        o.resource.deallocate(p, 8, 8);
    }
    void* const p = o.resource.allocate(8, 8);
    EXPECT_TRUE(faults(bytes(p) + 8));
    o.resource.deallocate(p, 8, 8);
    EXPECT_EQ(o.errors.count(), 0U);
    EXPECT_EQ(o.resource.stats().failed_allocations, 2U);
}

TEST(fence_range, million_live_blocks) {
    if (!has_markers() || TEST_SANITIZED) {
        GTEST_SKIP() << "needs guard markers, and no sanitizer";
    }
    collecting_handler errors;
    basic_end_of_page_resource<pmr_debug::fast_policy> resource({.handler = &errors});
    std::vector<unsigned char*> all(1'000'000);
    const std::size_t mappings_before = mappings();
    for (unsigned char*& p : all) {
        p = bytes(resource.allocate(24, 8));
    }
    EXPECT_EQ(resource.stats().live_blocks, all.size());
    EXPECT_EQ(resource.guards().marker_blocks, all.size());
    EXPECT_LT(mappings(), mappings_before + 50);
    EXPECT_EQ(resource.guards().unguarded_blocks, 0U);
    for (std::size_t i = 0; i < all.size(); i += 10) {
        all[i][23] = 1;
    }
    for (const std::size_t i : {std::size_t{0}, std::size_t{499'999}, std::size_t{999'999}}) {
        EXPECT_FALSE(faults(all[i] + 23));
        EXPECT_TRUE(faults(all[i] + 24));
    }
    for (unsigned char* const p : all) {
        resource.deallocate(p, 24, 8);
    }
    EXPECT_TRUE(faults(all[0]));
    EXPECT_EQ(errors.count(), 0U);
}

// ---- Tiers ------------------------------------------------------------------------------------------------------

TEST(fence_tiers, markers) {
    if (!has_markers()) {
        GTEST_SKIP() << "no guard markers";
    }
    owner<end_of_page_resource> o;
    void* const p = o.resource.allocate(8, 8);
    EXPECT_TRUE(faults(bytes(p) + 8));
    EXPECT_EQ(o.resource.guards().marker_blocks, 1U);
    o.resource.deallocate(p, 8, 8);
}

TEST(fence_tiers, mprotect_while_its_budget_lasts_then_canaries) {
    const forced_tier tier(guard_tier::protect);
    for (int round = 0; round < 2; ++round) {  // twice: the budget comes back
        owner<end_of_page_resource> o;
        std::vector<void*> all;
        for (int i = 0; i < 17'000; ++i) {
            all.push_back(o.resource.allocate(8, 8));
        }
        const pmr_debug::guard_statistics g = o.resource.guards();
        EXPECT_EQ(g.marker_blocks, 0U);
        EXPECT_GE(g.protected_blocks, 15'000U);
        EXPECT_GE(g.unguarded_blocks, 1'000U);
        EXPECT_EQ(g.protected_blocks + g.unguarded_blocks, all.size());
        EXPECT_TRUE(faults(bytes(all.front()) + 8));
        EXPECT_FALSE(faults(bytes(all.back()) + 8));
        bytes(all.back())[8] = 3;
        for (void* const p : all) {
            o.resource.deallocate(p, 8, 8);
        }
        ASSERT_EQ(o.errors.count(error_kind::overrun), 1U);
        EXPECT_EQ(o.errors.count(), 1U);
        EXPECT_EQ(o.errors[0].facts.first_bad, bytes(all.back()) + 8);
        EXPECT_NE(o.errors[0].text.find("no guard page"), std::string_view::npos);
        EXPECT_NE(o.errors[0].text.find(std::to_string(g.unguarded_blocks)), std::string_view::npos);
        EXPECT_TRUE(faults(all.front()));  // freed
    }
}

TEST(fence_tiers, mprotect_with_each_block_trapped_at_once) {
    const forced_tier tier(guard_tier::protect);
    owner<basic_end_of_page_resource<at_once>> o;
    for (int i = 0; i < 40'000; ++i) {
        void* const p = o.resource.allocate(8, 8);
        o.resource.deallocate(p, 8, 8);
    }
    EXPECT_EQ(o.resource.guards().unguarded_blocks, 0U) << "the budget did not come back";
    EXPECT_EQ(o.errors.count(), 0U);
}

TEST(fence_tiers, none) {
    const forced_tier tier(guard_tier::none);
    for (const placement where : {placement::before_guard, placement::after_guard}) {
        owner<end_of_page_resource> o({.where = where});
        void* const p = o.resource.allocate(9, 8);
        void* const empty = o.resource.allocate(0, 8);
        EXPECT_FALSE(faults(bytes(p) + 16));
        EXPECT_EQ(o.resource.guards().unguarded_blocks, 2U);
        bytes(p)[16] = 5;  // in what is the guard page elsewhere, or the window
        bytes(p)[-1] = 5;
        bytes(empty)[0] = 5;
        EXPECT_EQ(o.resource.check(), 2U);
        EXPECT_EQ(o.errors.count(error_kind::overrun), 2U);
        EXPECT_EQ(o.errors.count(error_kind::underrun), 1U);
        o.resource.deallocate(p, 9, 8);
        o.resource.deallocate(empty, 0, 8);
        EXPECT_EQ(o.errors.count(), 6U);
    }
}

// ---- Upstreams --------------------------------------------------------------------------------------------------

TEST(fence_upstream, over_pages_blocks_are_guarded) {
    collecting_handler errors;
    page_resource pages({.handler = &errors});
    {
        end_of_page_resource resource(&pages, {.handler = &errors, .address_space_bytes = 64 << 20});
        EXPECT_EQ(resource.upstream_resource(), &pages);
        void* const p = resource.allocate(8, 8);
        EXPECT_TRUE(faults(bytes(p) + 8));
        EXPECT_EQ(resource.guards().unguarded_blocks, 0U);
        for (int i = 0; i < 1000; ++i) {
            resource.deallocate(resource.allocate(8, 8), 8, 8);
        }
        resource.deallocate(p, 8, 8);
    }
    EXPECT_EQ(pages.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

/// Counts what is taken from it; refuses, or misbehaves, on demand.
class counting_upstream final : public std::pmr::memory_resource {
public:
    std::size_t live = 0;
    int mode = 0;  ///< 1: throws, 2: null, 3: misaligned

private:
    void* do_allocate(std::size_t size, std::size_t alignment) override {
        if (mode == 1) {
            throw std::bad_alloc();
        }
        if (mode == 2) {
            return nullptr;
        }
        live += size;
        auto* const p = bytes(std::pmr::new_delete_resource()->allocate(size, alignment));
        return mode == 3 ? p + 8 : p;
    }
    void do_deallocate(void* p, std::size_t size, std::size_t alignment) override {
        live -= size;
        const bool shifted = (reinterpret_cast<std::uintptr_t>(p) & (alignment - 1)) != 0;
        std::pmr::new_delete_resource()->deallocate(shifted ? bytes(p) - 8 : p, size, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

TEST(fence_upstream, over_any_other_there_are_canaries_on_both_sides) {
    collecting_handler errors;
    counting_upstream heap;
    {
        end_of_page_resource resource(&heap, {.handler = &errors, .quarantine_bytes = 0});
        for (const std::size_t size : std::initializer_list<std::size_t>{0, 8, 100, 5000, 100'000}) {
            for (const std::size_t alignment : {std::size_t{1}, std::size_t{16}, 2 * page}) {
                errors.clear();
                void* const p = resource.allocate(size, alignment);
                EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
                bytes(p)[size] ^= 1;
                EXPECT_EQ(resource.check(), 1U) << size;
                bytes(p)[size] ^= 1;
                resource.deallocate(p, size, alignment);
                EXPECT_EQ(errors.count(), 1U);
                EXPECT_EQ(errors.count(error_kind::overrun), 1U);
            }
        }
        errors.clear();
        for (int i = 0; i < 1000; ++i) {
            resource.deallocate(resource.allocate(8, 8), 8, 8);
        }
        EXPECT_LE(heap.live, std::size_t{200'000}) << "dead units were not given back";
        EXPECT_EQ(resource.guards().marker_blocks + resource.guards().protected_blocks, 0U);
    }
    EXPECT_EQ(heap.live, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(fence_upstream, a_write_after_free_is_found_before_memory_goes_back) {
    collecting_handler errors;
    counting_upstream heap;
    {
        end_of_page_resource resource(&heap, {.handler = &errors, .quarantine_bytes = 1 << 20});
        void* const p = resource.allocate(100'000, 8);
        resource.deallocate(p, 100'000, 8);
        bytes(p)[99'999] = 0;
        void* const q = resource.allocate(2'000'000, 8);
        resource.deallocate(q, 2'000'000, 8);
        EXPECT_EQ(errors.count(error_kind::write_after_free), 1U);
    }
    EXPECT_EQ(errors.count(), 1U);
    EXPECT_EQ(heap.live, 0U);
}

TEST(fence_upstream, misbehaviour_is_reported) {
    collecting_handler errors;
    counting_upstream heap;
    end_of_page_resource resource(&heap, {.handler = &errors});
    heap.mode = 1;
    EXPECT_THROW((void)resource.allocate(8, 8), std::bad_alloc);
    EXPECT_EQ(errors.count(), 0U);
    heap.mode = 2;
    EXPECT_THROW((void)resource.allocate(8, 8), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::upstream_null), 1U);
    heap.mode = 3;
    EXPECT_THROW((void)resource.allocate(8, 8), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::upstream_misaligned), 1U);
    heap.mode = 0;
    resource.deallocate(resource.allocate(8, 8), 8, 8);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(fence_death, a_null_upstream_is_reported) {
    std::pmr::memory_resource* volatile nothing = nullptr;
    EXPECT_DEATH(end_of_page_resource{static_cast<std::pmr::memory_resource*>(nothing)}, "null_upstream");
}

TEST(fence_end, a_call_after_destruction_is_reported) {
    collecting_handler errors;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&errors);
    alignas(end_of_page_resource) static unsigned char place[sizeof(end_of_page_resource)];
    auto* const resource = ::new (place) end_of_page_resource;
    void* const p = resource->allocate(8, 8);
    resource->deallocate(p, 8, 8);
    resource->~end_of_page_resource();
    if (test_support::still_callable(place)) {
        test_support::free_late(place, p, 8, 8);
        EXPECT_THROW((void)test_support::allocate_late(place, 8, 8), std::bad_alloc);
        EXPECT_EQ(errors.count(error_kind::destroyed_resource), 2U);
    }
    pmr_debug::set_default_report_handler(&before);
}

}  // namespace
