// Damage in the places that a verification could forget, and what must not be handed out because of it.

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>

#include "metadata/arena.hpp"
#include "os/fork_locks.hpp"
#include "support/call_here.hpp"
#include "support/general_purpose.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <vector>

namespace {

using namespace test_support;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_resource;
using pmr_debug::page_resource;

// A write through a pointer that is no longer valid; the compiler must neither see through it nor object to it.
__attribute__((noinline)) void spoil(void* p, std::size_t offset = 0) {
    asm volatile("" : "+r"(p) : : "memory");
    static_cast<unsigned char*>(p)[offset] = 0x11;
    asm volatile("# spoil" ::: "memory");
}

// Wherever a span ends: for some number of blocks the last one is the span's last slot, and the one before it, which is
// freed after the damage, is what kept the span alive.
TEST(unseen_damage, a_write_after_free_to_the_last_slot_of_a_span) {
    for (std::size_t blocks = 2; blocks <= 100; ++blocks) {
        collecting_handler errors;
        {
            // Nothing waits: what is dead is verified, and out of reach.
            general_purpose_resource heap({.handler = &errors, .quarantine_bytes = 0});
            std::vector<void*> all;
            for (std::size_t i = 0; i < blocks; ++i) {
                all.push_back(heap.allocate(1'000, 8));
            }
            for (std::size_t i = 0; i < blocks; ++i) {
                if (i != blocks - 2) {
                    heap.deallocate(all[i], 1'000, 8);
                }
            }
            spoil(all.back());
            heap.deallocate(all[blocks - 2], 1'000, 8);
        }
        ASSERT_EQ(errors.count(), 1U) << blocks << " blocks";
        ASSERT_EQ(errors.count(error_kind::write_after_free), 1U) << blocks << " blocks";
    }
}

TEST(unseen_damage, a_write_after_free_to_what_then_leaves_the_quarantine) {
    constexpr std::size_t large = 600'000;
    collecting_handler errors;
    {
        general_purpose_resource heap({.handler = &errors, .quarantine_bytes = std::size_t{1} << 20});
        void* const p = heap.allocate(large, 8);
        heap.deallocate(p, large, 8);
        spoil(p, large / 2);
        for (int i = 0; i < 4; ++i) {
            heap.deallocate(heap.allocate(large, 8), large, 8);
        }
    }
    EXPECT_EQ(errors.count(error_kind::write_after_free), 1U);
    EXPECT_EQ(errors.count(), 1U);
}

// Over another upstream a freed large block is not trapped: the canary before it is still there, and still tells.
TEST(unseen_damage, a_write_before_a_large_block_after_its_free) {
    enum class found_by { check, quarantine, end };
    for (const std::size_t bytes : {std::size_t{8'192}, std::size_t{12'000}, std::size_t{300'000}}) {
        for (const found_by how : {found_by::check, found_by::quarantine, found_by::end}) {
            collecting_handler errors;
            void* p = nullptr;
            {
                general_purpose_resource heap({.handler = &errors, .quarantine_bytes = std::size_t{1} << 20});
                p = allocate_here(heap, bytes, 8);
                free_here(heap, p, bytes, 8);
                EXPECT_EQ(heap.check(), 0U);
                spoil(p, std::size_t{0} - 1);
                if (how == found_by::check) {
                    EXPECT_EQ(heap.check(), 1U);
                    EXPECT_EQ(heap.check(), 0U) << "told once";
                    EXPECT_EQ(errors.count(), 1U);
                } else if (how == found_by::quarantine) {
                    for (int i = 0; i < 4; ++i) {
                        heap.deallocate(heap.allocate(600'000, 8), 600'000, 8);
                    }
                    EXPECT_EQ(errors.count(), 1U) << bytes;
                }
            }
            ASSERT_EQ(errors.count(), 1U) << bytes;
            const pmr_debug::report& r = errors[0].facts;
            EXPECT_EQ(r.kind, error_kind::underrun);
            EXPECT_EQ(r.block.address, p);
            EXPECT_EQ(r.block.size, bytes);
            EXPECT_EQ(r.block.state, pmr_debug::block_state::freed);
            EXPECT_EQ(r.first_bad, static_cast<unsigned char*>(p) - 1);
            EXPECT_EQ(r.bad_bytes, 1U);
            EXPECT_TRUE(trace_contains(r.allocated, "allocate_here"));
            EXPECT_TRUE(trace_contains(r.freed, "free_here"));
        }
    }
}

struct out_of_memory : ::testing::Test {
    static constexpr std::size_t bytes = 60;  // whose slots are not all aligned to 32
    collecting_handler limits;
    collecting_handler errors;
    page_resource few{{.handler = &limits, .limit_bytes = std::size_t{1} << 18}};
    std::optional<general_purpose_resource> heap{std::in_place, &few,
                                                 pmr_debug::general_purpose_options{.handler = &errors}};
    std::vector<void*> freed;
    std::vector<void*> kept;

    /// Returns: what could still be had.
    std::vector<void*> all_of(std::size_t size, std::size_t alignment) {
        std::vector<void*> blocks;
        try {
            for (;;) {
                blocks.push_back(nullptr);
                blocks.back() = heap->allocate(size, alignment);
            }
        } catch (const std::bad_alloc&) {
            blocks.pop_back();
        }
        return blocks;
    }

    /// Effects: uses up all memory, and frees every other block, so that no span is empty.
    void SetUp() override {
        const std::vector<void*> blocks = all_of(bytes, 4);
        ASSERT_GT(blocks.size(), 250U);
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            (i % 2 == 0 ? freed : kept).push_back(blocks[i]);
            if (i % 2 == 0) {
                heap->deallocate(blocks[i], bytes, 4);
            }
        }
    }
};

TEST_F(out_of_memory, a_damaged_slot_is_not_handed_out_again) {
    std::vector<void*> damaged;
    for (std::size_t i = 10; i < freed.size(); i += freed.size() / 5) {
        damaged.push_back(freed[i]);
        spoil(freed[i], 7);
    }
    std::vector<void*> again = all_of(bytes, 4);
    EXPECT_FALSE(again.empty());
    for (void* const p : damaged) {
        EXPECT_EQ(std::count(again.begin(), again.end(), p), 0);
    }
    for (void* const p : again) {
        heap->deallocate(p, bytes, 4);
    }
    for (void* const p : kept) {
        heap->deallocate(p, bytes, 4);
    }
    heap.reset();
    EXPECT_EQ(errors.count(error_kind::write_after_free), damaged.size());
    EXPECT_EQ(errors.count(), damaged.size());
}

TEST_F(out_of_memory, a_slot_that_is_used_again_is_aligned_as_asked) {
    for (const std::size_t alignment : {std::size_t{32}, std::size_t{64}}) {
        std::vector<void*> again = all_of(20, alignment);
        for (void* const p : again) {
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U) << p;
        }
        for (void* const p : again) {
            heap->deallocate(p, 20, alignment);
        }
    }
    for (void* const p : kept) {
        heap->deallocate(p, bytes, 4);
    }
    heap.reset();
    EXPECT_EQ(errors.count(), 0U);
}

// A short use after a long one: what the long one left is still watched.
TEST(unseen_damage, a_write_far_into_what_an_earlier_rewind_gave_up) {
    constexpr std::size_t large = std::size_t{1} << 20;
    const auto buffer = std::make_unique<std::byte[]>(2 * large);
    collecting_handler errors;
    pmr_debug::temp_resource<> arena(buffer.get(), 2 * large, {.handler = &errors});
    pmr_debug::temp_mark start(arena);
    void* const block = arena.allocate(large, 8);
    { arena.rewind(start); }
    for (int i = 0; i < 3; ++i) {
        pmr_debug::temp_mark inner(arena);
        EXPECT_NE(arena.allocate(10, 8), nullptr);
    }
    EXPECT_EQ(errors.count(), 0U);
    spoil(block, large / 2);
    EXPECT_EQ(arena.check(), 1U);
    EXPECT_EQ(errors.count(), 1U);
}

TEST(unseen_damage, a_rewind_looks_at_what_was_never_handed_out) {
    constexpr std::size_t size = std::size_t{1} << 16;
    const auto buffer = std::make_unique<std::byte[]>(size);
    collecting_handler errors;
    pmr_debug::temp_resource<> arena(buffer.get(), size, {.handler = &errors});
    pmr_debug::temp_mark start(arena);
    spoil(arena.allocate(100, 8), 1'000);
    EXPECT_EQ(errors.count(), 0U);
    arena.rewind(start);
    EXPECT_EQ(errors.count(error_kind::overrun), 1U);
    EXPECT_EQ(errors.count(), 1U);
}

// Without a quarantine, memory that was rewound is seen for the last time when its chunk goes back.
TEST(unseen_damage, a_write_to_rewound_memory_of_a_chunk_that_goes_back) {
    collecting_handler errors;
    pmr_debug::temp_resource<> arena({.handler = &errors, .quarantine_bytes = 0});
    EXPECT_NE(arena.allocate(100, 8), nullptr);
    pmr_debug::temp_mark start(arena);
    void* const block = arena.allocate(2'000, 8);
    arena.rewind(start);
    spoil(block, 1'000);
    EXPECT_EQ(errors.count(), 0U);
    arena.release();
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::use_after_free) << errors[0].text;
    EXPECT_EQ(errors[0].facts.block.address, block);
    EXPECT_EQ(errors[0].facts.pointer, static_cast<unsigned char*>(block) + 1'000);
}

// A rewind looks a little way ahead only; of a chunk that it gives up all is looked at.
TEST(unseen_damage, a_write_far_into_rewound_memory_of_a_chunk_that_a_rewind_gives_up) {
    collecting_handler errors;
    pmr_debug::temp_resource<> arena(
        {.handler = &errors, .first_chunk_bytes = std::size_t{1} << 17, .quarantine_bytes = 0});
    EXPECT_NE(arena.allocate(100, 8), nullptr);
    pmr_debug::temp_mark in_the_first(arena);
    EXPECT_NE(arena.allocate(std::size_t{1} << 17, 8), nullptr);  // in the second chunk, which has room for more
    pmr_debug::temp_mark in_the_second(arena);
    void* const block = arena.allocate(40'000, 8);
    arena.rewind(in_the_second);
    spoil(block, 30'000);
    EXPECT_EQ(errors.count(), 0U);
    arena.rewind(in_the_first);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::use_after_free) << errors[0].text;
    EXPECT_EQ(errors[0].facts.block.address, block);
}

// A span that is dead, beside spans that live: it is trapped without them, and verified as they would be.
TEST(unseen_damage, a_write_after_free_to_a_span_that_is_trapped_alone) {
    constexpr std::size_t bytes = 1'000;
    constexpr std::size_t run = 180;  // blocks: a whole span lies around the middle
    collecting_handler errors;
    general_purpose_resource heap({.handler = &errors, .quarantine_bytes = 0});
    std::vector<void*> all;
    for (std::size_t i = 0; i < 8 * run; ++i) {
        all.push_back(heap.allocate(bytes, 8));
    }
    const auto is_kept = [](std::size_t i) { return i / run % 2 != 0; };
    std::size_t spoilt = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (!is_kept(i)) {
            heap.deallocate(all[i], bytes, 8);
            if (i % run == run / 2) {
                spoil(all[i], 500);
                ++spoilt;
            }
        }
    }
    EXPECT_EQ(errors.count(error_kind::write_after_free), spoilt);
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (is_kept(i)) {
            heap.deallocate(all[i], bytes, 8);
        }
    }
    EXPECT_EQ(errors.count(error_kind::write_after_free), spoilt);
    EXPECT_EQ(errors.count(), spoilt);
}

// In the child of a fork, whoever held the lock does not exist.
TEST(unseen_damage, nobody_is_within_an_arena_while_the_process_forks) {
    pmr_debug::metadata::arena arena;
    ASSERT_TRUE(arena.open(std::size_t{1} << 20));
    pmr_debug::os::fork_locks& locks = pmr_debug::os::fork_locks::the_only();
    locks.begin();
    arena.hold(locks);
    std::atomic<bool> served{false};
    std::thread other([&] {
        EXPECT_NE(arena.allocate(64), nullptr);
        served = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_FALSE(served);
    locks.release();
    other.join();
    EXPECT_TRUE(served);
    arena.close();
}

}  // namespace
