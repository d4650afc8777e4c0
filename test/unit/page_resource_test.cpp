#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/page_resource.hpp>

#include "os/virtual_memory.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory_resource>
#include <new>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#define TEST_UNDER_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_UNDER_TSAN
#endif
#endif

namespace {

using pmr_debug::block_state;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::page_resource;
using pmr_debug::report;
namespace os = pmr_debug::os;

const std::size_t page = page_resource::page_size();

std::byte* bytes(void* p) {
    return static_cast<std::byte*>(p);
}

bool zeroed(const void* p, std::size_t n) {
    const auto* const b = static_cast<const unsigned char*>(p);
    for (std::size_t i = 0; i < n; ++i) {
        if (b[i] != 0) {
            return false;
        }
    }
    return true;
}

// True if an access to the byte faults: the kernel refuses to read it for us.
bool faults(const void* p) {
    int ends[2];
    if (::pipe(ends) != 0) {
        ADD_FAILURE() << "no pipe";
        return false;
    }
    const bool refused = ::write(ends[1], p, 1) != 1;
    ::close(ends[0]);
    ::close(ends[1]);
    return refused;
}

struct fixture : ::testing::Test {
    collecting_handler errors;
    page_resource pages{{.name = "pages", .handler = &errors}};
};

using page_resource_test = fixture;

__attribute__((noinline)) void* allocate_here(page_resource& r, std::size_t n, std::size_t alignment) {
    void* const p = r.allocate(n, alignment);
    asm volatile("" ::: "memory");
    return p;
}

__attribute__((noinline)) void free_here(page_resource& r, void* p, std::size_t n, std::size_t alignment) {
    r.deallocate(p, n, alignment);
    asm volatile("" ::: "memory");
}

// Not the same instructions as above, or the linker has only one of them.
__attribute__((noinline)) void free_again_here(page_resource& r, void* p, std::size_t n, std::size_t alignment) {
    r.deallocate(p, n, alignment);
    asm volatile("# again" ::: "memory");
}

TEST_F(page_resource_test, any_size_and_alignment_zeroed_and_counted) {
    const std::size_t sizes[] = {0, 1, 100, page - 1, page, page + 1, 10 * page + 3};
    for (std::size_t alignment = 1; alignment <= 64 * page; alignment *= 2) {
        for (const std::size_t n : sizes) {
            void* const p = pages.allocate(n, alignment);
            ASSERT_NE(p, nullptr);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
            EXPECT_TRUE(zeroed(p, n));
            std::memset(p, 1, n);
            EXPECT_EQ(pages.pages().mapped_bytes, os::round_up(n != 0 ? n : 1, page));
            EXPECT_EQ(pages.stats().live_bytes, n);
            pages.deallocate(p, n, alignment);
            EXPECT_EQ(pages.pages().mapped_bytes, 0U);
        }
    }
    EXPECT_TRUE(pages.ok());
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(page_resource_test, nothing_of_zero_bytes_is_twice_the_same) {
    void* const a = pages.allocate(0, 1);
    void* const b = pages.allocate(0, 1);
    EXPECT_NE(a, b);
    pages.deallocate(a, 0, 1);
    pages.deallocate(b, 0, 1);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(page_resource_test, containers_run_without_a_report) {
    {
        std::pmr::map<int, std::pmr::string> m(&pages);
        for (int i = 0; i < 100; ++i) {
            m[i] = "a string too long to sit in the object itself";
        }
    }
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(pages.stats().live_blocks, 0U);
    EXPECT_GE(pages.stats().total_allocations, 200U);
}

TEST_F(page_resource_test, sizes_that_cannot_be_are_refused_without_a_report) {
    EXPECT_THROW((void)test_support::allocate_odd(pages, SIZE_MAX, SIZE_MAX / 2 + 1), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(pages, SIZE_MAX, 1), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(pages, SIZE_MAX - page, page), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(pages, SIZE_MAX / 2, 8), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(pages, 1, SIZE_MAX / 2 + 1), std::bad_alloc);
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(pages.stats().failed_allocations, 5U);
    EXPECT_EQ(pages.pages().mapped_bytes, 0U);
    pages.deallocate(pages.allocate(1, 1), 1, 1);
}

TEST_F(page_resource_test, alignment_that_is_no_power_of_two) {
    EXPECT_THROW((void)test_support::allocate_odd(pages, 8, 3), std::bad_alloc);
    EXPECT_THROW((void)test_support::allocate_odd(pages, 8, 0), std::bad_alloc);
    ASSERT_EQ(errors.count(error_kind::bad_alignment), 2U);
    EXPECT_EQ(errors[0].facts.given_alignment, 3U);
    EXPECT_EQ(errors[0].facts.given_size, 8U);
    EXPECT_FALSE(pages.ok());
}

TEST_F(page_resource_test, double_free_with_three_traces) {
    void* const p = allocate_here(pages, 100, 8);
    free_here(pages, p, 100, 8);
    free_again_here(pages, p, 100, 8);
    ASSERT_EQ(errors.count(), 1U);
    const report& r = errors[0].facts;
    EXPECT_EQ(r.kind, error_kind::double_free);
    EXPECT_EQ(r.resource.name, "pages");
    EXPECT_EQ(r.pointer, p);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 100U);
    EXPECT_EQ(r.block.state, block_state::freed);
    EXPECT_TRUE(test_support::trace_contains(r.allocated, "allocate_here"));
    EXPECT_TRUE(test_support::trace_contains(r.freed, "free_here"));
    EXPECT_TRUE(test_support::trace_contains(r.here, "free_again_here"));
}

TEST_F(page_resource_test, wrong_size_and_alignment_free_the_recorded_block_and_nothing_else) {
    void* const p = pages.allocate(2 * page, page);
    void* const behind = pages.allocate(page, page);
    std::memset(behind, 7, page);
    pages.deallocate(p, 100 * page, 8);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::size_mismatch);
    EXPECT_EQ(errors[0].facts.block.size, 2 * page);
    EXPECT_EQ(errors[0].facts.given_size, 100 * page);
    EXPECT_EQ(errors[1].facts.kind, error_kind::alignment_mismatch);
    EXPECT_EQ(errors[1].facts.block.alignment, page);
    EXPECT_EQ(errors[1].facts.given_alignment, 8U);
    EXPECT_EQ(pages.pages().mapped_bytes, page);
    EXPECT_EQ(*bytes(behind), std::byte{7});
    pages.deallocate(behind, page, page);
    EXPECT_EQ(errors.count(), 2U);
}

TEST_F(page_resource_test, stray_pointers_are_reported_and_ignored) {
    void* const p = pages.allocate(2 * page, page);
    int on_stack = 0;
    test_support::free_null(pages, 1, 1);
    pages.deallocate(bytes(p) + page, page, page);
    pages.deallocate(bytes(p) + 2 * page, page, page);
    pages.deallocate(&on_stack, sizeof on_stack, alignof(int));
    ASSERT_EQ(errors.count(), 4U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::null_free);
    EXPECT_EQ(errors[1].facts.kind, error_kind::interior_free);
    EXPECT_EQ(errors[1].facts.block.address, p);
    EXPECT_EQ(errors[2].facts.kind, error_kind::invalid_free);
    EXPECT_TRUE(errors[2].facts.nearest_only);
    EXPECT_EQ(errors[2].facts.block.address, p);
    EXPECT_EQ(errors[3].facts.kind, error_kind::invalid_free);
    EXPECT_EQ(errors[3].facts.block.address, nullptr);
    std::memset(p, 1, 2 * page);
    pages.deallocate(p, 2 * page, page);
    EXPECT_EQ(errors.count(), 4U);
}

TEST_F(page_resource_test, another_ones_block) {
    page_resource other({.name = "other", .handler = &errors});
    void* const p = other.allocate(100, 8);
    pages.deallocate(p, 100, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::wrong_resource);
    EXPECT_EQ(errors[0].facts.resource.name, "pages");
    EXPECT_EQ(errors[0].facts.owner.name, "other");
    EXPECT_EQ(errors[0].facts.block.size, 100U);
    other.deallocate(p, 100, 8);
    EXPECT_EQ(errors.count(), 1U);
    EXPECT_TRUE(other.ok());
}

TEST_F(page_resource_test, leaks_are_reported_at_the_end_and_unmapped) {
    void* p = nullptr;
    {
        page_resource short_lived({.name = "short", .handler = &errors});
        p = allocate_here(short_lived, 3 * page, 8);
        EXPECT_FALSE(faults(p));
        EXPECT_EQ(errors.count(), 0U);
    }
    ASSERT_EQ(errors.count(), 1U);
    const report& r = errors[0].facts;
    EXPECT_EQ(r.kind, error_kind::leak);
    EXPECT_EQ(r.resource.name, "short");
    EXPECT_EQ(r.leaked_blocks, 1U);
    EXPECT_EQ(r.leaked_bytes, 3 * page);
    ASSERT_EQ(r.leaks.size(), 1U);
    EXPECT_EQ(r.leaks[0].example, p);
    EXPECT_TRUE(test_support::trace_contains(r.leaks[0].allocated, "allocate_here"));
    EXPECT_TRUE(faults(p));
}

TEST_F(page_resource_test, limit_counts_whole_pages) {
    page_resource small({.name = "small", .handler = &errors, .limit_bytes = 4 * page});
    void* const p = small.allocate(2 * page + 1, 8);
    EXPECT_THROW((void)small.allocate(page + 1, 8), std::bad_alloc);
    ASSERT_EQ(errors.count(error_kind::limit_exceeded), 1U);
    EXPECT_EQ(errors[0].facts.limit, 4 * page);
    EXPECT_EQ(errors[0].facts.in_use, 3 * page);
    EXPECT_EQ(errors[0].facts.given_size, page + 1);
    void* const q = small.allocate(page, 8);
    small.deallocate(p, 2 * page + 1, 8);
    small.deallocate(q, page, 8);
    EXPECT_EQ(errors.count(), 1U);
    EXPECT_EQ(small.stats().failed_allocations, 1U);
}

TEST_F(page_resource_test, release_gives_contents_back) {
    void* const p = pages.allocate(4 * page, page);
    std::memset(p, 1, 4 * page);
    EXPECT_EQ(pages.pages().resident_bytes, 4 * page);
    EXPECT_TRUE(pages.release(bytes(p) + 1, 3 * page));  // two whole pages lie within
    EXPECT_EQ(pages.pages().resident_bytes, 2 * page);
    EXPECT_EQ(bytes(p)[page - 1], std::byte{1});
    EXPECT_TRUE(zeroed(bytes(p) + page, 2 * page));
    EXPECT_EQ(bytes(p)[3 * page], std::byte{1});
    EXPECT_FALSE(pages.release(bytes(p) + 1, page));
    pages.deallocate(p, 4 * page, page);
    EXPECT_EQ(errors.count(), 0U);
}

void guard_and_unguard(page_resource& pages) {
    void* const p = pages.allocate(4 * page, page);
    std::memset(p, 1, 4 * page);
    EXPECT_FALSE(pages.guard(p, page - 1));
    EXPECT_TRUE(pages.guard(bytes(p) + page, page));
    EXPECT_TRUE(pages.guard(bytes(p) + 2 * page, page));
    EXPECT_EQ(pages.pages().guarded_bytes, 2 * page);
    EXPECT_FALSE(faults(p));
    EXPECT_TRUE(faults(bytes(p) + page));
    EXPECT_TRUE(faults(bytes(p) + 3 * page - 1));
    EXPECT_FALSE(faults(bytes(p) + 3 * page));
    EXPECT_TRUE(pages.unguard(p, 2 * page));
    EXPECT_EQ(pages.pages().guarded_bytes, page);
    EXPECT_TRUE(zeroed(bytes(p) + page, page));
    EXPECT_TRUE(faults(bytes(p) + 2 * page));
    EXPECT_EQ(bytes(p)[3 * page], std::byte{1});
    pages.deallocate(p, 4 * page, page);
    EXPECT_EQ(pages.pages().guarded_bytes, 0U);
    EXPECT_EQ(pages.pages().unguarded_bytes, 0U);
}

TEST_F(page_resource_test, guarded_pages_fault) {
    guard_and_unguard(pages);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(page_resource_test, guarded_pages_fault_without_guard_markers) {
    os::force_guard_tier(os::guard_tier::protect);
    guard_and_unguard(pages);
    os::force_guard_tier(os::guard_tier::marker);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(page_resource_test, refused_guards_are_counted) {
    void* const p = pages.allocate(2 * page, page);
    os::force_guard_tier(os::guard_tier::none);
    EXPECT_FALSE(pages.guard(p, 2 * page));
    os::force_guard_tier(os::guard_tier::marker);
    EXPECT_EQ(pages.pages().unguarded_bytes, 2 * page);
    EXPECT_EQ(pages.pages().guarded_bytes, 0U);
    EXPECT_FALSE(faults(p));
    pages.deallocate(p, 2 * page, page);
}

TEST_F(page_resource_test, guards_of_a_large_block_go_with_it) {
    const std::size_t many = 4096 * page;
    void* const p = pages.allocate(many, page);
    for (std::size_t i = 0; i < 5; ++i) {
        ASSERT_TRUE(pages.guard(bytes(p) + i * 100 * page, page));
    }
    void* const q = pages.allocate(2 * page, page);
    ASSERT_TRUE(pages.guard(q, page));
    pages.deallocate(p, many, page);
    EXPECT_EQ(pages.pages().guarded_bytes, page);
    EXPECT_TRUE(faults(q));
    pages.deallocate(q, 2 * page, page);
    EXPECT_EQ(pages.pages().guarded_bytes, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(page_resource_test, resize_in_place) {
    // Room behind the block: a larger one, shrunk.
    void* const p = pages.allocate(8 * page, page);
    std::memset(p, 1, 8 * page);
    ASSERT_TRUE(pages.resize(p, 8 * page, 2 * page + 1));
    EXPECT_EQ(pages.pages().mapped_bytes, 3 * page);
    EXPECT_EQ(pages.stats().live_bytes, 2 * page + 1);
    EXPECT_TRUE(faults(bytes(p) + 3 * page));
    ASSERT_TRUE(pages.resize(p, 2 * page + 1, 6 * page));
    EXPECT_EQ(bytes(p)[2 * page], std::byte{1});
    EXPECT_TRUE(zeroed(bytes(p) + 3 * page, 3 * page));
    EXPECT_EQ(pages.pages().mapped_bytes, 6 * page);
    EXPECT_EQ(pages.stats().live_bytes, 6 * page);
    EXPECT_EQ(pages.stats().peak_bytes, 8 * page);
    pages.deallocate(p, 6 * page, page);
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(pages.pages().mapped_bytes, 0U);
}

TEST_F(page_resource_test, resize_never_takes_what_is_anothers) {
    void* const p = pages.allocate(4 * page, page);
    ASSERT_TRUE(pages.resize(p, 4 * page, page));
    ASSERT_TRUE(os::map_at(bytes(p) + 2 * page, page));
    bytes(p)[2 * page] = std::byte{9};
    EXPECT_FALSE(pages.resize(p, page, 3 * page));
    EXPECT_EQ(bytes(p)[2 * page], std::byte{9});
    EXPECT_EQ(pages.pages().mapped_bytes, page);
    EXPECT_FALSE(pages.resize(p, page, SIZE_MAX));
    pages.deallocate(p, page, page);
    EXPECT_TRUE(os::unmap(bytes(p) + 2 * page, page));
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(page_resource_test, resize_of_what_is_no_block) {
    void* const p = pages.allocate(page, page);
    EXPECT_FALSE(pages.resize(p, 2 * page, 3 * page));
    EXPECT_FALSE(pages.resize(bytes(p) + 8, page, 3 * page));
    pages.deallocate(p, page, page);
    EXPECT_FALSE(pages.resize(p, page, 2 * page));
    ASSERT_EQ(errors.count(), 3U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::size_mismatch);
    EXPECT_EQ(errors[1].facts.kind, error_kind::interior_free);
    EXPECT_EQ(errors[2].facts.kind, error_kind::double_free);
}

TEST_F(page_resource_test, pages_the_system_will_not_unmap_are_counted_and_tried_again) {
#ifdef TEST_UNDER_TSAN
    GTEST_SKIP() << "ThreadSanitizer does not survive the mapping limit";
#endif
    // A process at its mapping limit cannot unmap part of a mapping, as that would split it. Here the neighbour right
    // behind the block makes one mapping with it.
    constexpr std::size_t count = 140'000;
    void* const p = pages.allocate(10 * page, page);
    ASSERT_TRUE(pages.resize(p, 10 * page, 9 * page));
    ASSERT_TRUE(os::map_at(bytes(p) + 9 * page, page));
    std::memset(p, 1, 9 * page);
    auto* const filler = static_cast<std::byte*>(os::map(count * page, page));
    ASSERT_NE(filler, nullptr);
    bool full = false;
    for (std::size_t i = 0; i < count && !full; i += 2) {
        full = !os::protect_read(filler + i * page, page);
    }
    ASSERT_TRUE(pages.resize(p, 9 * page, 4 * page));
    const std::uint64_t stuck = pages.pages().stuck_bytes;
    EXPECT_EQ(pages.pages().mapped_bytes, 4 * page);
    const bool given_back = stuck == 0 || zeroed(bytes(p) + 4 * page, 5 * page);
    EXPECT_TRUE(os::unmap(filler, count * page));
    pages.deallocate(p, 4 * page, page);
    EXPECT_TRUE(os::unmap(bytes(p) + 9 * page, page));
    EXPECT_EQ(pages.pages().stuck_bytes, 0U) << "tried again, and now it works";
    EXPECT_TRUE(faults(bytes(p) + 4 * page));
    EXPECT_EQ(errors.count(), 0U);
    if (!full) {
        GTEST_SKIP() << "no mapping limit within reach";
    }
    EXPECT_EQ(stuck, 5 * page);
    EXPECT_TRUE(given_back);
}

TEST_F(page_resource_test, statistics_are_exact_with_threads) {
    constexpr int threads = 4;
    constexpr int rounds = 300;
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) {
        running.emplace_back([this] {
            for (int i = 0; i < rounds; ++i) {
                void* const p = pages.allocate(page + 1, 8);
                bytes(p)[page] = std::byte{1};
                void* const q = pages.allocate(10, 64);
                pages.guard(q, page);
                pages.deallocate(p, page + 1, 8);
                pages.deallocate(q, 10, 64);
            }
        });
    }
    for (std::thread& t : running) {
        t.join();
    }
    const pmr_debug::statistics s = pages.stats();
    EXPECT_EQ(s.total_allocations, 2U * threads * rounds);
    EXPECT_EQ(s.total_deallocations, 2U * threads * rounds);
    EXPECT_EQ(s.total_bytes, threads * rounds * (page + 11));
    EXPECT_EQ(s.live_blocks, 0U);
    EXPECT_EQ(s.live_bytes, 0U);
    EXPECT_EQ(s.upstream_bytes, 0U);
    EXPECT_EQ(pages.pages().guarded_bytes, 0U);
    EXPECT_GE(s.peak_bytes, page + 11);
    EXPECT_LE(s.peak_bytes, threads * (page + 11));
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(page_resource_test, is_equal_to_itself_only) {
    page_resource other;
    EXPECT_TRUE(pages == pages);
    EXPECT_FALSE(pages == other);
}

TEST(page_resource_after_death, calls_are_reported) {
    collecting_handler errors;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&errors);
    alignas(page_resource) static unsigned char place[sizeof(page_resource)];
    auto* const r = ::new (place) page_resource({.name = "late"});
    void* const p = r->allocate(100, 8);
    r->deallocate(p, 100, 8);
    r->~page_resource();
    if (!test_support::still_callable(place)) {
        pmr_debug::set_default_report_handler(&before);
        GTEST_SKIP() << "the sanitizer wiped the object";
    }
    test_support::free_late(place, p, 100, 8);
    EXPECT_THROW((void)test_support::allocate_late(place, 100, 8), std::bad_alloc);
    pmr_debug::set_default_report_handler(&before);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::destroyed_resource);
    EXPECT_EQ(errors[0].facts.resource.name, "late");
    EXPECT_EQ(errors[0].facts.pointer, p);
    EXPECT_EQ(errors[1].facts.kind, error_kind::destroyed_resource);
}

}  // namespace
