// What Zig's DebugAllocator holds to, each behaviour by its name, under every policy that applies.

#include "support/general_purpose.hpp"

#include <algorithm>
#include <array>
#include <numeric>

namespace {

using namespace test_support;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_options;
using pmr_debug::report;

template <class Policy>
struct zig_behaviour : heap_test<Policy> {
    void expect_silence() {
        EXPECT_EQ(this->heap->stats().live_blocks, 0U);
        EXPECT_TRUE(this->heap->ok());
        this->end();
        EXPECT_EQ(this->errors.count(), 0U)
            << (this->errors.size() != 0 ? std::string(this->errors.back().text) : std::string());
    }
    std::vector<void*> blocks_of_eight(std::size_t n) {
        std::vector<void*> blocks;
        for (std::size_t i = 0; i < n; ++i) {
            blocks.push_back(this->heap->allocate(8, 8));
            std::memset(blocks.back(), static_cast<int>(i & 0x7F), 8);
        }
        for (std::size_t i = 0; i < n; ++i) {
            EXPECT_TRUE(all_are(blocks[i], 8, static_cast<unsigned char>(i & 0x7F)));
        }
        return blocks;
    }
};
TYPED_TEST_SUITE(zig_behaviour, all_policies);

TYPED_TEST(zig_behaviour, small_allocations_513_blocks_of_8_bytes_freed_in_order) {
    for (void* const p : this->blocks_of_eight(513)) {
        this->heap->deallocate(p, 8, 8);
    }
    this->expect_silence();
}

TYPED_TEST(zig_behaviour, small_allocations_513_blocks_of_8_bytes_freed_in_reverse) {
    auto blocks = this->blocks_of_eight(513);
    std::reverse(blocks.begin(), blocks.end());
    for (void* const p : blocks) {
        this->heap->deallocate(p, 8, 8);
    }
    this->expect_silence();
}

TYPED_TEST(zig_behaviour, large_allocations_of_342_422_and_502_kilobytes_interleaved) {
    constexpr std::size_t a = 342 * 1024, b = 422 * 1024, c = 502 * 1024;
    void* const first = this->heap->allocate(a, 8);
    void* const second = this->heap->allocate(b, 8);
    std::memset(second, 2, b);
    this->heap->deallocate(first, a, 8);
    void* const third = this->heap->allocate(c, 8);
    std::memset(third, 3, c);
    EXPECT_TRUE(all_are(second, b, 2));
    this->heap->deallocate(third, c, 8);
    this->heap->deallocate(second, b, 8);
    this->expect_silence();
}

TYPED_TEST(zig_behaviour, impossible_size_is_out_of_memory_and_leaves_the_allocator_usable) {
    volatile std::size_t most = SIZE_MAX;
    EXPECT_THROW(static_cast<void>(this->heap->allocate(most, 1)), std::bad_alloc);
    void* const p = this->heap->allocate(100, 8);
    std::memset(p, 1, 100);
    this->heap->deallocate(p, 100, 8);
    EXPECT_EQ(this->heap->stats().failed_allocations, 1U);
    this->expect_silence();
}

TYPED_TEST(zig_behaviour, sizes_1025_and_3000_just_above_a_class) {
    for (const std::size_t bytes : {1025U, 3000U}) {
        void* const p = this->heap->allocate(bytes, 8);
        void* const q = this->heap->allocate(bytes, 8);
        std::memset(p, 1, bytes);
        std::memset(q, 2, bytes);
        EXPECT_TRUE(all_are(p, bytes, 1));
        this->heap->deallocate(p, bytes, 8);
        this->heap->deallocate(q, bytes, 8);
    }
    this->expect_silence();
}

TYPED_TEST(zig_behaviour, memory_cap_of_1010_bytes) {
    typename TypeParam::resource inner(&*this->pages, {.name = "heap", .handler = &this->errors, .limit_bytes = 1010});
    void* const small = inner.allocate(4, 1);
    EXPECT_EQ(inner.stats().live_bytes, 4U);
    void* const big = inner.allocate(1000, 1);
    EXPECT_EQ(inner.stats().live_bytes, 1004U);
    EXPECT_THROW(static_cast<void>(inner.allocate(8, 1)), std::bad_alloc);
    EXPECT_EQ(inner.stats().live_bytes, 1004U);
    inner.deallocate(small, 4, 1);
    EXPECT_EQ(inner.stats().live_bytes, 1000U);
    inner.deallocate(big, 1000, 1);
    EXPECT_EQ(inner.stats().live_bytes, 0U);
    void* const exact = inner.allocate(1010, 1);
    EXPECT_EQ(inner.stats().live_bytes, 1010U);
    inner.deallocate(exact, 1010, 1);
    const report r = this->only(error_kind::limit_exceeded);
    expect_given(r, nullptr, 8, 1);
    EXPECT_EQ(r.limit, 1010U);
    EXPECT_EQ(r.in_use, 1004U);
}

TYPED_TEST(zig_behaviour, counters_count_requested_not_backing_bytes) {
    void* const p = this->heap->allocate(1, 1);
    void* const q = this->heap->allocate(10'000, 4096);
    EXPECT_EQ(this->heap->stats().live_bytes, 10'001U);
    EXPECT_GT(this->heap->stats().upstream_bytes, 10'001U);
    this->heap->deallocate(p, 1, 1);
    EXPECT_EQ(this->heap->stats().live_bytes, 10'000U);
    this->heap->deallocate(q, 10'000, 4096);
    EXPECT_EQ(this->heap->stats().live_bytes, 0U);
    EXPECT_EQ(this->heap->stats().total_bytes, 10'001U);
    this->expect_silence();
}

TYPED_TEST(zig_behaviour, any_upstream_and_no_leak_in_either) {
    counting_upstream backing;
    {
        typename TypeParam::resource inner(&backing, {.name = "heap", .handler = &this->errors});
        std::pmr::vector<std::pmr::string> words(&inner);
        for (int i = 0; i < 2'000; ++i) {
            words.emplace_back("a word that is too long for the short string buffer, number " + std::to_string(i));
        }
        EXPECT_GT(backing.live_blocks, 0U);
        EXPECT_EQ(inner.stats().upstream_bytes, backing.live_bytes);
    }
    EXPECT_EQ(backing.live_blocks, 0U);
    EXPECT_EQ(backing.live_bytes, 0U);
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(zig_behaviour, retained_double_free_found_after_its_bucket_emptied) {
    if (!this->rules.checks || !this->remembers_the_dead) {
        GTEST_SKIP() << "the policy forgets";
    }
    counting_upstream backing;  // one that cannot keep dead pages without their memory
    typename TypeParam::resource inner(&backing, {.name = "heap", .handler = &this->errors});
    std::vector<void*> blocks;
    for (int i = 0; i < 3'000; ++i) {
        blocks.push_back(allocates_the_block(inner, 8));
    }
    for (void* const p : blocks) {
        frees_it_first(inner, p, 8);
    }
    frees_it_again(inner, blocks[0], 8);
    const report r = this->only(error_kind::double_free);
    EXPECT_EQ(r.block.address, blocks[0]);
    expect_traces(r, this->rules, "frees_it_again", "allocates_the_block", "frees_it_first");
}

TYPED_TEST(zig_behaviour, leaks_found_in_the_first_middle_and_last_bucket) {
    if (!this->rules.checks) {
        GTEST_SKIP() << "no checks";
    }
    // 513 blocks, all but two freed; once each in the first, the middle and the last bucket.
    for (const std::size_t leaked : {0U, 255U, 511U}) {
        this->errors.clear();
        typename TypeParam::resource inner(&*this->pages, {.name = "heap", .handler = &this->errors});
        std::vector<void*> blocks;
        for (int i = 0; i < 513; ++i) {
            blocks.push_back(allocates_the_block(inner, 8));
        }
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            if (i != leaked && i != leaked + 1) {
                inner.deallocate(blocks[i], 8, 8);
            }
        }
        EXPECT_EQ(inner.report_leaks(), 2U);
        const report r = this->only(error_kind::leak);
        EXPECT_EQ(r.leaked_bytes, 16U);
        ASSERT_EQ(r.leaks.size(), 1U);
        EXPECT_EQ(r.leaks[0].blocks, 2U);
        EXPECT_EQ(r.leaks[0].example, blocks[leaked]);
        inner.deallocate(blocks[leaked], 8, 8);
        inner.deallocate(blocks[leaked + 1], 8, 8);
    }
}

TYPED_TEST(zig_behaviour, use_after_free_of_a_large_block_faults) {
    if (this->rules.dead == pmr_debug::dead_unit::keep || !this->remembers_the_dead) {
        GTEST_SKIP() << "dead units are kept or used again";
    }
    void* const p = this->heap->allocate(200'000, 8);
    EXPECT_FALSE(read_faults(p));
    this->heap->deallocate(p, 200'000, 8);
    EXPECT_TRUE(read_faults(p));
    EXPECT_TRUE(read_faults(bytes_at(p, 100'000)));
    EXPECT_TRUE(read_faults(bytes_at(p, 199'999)));
}

TYPED_TEST(zig_behaviour, failing_upstream_at_call_3_leaves_blocks_intact) {
    counting_upstream backing;
    backing.refuse_at = 3;
    typename TypeParam::resource inner(&backing, {.name = "heap", .handler = &this->errors});
    void* const small = inner.allocate(8, 8);
    void* const large = inner.allocate(100'000, 8);
    std::memset(small, 1, 8);
    std::memset(large, 2, 100'000);
    EXPECT_THROW(static_cast<void>(inner.allocate(200'000, 8)), std::bad_alloc);
    EXPECT_TRUE(all_are(small, 8, 1));
    EXPECT_TRUE(all_are(large, 100'000, 2));
    EXPECT_EQ(inner.stats().live_blocks, 2U);
    EXPECT_EQ(inner.stats().live_bytes, 100'008U);
    EXPECT_EQ(inner.stats().failed_allocations, 1U);
    inner.deallocate(small, 8, 8);
    inner.deallocate(large, 100'000, 8);
    void* const again = inner.allocate(200'000, 8);
    inner.deallocate(again, 200'000, 8);
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(zig_behaviour, alignments_from_1_to_64_half_a_page_and_256_kilobytes) {
    const std::size_t half_a_page = pmr_debug::page_resource::page_size() / 2;
    for (const std::size_t alignment : {std::size_t{1}, std::size_t{2}, std::size_t{4}, std::size_t{8}, std::size_t{16},
                                        std::size_t{32}, std::size_t{64}, half_a_page, std::size_t{256} << 10}) {
        for (const std::size_t bytes : {1U, 10U, 1000U, 20'000U}) {
            void* const p = this->heap->allocate(bytes, alignment);
            void* const q = this->heap->allocate(bytes, alignment);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(q) % alignment, 0U);
            std::memset(p, 1, bytes);
            std::memset(q, 2, bytes);
            EXPECT_TRUE(all_are(p, bytes, 1));
            this->heap->deallocate(p, bytes, alignment);
            this->heap->deallocate(q, bytes, alignment);
        }
    }
    this->expect_silence();
}

TYPED_TEST(zig_behaviour, contents_kept_across_growth) {
    {
        std::pmr::vector<unsigned> v(&*this->heap);
        for (unsigned i = 0; i < 100'000; ++i) {  // from slots to large blocks
            v.push_back(i);
        }
        for (unsigned i = 0; i < 100'000; ++i) {
            ASSERT_EQ(v[i], i);
        }
        v.resize(10);
        v.shrink_to_fit();
        EXPECT_EQ(std::accumulate(v.begin(), v.end(), 0U), 45U);
    }
    this->expect_silence();
}

}  // namespace
