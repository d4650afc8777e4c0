// Freed blocks in units that live: they count as quarantine, and beyond the budget their pages are given back, or they
// are verified and used again.

#include "support/general_purpose.hpp"

#include <cstring>
#include <set>
#include <vector>

namespace {

using namespace test_support;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_resource;
using pmr_debug::page_resource;

constexpr std::size_t mib = std::size_t{1} << 20;

/// Two system calls a call, where records are write-protected: less is done.
template <class Policy>
constexpr std::size_t budget_of = Policy::rules.protect_metadata ? mib / 8 : mib;

template <class Policy>
struct general_purpose_again : ::testing::Test {};
using policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>, with<pmr_debug::fast_policy>,
                     with<unchecked_policy>, with<single_policy>, with<traces_policy>, with<canary_policy>,
                     with<keeping_policy>, with<quarantined_policy>>;
TYPED_TEST_SUITE(general_purpose_again, policies);

TYPED_TEST(general_purpose_again, one_survivor_of_each_batch_does_not_keep_the_others) {
    collecting_handler errors;
    page_resource pages;
    pmr_debug::basic_general_purpose_resource<TypeParam::rules> heap(
        &pages, {.handler = &errors, .quarantine_bytes = budget_of<TypeParam>});
    std::vector<void*> kept;
    std::vector<void*> batch;
    const int batches = TypeParam::rules.protect_metadata ? 30 : 400;
    for (int b = 0; b < batches; ++b) {
        for (int i = 0; i < 128; ++i) {
            batch.push_back(heap.allocate(128));
            std::memset(batch.back(), b, 128);
        }
        kept.push_back(batch.back());
        batch.pop_back();
        for (void* const p : batch) {
            heap.deallocate(p, 128);
        }
        batch.clear();
    }
    const pmr_debug::statistics s = heap.stats();
    EXPECT_GT(s.reused_slots, 0U);
    EXPECT_LT(s.resident_bytes, 2 * kept.size() * 160 + mib + 5 * mib);
    EXPECT_EQ(heap.check(), 0U);
    for (std::size_t b = 0; b < kept.size(); ++b) {
        ASSERT_EQ(static_cast<unsigned char*>(kept[b])[127], b % 256);
        heap.deallocate(kept[b], 128);
    }
    EXPECT_EQ(heap.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TYPED_TEST(general_purpose_again, what_was_freed_goes_back_without_a_further_allocation) {
    collecting_handler errors;
    page_resource pages;
    pmr_debug::basic_general_purpose_resource<TypeParam::rules> heap(
        &pages, {.handler = &errors, .quarantine_bytes = budget_of<TypeParam>});
    std::vector<void*> all;
    const std::size_t bytes = TypeParam::rules.protect_metadata ? mib / 2 : 8 * mib;
    for (std::size_t n = 0; n < bytes; n += 450) {
        all.push_back(heap.allocate(450));
    }
    const std::uint64_t before = heap.stats().resident_bytes;
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (i % 256 != 0) {
            heap.deallocate(all[i], 450);
        }
    }
    const pmr_debug::statistics after = heap.stats();
    EXPECT_LT(after.resident_bytes, bytes / 256 / 450 * 8'192 + 4 * mib) << before;
    for (std::size_t i = 0; i < all.size(); i += 256) {
        std::memset(all[i], 1, 450);
    }
    EXPECT_EQ(heap.check(), 0U);
    for (int i = 0; i < 3'000; ++i) {  // what went comes back
        void* const p = heap.allocate(450);
        std::memset(p, 2, 450);
        heap.deallocate(p, 450);
    }
    for (std::size_t i = 0; i < all.size(); i += 256) {
        heap.deallocate(all[i], 450);
    }
    EXPECT_EQ(heap.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

// Whoever takes freed slots takes those that are in memory first.
TYPED_TEST(general_purpose_again, what_went_back_does_not_all_return_with_the_next_blocks) {
    collecting_handler errors;
    page_resource pages;
    pmr_debug::basic_general_purpose_resource<TypeParam::rules> heap(
        &pages, {.handler = &errors, .quarantine_bytes = budget_of<TypeParam>});
    constexpr std::size_t size = 3'000;
    constexpr std::size_t each = 20;
    const std::size_t blocks = TypeParam::rules.protect_metadata ? 300 : 10'000;
    std::vector<void*> all;
    for (std::size_t i = 0; i < blocks; ++i) {
        all.push_back(std::memset(heap.allocate(size), 1, size));
    }
    for (std::size_t i = 0; i < blocks; ++i) {
        if (i % each != 0) {
            heap.deallocate(all[i], size);
        }
    }
    // A page or two for each block that lives, what may be kept, and what is freed before it is counted again.
    const std::size_t most = blocks / each * 8'192 + mib + 5 * mib;
    for (int round = 0; round < 4; ++round) {
        for (std::size_t i = 0; i < blocks; ++i) {
            heap.deallocate(std::memset(heap.allocate(size), 2, size), size);
        }
        const pmr_debug::statistics s = heap.stats();
        EXPECT_LT(s.resident_bytes, most) << round;
        EXPECT_LT(s.quarantined_bytes, 6 * mib) << round;
    }
    for (std::size_t i = 0; i < blocks; i += each) {
        ASSERT_EQ(static_cast<unsigned char*>(all[i])[size - 1], 1);
        heap.deallocate(all[i], size);
    }
    EXPECT_EQ(heap.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

/// Fills units of one class, and frees all but each tenth block. Without a budget the rest is used again soon.
struct used_again {
    collecting_handler errors;
    page_resource pages;
    general_purpose_resource heap{&pages, {.handler = &errors, .quarantine_bytes = 0}};
    std::vector<void*> all;

    used_again() {
        for (int i = 0; i < 4'000; ++i) {
            all.push_back(heap.allocate(100));
        }
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (i % 10 != 0) {
                heap.deallocate(all[i], 100);
            }
        }
    }
    ~used_again() {
        for (std::size_t i = 0; i < all.size(); i += 10) {
            heap.deallocate(all[i], 100);
        }
    }
};

TEST(general_purpose_used_again, a_write_after_free_is_reported_once_and_its_place_is_not_used_again) {
    used_again u;
    auto* const written = static_cast<unsigned char*>(u.all[1]);
    written[7] = 1;
    std::vector<void*> more;
    for (int i = 0; i < 8'000; ++i) {
        more.push_back(u.heap.allocate(100));
        ASSERT_NE(more.back(), u.all[1]);
    }
    EXPECT_GT(u.heap.stats().reused_slots, 0U);
    for (void* const p : more) {
        u.heap.deallocate(p, 100);
    }
    EXPECT_EQ(u.errors.count(error_kind::write_after_free), 1U);
    EXPECT_EQ(u.errors.count(), 1U);
}

TEST(general_purpose_used_again, a_double_free_says_how_many_blocks_were_at_the_address) {
    used_again u;
    const std::set<void*> before(u.all.begin(), u.all.end());
    void* again = nullptr;
    std::vector<void*> more;
    for (int i = 0; i < 8'000 && again == nullptr; ++i) {
        more.push_back(u.heap.allocate(100));
        again = before.count(more.back()) != 0 ? more.back() : nullptr;
    }
    ASSERT_NE(again, nullptr);
    for (void* const p : more) {
        u.heap.deallocate(p, 100);
    }
    u.heap.deallocate(again, 100);
    ASSERT_EQ(u.errors.count(error_kind::double_free), 1U);
    const collecting_handler::entry& told = u.errors.back();
    EXPECT_EQ(told.facts.block.owners, 2U);
    EXPECT_GT(told.facts.block.serial, 4'000U);
    EXPECT_NE(told.facts.former_allocated, pmr_debug::trace_id::none);
    EXPECT_NE(told.facts.former_freed, pmr_debug::trace_id::none);
    EXPECT_NE(told.text.find("owner 2 of 2"), std::string_view::npos) << told.text;
}

TEST(general_purpose_used_again, within_the_budget_no_address_is_handed_out_twice) {
    collecting_handler errors;
    page_resource pages;
    general_purpose_resource heap(&pages, {.handler = &errors});
    std::set<void*> seen;
    std::vector<void*> kept;
    for (int i = 0; i < 60'000; ++i) {  // 7 MiB
        void* const p = heap.allocate(100);
        ASSERT_TRUE(seen.insert(p).second);
        i % 20 == 0 ? kept.push_back(p) : heap.deallocate(p, 100);
    }
    EXPECT_EQ(heap.stats().reused_slots, 0U);
    for (void* const p : kept) {
        heap.deallocate(p, 100);
    }
}

// Some slots are made ready at a time; until one is handed out, the block before is its latest owner.
TEST(general_purpose_ready, a_slot_that_nobody_has_yet_is_told_of_as_its_last_owners) {
    collecting_handler errors;
    page_resource pages;
    general_purpose_resource heap(&pages, {.handler = &errors, .quarantine_bytes = 0});
    std::vector<unsigned char*> all;
    for (int i = 0; i < 20'000; ++i) {
        all.push_back(static_cast<unsigned char*>(heap.allocate(48, 8)));
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (i % 8 != 0) {
            heap.deallocate(all[i], 48, 8);
        }
    }
    unsigned char* reused = nullptr;
    for (int n = 0; n < 20'000 && heap.stats().reused_slots == 0; ++n) {
        reused = static_cast<unsigned char*>(heap.allocate(48, 8));
    }
    ASSERT_GT(heap.stats().reused_slots, 0U);
    unsigned char* ready = nullptr;
    for (std::size_t i = 1; i < all.size() && ready == nullptr; ++i) {
        ready = i % 8 != 0 && all[i] != reused && all[i][0] == 0xAA ? all[i] : nullptr;
    }
    ASSERT_NE(ready, nullptr);
    heap.deallocate(ready, 48, 8);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::double_free);
    EXPECT_EQ(errors[0].facts.block.owners, 1U);
    EXPECT_NE(errors[0].facts.block.serial, 0U);
    EXPECT_EQ(errors[0].facts.former_allocated, pmr_debug::trace_id::none);
    EXPECT_EQ(errors[0].text.find("used again"), std::string_view::npos) << errors[0].text;
    ready[5] = 0x55;
    EXPECT_EQ(heap.check(), 1U);
    ASSERT_EQ(errors.count(), 2U);
    EXPECT_EQ(errors[1].facts.kind, error_kind::write_after_free);
    EXPECT_EQ(errors[1].facts.block.address, ready);
    EXPECT_EQ(errors[1].facts.first_bad, ready + 5);
    EXPECT_EQ(heap.check(), 0U) << "told once";
    heap.deallocate(reused, 48, 8);
    for (std::size_t i = 0; i < all.size(); i += 8) {
        heap.deallocate(all[i], 48, 8);
    }
    errors.clear();
    heap.report_leaks();  // those that were handed out on the way
}

}  // namespace
