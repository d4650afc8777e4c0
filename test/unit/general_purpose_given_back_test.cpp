// Memory of freed blocks that was given back to the system although their unit lives: without a guard a write to it
// succeeds, and is found; and what can go back does, also where freed slots are used again at once.

#include "support/general_purpose.hpp"

#include <algorithm>
#include <cstring>
#include <memory_resource>
#include <vector>

namespace {

using namespace test_support;
using pmr_debug::basic_general_purpose_resource;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::page_resource;

constexpr std::size_t mib = std::size_t{1} << 20;
constexpr std::size_t block = 450;
constexpr std::size_t kept = 256;  // one block of so many lives on

/// The blocks of 8 MiB, most of them freed: without a budget most of their pages are gone. The upstream is the heap,
/// where nothing can be guarded.
template <pmr_debug::policy P>
struct mostly_freed {
    collecting_handler errors;
    basic_general_purpose_resource<P> heap{std::pmr::new_delete_resource(),
                                           {.handler = &errors, .quarantine_bytes = 0}};
    std::vector<unsigned char*> all;

    mostly_freed() {
        for (std::size_t n = 0; n < 8 * mib; n += block) {
            all.push_back(static_cast<unsigned char*>(heap.allocate(block)));
            std::memset(all.back(), 1, block);
        }
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (i % kept != 0) {
                free_here(i);
            }
        }
    }
    ~mostly_freed() {
        for (std::size_t i = 0; i < all.size(); i += kept) {
            heap.deallocate(all[i], block);
        }
    }
    mostly_freed(const mostly_freed&) = delete;
    mostly_freed& operator=(const mostly_freed&) = delete;

    [[gnu::noinline]] void free_here(std::size_t i) {
        heap.deallocate(all[i], block);
        asm volatile("");  // no tail call
    }

    /// A freed block that lies in memory which was given back; null: none.
    [[nodiscard]] unsigned char* given_back() const {
        for (std::size_t i = 1; i < all.size(); ++i) {
            if (i % kept != 0 && all[i][0] == 0 && all[i][block - 1] == 0) {
                return all[i];
            }
        }
        return nullptr;
    }
};

// A sanitizer forbids to look at freed blocks.
#if !PMR_DEBUG_INSTRUMENTED
template <class Policy>
struct general_purpose_given_back : ::testing::Test {};
using policies = ::testing::Types<with<pmr_debug::default_policy>, with<fill_policy>, with<immediate_policy>,
                                  with<quarantined_policy>>;
TYPED_TEST_SUITE(general_purpose_given_back, policies);

TYPED_TEST(general_purpose_given_back, what_is_written_there_is_found_by_a_check) {
    mostly_freed<TypeParam::rules> m;
    unsigned char* const p = m.given_back();
    ASSERT_NE(p, nullptr);
    EXPECT_EQ(m.heap.check(), 0U);
    p[7] = 0x55;
    p[8] = 0x56;
    EXPECT_EQ(m.heap.check(), 1U);
    ASSERT_EQ(m.errors.count(), 1U);
    const collecting_handler::entry& told = m.errors[0];
    EXPECT_EQ(told.facts.kind, error_kind::write_after_free);
    EXPECT_EQ(told.facts.block.address, p);
    EXPECT_EQ(told.facts.block.size, block);
    EXPECT_EQ(told.facts.first_bad, p + 7);
    EXPECT_EQ(told.facts.bad_bytes, 2U);
    EXPECT_EQ(told.facts.bad_value, 0x55);
    EXPECT_EQ(told.facts.expected_value, 0);
    if (TypeParam::rules.free_frames != 0) {
        EXPECT_TRUE(trace_contains(told.facts.freed, "free_here"));
    }
}

TYPED_TEST(general_purpose_given_back, what_is_written_there_is_found_when_it_is_used_again) {
    mostly_freed<TypeParam::rules> m;
    unsigned char* const p = m.given_back();
    ASSERT_NE(p, nullptr);
    p[7] = 0x55;
    std::vector<void*> more;
    for (std::size_t n = 0; n < 16 * mib; n += block) {
        more.push_back(m.heap.allocate(block));
    }
    for (void* const q : more) {
        m.heap.deallocate(q, block);
    }
    (void)m.heap.check();
    ASSERT_EQ(m.errors.count(), 1U);
    EXPECT_EQ(m.errors[0].facts.kind, error_kind::write_after_free);
    EXPECT_EQ(m.errors[0].facts.block.address, p);
    EXPECT_EQ(m.errors[0].facts.first_bad, p + 7);
}

TYPED_TEST(general_purpose_given_back, what_is_written_there_is_found_when_the_rest_is_freed) {
    if (TypeParam::rules.freed == pmr_debug::reuse::immediate) {
        return;  // what is written to a unit that goes back as a whole is not looked for, see docs/faults.md
    }
    mostly_freed<TypeParam::rules> m;
    unsigned char* const p = m.given_back();
    ASSERT_NE(p, nullptr);
    p[7] = 0x55;
    for (std::size_t i = 0; i < m.all.size(); i += kept) {
        m.free_here(i);
    }
    m.all.clear();
    (void)m.heap.check();
    ASSERT_EQ(m.errors.count(), 1U);
    EXPECT_EQ(m.errors.back().facts.kind, error_kind::write_after_free);
    EXPECT_EQ(m.errors.back().facts.first_bad, p + 7);
}

TYPED_TEST(general_purpose_given_back, nothing_is_found_where_nobody_wrote) {
    mostly_freed<TypeParam::rules> m;
    ASSERT_NE(m.given_back(), nullptr);
    for (int round = 0; round < 3; ++round) {
        std::vector<void*> more;
        for (std::size_t n = 0; n < 10 * mib; n += block) {
            more.push_back(m.heap.allocate(block));
            std::memset(more.back(), 2, block);
        }
        EXPECT_EQ(m.heap.check(), 0U);
        for (void* const q : more) {
            m.heap.deallocate(q, block);
        }
        EXPECT_EQ(m.heap.check(), 0U);
    }
    EXPECT_EQ(m.errors.count(), 0U);
}
#endif

// One block in 64 lives on, always the same one of a word of free bits; a large block takes as much as all of them.
TEST(general_purpose_given_back_at_once, survivors_do_not_keep_the_units_that_were_listed_first) {
    collecting_handler errors;
    page_resource pages;
    pmr_debug::basic_general_purpose_resource<pmr_debug::release_policy> heap(&pages, {.handler = &errors});
    constexpr std::size_t bytes = 200 * mib;
    constexpr std::size_t size = 512;
    void* const large = heap.allocate(bytes);
    std::vector<void*> all;
    for (std::size_t n = 0; n < bytes; n += size) {
        all.push_back(heap.allocate(size));
        std::memset(all.back(), 1, size);
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (i % 64 != 0) {
            heap.deallocate(all[i], size);
        }
    }
    heap.deallocate(large, bytes);
    const pmr_debug::statistics s = heap.stats();
    // A page for each that lives, what may be kept, and a unit for each that the last looks did not reach.
    EXPECT_LT(s.resident_bytes, all.size() / 64 * 4'096 + s.quarantine_limit + 16 * mib);
    for (std::size_t i = 0; i < all.size(); i += 64) {
        heap.deallocate(all[i], size);
    }
    EXPECT_EQ(errors.count(), 0U);
}

// Survivors that lie so that no word of free bits is ever full, and a limit that falls as blocks are freed.
template <class Policy>
struct general_purpose_given_back_as_it_is_freed : ::testing::Test {};
using immediate_policies = ::testing::Types<with<pmr_debug::release_policy>, with<immediate_policy>>;
TYPED_TEST_SUITE(general_purpose_given_back_as_it_is_freed, immediate_policies);

TYPED_TEST(general_purpose_given_back_as_it_is_freed, whichever_blocks_live_on) {
    struct {
        std::size_t size, each, pages;
    } const cases[] = {{100, 60, 1}, {3'000, 20, 2}, {7'000, 9, 3}};
    const std::size_t bytes = TypeParam::rules.free_frames != 0 ? 24 * mib : 80 * mib;
    for (const auto& c : cases) {
        collecting_handler errors;
        page_resource pages;
        basic_general_purpose_resource<TypeParam::rules> heap(&pages, {.handler = &errors});
        std::vector<void*> all;
        for (std::size_t n = 0; n < bytes; n += c.size) {
            all.push_back(std::memset(heap.allocate(c.size), 1, c.size));
        }
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (i % c.each != 0) {
                heap.deallocate(all[i], c.size);
            }
        }
        const pmr_debug::statistics s = heap.stats();
        const std::size_t live = (all.size() + c.each - 1) / c.each;
        EXPECT_LT(s.quarantine_limit, std::max(16 * mib, 2 * live * c.size) + mib) << c.size;
        EXPECT_LT(s.resident_bytes, live * c.pages * 4'096 + s.quarantine_limit + 4 * mib) << c.size;
        for (std::size_t i = 0; i < all.size(); i += c.each) {
            ASSERT_EQ(static_cast<unsigned char*>(all[i])[c.size - 1], 1);
            heap.deallocate(all[i], c.size);
        }
        EXPECT_EQ(heap.check(), 0U);
        EXPECT_EQ(errors.count(), 0U);
    }
}

// Its record is given up; the block that lives nearby is not what was freed.
TEST(general_purpose_forgotten, a_double_free_is_one_also_beside_a_live_block) {
    collecting_handler errors;
    page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors, .retired_record_bytes = 1});
    std::vector<void*> all;
    for (int i = 0; i < 50'000; ++i) {
        all.push_back(heap.allocate(64, 8));
    }
    const std::size_t lives = all.size() / 2;
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (i != lives) {
            heap.deallocate(all[i], 64, 8);
        }
    }
    const auto distance = [&](std::size_t i) {
        return std::abs(static_cast<char*>(all[i]) - static_cast<char*>(all[lives]));
    };
    bool tried = false;
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (distance(i) > 40'000 && distance(i) < 60'000) {  // in another unit, within the neighbourhood
            errors.clear();
            heap.deallocate(all[i], 64, 8);
            ASSERT_EQ(errors.count(), 1U);
            EXPECT_EQ(errors[0].facts.kind, error_kind::double_free) << errors[0].text;
            tried = true;
        }
    }
    EXPECT_TRUE(tried);
    heap.deallocate(all[lives], 64, 8);
}

}  // namespace
