// Every error of a caller, under every policy that checks: what the report says, and silence once it is corrected.

#include "support/forwarding_resource.hpp"
#include "support/general_purpose.hpp"
#include "support/odd_calls.hpp"

#include <pmr_debug/tracking_resource.hpp>

#include <array>
#include <string_view>
#include <thread>

namespace {

using namespace test_support;
using pmr_debug::block_state;
using pmr_debug::error_kind;
using pmr_debug::report;
using pmr_debug::trace_id;

template <class Policy>
struct general_purpose_errors : heap_test<Policy> {
    // What every row's corrected twin must leave behind.
    void expect_silence() {
        EXPECT_EQ(this->heap->check(), 0U);
        EXPECT_TRUE(this->heap->ok());
        this->end();
        EXPECT_EQ(this->errors.count(), 0U)
            << (this->errors.size() != 0 ? std::string(this->errors.back().text) : std::string());
    }
    // One error was counted, of this kind.
    void expect_verdict(error_kind kind) {
        EXPECT_FALSE(this->heap->ok());
        EXPECT_EQ(this->heap->errors()[kind], 1U);
        EXPECT_EQ(this->heap->errors().total(), 1U);
    }
};
TYPED_TEST_SUITE(general_purpose_errors, checking_policies);

constexpr std::size_t large = 100'000;
constexpr std::size_t huge = std::size_t{20} << 20;  // beyond what the address map holds

TYPED_TEST(general_purpose_errors, double_free_in_a_live_bucket) {
    void* const a = allocates_the_block(*this->heap, 64, 8);
    void* const neighbour = allocates_another(*this->heap, 64, 8);
    frees_it_first(*this->heap, a, 64, 8);
    frees_it_again(*this->heap, a, 64, 8);
    const report r = this->only(error_kind::double_free);
    expect_given(r, a, 64, 8);
    expect_block(r, a, 64, 8, block_state::freed);
    EXPECT_EQ(r.block.serial, 1U);
    EXPECT_FALSE(r.nearest_only);
    expect_traces(r, this->rules, "frees_it_again", "allocates_the_block", "frees_it_first");
    this->expect_verdict(error_kind::double_free);
    EXPECT_EQ(this->heap->stats().live_blocks, 1U);
    EXPECT_EQ(this->heap->stats().live_bytes, 64U);
    EXPECT_EQ(this->heap->stats().total_deallocations, 1U);
    frees_it_first(*this->heap, neighbour, 64, 8);
    this->end();
    EXPECT_EQ(this->errors.count(), 1U);
}

TYPED_TEST(general_purpose_errors, double_free_corrected) {
    void* const a = allocates_the_block(*this->heap, 64, 8);
    void* const neighbour = allocates_another(*this->heap, 64, 8);
    frees_it_first(*this->heap, a, 64, 8);
    frees_it_first(*this->heap, neighbour, 64, 8);
    this->expect_silence();
}

TYPED_TEST(general_purpose_errors, double_free_with_another_size_is_still_a_double_free) {
    void* const a = allocates_the_block(*this->heap, 64, 8);
    frees_it_first(*this->heap, a, 64, 8);
    frees_it_again(*this->heap, a, 48, 16);
    const report r = this->only(error_kind::double_free);
    expect_given(r, a, 48, 16);
    expect_block(r, a, 64, 8, block_state::freed);
}

TYPED_TEST(general_purpose_errors, double_free_after_the_bucket_emptied) {
    if (!this->remembers_the_dead) {
        GTEST_SKIP() << "an emptied bucket is used again at once";
    }
    std::vector<void*> blocks;
    for (int i = 0; i < 2'000; ++i) {
        blocks.push_back(allocates_the_block(*this->heap, 64, 8));
    }
    for (void* const p : blocks) {
        frees_it_first(*this->heap, p, 64, 8);
    }
    EXPECT_GT(this->heap->stats().retired_units, 0U);
    for (const std::size_t i : {0U, 1U, 77U, 1'000U}) {
        this->errors.clear();
        frees_it_again(*this->heap, blocks[i], 64, 8);
        const report r = this->only(error_kind::double_free);
        expect_given(r, blocks[i], 64, 8);
        expect_block(r, blocks[i], 64, 8, block_state::freed);
        EXPECT_NE(r.block.serial, 0U);
        expect_traces(r, this->rules, "frees_it_again", "allocates_the_block", "frees_it_first");
    }
    EXPECT_EQ(this->heap->errors()[error_kind::double_free], 4U);
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
}

TYPED_TEST(general_purpose_errors, double_free_of_a_large_block) {
    if (!this->remembers_the_dead) {
        GTEST_SKIP() << "a large block is given up at once";
    }
    for (const std::size_t bytes : {large, huge}) {
        if (bytes == huge &&
            (this->rules.freed == pmr_debug::reuse::quarantined || this->rules.dead == pmr_debug::dead_unit::keep)) {
            continue;  // more than the budget for freed memory: forgotten at once
        }
        this->errors.clear();
        void* const a = allocates_the_block(*this->heap, bytes, 16);
        frees_it_first(*this->heap, a, bytes, 16);
        frees_it_again(*this->heap, a, bytes, 16);
        const report r = this->only(error_kind::double_free);
        expect_given(r, a, bytes, 16);
        expect_block(r, a, bytes, 16, block_state::freed);
        expect_traces(r, this->rules, "frees_it_again", "allocates_the_block", "frees_it_first");
    }
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    EXPECT_EQ(this->heap->stats().live_bytes, 0U);
}

TYPED_TEST(general_purpose_errors, wrong_size) {
    struct row {
        std::size_t allocated, freed;
    };
    // In the class, across classes, small as large and back, large, huge, and from and to nothing.
    for (const row& w : {row{64, 60}, row{64, 65}, row{64, 500}, row{64, large}, row{large, 64}, row{large, large - 1},
                         row{large, huge}, row{huge, huge + 1}, row{0, 1}, row{1, 0}}) {
        SCOPED_TRACE(std::to_string(w.allocated) + " freed as " + std::to_string(w.freed));
        this->errors.clear();
        void* const a = allocates_the_block(*this->heap, w.allocated, 8);
        frees_it_wrongly(*this->heap, a, w.freed, 8);
        const report r = this->only(error_kind::size_mismatch);
        expect_given(r, a, w.freed, 8);
        expect_block(r, a, w.allocated, 8, block_state::live);
        expect_traces(r, this->rules, "frees_it_wrongly", "allocates_the_block", nullptr);
        // It was freed, with what is recorded.
        EXPECT_EQ(this->heap->stats().live_blocks, 0U);
        EXPECT_EQ(this->heap->stats().live_bytes, 0U);
    }
    EXPECT_FALSE(this->heap->ok());
    EXPECT_EQ(this->heap->errors()[error_kind::size_mismatch], 10U);
    EXPECT_EQ(this->heap->errors().total(), 10U);
    this->errors.clear();
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_errors, wrong_size_corrected) {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{64}, std::size_t{500}, large, huge}) {
        frees_it_first(*this->heap, allocates_the_block(*this->heap, bytes, 8), bytes, 8);
    }
    this->expect_silence();
}

TYPED_TEST(general_purpose_errors, wrong_alignment) {
    struct row {
        std::size_t bytes, allocated, freed;
    };
    for (const row& w : {row{64, 8, 16}, row{64, 64, 8}, row{64, 8, 3}, row{64, 1, 0}, row{large, 8, 4096},
                         row{large, 65'536, 8}, row{64, std::size_t{1} << 21, 64}, row{huge, 8, 16}}) {
        SCOPED_TRACE(std::to_string(w.allocated) + " freed as " + std::to_string(w.freed));
        this->errors.clear();
        void* const a = allocates_the_block(*this->heap, w.bytes, w.allocated);
        frees_it_wrongly(*this->heap, a, w.bytes, w.freed);
        const report r = this->only(error_kind::alignment_mismatch);
        expect_given(r, a, w.bytes, w.freed);
        expect_block(r, a, w.bytes, w.allocated, block_state::live);
        expect_traces(r, this->rules, "frees_it_wrongly", "allocates_the_block", nullptr);
        EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    }
    EXPECT_FALSE(this->heap->ok());
    this->errors.clear();
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_errors, wrong_alignment_corrected) {
    for (const std::size_t alignment : {1U, 8U, 16U, 64U, 4096U, 65'536U, 1U << 21}) {
        frees_it_first(*this->heap, allocates_the_block(*this->heap, 64, alignment), 64, alignment);
        frees_it_first(*this->heap, allocates_the_block(*this->heap, large, alignment), large, alignment);
    }
    this->expect_silence();
}

TYPED_TEST(general_purpose_errors, interior_pointer_with_the_same_size) {
    struct row {
        std::size_t bytes, offset;
    };
    for (const row& w : {row{64, 1}, row{64, 16}, row{64, 63}, row{large, 16}, row{large, 4096}, row{large, 8 * 4096},
                         row{huge, 4096}, row{huge, std::size_t{18} << 20}, row{huge, (std::size_t{18} << 20) + 5}}) {
        SCOPED_TRACE(std::to_string(w.offset) + " into " + std::to_string(w.bytes));
        this->errors.clear();
        void* const a = allocates_the_block(*this->heap, w.bytes, 8);
        frees_it_wrongly(*this->heap, bytes_at(a, w.offset), w.bytes, 8);
        const report r = this->only(error_kind::interior_free);
        expect_given(r, bytes_at(a, w.offset), w.bytes, 8);
        expect_block(r, a, w.bytes, 8, block_state::live);
        expect_traces(r, this->rules, "frees_it_wrongly", "allocates_the_block", nullptr);
        // The block lives on, and its own free is fine.
        EXPECT_EQ(this->heap->stats().live_blocks, 1U);
        frees_it_first(*this->heap, a, w.bytes, 8);
        EXPECT_EQ(this->errors.count(), 1U);
    }
    EXPECT_FALSE(this->heap->ok());
}

TYPED_TEST(general_purpose_errors, foreign_pointer_from_the_stack_or_from_new) {
    alignas(16) std::array<std::byte, 64> local{};
    frees_it_wrongly(*this->heap, local.data(), 64, 8);
    report r = this->only(error_kind::invalid_free);
    expect_given(r, local.data(), 64, 8);
    EXPECT_EQ(r.block.address, nullptr);
    expect_trace(r.here, 1, "frees_it_wrongly", "here");
    this->errors.clear();
    const auto other = std::make_unique<std::array<std::byte, 64>>();
    void* const live = allocates_the_block(*this->heap, 64, 8);
    frees_it_wrongly(*this->heap, other.get(), 64, 8);
    r = this->only(error_kind::invalid_free);
    expect_given(r, other.get(), 64, 8);
    EXPECT_EQ(this->heap->errors()[error_kind::invalid_free], 2U);
    EXPECT_EQ(this->heap->stats().live_blocks, 1U);
    frees_it_first(*this->heap, live, 64, 8);
}

TYPED_TEST(general_purpose_errors, invalid_pointers_of_any_value_are_refused) {
    void* const live = allocates_the_block(*this->heap, 64, 8);
    for (const std::uintptr_t value : {std::uintptr_t{1}, std::uintptr_t{4096}, std::uintptr_t{0x7FFF'FFFF'F000},
                                       std::uintptr_t{1} << 47, std::uintptr_t{1} << 63, ~std::uintptr_t{0}}) {
        this->errors.clear();
        frees_it_wrongly(*this->heap, reinterpret_cast<void*>(value), 64, 8);
        const report r = this->only(error_kind::invalid_free);
        EXPECT_EQ(r.pointer, reinterpret_cast<void*>(value));
        EXPECT_EQ(r.block.address, nullptr);
    }
    frees_it_first(*this->heap, live, 64, 8);
}

TYPED_TEST(general_purpose_errors, invalid_pointer_names_the_nearest_block) {
    void* const a = allocates_the_block(*this->heap, 64, 8);
    void* const stray = bytes_at(a, 640);  // a slot never handed out
    frees_it_wrongly(*this->heap, stray, 64, 8);
    report r = this->only(error_kind::invalid_free);
    expect_given(r, stray, 64, 8);
    EXPECT_TRUE(r.nearest_only);
    expect_block(r, a, 64, 8, block_state::live);
    expect_traces(r, this->rules, "frees_it_wrongly", "allocates_the_block", nullptr);
    // A record never used says size 0 and alignment 1.
    this->errors.clear();
    frees_it_wrongly(*this->heap, stray, 0, 1);
    EXPECT_EQ(this->errors.count(), 1U);
    frees_it_first(*this->heap, a, 64, 8);
}

TYPED_TEST(general_purpose_errors, slot_never_handed_out_freed_as_nothing) {
    // Slot 1 of this class: its record is still empty, which looks like a block of no bytes with alignment 1.
    void* const a = allocates_the_block(*this->heap, 64, 8);
    void* const b = allocates_another(*this->heap, 64, 8);
    const auto slot = static_cast<std::size_t>(bytes_at(b) - bytes_at(a));
    void* const stray = bytes_at(b, slot);
    frees_it_wrongly(*this->heap, stray, 0, 1);
    const report r = this->only(error_kind::invalid_free);
    expect_given(r, stray, 0, 1);
    EXPECT_TRUE(r.nearest_only);
    EXPECT_EQ(r.block.address, b);
    // And it may still be handed out.
    this->errors.clear();
    void* const c = allocates_another(*this->heap, 64, 8);
    EXPECT_EQ(c, stray);
    frees_it_first(*this->heap, a, 64, 8);
    frees_it_first(*this->heap, b, 64, 8);
    frees_it_first(*this->heap, c, 64, 8);
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_errors, block_of_another_resource) {
    pmr_debug::collecting_handler other_errors;
    typename TypeParam::resource other(&*this->pages, {.name = "other", .handler = &other_errors});
    for (const std::size_t bytes : {std::size_t{64}, large}) {
        this->errors.clear();
        void* const a = allocates_the_block(other, bytes, 8);
        frees_it_wrongly(*this->heap, a, bytes, 8);
        const report r = this->only(error_kind::wrong_resource);
        expect_given(r, a, bytes, 8);
        expect_block(r, a, bytes, 8, block_state::live);
        EXPECT_EQ(r.owner.name, "other");
        EXPECT_EQ(r.owner.address, &other);
        EXPECT_TRUE(r.owner.alive);
        expect_traces(r, this->rules, "frees_it_wrongly", "allocates_the_block", nullptr);
        // Its owner still has it, and frees it in silence.
        EXPECT_EQ(other.stats().live_blocks, 1U);
        frees_it_first(other, a, bytes, 8);
    }
    EXPECT_FALSE(this->heap->ok());
    EXPECT_TRUE(other.ok());
    EXPECT_EQ(other_errors.count(), 0U);
}

TYPED_TEST(general_purpose_errors, freed_block_of_another_resource_belongs_to_nobody) {
    typename TypeParam::resource other(&*this->pages, {.name = "other", .handler = &this->errors});
    void* const neighbour = allocates_another(other, 64, 8);  // where a block of the upstream begins
    void* const a = allocates_the_block(other, 64, 8);
    frees_it_first(other, a, 64, 8);
    frees_it_wrongly(*this->heap, a, 64, 8);
    const report r = this->only(error_kind::invalid_free);
    EXPECT_EQ(r.owner.id, 0U);
    frees_it_first(other, neighbour, 64, 8);
}

TYPED_TEST(general_purpose_errors, block_of_the_upstream) {
    void* const a = allocates_the_block(*this->pages, 64, 8);
    frees_it_wrongly(*this->heap, a, 64, 8);
    const report r = this->only(error_kind::wrong_resource);
    EXPECT_EQ(r.owner.name, "pages");
    expect_given(r, a, 64, 8);
    frees_it_first(*this->pages, a, 64, 8);
    EXPECT_EQ(this->page_errors.count(), 0U);
}

TYPED_TEST(general_purpose_errors, null_pointer) {
    free_null(*this->heap, 64, 8);
    const report r = this->only(error_kind::null_free);
    expect_given(r, nullptr, 64, 8);
    this->expect_verdict(error_kind::null_free);
}

TYPED_TEST(general_purpose_errors, write_after_free_while_the_bucket_lives) {
    if (!this->rules.fill) {
        GTEST_SKIP() << "nothing is filled";
    }
    void* const a = allocates_the_block(*this->heap, 64, 8);
    void* const neighbour = allocates_another(*this->heap, 64, 8);
    frees_it_first(*this->heap, a, 64, 8);
    *bytes_at(a, 5) = std::byte{0x42};
    *bytes_at(a, 9) = std::byte{0x43};
    EXPECT_EQ(this->heap->check(), 1U);
    const report r = this->only(error_kind::write_after_free);
    expect_block(r, a, 64, 8, block_state::freed);
    EXPECT_EQ(r.first_bad, bytes_at(a, 5));
    EXPECT_EQ(r.bad_bytes, 2U);
    EXPECT_EQ(r.bad_value, 0x42U);
    EXPECT_EQ(r.expected_value, 0xDDU);
    expect_traces(r, this->rules, "check", "allocates_the_block", "frees_it_first");
    this->expect_verdict(error_kind::write_after_free);
    frees_it_first(*this->heap, neighbour, 64, 8);
    // One write is one finding.
    EXPECT_EQ(this->heap->check(), 0U);
    this->end();
    EXPECT_EQ(this->errors.count(), 1U);
}

TYPED_TEST(general_purpose_errors, write_after_free_corrected) {
    void* const a = allocates_the_block(*this->heap, 64, 8);
    void* const neighbour = allocates_another(*this->heap, 64, 8);
    *bytes_at(a, 5) = std::byte{0x42};
    frees_it_first(*this->heap, a, 64, 8);
    frees_it_first(*this->heap, neighbour, 64, 8);
    this->expect_silence();
}

TYPED_TEST(general_purpose_errors, overflow_with_the_first_bad_byte) {
    if (this->rules.guard_bytes == 0) {
        GTEST_SKIP() << "no canary";
    }
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{64}, std::size_t{100}, large, huge}) {
        SCOPED_TRACE(bytes);
        this->errors.clear();
        void* const a = allocates_the_block(*this->heap, bytes, 8);
        *bytes_at(a, bytes + 3) = std::byte{0x42};
        *bytes_at(a, bytes + 6) = std::byte{0x43};
        frees_it_wrongly(*this->heap, a, bytes, 8);
        const report r = this->only(error_kind::overrun);
        expect_block(r, a, bytes, 8, block_state::freed);
        EXPECT_EQ(r.first_bad, bytes_at(a, bytes + 3));
        EXPECT_EQ(r.bad_bytes, 2U);
        EXPECT_EQ(r.bad_value, 0x42U);
        EXPECT_EQ(r.expected_value, 0xAAU);
        expect_traces(r, this->rules, "frees_it_wrongly", "allocates_the_block", "frees_it_wrongly");
        EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    }
    EXPECT_EQ(this->heap->errors()[error_kind::overrun], 6U);
    EXPECT_FALSE(this->heap->ok());
    this->errors.clear();
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_errors, underflow_shows_in_the_guard_of_the_block_before) {
    if (this->rules.guard_bytes == 0) {
        GTEST_SKIP() << "no canary";
    }
    void* const a = allocates_the_block(*this->heap, 64, 8);
    void* const b = allocates_another(*this->heap, 64, 8);
    ASSERT_GT(b, a);
    *bytes_at(b, 0 - std::size_t{1}) = std::byte{0x42};
    if (this->rules.exact_alignment) {  // has some of its slot before it
        frees_it_first(*this->heap, b, 64, 8);
        const report r = this->only(error_kind::underrun);
        EXPECT_EQ(r.block.address, b);
        EXPECT_EQ(r.first_bad, bytes_at(b, 0 - std::size_t{1}));
        frees_it_first(*this->heap, a, 64, 8);
        return;
    }
    frees_it_first(*this->heap, a, 64, 8);
    const report r = this->only(error_kind::overrun);
    EXPECT_EQ(r.block.address, a);
    EXPECT_EQ(r.first_bad, bytes_at(b, 0 - std::size_t{1}));
    EXPECT_EQ(r.bad_bytes, 1U);
    EXPECT_NE(r.hint.find("underrun"), std::string_view::npos);
    frees_it_first(*this->heap, b, 64, 8);
}

TYPED_TEST(general_purpose_errors, overflow_corrected) {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{64}, std::size_t{100}, large}) {
        void* const a = allocates_the_block(*this->heap, bytes, 8);
        std::memset(a, 0x42, bytes);
        frees_it_first(*this->heap, a, bytes, 8);
    }
    this->expect_silence();
}

__attribute__((noinline)) void leaks_much(std::pmr::memory_resource& r) {
    for (int i = 0; i < 10'000; ++i) {
        static_cast<void>(allocates_the_block(r, 24, 8));
    }
    asm volatile("" ::: "memory");
}
__attribute__((noinline)) void leaks_one(std::pmr::memory_resource& r) {
    static_cast<void>(allocates_another(r, large, 8));
    asm volatile("" ::: "memory");
}

TYPED_TEST(general_purpose_errors, leaks_are_grouped) {
    leaks_much(*this->heap);
    leaks_one(*this->heap);
    void* const freed = allocates_another(*this->heap, 24, 8);
    frees_it_first(*this->heap, freed, 24, 8);
    EXPECT_TRUE(this->heap->ok());
    this->end();
    const report r = this->only(error_kind::leak);
    EXPECT_EQ(r.resource.name, "heap");
    EXPECT_EQ(r.leaked_blocks, 10'001U);
    EXPECT_EQ(r.leaked_bytes, 240'000U + large);
    ASSERT_EQ(r.leaks.size(), 2U);
    EXPECT_EQ(r.leaks[0].blocks, 10'000U);
    EXPECT_EQ(r.leaks[0].bytes, 240'000U);
    EXPECT_EQ(r.leaks[0].example_size, 24U);
    EXPECT_NE(r.leaks[0].example, nullptr);
    EXPECT_EQ(r.leaks[1].blocks, 1U);
    EXPECT_EQ(r.leaks[1].bytes, large);
    const unsigned frames = this->rules.alloc_frames;
    expect_trace(r.leaks[0].allocated, frames, frames < 8 ? "allocates_the_block" : "leaks_much", "the many");
    expect_trace(r.leaks[1].allocated, frames, frames < 8 ? "allocates_another" : "leaks_one", "the one");
}

TYPED_TEST(general_purpose_errors, leaks_reported_on_demand) {
    EXPECT_EQ(this->heap->report_leaks(), 0U);
    EXPECT_EQ(this->errors.count(), 0U);
    void* const a = allocates_the_block(*this->heap, 64, 8);
    EXPECT_EQ(this->heap->report_leaks(), 1U);
    const report r = this->only(error_kind::leak);
    EXPECT_EQ(r.leaks[0].example, a);
    this->expect_verdict(error_kind::leak);
    frees_it_first(*this->heap, a, 64, 8);
    EXPECT_EQ(this->heap->report_leaks(), 0U);
}

TYPED_TEST(general_purpose_errors, leaks_corrected) {
    for (int i = 0; i < 100; ++i) {
        frees_it_first(*this->heap, allocates_the_block(*this->heap, 24, 8), 24, 8);
    }
    frees_it_first(*this->heap, allocates_the_block(*this->heap, large, 8), large, 8);
    this->expect_silence();
}

// ---- single_checked -------------------------------------------------------------------------------------------------

__attribute__((noinline)) void uses_it_from_outside(std::pmr::memory_resource& r) {
    frees_it_first(r, allocates_another(r, 32, 8), 32, 8);
    asm volatile("" ::: "memory");
}

template <class Policy>
struct general_purpose_thread_check : heap_test<Policy> {};
using single_policies = ::testing::Types<with<single_policy>, with<immediate_single_policy>>;
TYPED_TEST_SUITE(general_purpose_thread_check, single_policies);

TYPED_TEST(general_purpose_thread_check, second_thread_with_both_traces) {
    void* const a = allocates_the_block(*this->heap, 64, 8);
    std::uint32_t outsider = 0;
    std::thread([&] {
        outsider = pmr_debug::os::this_thread().number;
        uses_it_from_outside(*this->heap);
        uses_it_from_outside(*this->heap);
    }).join();
    ASSERT_EQ(this->errors.count(), 4U);
    ASSERT_EQ(this->errors.count(error_kind::foreign_thread), 4U);
    for (std::size_t i = 0; i < 4; ++i) {
        const report& r = this->errors[i].facts;
        EXPECT_EQ(r.thread, outsider);
        EXPECT_EQ(r.other_thread, pmr_debug::os::this_thread().number);
        expect_trace(r.here, 1, "uses_it_from_outside", "here");
        // The other use stays the one by the thread it is bound to.
        expect_trace(r.other, 1, "allocates_the_block", "other");
    }
    EXPECT_FALSE(this->heap->ok());
    // The calls were carried out, and the bound thread goes on.
    EXPECT_EQ(this->heap->stats().live_blocks, 1U);
    EXPECT_EQ(this->heap->stats().total_allocations, 3U);
    frees_it_first(*this->heap, a, 64, 8);
    EXPECT_EQ(this->errors.count(), 4U);
    this->end();
    EXPECT_EQ(this->errors.count(), 4U);
}

TYPED_TEST(general_purpose_thread_check, second_thread_corrected) {
    std::thread([&] {
        uses_it_from_outside(*this->heap);
    }).join();  // bound to the first to use it, wherever it was made
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TEST(general_purpose_thread_check_short, other_use_is_not_forgotten_where_frees_keep_no_frames) {
    constexpr pmr_debug::policy rules{
        .threads = pmr_debug::threading::single_checked, .alloc_frames = 3, .free_frames = 0};
    pmr_debug::collecting_handler errors;
    pmr_debug::basic_general_purpose_resource<rules> heap({.handler = &errors});
    void* const a = allocates_the_block(heap, 64, 8);
    frees_it_first(heap, a, 64, 8);
    std::thread([&] { uses_it_from_outside(heap); }).join();
    ASSERT_GE(errors.count(error_kind::foreign_thread), 1U);
    expect_trace(errors[0].facts.other, 1, "allocates_the_block", "other");
}

// ---- Over a stranger: a resource of the library's below it is not known to be an upstream --------------------------

TEST(general_purpose_errors_over_strangers, a_block_at_the_start_of_an_upstreams_is_its_own) {
    pmr_debug::collecting_handler errors;
    pmr_debug::tracking_resource below({.name = "below", .handler = &errors});
    test_support::forwarding_resource stranger(&below);
    pmr_debug::general_purpose_resource heap(&stranger, {.name = "heap", .handler = &errors});
    void* const small = heap.allocate(64, 8);
    void* const big = heap.allocate(huge, 8);
    heap.deallocate(small, 60, 8);
    heap.deallocate(big, huge - 1, 8);
    EXPECT_EQ(errors.count(error_kind::size_mismatch), 2U);
    EXPECT_EQ(errors.count(error_kind::wrong_resource), 0U);
    EXPECT_EQ(errors.count(), 2U);
    EXPECT_EQ(heap.stats().live_blocks, 0U);
}

}  // namespace
