// Canary resources over, under and beside others, and from several threads.

#include "support/call_here.hpp"
#include "support/canary_fixture.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/chain.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <memory_resource>
#include <new>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using pmr_debug::basic_canary_resource;
using pmr_debug::canary_options;
using pmr_debug::canary_resource;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::policy;
using pmr_debug::report;
using pmr_debug::threading;
using test_support::allocate_here;
using test_support::damage;
using test_support::free_again_here;
using test_support::free_here;
using test_support::only;
using test_support::stray_write;
using test_support::trace_contains;

/// A program without errors, of many sizes and alignments.
void exercise(std::pmr::memory_resource& r, unsigned seed, int rounds = 2000) {
    struct block {
        unsigned char* p;
        std::size_t bytes;
        std::size_t alignment;
    };
    std::vector<block> live;
    std::mt19937 random(seed);
    for (int i = 0; i < rounds; ++i) {
        if (live.size() < 50 || random() % 2 == 0) {
            const std::size_t bytes = random() % 64 == 0 ? random() % 40'000 : random() % 300;
            const std::size_t alignment = std::size_t{1} << (random() % 8);
            auto* const p = static_cast<unsigned char*>(r.allocate(bytes, alignment));
            std::memset(p, static_cast<int>(bytes % 251), bytes);
            live.push_back({p, bytes, alignment});
        } else {
            const std::size_t k = random() % live.size();
            const block b = live[k];
            for (std::size_t at = 0; at < b.bytes; ++at) {
                ASSERT_EQ(b.p[at], b.bytes % 251);
            }
            r.deallocate(b.p, b.bytes, b.alignment);
            live[k] = live.back();
            live.pop_back();
        }
    }
    for (const block& b : live) {
        r.deallocate(b.p, b.bytes, b.alignment);
    }
    std::pmr::map<int, std::pmr::string> words(&r);
    for (int i = 0; i < 200; ++i) {
        words[i] = "a string that does not fit into the object itself";
    }
}

struct canary_chain : ::testing::Test {
    collecting_handler errors;
};

TEST_F(canary_chain, over_general_purpose_over_pages) {
    pmr_debug::page_resource pages({.handler = &errors});
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap", .handler = &errors});
    canary_resource guarded(&heap, {.name = "guarded", .handler = &errors});
    exercise(guarded, 1);
    EXPECT_EQ(guarded.check() + heap.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
    void* const p = allocate_here(guarded, 64, 8);
    damage(p, 64);
    free_here(guarded, p, 64, 8);
    EXPECT_EQ(only(errors).kind, error_kind::overrun);
    EXPECT_EQ(only(errors).resource.name, "guarded");  // the topmost one sees it
    EXPECT_EQ(heap.check(), 0U);
    errors.clear();
    void* const q = allocate_here(guarded, 64, 8);
    free_here(heap, q, 64, 8);  // past the guards
    EXPECT_EQ(only(errors).kind, error_kind::wrong_resource);
    EXPECT_EQ(only(errors).owner.name, "guarded");
    guarded.deallocate(q, 64, 8);
    EXPECT_EQ(errors.count(), 1U);
}

TEST_F(canary_chain, below_tracking) {
    canary_resource guarded(canary_options{.name = "guarded", .handler = &errors});
    pmr_debug::tracking_resource scope(&guarded, {.name = "scope", .handler = &errors});
    exercise(scope, 2);
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(scope.stats().live_blocks, 0U);
    EXPECT_EQ(guarded.stats().live_blocks, 0U);
    void* const p = allocate_here(scope, 64, 8);
    damage(p, -1);
    free_here(scope, p, 64, 8);
    EXPECT_EQ(only(errors).kind, error_kind::underrun);
    EXPECT_EQ(only(errors).resource.name, "guarded");
    EXPECT_TRUE(trace_contains(only(errors).allocated, "allocate_here"));
    errors.clear();
    free_again_here(scope, p, 64, 8);
    EXPECT_EQ(only(errors).kind, error_kind::double_free);
    EXPECT_EQ(only(errors).resource.name, "scope");
}

TEST_F(canary_chain, over_a_canary) {
    canary_resource inner(canary_options{.name = "inner", .handler = &errors});
    canary_resource outer(&inner, canary_options{.name = "outer", .handler = &errors});
    exercise(outer, 3);
    EXPECT_EQ(outer.check() + inner.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
    void* const p = allocate_here(outer, 64, 8);
    damage(p, 64);       // guard of outer
    damage(p, 64 + 16);  // guard of inner
    EXPECT_EQ(outer.check(), 1U);
    EXPECT_EQ(inner.check(), 1U);
    EXPECT_EQ(errors[0].facts.resource.name, "outer");
    EXPECT_EQ(errors[0].facts.first_bad, static_cast<std::byte*>(p) + 64);
    EXPECT_EQ(errors[1].facts.resource.name, "inner");
    EXPECT_EQ(errors[1].facts.first_bad, static_cast<std::byte*>(p) + 80);
    errors.clear();
    free_here(inner, p, 64, 8);
    EXPECT_EQ(only(errors).kind, error_kind::wrong_resource);
    EXPECT_EQ(only(errors).owner.name, "outer");
    outer.deallocate(p, 64, 8);
}

TEST_F(canary_chain, below_the_standard_pools) {
    canary_resource guarded(canary_options{.handler = &errors});
    {
        std::pmr::unsynchronized_pool_resource pool(&guarded);
        exercise(pool, 4);
        pool.release();
        exercise(pool, 5);
        std::pmr::synchronized_pool_resource locked(&guarded);
        exercise(locked, 6);
        std::pmr::monotonic_buffer_resource arena(&guarded);
        exercise(arena, 7);
        EXPECT_EQ(guarded.check(), 0U);
    }
    EXPECT_EQ(guarded.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(canary_chain, use_of_an_arena_after_its_release) {
    canary_resource guarded(canary_options{.handler = &errors});
    std::pmr::monotonic_buffer_resource arena(&guarded);
    void* const p = arena.allocate(100, 8);
    arena.release();
    stray_write(p, 5, 1);
    EXPECT_EQ(guarded.check(), 1U);
    EXPECT_EQ(only(errors).kind, error_kind::write_after_free);
    EXPECT_EQ(only(errors).first_bad, static_cast<std::byte*>(p) + 5);
}

// A resource that adds a header and forgets it when it frees.
class forgetful final : public std::pmr::memory_resource {
public:
    explicit forgetful(std::pmr::memory_resource& upstream) : upstream_(upstream) {}

private:
    static constexpr std::size_t header = 16;
    void* do_allocate(std::size_t bytes, std::size_t) override {
        return static_cast<std::byte*>(upstream_.allocate(bytes + header, header)) + header;
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t) override {
        upstream_.deallocate(static_cast<std::byte*>(p) - header, bytes, header);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
    std::pmr::memory_resource& upstream_;
};

TEST_F(canary_chain, below_a_resource_that_forgets_its_header) {
    canary_resource guarded(canary_options{.handler = &errors});
    forgetful wrapper(guarded);
    wrapper.deallocate(wrapper.allocate(100, 8), 100, 8);
    EXPECT_EQ(only(errors).kind, error_kind::size_mismatch);
    EXPECT_EQ(only(errors).block.size, 116U);
    EXPECT_EQ(only(errors).given_size, 100U);
}

TEST_F(canary_chain, as_the_default_resource) {
    canary_resource guarded(canary_options{.handler = &errors});
    std::pmr::memory_resource* const before = std::pmr::set_default_resource(&guarded);
    {
        std::pmr::list<std::pmr::string> words;
        for (int i = 0; i < 100; ++i) {
            words.emplace_back("a string that does not fit into the object itself");
        }
        EXPECT_EQ(guarded.stats().live_blocks, 200U);
    }
    std::pmr::set_default_resource(before);
    EXPECT_EQ(guarded.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(canary_chain, a_printed_chain_shows_its_sizes) {
    canary_resource guarded(canary_options{.name = "guarded", .handler = &errors});
    void* const p = guarded.allocate(100, 8);
    std::string text;
    pmr_debug::write_chain(
        guarded,
        [](std::string_view piece, void* context) noexcept { static_cast<std::string*>(context)->append(piece); },
        &text);
    EXPECT_NE(text.find("\"guarded\" (canary_resource #"), std::string::npos) << text;
    EXPECT_NE(text.find("100 bytes live in 1 block"), std::string::npos) << text;
    guarded.deallocate(p, 100, 8);
}

TEST_F(canary_chain, resources_that_stand_on_each_other) {
    alignas(canary_resource) std::byte place[sizeof(canary_resource)];
    const canary_options options{.handler = &errors};
    canary_resource first(static_cast<std::pmr::memory_resource*>(reinterpret_cast<canary_resource*>(place)), options);
    EXPECT_EQ(errors.count(), 0U);
    auto* const second = ::new (place) canary_resource(static_cast<std::pmr::memory_resource*>(&first), options);
    EXPECT_EQ(only(errors).kind, error_kind::cycle);
    std::destroy_at(second);
}

// ---- Threads -------------------------------------------------------------------------------------------------------

TEST_F(canary_chain, threads_free_each_others_blocks_while_another_one_checks) {
    canary_resource guarded(canary_options{.handler = &errors, .quarantine_bytes = 50'000});
    constexpr int workers = 3;
    constexpr int slots = 64;
    std::atomic<void*> shared[slots]{};
    std::atomic<int> running{workers};
    const auto work = [&](unsigned seed) {
        std::mt19937 random(seed);
        for (int i = 0; i < 3000; ++i) {
            void* const fresh = guarded.allocate(80, 8);
            std::memset(fresh, static_cast<int>(seed), 80);
            if (void* const old = shared[random() % slots].exchange(fresh); old != nullptr) {
                guarded.deallocate(old, 80, 8);
            }
        }
        --running;
    };
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < workers; ++i) {
        threads.emplace_back(work, i + 1);
    }
    std::size_t damaged = 0;
    do {
        damaged += guarded.check();
        (void)guarded.stats();
    } while (running != 0);
    for (std::thread& t : threads) {
        t.join();
    }
    for (std::atomic<void*>& s : shared) {
        if (void* const p = s.load(); p != nullptr) {
            guarded.deallocate(p, 80, 8);
        }
    }
    EXPECT_EQ(damaged, 0U);
    EXPECT_EQ(guarded.stats().live_blocks, 0U);
    EXPECT_EQ(guarded.stats().total_allocations, 9000U);
    EXPECT_EQ(guarded.stats().upstream_bytes, guarded.quarantine().bytes);
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(canary_chain, one_block_freed_by_two_threads_at_once) {
    canary_resource guarded(canary_options{.handler = &errors});
    for (int i = 0; i < 200; ++i) {
        void* const p = guarded.allocate(16, 8);
        std::atomic<int> ready{0};
        const auto free_it = [&] {
            ++ready;
            while (ready != 2) {
            }
            guarded.deallocate(p, 16, 8);
        };
        std::thread other(free_it);
        free_it();
        other.join();
    }
    EXPECT_EQ(errors.count(error_kind::double_free), 200U);
    EXPECT_EQ(errors.count(), 200U);
    EXPECT_EQ(guarded.quarantine().blocks, 200U);
}

TEST_F(canary_chain, a_second_thread_is_reported) {
    basic_canary_resource<policy{.threads = threading::single_checked}> mine(
        canary_options{.name = "mine", .handler = &errors});
    void* const p = allocate_here(mine, 16, 8);
    EXPECT_EQ(errors.count(), 0U);
    std::thread([&] { free_here(mine, p, 16, 8); }).join();
    const report& r = only(errors);
    EXPECT_EQ(r.kind, error_kind::foreign_thread);
    EXPECT_EQ(r.pointer, p);
    EXPECT_NE(r.thread, r.other_thread);
    EXPECT_TRUE(trace_contains(r.here, "free_here"));
    EXPECT_TRUE(trace_contains(r.other, "allocate_here"));
    EXPECT_EQ(mine.stats().live_blocks, 0U);  // it was carried out
}

TEST_F(canary_chain, a_second_thread_is_reported_without_traces_too) {
    basic_canary_resource<policy{.threads = threading::single_checked, .alloc_frames = 0, .free_frames = 0}> mine(
        canary_options{.handler = &errors});
    void* const p = allocate_here(mine, 16, 8);
    std::thread([&] { free_here(mine, p, 16, 8); }).join();
    EXPECT_EQ(only(errors).kind, error_kind::foreign_thread);
    EXPECT_TRUE(trace_contains(only(errors).other, "allocate_here"));
}

}  // namespace
