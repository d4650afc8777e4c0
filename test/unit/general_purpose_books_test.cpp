// What the books of the resource say must hold when units are forgotten, threads free for each other, and handlers
// allocate.

#include "os/virtual_memory.hpp"
#include "support/general_purpose.hpp"

#include <atomic>
#include <thread>
#include <vector>

namespace {

using namespace test_support;
using pmr_debug::basic_general_purpose_resource;
using pmr_debug::collecting_handler;
using pmr_debug::default_policy;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_options;
using pmr_debug::page_resource;
namespace os = pmr_debug::os;

// The thread's unit of a class is full, dead, and forgotten before the thread comes back for more.
template <class Policy>
struct general_purpose_forgotten : ::testing::Test {};
#ifdef TEST_ALL_POLICIES
using forgetting_policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>, with<pmr_debug::fast_policy>,
                     with<unchecked_policy>, with<single_policy>, with<quarantined_policy>, with<keeping_policy>>;
#else
using forgetting_policies = ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>,
                                             with<single_policy>, with<quarantined_policy>, with<keeping_policy>>;
#endif
TYPED_TEST_SUITE(general_purpose_forgotten, forgetting_policies);

TYPED_TEST(general_purpose_forgotten, a_unit_is_not_drawn_from_any_more) {
    // Every size of a first unit is among these, so one of the rounds leaves a used-up unit in the thread's cache.
    for (std::size_t blocks = 8; blocks <= 64; ++blocks) {
        page_resource pages;
        collecting_handler errors;
        typename TypeParam::resource heap(&pages,
                                          {.handler = &errors, .quarantine_bytes = 0, .retired_record_bytes = 0});
        constexpr std::size_t big = 480, little = 40;
        for (void* const p : [&] {
                 std::vector<void*> all;
                 for (std::size_t i = 0; i < blocks; ++i) {
                     all.push_back(heap.allocate(big, 8));
                 }
                 return all;
             }()) {
            heap.deallocate(p, big, 8);
        }
        void* const small = heap.allocate(little, 8);  // its unit's descriptor is the one that was forgotten
        void* const first = heap.allocate(big, 8);
        void* const second = heap.allocate(big, 8);
        std::memset(small, 1, little);
        std::memset(first, 2, big);
        std::memset(second, 3, big);
        EXPECT_EQ(static_cast<unsigned char*>(small)[little - 1], 1) << blocks;
        EXPECT_EQ(static_cast<unsigned char*>(first)[big - 1], 2) << blocks;
        heap.deallocate(small, little, 8);
        heap.deallocate(first, big, 8);
        heap.deallocate(second, big, 8);
        EXPECT_TRUE(heap.ok()) << blocks << ": " << (errors.size() != 0 ? errors.back().text : "");
        ASSERT_FALSE(this->HasFailure());
    }
}

// Returns what tests force to what the system offers.
struct no_guards {
    no_guards() { os::force_guard_tier(os::guard_tier::none); }
    no_guards(const no_guards&) = delete;
    no_guards& operator=(const no_guards&) = delete;
    ~no_guards() { os::force_guard_tier(os::guard_tier::marker); }
};

TEST(general_purpose_untrapped, units_that_could_not_be_trapped_are_counted_until_they_are_forgotten) {
    const no_guards scope;
    page_resource pages;
    basic_general_purpose_resource<default_policy> heap(&pages,
                                                        {.quarantine_bytes = 100'000, .retired_record_bytes = 100'000});
    std::vector<void*> all;
    for (std::size_t i = 0; i < 5'000; ++i) {
        all.push_back(heap.allocate(400, 8));
        if (i % 3 == 0) {  // every slab keeps live blocks for a while, so its units are trapped one by one
            continue;
        }
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
        heap.deallocate(all[all.size() - 1 - i], 400, 8);
        const auto stats = heap.stats();
        ASSERT_LE(stats.untrapped_units, stats.retired_units) << "after " << i;
    }
    EXPECT_GT(heap.stats().retired_units, 0U);
    EXPECT_TRUE(heap.ok());
}

template <class Policy>
struct general_purpose_large_size : heap_test<Policy> {};
TYPED_TEST_SUITE(general_purpose_large_size, checking_policies);

// The record of a large block holds this value where a small one's holds the size.
TYPED_TEST(general_purpose_large_size, of_65_535_bytes_is_no_exception) {
    void* const p = allocates_the_block(*this->heap, 100'000);
    frees_it_first(*this->heap, p, 65'535);
    const auto r = this->only(error_kind::size_mismatch);
    EXPECT_EQ(r.block.size, 100'000U);
    EXPECT_EQ(r.given_size, 65'535U);
    void* const right = allocates_the_block(*this->heap, 65'535);
    frees_it_first(*this->heap, right, 65'535);
    EXPECT_EQ(this->errors.count(), 1U);
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
}

TEST(general_purpose_peak, a_request_that_failed_is_no_use) {
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.limit_blocks = 10});
    void* const p = heap.allocate(100, 8);
    EXPECT_THROW(static_cast<void>(heap.allocate(std::size_t{1} << 47, 8)), std::bad_alloc);
    EXPECT_EQ(heap.stats().peak_bytes, 100U);
    EXPECT_EQ(heap.stats().peak_blocks, 1U);
    heap.deallocate(p, 100, 8);
}

TEST(general_purpose_peak, of_a_resource_for_one_thread_survives_a_foreign_one) {
    page_resource pages;
    collecting_handler errors;
    basic_general_purpose_resource<single_policy> heap(&pages, {.handler = &errors});
    void* const p = heap.allocate(100, 8);
    void* q = nullptr;
    std::thread([&] {
        heap.deallocate(p, 100, 8);
        q = heap.allocate(50, 8);
    }).join();
    heap.deallocate(q, 50, 8);
    heap.deallocate(heap.allocate(30, 8), 30, 8);
    EXPECT_EQ(heap.stats().peak_bytes, 100U);
    EXPECT_EQ(heap.stats().peak_blocks, 1U);
    EXPECT_EQ(errors.count(error_kind::foreign_thread), 2U);
}

/// Its first answer is of no use.
class stumbling_upstream : public std::pmr::memory_resource {
    bool stumbled_ = false;
    alignas(16) unsigned char odd_[32]{};

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (!stumbled_) {
            stumbled_ = true;
            return odd_ + 16;
        }
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        if (p != odd_ + 16) {
            std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
        }
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

/// Allocates from the resource that reports.
struct allocating_handler : pmr_debug::report_handler {
    std::pmr::memory_resource* from = nullptr;
    void* block = nullptr;
    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        if (r.kind == error_kind::upstream_misaligned) {
            block = from->allocate(100, 8);
        }
        return pmr_debug::action::carry_on;
    }
};

template <class Policy>
struct general_purpose_handler : ::testing::Test {};
TYPED_TEST_SUITE(general_purpose_handler, checking_policies);

TYPED_TEST(general_purpose_handler, that_allocates_while_a_unit_is_made_loses_none) {
    stumbling_upstream upstream;
    allocating_handler handler;
    typename TypeParam::resource heap(&upstream, {.handler = &handler});
    handler.from = &heap;
    EXPECT_THROW(static_cast<void>(allocates_the_block(heap, 100)), std::bad_alloc);
    ASSERT_NE(handler.block, nullptr);
    void* const next = heap.allocate(100, 8);
    // The slot behind it: the unit that the handler's request made is still the thread's.
    const auto step = reinterpret_cast<std::uintptr_t>(next) - reinterpret_cast<std::uintptr_t>(handler.block);
    EXPECT_LT(step, 256U);
    heap.deallocate(next, 100, 8);
    heap.deallocate(handler.block, 100, 8);
    EXPECT_EQ(heap.errors().total(), 1U);
}

// The last blocks of units are freed by two threads at once, whose words of free bits differ: one of them releases the
// unit while the other still asks whether it has to.
template <class Policy>
struct general_purpose_release : ::testing::Test {};
using releasing_policies = ::testing::Types<with<pmr_debug::release_policy>, with<immediate_policy>>;
TYPED_TEST_SUITE(general_purpose_release, releasing_policies);

TYPED_TEST(general_purpose_release, of_units_whose_last_blocks_two_threads_free) {
    constexpr int rounds = TEST_UNDER_TSAN ? 100 : 500;
    constexpr std::size_t blocks = 1'024, bytes = 300;
    page_resource pages;
    typename TypeParam::resource heap(&pages);
    std::vector<void*> all(blocks);
    std::atomic<int> started{0}, finished{0};
    const auto free_every_other = [&](std::size_t first) {
        for (std::size_t i = first; i < blocks; i += 2) {
            heap.deallocate(all[i], bytes, 8);
        }
    };
    std::thread other([&] {
        for (int round = 1; round <= rounds; ++round) {
            while (started.load(std::memory_order_acquire) < round) {
                std::this_thread::yield();
            }
            free_every_other(0);
            finished.store(round, std::memory_order_release);
        }
    });
    for (int round = 1; round <= rounds; ++round) {
        for (void*& p : all) {
            p = heap.allocate(bytes, 8);
            std::memset(p, round, bytes);
        }
        started.store(round, std::memory_order_release);
        free_every_other(1);
        while (finished.load(std::memory_order_acquire) < round) {
            std::this_thread::yield();
        }
    }
    other.join();
    const auto stats = heap.stats();
    EXPECT_EQ(stats.live_blocks, 0U);
    EXPECT_LT(stats.resident_bytes, blocks * bytes * 2);
    EXPECT_TRUE(heap.ok());
}

}  // namespace
