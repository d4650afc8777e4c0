// An upstream that uses the very resource it serves, as a logging one does when the resource is the default one; and
// threads that free what is being forgotten.

#include "support/general_purpose.hpp"
#include "support/sanitizers.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

namespace {

using namespace test_support;

/// Allocates and frees through `user` before every call, once at a time; keeps some of the blocks.
class self_user : public std::pmr::memory_resource {
public:
    std::pmr::memory_resource* user = nullptr;
    std::size_t per_call = 3;
    std::size_t uses = 0;
    std::size_t live_bytes = 0;
    std::vector<void*> kept;

    void free_kept() {
        for (void* const p : kept) {
            user->deallocate(p, 100, 8);
        }
        kept.clear();
    }

private:
    void use() {
        if (user == nullptr || inside_) {
            return;
        }
        inside_ = true;
        for (std::size_t i = 0; i < per_call; ++i) {
            void* const p = user->allocate(100, 8);
            std::memset(p, 1, 100);
            if (i % 2 == 0) {
                kept.push_back(p);
            } else {
                user->deallocate(p, 100, 8);
            }
            ++uses;
        }
        inside_ = false;
    }
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        use();
        live_bytes += bytes;
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        use();
        live_bytes -= bytes;
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    bool inside_ = false;
};

template <class Policy>
struct general_purpose_reentry : ::testing::Test {};
TYPED_TEST_SUITE(general_purpose_reentry, all_policies);

// Enough of the upstream's own blocks to use up the unit that the outer call is about to make, too.
TYPED_TEST(general_purpose_reentry, an_upstream_may_use_the_resource_it_serves) {
    // Few where records are protected, as each call then is system calls.
    const std::size_t outer = TypeParam::rules.protect_metadata ? 500 : 3'000;
    for (const std::size_t per_call : {std::size_t{1}, std::size_t{3}, outer * 3 / 10}) {
        pmr_debug::collecting_handler errors;
        self_user upstream;
        upstream.kept.reserve(1'000'000);
        upstream.per_call = per_call;
        {
            typename TypeParam::resource heap(&upstream, {.handler = &errors});
            upstream.user = &heap;
            std::vector<void*> blocks;
            for (std::size_t i = 0; i < outer; ++i) {
                const std::size_t bytes = i % 50 == 0 ? 20'000 : 100;
                blocks.push_back(heap.allocate(bytes, 8));
                std::memset(blocks.back(), 2, bytes);
            }
            for (std::size_t i = 0; i < blocks.size(); ++i) {
                const std::size_t bytes = i % 50 == 0 ? 20'000 : 100;
                EXPECT_TRUE(all_are(blocks[i], bytes, 2));
                heap.deallocate(blocks[i], bytes, 8);
            }
            EXPECT_GT(upstream.uses, 0U);
            EXPECT_EQ(heap.stats().live_blocks, upstream.kept.size());
            // While they are freed, chunks go back, and the upstream allocates more: until it does so no more.
            upstream.user = nullptr;
            for (void* const p : upstream.kept) {
                heap.deallocate(p, 100, 8);
            }
            EXPECT_EQ(heap.stats().live_blocks, 0U);
            EXPECT_EQ(heap.check(), 0U);
        }
        EXPECT_EQ(upstream.live_bytes, 0U);
        EXPECT_EQ(errors.count(), 0U) << per_call;
    }
}

// The upstream's block takes a unit of its own, of which the thread lets go when the outer call has made the next one:
// the slots that were never handed out do not keep it from retiring.
TEST(general_purpose_reentry_units, a_unit_left_early_still_retires) {
    self_user upstream;
    upstream.per_call = 1;
    pmr_debug::collecting_handler errors;
    {
        pmr_debug::basic_general_purpose_resource<quarantined_policy> heap(&upstream,
                                                                           {.handler = &errors, .quarantine_bytes = 0});
        upstream.user = &heap;
        void* const p = heap.allocate(100, 8);
        ASSERT_EQ(upstream.kept.size(), 1U);
        upstream.per_call = 0;
        const std::size_t both = upstream.live_bytes;
        upstream.free_kept();
        EXPECT_EQ(upstream.live_bytes, both / 2);
        heap.deallocate(p, 100, 8);
    }
    EXPECT_EQ(upstream.live_bytes, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

// Nothing is promised about what such a program does, but that the reports are of the right kind and that the library
// itself stays whole: records of units are forgotten while other threads free blocks of them once more.
TEST(general_purpose_reentry_threads, double_frees_that_race_with_forgetting) {
    if (TEST_UNDER_TSAN != 0) {
        GTEST_SKIP() << "the program under test is one with a data race";
    }
    using resource = pmr_debug::basic_general_purpose_resource<pmr_debug::fast_policy>;
    pmr_debug::page_resource pages;
    pmr_debug::collecting_handler errors;
    resource heap(&pages, {.handler = &errors, .retired_record_bytes = 1 << 14});
    constexpr std::size_t size = 4'096;
    std::atomic<void*> freed{nullptr};
    std::atomic<bool> stop{false};
    std::thread again([&] {
        while (!stop.load()) {
            if (void* const p = freed.load(); p != nullptr) {
                heap.deallocate(p, size, 8);
            }
        }
    });
    for (int i = 0; i < 100'000; ++i) {
        void* const p = heap.allocate(size, 8);
        heap.deallocate(p, size, 8);
        freed.store(p);
    }
    stop = true;
    again.join();
    const pmr_debug::error_counts counts = heap.errors();
    EXPECT_EQ(counts.total(), counts[pmr_debug::error_kind::double_free] + counts[pmr_debug::error_kind::invalid_free]);
    EXPECT_GT(counts.total(), 0U);
    EXPECT_EQ(heap.stats().live_blocks, 0U);
    EXPECT_EQ(heap.check(), 0U);
}

}  // namespace
