// Bytes that are no block's: before the first one of a unit, before large ones, behind the last, not handed out yet.
// And where blocks lie under policy::exact_alignment.

#include "support/general_purpose.hpp"

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <memory_resource>
#include <optional>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define TEST_WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TEST_WITH_ASAN 1
#endif
#endif
#ifndef TEST_WITH_ASAN
#define TEST_WITH_ASAN 0
#endif

namespace {

using namespace test_support;
using pmr_debug::basic_general_purpose_resource;
using pmr_debug::collecting_handler;
using pmr_debug::default_policy;
using pmr_debug::error_kind;
using pmr_debug::policy;
using pmr_debug::report;
using pmr_debug::thorough_policy;

constexpr policy quarantined{.freed = pmr_debug::reuse::quarantined};
constexpr policy immediate{.freed = pmr_debug::reuse::immediate, .dead = pmr_debug::dead_unit::keep};
constexpr policy exact{.exact_alignment = true};

template <policy P>
struct rules {
    static constexpr policy value = P;
};

template <class Rules>
class general_purpose_edges : public testing::Test {
protected:
    using resource = basic_general_purpose_resource<Rules::value>;
    static constexpr policy P = Rules::value;

    collecting_handler errors;
    pmr_debug::page_resource pages{{.handler = &errors}};
    std::optional<resource> heap{std::in_place, &pages,
                                 pmr_debug::general_purpose_options{.name = "heap", .handler = &errors}};

    std::byte* take(std::size_t bytes, std::size_t alignment = 16) {
        return static_cast<std::byte*>(heap->allocate(bytes, alignment));
    }
    /// Effects: writes a byte where none of the program's is.
    static void spoil(std::byte* p) {
        if (under_another_tool()) {
            return;
        }
        *const_cast<volatile std::byte*>(p) = std::byte{0x42};
    }
    static bool under_another_tool() {
#if TEST_WITH_ASAN
        return true;  // ends the program at the write
#else
        return false;
#endif
    }
    void expect_one(error_kind kind, const std::byte* at) {
        if (under_another_tool()) {
            return;
        }
        ASSERT_EQ(errors.count(), 1U) << (errors.size() != 0 ? std::string(errors.back().text) : "");
        EXPECT_EQ(errors.count(kind), 1U) << errors.back().text;
        EXPECT_EQ(errors.back().facts.first_bad, at) << errors.back().text;
        EXPECT_EQ(errors.back().facts.bad_bytes, 1U);
    }
};

using policies =
    testing::Types<rules<default_policy>, rules<thorough_policy>, rules<quarantined>, rules<immediate>, rules<exact>>;
TYPED_TEST_SUITE(general_purpose_edges, policies);

TYPED_TEST(general_purpose_edges, a_write_before_the_first_block_shows_when_it_is_freed) {
    for (const std::ptrdiff_t back : {1, 8, 16}) {
        for (const std::size_t bytes : {1U, 64U, 112U, 1'000U, 4'000U, 8'000U}) {
            typename TestFixture::resource one(&this->pages, {.handler = &this->errors});
            this->errors.clear();
            auto* const p = static_cast<std::byte*>(one.allocate(bytes, 16));
            this->spoil(p - back);
            one.deallocate(p, bytes, 16);
            this->expect_one(error_kind::underrun, p - back);
        }
    }
}

TYPED_TEST(general_purpose_edges, a_write_before_the_first_block_shows_in_a_check) {
    std::byte* const p = this->take(64);
    EXPECT_EQ(this->heap->check(), 0U);
    const std::byte before = this->under_another_tool() ? std::byte{} : p[-1];
    this->spoil(p - 1);
    EXPECT_EQ(this->heap->check(), this->under_another_tool() ? 0U : 1U);
    this->expect_one(error_kind::underrun, p - 1);
    if (!this->under_another_tool()) {
        p[-1] = before;
    }
    this->errors.clear();
    this->heap->deallocate(p, 64, 16);
    this->heap.reset();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_edges, a_write_before_the_first_block_after_its_free_shows_at_the_end) {
    if (TestFixture::P.exact_alignment) {
        GTEST_SKIP() << "there it is part of the freed slot";
    }
    std::byte* const p = this->take(64);
    this->heap->deallocate(p, 64, 16);
    this->spoil(p - 1);
    this->heap.reset();
    this->expect_one(error_kind::underrun, p - 1);
}

TYPED_TEST(general_purpose_edges, a_write_before_a_large_block_shows_when_it_is_freed) {
    for (const std::size_t alignment : {1U, 16U, 64U, 256U, 4'096U}) {
        for (const std::size_t bytes : {20'000U, 24'576U, 300'000U}) {
            this->errors.clear();
            std::byte* const small = this->take(64);
            std::byte* const p = this->take(bytes, alignment);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
            this->spoil(p - 1);
            this->heap->deallocate(p, bytes, alignment);
            this->heap->deallocate(small, 64, 16);
            this->expect_one(error_kind::underrun, p - 1);
        }
    }
}

TYPED_TEST(general_purpose_edges, a_write_to_a_slot_that_was_not_handed_out_shows_at_the_end) {
    for (const std::ptrdiff_t far : {112, 164, 1'000}) {
        this->errors.clear();
        this->heap.emplace(&this->pages, pmr_debug::general_purpose_options{.name = "heap", .handler = &this->errors});
        std::byte* const p = this->take(64);
        this->spoil(p + far);
        this->heap->deallocate(p, 64, 16);
        this->heap.reset();
        this->expect_one(error_kind::overrun, p + far);
        if (!this->under_another_tool()) {
            const report& r = this->errors.back().facts;
            EXPECT_TRUE(r.nearest_only);
            EXPECT_EQ(r.block.address, p);
            EXPECT_NE(this->errors.back().text.find("never handed out"), std::string::npos);
        }
    }
}

TYPED_TEST(general_purpose_edges, a_write_to_memory_that_no_block_had_yet_shows_in_a_check_once) {
    std::byte* const p = this->take(20'000);
    this->spoil(p + 40'000);
    EXPECT_EQ(this->heap->check(), this->under_another_tool() ? 0U : 1U);
    this->expect_one(error_kind::overrun, p + 40'000);
    EXPECT_EQ(this->heap->check(), 0U);
    this->heap->deallocate(p, 20'000, 16);
    this->heap.reset();
    EXPECT_EQ(this->errors.count(), this->under_another_tool() ? 0U : 1U);
}

TYPED_TEST(general_purpose_edges, a_write_to_what_is_left_of_a_unit_shows_when_it_retires) {
    constexpr std::size_t bytes = 5'100;  // seven slots to the first unit, and 4 KiB are left
    std::vector<std::byte*> blocks;
    for (int i = 0; i < 7; ++i) {
        blocks.push_back(this->take(bytes));
    }
    const std::ptrdiff_t slot = blocks[6] - blocks[5];
    ASSERT_EQ(slot, blocks[1] - blocks[0]);
    std::byte* const stray = blocks[6] + slot + 100;
    this->spoil(stray);
    for (std::byte* const p : blocks) {
        this->heap->deallocate(p, bytes, 16);
    }
    this->heap->check();
    this->expect_one(error_kind::overrun, stray);
    this->heap.reset();
    EXPECT_EQ(this->errors.count(), this->under_another_tool() ? 0U : 1U);
}

// The fill of the next slots must not hide it: all slots of the class are handed out, the write lies in a later one.
TYPED_TEST(general_purpose_edges, a_write_to_a_slot_is_seen_before_it_is_filled) {
    if (TestFixture::P.freed == pmr_debug::reuse::immediate) {
        GTEST_SKIP() << "filled when handed out";
    }
    constexpr std::size_t bytes = 1'000;
    std::vector<std::byte*> blocks;
    std::byte* spoilt = nullptr;
    for (int i = 0; i < 200; ++i) {
        blocks.push_back(this->take(bytes));
        if (i == 20) {  // in a unit of 64 KiB by now, of which 16 KiB are prepared
            spoilt = blocks.back() + 40'000;
            this->spoil(spoilt);
        }
    }
    if (!this->under_another_tool()) {
        ASSERT_GE(this->errors.count(), 1U);
        EXPECT_EQ(this->errors[0].facts.first_bad, spoilt);
        EXPECT_TRUE(this->errors[0].facts.nearest_only);
    }
    for (std::byte* const p : blocks) {
        this->heap->deallocate(p, bytes, 16);
    }
    this->heap.reset();
    EXPECT_EQ(this->errors.count(), this->under_another_tool() ? 0U : 1U);
}

TYPED_TEST(general_purpose_edges, healthy_use_of_every_class_is_silent) {
    std::vector<std::pair<std::byte*, std::size_t>> blocks;
    for (int round = 0; round < 3; ++round) {
        for (std::size_t bytes = 0; bytes < 9'000; bytes += bytes / 16 + 1) {
            for (const std::size_t alignment : {1U, 8U, 64U, 1'024U, 4'096U}) {
                std::byte* const p = this->take(bytes, alignment);
                EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
                this->heap->deallocate(p, bytes, alignment);
            }
            blocks.emplace_back(this->take(bytes, 1), bytes);
        }
        EXPECT_EQ(this->heap->check(), 0U);
        for (const auto& [p, bytes] : blocks) {
            this->heap->deallocate(p, bytes, 1);
        }
        blocks.clear();
        EXPECT_EQ(this->heap->check(), 0U);
    }
    this->heap.reset();
    EXPECT_EQ(this->errors.count(), 0U);
}

template <class Heap>
void expect_exact(Heap& heap) {
    for (std::size_t alignment = 1; alignment <= std::size_t{1} << 21; alignment *= 2) {
        for (const std::size_t bytes : {0U, 1U, 24U, 100U, 4'000U, 8'100U, 100'000U}) {
            void* blocks[5];
            for (void*& p : blocks) {
                p = heap.allocate(bytes, alignment);
                EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % (2 * alignment), alignment) << bytes;
            }
            for (void* const p : blocks) {
                heap.deallocate(p, bytes, alignment);
            }
        }
    }
}

TEST(general_purpose_exact_alignment, no_block_is_aligned_to_more_than_was_asked_for) {
    collecting_handler errors;
    pmr_debug::page_resource pages;
    basic_general_purpose_resource<exact> over_pages(&pages, {.handler = &errors});
    expect_exact(over_pages);
    basic_general_purpose_resource<thorough_policy> thorough(&pages, {.handler = &errors});
    expect_exact(thorough);
    basic_general_purpose_resource<exact> over_new({.handler = &errors});
    expect_exact(over_new);
    EXPECT_EQ(over_pages.check() + thorough.check() + over_new.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

// Bytes are asked for with alignment 1, aligned by hand, and the pad is added twice on the way back: hidden by any
// alignment that was not asked for.
TEST(general_purpose_exact_alignment, a_pad_that_is_counted_twice_is_found_each_time) {
    struct header {
        std::size_t pad, length;
    };
    collecting_handler errors;
    pmr_debug::page_resource pages;
    basic_general_purpose_resource<thorough_policy> heap(&pages, {.handler = &errors});
    for (std::size_t n = 1; n <= 64; ++n) {
        const std::size_t bytes = sizeof(header) + alignof(header) - 1 + n;
        auto* const raw = static_cast<std::byte*>(heap.allocate(bytes, 1));
        const std::size_t pad = -reinterpret_cast<std::uintptr_t>(raw) % alignof(header);
        heap.deallocate(raw, bytes + pad, 1);
    }
    EXPECT_EQ(errors.count(error_kind::size_mismatch), 64U);
}

TEST(general_purpose_exact_alignment, other_errors_are_told_as_ever) {
    collecting_handler errors;
    pmr_debug::page_resource pages;
    basic_general_purpose_resource<exact> heap(&pages, {.handler = &errors});
    auto* const p = static_cast<std::byte*>(heap.allocate(100, 8));
    heap.deallocate(p + 8, 100, 8);
    EXPECT_EQ(errors.count(error_kind::interior_free), 1U);
    heap.deallocate(p, 100, 16);
    EXPECT_EQ(errors.count(error_kind::alignment_mismatch), 1U);
    heap.deallocate(p, 100, 8);
    EXPECT_EQ(errors.count(error_kind::double_free), 1U);
    EXPECT_EQ(errors.back().facts.block.address, p);
    EXPECT_EQ(errors.count(), 3U);
}

}  // namespace
