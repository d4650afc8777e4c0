// What becomes of freed memory: when it is used again, when it faults, and what happens when memory runs out.

#include "os/virtual_memory.hpp"
#include "support/general_purpose.hpp"

#include <csignal>
#include <cstdio>
#include <unordered_map>
#include <unordered_set>

namespace {

using namespace test_support;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_options;
using pmr_debug::general_purpose_resource;
using pmr_debug::page_resource;
using pmr_debug::report;
namespace os = pmr_debug::os;

// Returns what tests force to what the system offers.
struct guard_tier_scope {
    explicit guard_tier_scope(os::guard_tier best) { os::force_guard_tier(best); }
    guard_tier_scope(const guard_tier_scope&) = delete;
    guard_tier_scope& operator=(const guard_tier_scope&) = delete;
    ~guard_tier_scope() { os::force_guard_tier(os::guard_tier::marker); }
};

template <class Policy>
struct general_purpose_reuse : heap_test<Policy> {};
#ifdef TEST_ALL_POLICIES
using never_policies = ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>,
                                        with<pmr_debug::fast_policy>, with<unchecked_policy>, with<single_policy>,
                                        with<traces_policy>, with<canary_policy>, with<keeping_policy>>;
#else
using never_policies = ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::thorough_policy>,
                                        with<pmr_debug::fast_policy>, with<single_policy>, with<keeping_policy>>;
#endif
TYPED_TEST_SUITE(general_purpose_reuse, never_policies);

TYPED_TEST(general_purpose_reuse, no_address_is_handed_out_twice_in_100_000_operations) {
    const std::size_t operations = this->rules.protect_metadata                                 ? 10'000
                                   : std::is_same_v<TypeParam, with<pmr_debug::default_policy>> ? 100'000
                                                                                                : 30'000;
    std::unordered_set<void*> seen;
    std::vector<std::pair<void*, std::size_t>> live;
    std::uint64_t s = 0x9E3779B97F4A7C15U;
    for (std::size_t i = 0; i < operations; ++i) {
        s ^= s >> 12U;
        s ^= s << 25U;
        s ^= s >> 27U;
        const std::size_t bytes = (s >> 8U) % (i % 64 == 0 ? 30'000 : 200);
        void* const p = this->heap->allocate(bytes, 8);
        ASSERT_TRUE(seen.insert(p).second) << "operation " << i;
        live.emplace_back(p, bytes);
        if (live.size() > 100) {
            const std::size_t victim = (s >> 32U) % live.size();
            this->heap->deallocate(live[victim].first, live[victim].second, 8);
            live[victim] = live.back();
            live.pop_back();
        }
    }
    for (const auto& [p, bytes] : live) {
        this->heap->deallocate(p, bytes, 8);
    }
    EXPECT_EQ(this->heap->stats().recycled_units, 0U);
    EXPECT_TRUE(this->heap->ok());
}

// Many blocks, but a fifth where each call protects all records and takes as long as a hundred others.
template <class Policy>
constexpr std::size_t many(std::size_t blocks) {
    return Policy::rules.protect_metadata ? blocks / 5 : blocks;
}

// Many megabytes of dead blocks.
template <class Heap>
std::vector<void*> use_and_free(Heap& heap, std::size_t blocks, std::size_t bytes) {
    std::vector<void*> all;
    for (std::size_t i = 0; i < blocks; ++i) {
        all.push_back(heap.allocate(bytes, 8));
        std::memset(all.back(), 1, bytes);
    }
    for (void* const p : all) {
        heap.deallocate(p, bytes, 8);
    }
    return all;
}

TYPED_TEST(general_purpose_reuse, dead_units_go_back_to_the_system_and_fault) {
    if (this->rules.dead == pmr_debug::dead_unit::keep) {
        GTEST_SKIP() << "dead units are kept";
    }
    constexpr std::size_t blocks = many<TypeParam>(20'000), bytes = 20'000'000 / blocks;
    const auto dead = use_and_free(*this->heap, blocks, bytes);
    const auto stats = this->heap->stats();
    EXPECT_GT(stats.retired_units, 100U);
    // The last unit is not full, its neighbours may wait for it, and some pages are kept for what comes next.
    EXPECT_LT(stats.resident_bytes, blocks * bytes / 3);
    EXPECT_LT(this->pages->pages().resident_bytes, std::uint64_t{blocks} * bytes / 2);
    EXPECT_GE(stats.upstream_bytes, blocks * bytes);
    std::size_t faulting = 0;
    for (std::size_t i = 0; i < blocks / 2; i += 100) {
        faulting += read_faults(dead[i]) ? 1 : 0;
    }
    EXPECT_EQ(faulting, blocks / 2 / 100);
    // Even so a late free is explained.
    frees_it_again(*this->heap, dead[0], bytes);
    EXPECT_EQ(this->errors.count(error_kind::double_free), 1U);
}

TYPED_TEST(general_purpose_reuse, memory_stays_bounded_while_blocks_come_and_go) {
    if (this->rules.dead == pmr_debug::dead_unit::keep) {
        GTEST_SKIP() << "dead units are kept";
    }
    const int rounds = this->rules.protect_metadata ? 20 : 60;
    for (int i = 0; i < rounds; ++i) {  // tens of megabytes in all
        static_cast<void>(use_and_free(*this->heap, 1'000, 1'000));
        static_cast<void>(use_and_free(*this->heap, 1, 100'000));
    }
    EXPECT_LT(this->pages->pages().resident_bytes, std::uint64_t{24} << 20);
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    EXPECT_TRUE(this->heap->ok());
}

TYPED_TEST(general_purpose_reuse, forgotten_records_still_mean_double_free) {
    general_purpose_options o{.name = "heap", .handler = &this->errors};
    o.retired_record_bytes = 4'096;
    typename TypeParam::resource inner(&*this->pages, o);
    const auto dead = use_and_free(inner, many<TypeParam>(20'000), 200);
    EXPECT_TRUE(inner.ok());
    frees_it_again(inner, dead[0], 200);
    const report r = this->only(error_kind::double_free);
    EXPECT_EQ(r.pointer, dead[0]);
    EXPECT_FALSE(r.hint.empty());
    // Neither is its address used again.
    const std::unordered_set<void*> before(dead.begin(), dead.end());
    for (void* const p : use_and_free(inner, many<TypeParam>(2'000), 200)) {
        EXPECT_EQ(before.count(p), 0U);
    }
}

TYPED_TEST(general_purpose_reuse, a_damaged_block_is_never_forgotten) {
    if (!this->rules.fill) {
        GTEST_SKIP() << "no fill that could be damaged";
    }
    general_purpose_options o{.name = "heap", .handler = &this->errors};
    o.retired_record_bytes = 4'096;
    typename TypeParam::resource inner(&*this->pages, o);
    void* const damaged = inner.allocate(200, 8);
    void* const neighbour = inner.allocate(200, 8);
    inner.deallocate(damaged, 200, 8);
    static_cast<unsigned char*>(damaged)[100] = 1;  // the neighbour keeps the memory accessible
    inner.deallocate(neighbour, 200, 8);
    use_and_free(inner, many<TypeParam>(20'000), 200);
    EXPECT_EQ(this->only(error_kind::write_after_free).block.address, damaged);
    this->errors.clear();
    frees_it_again(inner, damaged, 200);
    const report r = this->only(error_kind::double_free);
    EXPECT_EQ(r.block.address, damaged);
    EXPECT_EQ(r.block.size, 200U);
}

// Kept memory stays writable, so it may be damaged when it was verified long ago.
TEST(general_purpose_kept, what_is_damaged_while_it_waits_is_never_forgotten) {
    collecting_handler errors;
    page_resource pages;
    general_purpose_options o{.name = "heap", .handler = &errors};
    o.retired_record_bytes = 65'536;
    with<keeping_policy>::resource heap(&pages, o);
    void* const damaged = use_and_free(heap, 500, 200)[0];
    static_cast<unsigned char*>(damaged)[100] = 1;
    EXPECT_EQ(errors.count(), 0U);
    use_and_free(heap, 20'000, 200);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::write_after_free);
    EXPECT_EQ(errors[0].facts.block.address, damaged);
    errors.clear();
    frees_it_again(heap, damaged, 200);
    ASSERT_EQ(errors.count(error_kind::double_free), 1U);
    EXPECT_EQ(errors[0].facts.block.address, damaged);
    EXPECT_EQ(errors[0].facts.block.size, 200U);
}

TEST(general_purpose_trap_DeathTest, late_read_of_a_large_block_ends_the_program) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            page_resource pages;
            general_purpose_resource heap(&pages);
            auto* const p = static_cast<volatile char*>(heap.allocate(100'000, 8));
            heap.deallocate(const_cast<char*>(p), 100'000, 8);
            std::printf("%d", p[5'000]);
        },
        "");
}

// ---- guard tiers ----------------------------------------------------------------------------------------------------

struct general_purpose_tiers : ::testing::TestWithParam<os::guard_tier> {};

template <class Heap>
void expect_trapped(Heap& heap, collecting_handler& errors, bool trapped, std::size_t blocks) {
    const std::size_t bytes = 10'000'000 / blocks;
    const auto small = use_and_free(heap, blocks, bytes);
    const auto large = use_and_free(heap, 20, 100'000);
    const auto stats = heap.stats();
    EXPECT_GT(stats.retired_units, 100U);
    if (trapped) {
        EXPECT_TRUE(read_faults(small[0]));
        EXPECT_TRUE(read_faults(small[blocks / 10]));
        EXPECT_TRUE(read_faults(large[0]));
        EXPECT_TRUE(read_faults(large[19]));
        EXPECT_LT(stats.untrapped_units, 16U);  // those that wait for the last, open one
    } else {
        EXPECT_FALSE(read_faults(large[0]));
        EXPECT_EQ(stats.untrapped_units, stats.retired_units);
    }
    frees_it_again(heap, small[0], bytes);
    frees_it_again(heap, large[0], 100'000);
    EXPECT_EQ(errors.count(error_kind::double_free), 2U);
    EXPECT_EQ(errors.count(), 2U);
}

TEST_P(general_purpose_tiers, default_policy) {
    const guard_tier_scope scope(GetParam());
    collecting_handler errors;
    page_resource pages({.handler = &errors});
    {
        general_purpose_resource heap(&pages, {.handler = &errors});
        // Moving pages needs no guard, so small units may be trapped without one.
        if (GetParam() != os::guard_tier::none) {
            expect_trapped(heap, errors, true, 10'000);
        } else {
            const auto large = use_and_free(heap, 20, 100'000);
            EXPECT_FALSE(read_faults(large[0]));
            EXPECT_EQ(heap.stats().untrapped_units, 20U);
            EXPECT_EQ(heap.stats().retired_units, 20U);
            frees_it_again(heap, large[0], 100'000);
            EXPECT_EQ(errors.count(error_kind::double_free), 1U);
        }
    }
    EXPECT_EQ(pages.stats().live_blocks, 0U);
}

TEST_P(general_purpose_tiers, unit_by_unit) {
    const guard_tier_scope scope(GetParam());
    collecting_handler errors;
    page_resource pages({.handler = &errors});
    {
        pmr_debug::basic_general_purpose_resource<pmr_debug::thorough_policy> heap(&pages, {.handler = &errors});
        expect_trapped(heap, errors, GetParam() != os::guard_tier::none, 2'000);
    }
    EXPECT_EQ(pages.stats().live_blocks, 0U);
}

TEST_P(general_purpose_tiers, write_after_free_is_found_whatever_the_tier) {
    const guard_tier_scope scope(GetParam());
    collecting_handler errors;
    page_resource pages({.handler = &errors});
    {
        general_purpose_resource heap(&pages, {.handler = &errors});
        void* const p = heap.allocate(64, 8);
        heap.deallocate(p, 64, 8);
        *bytes_at(p, 1) = std::byte{1};
        static_cast<void>(use_and_free(heap, 20'000, 64));
    }
    EXPECT_EQ(errors.count(error_kind::write_after_free), 1U);
    EXPECT_EQ(errors.count(), 1U);
}

INSTANTIATE_TEST_SUITE_P(all, general_purpose_tiers,
                         ::testing::Values(os::guard_tier::marker, os::guard_tier::protect, os::guard_tier::none),
                         [](const auto& tier) {
                             return tier.param == os::guard_tier::marker    ? "marker"
                                    : tier.param == os::guard_tier::protect ? "protect"
                                                                            : "none";
                         });

// ---- quarantine and immediate reuse ---------------------------------------------------------------------------------

TEST(general_purpose_quarantine, memory_waits_for_quarantine_bytes_and_is_then_used_again) {
    collecting_handler errors;
    page_resource pages;
    for (const std::size_t bytes : {std::size_t{60'000}, std::size_t{500}}) {
        general_purpose_options o{.handler = &errors};
        o.quarantine_bytes = std::size_t{1} << 20;
        pmr_debug::basic_general_purpose_resource<quarantined_policy> heap(&pages, o);
        std::unordered_map<void*, std::size_t> freed_at;  // address -> bytes freed by then
        std::size_t freed = 0;
        std::size_t again = 0;
        for (std::size_t i = 0; i < 8'000'000 / bytes; ++i) {
            void* const p = heap.allocate(bytes, 8);
            if (const auto known = freed_at.find(p); known != freed_at.end()) {
                ++again;
                ASSERT_GE(freed - known->second + bytes, o.quarantine_bytes / 4 * 3) << bytes;
            }
            heap.deallocate(p, bytes, 8);
            freed += bytes;
            freed_at[p] = freed;
        }
        EXPECT_GT(again, 0U) << bytes;
        EXPECT_LT(heap.stats().upstream_bytes, 4 * o.quarantine_bytes) << bytes;
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST(general_purpose_quarantine, over_an_upstream_that_cannot_trap_it_is_bounded_by_bytes) {
    collecting_handler errors;
    counting_upstream backing;
    general_purpose_options o{.handler = &errors};
    o.quarantine_bytes = std::size_t{1} << 20;
    {
        general_purpose_resource heap(&backing, o);
        for (int i = 0; i < 500; ++i) {
            heap.deallocate(heap.allocate(50'000, 8), 50'000, 8);
            EXPECT_LE(backing.live_bytes, o.quarantine_bytes + 200'000);
        }
        EXPECT_GT(heap.stats().untrapped_units, 10U);
        for (int i = 0; i < 100'000; ++i) {
            heap.deallocate(heap.allocate(64, 8), 64, 8);
        }
        EXPECT_LE(backing.live_bytes, o.quarantine_bytes + 400'000);
    }
    EXPECT_EQ(backing.live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

template <class Policy>
struct general_purpose_immediate : heap_test<Policy> {};
using immediate_policies =
    ::testing::Types<with<immediate_policy>, with<immediate_single_policy>, with<pmr_debug::release_policy>>;
TYPED_TEST_SUITE(general_purpose_immediate, immediate_policies);

TYPED_TEST(general_purpose_immediate, freed_memory_is_used_again) {
    for (const std::size_t bytes : {std::size_t{64}, std::size_t{5'000}, std::size_t{100'000}}) {
        std::unordered_set<void*> seen;
        for (int i = 0; i < 5'000; ++i) {
            void* const p = this->heap->allocate(bytes, 8);
            std::memset(p, 1, bytes);
            seen.insert(p);
            this->heap->deallocate(p, bytes, 8);
        }
        EXPECT_LE(seen.size(), 300U) << bytes;
    }
    EXPECT_LT(this->heap->stats().upstream_bytes, std::uint64_t{4} << 20);
    EXPECT_TRUE(this->heap->ok());
}

TYPED_TEST(general_purpose_immediate, live_blocks_are_never_handed_out_again) {
    std::unordered_map<void*, unsigned char> live;
    std::uint64_t s = 88'172'645'463'325'252U;
    for (int i = 0; i < 50'000; ++i) {
        s ^= s << 13U;
        s ^= s >> 7U;
        s ^= s << 17U;
        if (s % 2 == 0 || live.size() < 50) {
            auto* const p = this->heap->allocate(40, 8);
            ASSERT_TRUE(live.emplace(p, static_cast<unsigned char>(s >> 56U)).second);
            std::memset(p, static_cast<int>(s >> 56U), 40);
        } else {
            const auto victim = live.begin();
            ASSERT_TRUE(all_are(victim->first, 40, victim->second));
            this->heap->deallocate(victim->first, 40, 8);
            live.erase(victim);
        }
    }
    for (const auto& [p, value] : live) {
        ASSERT_TRUE(all_are(p, 40, value));
        this->heap->deallocate(p, 40, 8);
    }
    EXPECT_TRUE(this->heap->ok());
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

// ---- exhaustion -----------------------------------------------------------------------------------------------------

// Blocks that live throughout, and must not be harmed.
struct witnesses {
    explicit witnesses(std::pmr::memory_resource& r) : heap(r) {
        for (std::size_t i = 0; i < 40; ++i) {
            blocks.push_back(heap.allocate(50, 8));
            std::memset(blocks.back(), static_cast<int>(i), 50);
        }
    }
    witnesses(const witnesses&) = delete;
    witnesses& operator=(const witnesses&) = delete;
    ~witnesses() {
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            EXPECT_TRUE(all_are(blocks[i], 50, static_cast<unsigned char>(i)));
            heap.deallocate(blocks[i], 50, 8);
        }
    }
    std::pmr::memory_resource& heap;
    std::vector<void*> blocks;
};

template <class Policy>
struct general_purpose_exhaustion : heap_test<Policy> {
    // Small blocks take long where each call costs two system calls.
    [[nodiscard]] static std::vector<std::size_t> sizes() {
        return Policy::rules.protect_metadata ? std::vector<std::size_t>{3'000, 20'000}
                                              : std::vector<std::size_t>{64, 3'000, 20'000};
    }
};
TYPED_TEST_SUITE(general_purpose_exhaustion, all_policies);

// Many times the memory there is passes through, of which little is live at a time.
template <class Heap>
void expect_endless(Heap& heap, std::size_t bytes, std::size_t total) {
    const witnesses w(heap);
    for (std::size_t used = 0; used < total; used += bytes) {
        void* p = nullptr;
        try {
            p = heap.allocate(bytes, 8);
        } catch (const std::bad_alloc&) {
            FAIL() << "out of memory after " << used << " bytes, though next to nothing is live";
        }
        std::memset(p, 1, bytes);
        heap.deallocate(p, bytes, 8);
    }
}

TYPED_TEST(general_purpose_exhaustion, page_resource_with_a_limit) {
    for (const std::size_t bytes : this->sizes()) {
        SCOPED_TRACE(bytes);
        collecting_handler limits;
        page_resource few({.handler = &limits, .limit_bytes = std::size_t{1} << 20});
        {
            typename TypeParam::resource inner(&few, {.handler = &this->errors});
            expect_endless(inner, bytes, std::size_t{3} << 20);
            if (this->remembers_the_dead) {
                EXPECT_GT(inner.stats().recycled_units, 0U);
            }
        }
        EXPECT_EQ(few.stats().live_blocks, 0U);
    }
    EXPECT_EQ(this->errors.count(), 0U) << (this->errors.size() != 0 ? std::string(this->errors.back().text) : "");
}

TYPED_TEST(general_purpose_exhaustion, address_space_limit) {
    for (const std::size_t bytes : this->sizes()) {
        SCOPED_TRACE(bytes);
        general_purpose_options o{.handler = &this->errors};
        o.address_space_bytes = std::size_t{3} << 19;
        typename TypeParam::resource inner(&*this->pages, o);
        expect_endless(inner, bytes, std::size_t{4} << 20);
        EXPECT_LE(inner.stats().upstream_bytes, o.address_space_bytes);
    }
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_exhaustion, upstream_with_few_bytes) {
    for (const std::size_t bytes : this->sizes()) {
        SCOPED_TRACE(bytes);
        counting_upstream backing;
        backing.most_bytes = std::size_t{1} << 20;
        {
            typename TypeParam::resource inner(&backing, {.handler = &this->errors});
            expect_endless(inner, bytes, std::size_t{3} << 20);
        }
        EXPECT_EQ(backing.live_blocks, 0U);
    }
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_exhaustion, upstream_that_takes_nothing_back) {
    alignas(4096) static std::byte buffer[1 << 20];
    if (!this->remembers_the_dead) {
        GTEST_SKIP() << "what is dead goes back to the upstream at once";
    }
    for (const std::size_t bytes : this->sizes()) {
        SCOPED_TRACE(bytes);
        std::pmr::monotonic_buffer_resource backing(buffer, sizeof buffer, std::pmr::null_memory_resource());
        typename TypeParam::resource inner(&backing, {.handler = &this->errors});
        expect_endless(inner, bytes, std::size_t{3} << 20);
    }
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_exhaustion, then_freed_slots_then_bad_alloc) {
    constexpr std::size_t bytes = TypeParam::rules.protect_metadata ? 400 : 100;
    collecting_handler limits;
    page_resource few({.handler = &limits, .limit_bytes = std::size_t{1} << 19});
    {
        typename TypeParam::resource inner(&few, {.handler = &this->errors});
        std::vector<void*> live;
        const auto fill_up = [&] {
            try {
                for (;;) {
                    live.push_back(nullptr);
                    live.back() = inner.allocate(bytes, 8);
                    std::memset(live.back(), 7, bytes);
                }
            } catch (const std::bad_alloc&) {
                live.pop_back();
            }
        };
        fill_up();
        ASSERT_GT(live.size(), 500U);
        EXPECT_EQ(inner.stats().failed_allocations, 1U);
        // Every other block is freed: no unit is empty, so only its slots can serve.
        std::vector<void*> kept;
        for (std::size_t i = 0; i < live.size(); ++i) {
            if (i % 2 == 0) {
                inner.deallocate(live[i], bytes, 8);
            } else {
                kept.push_back(live[i]);
            }
        }
        const std::size_t freed = live.size() - kept.size();
        live = kept;
        fill_up();
        EXPECT_GE(live.size() - kept.size(), freed / 2);
        EXPECT_EQ(inner.stats().live_blocks, live.size());
        for (void* const p : live) {
            ASSERT_TRUE(all_are(p, bytes, 7));
            inner.deallocate(p, bytes, 8);
        }
        EXPECT_EQ(inner.stats().live_blocks, 0U);
    }
    EXPECT_EQ(few.stats().live_blocks, 0U);
    EXPECT_EQ(this->errors.count(), 0U) << (this->errors.size() != 0 ? std::string(this->errors.back().text) : "");
}

}  // namespace
