// Fills and canaries: what fresh and freed memory holds, and that every byte of the slack is watched.

#include "support/general_purpose.hpp"

#include <algorithm>

namespace {

using namespace test_support;
using pmr_debug::error_kind;
using pmr_debug::report;

template <class Policy>
struct general_purpose_fill : heap_test<Policy> {};
TYPED_TEST_SUITE(general_purpose_fill, checking_policies);

// Bytes from the end of a block to the end of its slot or pages, as the resource lays them out: the distance to the
// next block of the same size tells.
template <class Heap>
std::size_t slack_of(Heap& heap, std::size_t bytes, const pmr_debug::policy& rules) {
    void* const a = heap.allocate(bytes, 8);
    void* const b = heap.allocate(bytes, 8);
    const auto slot = static_cast<std::size_t>(bytes_at(b) - bytes_at(a));
    heap.deallocate(a, bytes, 8);
    heap.deallocate(b, bytes, 8);
    return slot - bytes - (rules.exact_alignment ? 8 : 0);  // the rest is before the block in its slot
}

TYPED_TEST(general_purpose_fill, fresh_bytes_are_0xAA) {
    if (!this->rules.fill) {
        GTEST_SKIP() << "nothing is filled";
    }
    for (int round = 0; round < 3; ++round) {
        for (const std::size_t bytes : {1U, 8U, 64U, 500U, 4'000U, 8'192U, 8'193U, 100'000U}) {
            for (int i = 0; i < 50; ++i) {
                void* const p = this->heap->allocate(bytes, 8);
                ASSERT_TRUE(all_are(p, bytes, 0xAA)) << bytes;
                std::memset(p, 0x11, bytes);
                this->heap->deallocate(p, bytes, 8);
            }
        }
    }
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_fill, freed_bytes_are_0xDD_and_readable_right_after) {
    if (!this->rules.fill) {
        GTEST_SKIP() << "nothing is filled";
    }
    for (const std::size_t bytes : {1U, 8U, 64U, 500U, 4'000U}) {
        void* const p = this->heap->allocate(bytes, 8);
        void* const neighbour = this->heap->allocate(bytes, 8);  // keeps the bucket alive
        std::memset(p, 0x11, bytes);
        this->heap->deallocate(p, bytes, 8);
        EXPECT_TRUE(all_are(p, bytes, 0xDD)) << bytes;
        this->heap->deallocate(neighbour, bytes, 8);
    }
}

TYPED_TEST(general_purpose_fill, freed_large_block_that_cannot_be_trapped_is_0xDD) {
    if (!this->rules.fill || !this->remembers_the_dead) {
        GTEST_SKIP() << "nothing is filled, or nothing kept";
    }
    counting_upstream backing;
    typename TypeParam::resource inner(&backing, {.handler = &this->errors});
    void* const p = inner.allocate(100'000, 8);
    std::memset(p, 0x11, 100'000);
    inner.deallocate(p, 100'000, 8);
    EXPECT_TRUE(all_are(p, 100'000, 0xDD));
    EXPECT_EQ(inner.stats().untrapped_units, 1U);
    *bytes_at(p, 77'777) = std::byte{1};
    EXPECT_EQ(inner.check(), 1U);
    const report r = this->only(error_kind::write_after_free);
    EXPECT_EQ(r.block.address, p);
    EXPECT_EQ(r.block.size, 100'000U);
    EXPECT_EQ(r.first_bad, bytes_at(p, 77'777));
}

TYPED_TEST(general_purpose_fill, canary_covers_at_least_the_guard_and_all_of_the_slack) {
    if (this->rules.guard_bytes == 0) {
        GTEST_SKIP() << "no canary";
    }
    for (const std::size_t bytes : {0U, 1U, 7U, 8U, 16U, 48U, 64U, 100U, 113U, 200U, 1'000U}) {
        const std::size_t slack = slack_of(*this->heap, bytes, this->rules);
        EXPECT_GE(slack, this->rules.guard_bytes);
        for (std::size_t offset = 0; offset < slack; ++offset) {
            this->errors.clear();
            void* const p = this->heap->allocate(bytes, 8);
            *bytes_at(p, bytes + offset) ^= std::byte{0x01};
            this->heap->deallocate(p, bytes, 8);
            ASSERT_EQ(this->errors.count(error_kind::overrun), 1U) << bytes << " + " << offset;
            const report& r = this->errors.back().facts;
            ASSERT_EQ(r.first_bad, bytes_at(p, bytes + offset));
            ASSERT_EQ(r.bad_bytes, 1U);
            ASSERT_EQ(r.bad_value, 0xABU);
        }
    }
}

TYPED_TEST(general_purpose_fill, canary_of_a_large_block_reaches_to_the_end_of_its_pages) {
    if (this->rules.guard_bytes == 0) {
        GTEST_SKIP() << "no canary";
    }
    const std::size_t page = pmr_debug::page_resource::page_size();
    const std::size_t before = this->rules.exact_alignment ? 72 : 64;
    for (const std::size_t bytes : {3 * page - 84, 3 * page - 80, 3 * page - 79, 3 * page, 3 * page + 1}) {
        const std::size_t end = (before + bytes + this->rules.guard_bytes + page - 1) / page * page - before;
        for (const std::size_t at : {bytes, bytes + 7, end - 1}) {
            this->errors.clear();
            void* const p = this->heap->allocate(bytes, 8);
            *bytes_at(p, at) = std::byte{0};
            this->heap->deallocate(p, bytes, 8);
            ASSERT_EQ(this->errors.count(error_kind::overrun), 1U) << bytes << " at " << at;
            EXPECT_EQ(this->errors.back().facts.first_bad, bytes_at(p, at));
        }
    }
}

TYPED_TEST(general_purpose_fill, check_finds_a_live_overrun_without_freeing) {
    if (this->rules.guard_bytes == 0) {
        GTEST_SKIP() << "no canary";
    }
    for (const std::size_t bytes : {std::size_t{64}, std::size_t{100'000}}) {
        void* const p = allocates_the_block(*this->heap, bytes);
        EXPECT_EQ(this->heap->check(), 0U);
        const std::byte before = *bytes_at(p, bytes + 2);
        *bytes_at(p, bytes + 2) = std::byte{0x42};
        this->errors.clear();
        EXPECT_EQ(this->heap->check(), 1U);
        const report r = this->only(error_kind::overrun);
        expect_block(r, p, bytes, 8, pmr_debug::block_state::live);
        EXPECT_EQ(r.first_bad, bytes_at(p, bytes + 2));
        expect_traces(r, this->rules, "check", "allocates_the_block", nullptr);
        EXPECT_EQ(this->heap->stats().live_blocks, 1U);
        *bytes_at(p, bytes + 2) = before;
        EXPECT_EQ(this->heap->check(), 0U);
        this->errors.clear();
        frees_it_first(*this->heap, p, bytes);
        EXPECT_EQ(this->errors.count(), 0U);
    }
}

TYPED_TEST(general_purpose_fill, overrun_of_a_leaked_block_is_found_at_the_end) {
    if (this->rules.guard_bytes == 0) {
        GTEST_SKIP() << "no canary";
    }
    void* const p = allocates_the_block(*this->heap, 64);
    *bytes_at(p, 64) = std::byte{0x42};
    this->end();
    ASSERT_EQ(this->errors.count(), 2U);
    EXPECT_EQ(this->errors.count(error_kind::overrun), 1U);
    EXPECT_EQ(this->errors.count(error_kind::leak), 1U);
}

TYPED_TEST(general_purpose_fill, write_after_free_is_found_once_when_the_unit_retires) {
    if (!this->rules.fill || !this->remembers_the_dead) {
        GTEST_SKIP() << "nothing is filled, or nothing retires";
    }
    std::vector<void*> blocks;
    // Whole slabs of memory, of which many retire; few where each call is system calls.
    const int most = this->rules.protect_metadata ? 6'000 : 20'000;
    for (int i = 0; i < most; ++i) {
        blocks.push_back(allocates_the_block(*this->heap, 64));
    }
    frees_it_first(*this->heap, blocks[3], 64);
    *bytes_at(blocks[3], 63) = std::byte{0x42};
    EXPECT_EQ(this->errors.count(), 0U);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        if (i != 3) {
            frees_it_again(*this->heap, blocks[i], 64);
        }
    }
    // Found before the page could be taken away, or at the latest at the end.
    if (this->rules.dead != pmr_debug::dead_unit::keep) {
        EXPECT_EQ(this->errors.count(), 1U);
    }
    this->end();
    const report r = this->only(error_kind::write_after_free);
    expect_block(r, blocks[3], 64, 8, pmr_debug::block_state::freed);
    EXPECT_EQ(r.first_bad, bytes_at(blocks[3], 63));
    EXPECT_EQ(r.bad_bytes, 1U);
    expect_trace(r.allocated, this->rules.alloc_frames, "allocates_the_block", "allocated");
    expect_trace(r.freed, this->rules.free_frames, "frees_it_first", "freed");
}

TYPED_TEST(general_purpose_fill, write_into_the_slack_of_a_freed_block_is_a_write_after_free) {
    if (!this->rules.fill) {
        GTEST_SKIP() << "nothing is filled";
    }
    const std::size_t slack = slack_of(*this->heap, 70, this->rules);
    ASSERT_GT(slack, 0U);
    void* const p = this->heap->allocate(70, 8);
    void* const neighbour = this->heap->allocate(70, 8);
    this->heap->deallocate(p, 70, 8);
    *bytes_at(p, 70 + slack - 1) = std::byte{0x42};
    EXPECT_EQ(this->heap->check(), 1U);
    const report r = this->only(error_kind::write_after_free);
    EXPECT_EQ(r.first_bad, bytes_at(p, 70 + slack - 1));
    this->heap->deallocate(neighbour, 70, 8);
}

// A damaged block is evidence, and may be damaged again: it is set aside under every policy.
TYPED_TEST(general_purpose_fill, damaged_blocks_are_never_handed_out_again) {
    if (this->rules.guard_bytes == 0 && !this->rules.fill) {
        GTEST_SKIP() << "nothing can be found damaged";
    }
    void* const a = this->heap->allocate(64, 8);
    void* const b = this->heap->allocate(64, 8);
    std::size_t expected = 0;
    if (this->rules.guard_bytes != 0) {
        *bytes_at(a, 64) = std::byte{0x42};
        this->heap->deallocate(a, 64, 8);
        expected += 1;
    }
    if (this->rules.fill) {
        this->heap->deallocate(b, 64, 8);
        *bytes_at(b, 1) = std::byte{0x42};
        EXPECT_EQ(this->heap->check(), 1U);
        expected += 1;
    }
    ASSERT_EQ(this->errors.count(), expected);
    std::vector<void*> later;
    const int rounds = this->rules.protect_metadata ? 4 : 20;
    for (int round = 0; round < rounds; ++round) {
        for (int i = 0; i < 2'000; ++i) {
            later.push_back(this->heap->allocate(64, 8));
            ASSERT_NE(later.back(), a);
            ASSERT_NE(later.back(), b);
        }
        for (void* const p : later) {
            this->heap->deallocate(p, 64, 8);
        }
        later.clear();
    }
    EXPECT_EQ(this->errors.count(), expected);
}

TYPED_TEST(general_purpose_fill, write_after_free_is_found_before_a_slot_is_used_again) {
    if (!this->rules.fill || this->rules.freed != pmr_debug::reuse::immediate) {
        GTEST_SKIP() << "slots are not used again";
    }
    void* const a = allocates_the_block(*this->heap, 64);
    frees_it_first(*this->heap, a, 64);
    *bytes_at(a, 8) = std::byte{0x42};
    std::vector<void*> later;
    for (int i = 0; i < 2'000; ++i) {
        later.push_back(this->heap->allocate(64, 8));
        ASSERT_NE(later.back(), a);
    }
    const report r = this->only(error_kind::write_after_free);
    EXPECT_EQ(r.block.address, a);
    expect_trace(r.freed, this->rules.free_frames, "frees_it_first", "freed");
    for (void* const p : later) {
        this->heap->deallocate(p, 64, 8);
    }
}

}  // namespace
