// policy::exact_alignment: blocks are aligned to what was asked for, and to no more.

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <vector>

namespace {

using pmr_debug::thorough_policy;

constexpr pmr_debug::policy bare{.guard_bytes = 0, .fill = false, .exact_alignment = true};

struct request {
    void* p;
    std::size_t bytes;
    std::size_t alignment;
};

// Effects: allocates blocks of many sizes at all alignments, and frees them. Each is aligned exactly.
template <class Resource>
void expect_exact(Resource& r, std::size_t most_alignment) {
    for (std::size_t alignment = 1; alignment <= most_alignment; alignment *= 2) {
        std::vector<request> held;
        for (const std::size_t bytes : {1u,  2u,  3u,   7u,    8u,    15u,   16u,   17u,   24u,     32u,
                                        33u, 64u, 100u, 1000u, 4095u, 4096u, 4097u, 8192u, 20'000u, 100'000u}) {
            void* const p = r.allocate(bytes, alignment);
            const auto at = reinterpret_cast<std::uintptr_t>(p);
            EXPECT_EQ(at % alignment, 0u) << bytes << " at " << alignment;
            EXPECT_EQ(at / alignment % 2, 1u) << bytes << " at " << alignment << ": aligned to more";
            std::memset(p, 0x5C, bytes);
            held.push_back({p, bytes, alignment});
        }
        void* const empty = r.allocate(0, alignment);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(empty) % alignment, 0u);
        r.deallocate(empty, 0, alignment);
        for (const request& q : held) {
            r.deallocate(q.p, q.bytes, q.alignment);
        }
    }
}

template <class Resource>
void expect_exact_and_right(Resource& r, pmr_debug::collecting_handler& errors, std::size_t most = 1u << 16) {
    expect_exact(r, most);
    EXPECT_EQ(r.check(), 0u);
    EXPECT_EQ(errors.size(), 0u) << (errors.size() != 0 ? errors.back().text : "");
    EXPECT_EQ(r.stats().live_blocks, 0u);
}

TEST(exact_alignment, canary) {
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_canary_resource<thorough_policy> r({.handler = &errors});
    expect_exact_and_right(r, errors);
}

TEST(exact_alignment, canary_without_guards) {
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_canary_resource<bare> r({.handler = &errors});
    expect_exact_and_right(r, errors);
}

TEST(exact_alignment, end_of_page) {
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_end_of_page_resource<thorough_policy> r({.handler = &errors});
    expect_exact_and_right(r, errors);
}

TEST(exact_alignment, end_of_page_used_again) {
    constexpr pmr_debug::policy again{.freed = pmr_debug::reuse::immediate, .exact_alignment = true};
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_end_of_page_resource<again> r({.handler = &errors});
    for (int i = 0; i < 3; ++i) {
        expect_exact_and_right(r, errors);
    }
}

TEST(exact_alignment, end_of_page_over_an_upstream) {
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_end_of_page_resource<thorough_policy> r(std::pmr::new_delete_resource(), {.handler = &errors});
    expect_exact_and_right(r, errors);
}

TEST(exact_alignment, end_of_page_keeps_its_guard_before_a_block) {
    using pmr_debug::placement;
    pmr_debug::basic_end_of_page_resource<thorough_policy> r({.where = placement::after_guard});
    void* const p = r.allocate(24, 8);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 4096, 0u);
    r.deallocate(p, 24, 8);
}

TEST(exact_alignment, temp) {
    pmr_debug::collecting_handler errors;
    constexpr pmr_debug::policy thorough = [] {
        pmr_debug::policy p = thorough_policy;
        p.threads = pmr_debug::threading::single_checked;
        return p;
    }();
    pmr_debug::temp_resource<0, thorough> r({.handler = &errors});
    expect_exact_and_right(r, errors);
    r.release();
    expect_exact_and_right(r, errors);
}

// What is padded away does not count: a program overflows under every policy or under none.
TEST(exact_alignment, temp_overflows_as_ever) {
    pmr_debug::collecting_handler errors;
    alignas(64) unsigned char buffer[1024];
    pmr_debug::temp_resource<0, thorough_policy> r(buffer, sizeof buffer,
                                                   {.handler = &errors, .overflow = pmr_debug::temp_overflow::refuse});
    for (int i = 0; i < 16; ++i) {
        void* const p = r.allocate(64, 32);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) / 32 % 2, 1u);
        r.deallocate(p, 64, 32);
    }
    EXPECT_EQ(errors.size(), 0u);
    EXPECT_THROW((void)r.allocate(64, 32), std::bad_alloc);
    EXPECT_EQ(errors.count(pmr_debug::error_kind::arena_overflow), 1u);
}

// Overruns by one are found all the same.
TEST(exact_alignment, guards_stand_next_to_the_block) {
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_canary_resource<thorough_policy> canary({.name = "canary", .handler = &errors});
    pmr_debug::temp_resource<0, thorough_policy> temp({.handler = &errors});
    for (std::pmr::memory_resource* const r :
         {static_cast<std::pmr::memory_resource*>(&canary), static_cast<std::pmr::memory_resource*>(&temp)}) {
        for (const std::size_t alignment : {1u, 2u, 8u, 64u}) {
            errors.clear();
            auto* const p = static_cast<volatile unsigned char*>(r->allocate(24, alignment));
            p[24] = 1;
            r->deallocate(const_cast<unsigned char*>(p), 24, alignment);
            EXPECT_EQ(errors.count(pmr_debug::error_kind::overrun), 1u) << alignment;
        }
    }
    errors.clear();
    auto* const p = static_cast<volatile unsigned char*>(canary.allocate(24, 1));
    p[-1] = 1;
    canary.deallocate(const_cast<unsigned char*>(p), 24, 1);
    EXPECT_EQ(errors.count(pmr_debug::error_kind::underrun), 1u);
}

// Bytes at alignment 1 that are aligned by hand, where the padding is added twice on the way back.
struct header {
    std::size_t pad, length;
};

TEST(exact_alignment, a_header_padded_by_hand_is_found_wrong_each_time) {
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_canary_resource<thorough_policy> r({.handler = &errors});
    for (std::size_t n = 1; n <= 64; ++n) {
        auto* const raw = static_cast<std::byte*>(r.allocate(sizeof(header) + alignof(header) - 1 + n, 1));
        const std::size_t pad = -reinterpret_cast<std::uintptr_t>(raw) % alignof(header);
        r.deallocate(raw, sizeof(header) + alignof(header) - 1 + n + pad, 1);
    }
    EXPECT_EQ(errors.count(pmr_debug::error_kind::size_mismatch), 64u);
}

}  // namespace
