#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/page_resource.hpp>

#include "metadata/registry.hpp"
#include "os/virtual_memory.hpp"
#include "support/call_here.hpp"
#include "support/odd_calls.hpp"
#include "support/sanitizers.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <initializer_list>
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

using pmr_debug::basic_end_of_page_resource;
using pmr_debug::block_state;
using pmr_debug::collecting_handler;
using pmr_debug::end_of_page_options;
using pmr_debug::end_of_page_resource;
using pmr_debug::error_kind;
using pmr_debug::page_resource;
using pmr_debug::placement;
using pmr_debug::policy;
using pmr_debug::report;
using pmr_debug::threading;
using pmr_debug::os::guard_tier;
using test_support::allocate_here;
using test_support::free_again_here;
using test_support::free_here;
using test_support::trace_contains;

constexpr std::size_t page = 4096;
constexpr policy at_once{.dead = pmr_debug::dead_unit::trap_at_once};
constexpr policy keeping{.dead = pmr_debug::dead_unit::keep};
constexpr policy single{.threads = threading::single_checked};
constexpr policy unchecked{.threads = threading::unchecked};

// ---- Faults, in children ----------------------------------------------------------------------------------------

enum class access : std::uint8_t { read, write };

__attribute__((noinline, no_sanitize("address", "thread"))) void touch(volatile unsigned char* p, access how) {
    if (how == access::read) {
        [[maybe_unused]] const unsigned char seen = *p;
    } else {
        *p = 0x41;
    }
}

/// Whether touching \p p ends a process.
bool faults(void* p, access how) {
    const pid_t child = ::fork();
    if (child == 0) {
        std::signal(SIGSEGV, SIG_DFL);  // a sanitizer has a handler of its own
        std::signal(SIGBUS, SIG_DFL);
        touch(static_cast<volatile unsigned char*>(p), how);
        ::_exit(0);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
}

/// True if both a read and a write fault; false if neither does.
bool faults(void* p) {
    const bool reading = faults(p, access::read);
    EXPECT_EQ(faults(p, access::write), reading);
    return reading;
}

unsigned char* bytes(void* p) {
    return static_cast<unsigned char*>(p);
}

/// For a scope, no tier above this one.
class forced_tier {
public:
    explicit forced_tier(guard_tier t) { pmr_debug::os::force_guard_tier(t); }
    forced_tier(const forced_tier&) = delete;
    forced_tier& operator=(const forced_tier&) = delete;
    ~forced_tier() { pmr_debug::os::force_guard_tier(guard_tier::marker); }
};

bool has_markers() {
    void* const p = pmr_debug::os::map(page, page);
    const bool has = pmr_debug::os::install_guard(p, page) == guard_tier::marker;
    pmr_debug::os::unmap(p, page);
    pmr_debug::os::force_guard_tier(guard_tier::marker);
    return has;
}

template <class Resource>
struct owner {
    collecting_handler errors;
    Resource resource;
    explicit owner(end_of_page_options o = {}) : resource((o.handler = &errors, o)) {}
};

struct fence : ::testing::Test {
    collecting_handler errors;
    end_of_page_resource resource{end_of_page_options{.name = "fence", .handler = &errors}};

    [[nodiscard]] report only(error_kind kind) {
        EXPECT_EQ(errors.count(), 1U);
        EXPECT_EQ(errors.count(kind), 1U) << (errors.size() != 0 ? errors[0].text : "");
        return errors.size() != 0 ? errors[0].facts : report{};
    }
};

struct fence_before : ::testing::Test {
    collecting_handler errors;
    end_of_page_resource resource{end_of_page_options{.handler = &errors, .where = placement::after_guard}};
};

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
    for (unsigned char*& p : all) {
        p = bytes(resource.allocate(24, 8));
    }
    EXPECT_EQ(resource.stats().live_blocks, all.size());
    EXPECT_EQ(resource.guards().marker_blocks, all.size());
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
