#pragma once

// What the tests of the general-purpose resource share: policies, functions whose names they look for in traces, and
// upstream resources that misbehave.

#include "os/other_tools.hpp"
#include "os/thread.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

#include <gtest/gtest.h>

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <new>
#include <optional>
#include <string>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#define TEST_UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_UNDER_TSAN 1
#endif
#endif
#ifndef TEST_UNDER_TSAN
#define TEST_UNDER_TSAN 0
#endif

namespace test_support {

// ---- policies -------------------------------------------------------------------------------------------------------

inline constexpr pmr_debug::policy unchecked_policy{.threads = pmr_debug::threading::unchecked};
inline constexpr pmr_debug::policy single_policy{.threads = pmr_debug::threading::single_checked};
inline constexpr pmr_debug::policy immediate_policy{.freed = pmr_debug::reuse::immediate};
inline constexpr pmr_debug::policy immediate_single_policy{.threads = pmr_debug::threading::single_checked,
                                                           .freed = pmr_debug::reuse::immediate};
inline constexpr pmr_debug::policy quarantined_policy{.freed = pmr_debug::reuse::quarantined};
inline constexpr pmr_debug::policy canary_policy{.alloc_frames = 0, .free_frames = 0, .fill = false};
inline constexpr pmr_debug::policy fill_policy{.alloc_frames = 0, .free_frames = 0, .guard_bytes = 0};
inline constexpr pmr_debug::policy traces_policy{.guard_bytes = 0, .fill = false};
inline constexpr pmr_debug::policy short_policy{.alloc_frames = 3, .free_frames = 0};
inline constexpr pmr_debug::policy keeping_policy{.dead = pmr_debug::dead_unit::keep};

/// A policy as a type, for typed tests.
template <pmr_debug::policy P>
struct with {
    static constexpr pmr_debug::policy rules = P;
    using resource = pmr_debug::basic_general_purpose_resource<P>;
};

#ifdef TEST_ALL_POLICIES
/// Everything that checks.
using checking_policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>, with<pmr_debug::fast_policy>,
                     with<unchecked_policy>, with<single_policy>, with<immediate_policy>, with<immediate_single_policy>,
                     with<quarantined_policy>, with<canary_policy>, with<fill_policy>, with<traces_policy>,
                     with<short_policy>, with<keeping_policy>>;

using all_policies = ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>,
                                      with<pmr_debug::fast_policy>, with<pmr_debug::release_policy>,
                                      with<unchecked_policy>, with<single_policy>, with<immediate_policy>,
                                      with<immediate_single_policy>, with<quarantined_policy>, with<canary_policy>,
                                      with<fill_policy>, with<traces_policy>, with<short_policy>, with<keeping_policy>>;
#elif PMR_DEBUG_INSTRUMENTED || TEST_UNDER_TSAN
// What a sanitizer looks for is in the memory and the threads of each mode, which these three have in them.
using checking_policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>, with<immediate_single_policy>>;
using all_policies = checking_policies;
#else
// The five that differ most: each mode of reuse, guards and traces on and off, checks on and off, with and without a
// check of the thread. The full product is ./cmake/dev nightly's; the conformance suite always runs under all.
using checking_policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>, with<pmr_debug::fast_policy>,
                     with<immediate_single_policy>, with<quarantined_policy>>;
using all_policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>, with<pmr_debug::release_policy>,
                     with<immediate_single_policy>, with<quarantined_policy>>;
#endif

/// A resource over a page_resource of its own.
template <class Policy>
struct heap_test : ::testing::Test {
    static constexpr pmr_debug::policy rules = Policy::rules;
    static constexpr bool remembers_the_dead = rules.freed != pmr_debug::reuse::immediate;

    pmr_debug::collecting_handler page_errors;
    pmr_debug::collecting_handler errors;
    std::optional<pmr_debug::page_resource> pages{
        std::in_place, pmr_debug::page_resource::options{.name = "pages", .handler = &page_errors}};
    std::optional<typename Policy::resource> heap{
        std::in_place, &*pages, pmr_debug::general_purpose_options{.name = "heap", .handler = &errors}};

    /// Ends both resources: nothing may be left in the upstream.
    void end() {
        heap.reset();
        EXPECT_EQ(pages->stats().live_blocks, 0U);
        pages.reset();
        EXPECT_EQ(page_errors.count(), 0U);
    }

    /// The one report of \p kind; fails the test if there are others.
    [[nodiscard]] pmr_debug::report only(pmr_debug::error_kind kind) const {
        EXPECT_EQ(errors.count(), 1U);
        EXPECT_EQ(errors.count(kind), 1U) << (errors.size() != 0 ? std::string(errors.back().text) : std::string());
        return errors.size() != 0 ? errors.back().facts : pmr_debug::report{};
    }
};

// ---- calls to be found in traces ------------------------------------------------------------------------------------

// Each has an instruction sequence of its own, or a compiler or linker folds them into one.
__attribute__((noinline)) inline void* allocates_the_block(std::pmr::memory_resource& r, std::size_t bytes,
                                                           std::size_t alignment = 8) {
    void* const p = r.allocate(bytes, alignment);
    asm volatile("# allocates" ::: "memory");
    return p;
}
__attribute__((noinline)) inline void* allocates_another(std::pmr::memory_resource& r, std::size_t bytes,
                                                         std::size_t alignment = 8) {
    asm volatile("nop" ::: "memory");
    void* const p = r.allocate(bytes, alignment);
    asm volatile("nop" ::: "memory");
    return p;
}
__attribute__((noinline)) inline void frees_it_first(std::pmr::memory_resource& r, void* p, std::size_t bytes,
                                                     std::size_t alignment = 8) {
    r.deallocate(p, bytes, alignment);
    asm volatile("# first" ::: "memory");
}
__attribute__((noinline)) inline void frees_it_again(std::pmr::memory_resource& r, void* p, std::size_t bytes,
                                                     std::size_t alignment = 8) {
    asm volatile("nop" ::: "memory");
    r.deallocate(p, bytes, alignment);
    asm volatile("nop" ::: "memory");
}
__attribute__((noinline)) inline void frees_it_wrongly(std::pmr::memory_resource& r, void* p, std::size_t bytes,
                                                       std::size_t alignment = 8) {
    asm volatile("nop\nnop" ::: "memory");
    r.deallocate(p, bytes, alignment);
    asm volatile("nop\nnop" ::: "memory");
}

inline std::byte* bytes_at(void* p, std::size_t offset = 0) {
    return static_cast<std::byte*>(p) + offset;
}

/// True if all of [p, p + n) is \p value.
inline bool all_are(const void* p, std::size_t n, unsigned char value) {
    const auto* const b = static_cast<const unsigned char*>(p);
    for (std::size_t i = 0; i < n; ++i) {
        if (b[i] != value) {
            return false;
        }
    }
    return true;
}

/// True if reading the byte at \p p faults: the kernel refuses to read it for us.
inline bool read_faults(const void* p) {
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

/// True if writing to the byte at \p p faults; writes what is there already.
inline bool write_faults(void* p) {
    int ends[2];
    if (::pipe(ends) != 0 || ::write(ends[1], p, 1) != 1) {
        ADD_FAILURE() << "no pipe, or nothing to read";
        return false;
    }
    const bool refused = ::read(ends[0], p, 1) != 1;
    ::close(ends[0]);
    ::close(ends[1]);
    return refused;
}

// ---- what a report must say -----------------------------------------------------------------------------------------

inline void expect_trace(pmr_debug::trace_id id, unsigned frames, const char* function, const char* which) {
    if (frames == 0 || function == nullptr) {
        EXPECT_EQ(id, pmr_debug::trace_id::none) << which;
    } else {
        EXPECT_TRUE(trace_contains(id, function)) << which << " lacks " << function;
    }
}

/// The traces of a report under \p rules; null: there is none.
inline void expect_traces(const pmr_debug::report& r, const pmr_debug::policy& rules, const char* here,
                          const char* allocated, const char* freed) {
    expect_trace(r.here, 1, here, "here");
    expect_trace(r.allocated, rules.alloc_frames, allocated, "allocated");
    expect_trace(r.freed, rules.free_frames, freed, "freed");
}

/// The block of a report, allocated by this thread, and freed by it if it is freed.
inline void expect_block(const pmr_debug::report& r, const void* address, std::size_t size, std::size_t alignment,
                         pmr_debug::block_state state) {
    const std::uint32_t me = pmr_debug::os::this_thread().number;
    EXPECT_EQ(r.block.address, address);
    EXPECT_EQ(r.block.size, size);
    EXPECT_EQ(r.block.alignment, alignment);
    EXPECT_EQ(r.block.state, state);
    EXPECT_EQ(r.block.alloc_thread, me);
    EXPECT_EQ(r.block.free_thread, state == pmr_debug::block_state::freed ? me : 0);
    EXPECT_EQ(r.thread, me);
    EXPECT_EQ(r.resource.name, "heap");
    EXPECT_EQ(r.resource.type, "general_purpose_resource");
}

inline void expect_given(const pmr_debug::report& r, const void* pointer, std::size_t bytes, std::size_t alignment) {
    EXPECT_EQ(r.pointer, pointer);
    EXPECT_TRUE(r.has_given);
    EXPECT_EQ(r.given_size, bytes);
    EXPECT_EQ(r.given_alignment, alignment);
}

// ---- upstream resources ---------------------------------------------------------------------------------------------

/// Counts what goes through to new and delete, and refuses the request number `refuse_at` (1-based) and all above
/// `most_bytes`.
class counting_upstream : public std::pmr::memory_resource {
public:
    std::size_t calls = 0;
    std::size_t refuse_at = 0;
    std::size_t most_bytes = SIZE_MAX;
    std::size_t live_blocks = 0;
    std::size_t live_bytes = 0;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (++calls == refuse_at || bytes > most_bytes - live_bytes) {
            throw std::bad_alloc();
        }
        void* const p = std::pmr::new_delete_resource()->allocate(bytes, alignment);
        live_blocks += 1;
        live_bytes += bytes;
        return p;
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        live_blocks -= 1;
        live_bytes -= bytes;
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

}  // namespace test_support
