// Many threads on one resource, limits and counters under them.

#include "support/general_purpose.hpp"
#include "support/sanitizers.hpp"

#include <array>
#include <atomic>
#include <deque>
#include <mutex>
#include <thread>

namespace {

using namespace test_support;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_options;
using pmr_debug::general_purpose_resource;
using pmr_debug::report;

constexpr std::size_t operations = TEST_UNDER_TSAN ? 3'000 : 20'000;

struct block {
    unsigned char* p;
    std::size_t bytes;
    unsigned char value;
};

// Blocks on their way from one thread to another.
class exchange {
public:
    void put(block b) {
        const std::scoped_lock hold(lock_);
        blocks_.push_back(b);
    }
    bool take(block& b) {
        const std::scoped_lock hold(lock_);
        if (blocks_.empty()) {
            return false;
        }
        b = blocks_.front();
        blocks_.pop_front();
        return true;
    }

private:
    std::mutex lock_;
    std::deque<block> blocks_;
};

// Allocates, checks, hands over, and frees what others handed over.
void work(std::pmr::memory_resource& heap, exchange& others, std::uint64_t seed, std::atomic<bool>& intact) {
    std::vector<block> mine;
    std::uint64_t s = seed * 0x9E3779B97F4A7C15U;
    const auto end = [&](const block& b) {
        if (!all_are(b.p, b.bytes, b.value)) {
            intact = false;
        }
        heap.deallocate(b.p, b.bytes, 8);
    };
    for (std::size_t i = 0; i < operations; ++i) {
        s ^= s >> 12U;
        s ^= s << 25U;
        s ^= s >> 27U;
        const std::size_t bytes = i % 128 == 0 ? 8'000 + s % 30'000 : s % 400;
        const block b{static_cast<unsigned char*>(heap.allocate(bytes, 8)), bytes,
                      static_cast<unsigned char>(s >> 48U)};
        std::memset(b.p, b.value, bytes);
        if (s % 3 == 0) {
            others.put(b);
        } else {
            mine.push_back(b);
        }
        if (block other{}; s % 4 == 0 && others.take(other)) {
            end(other);
        }
        if (mine.size() > 50) {
            const std::size_t victim = (s >> 20U) % mine.size();
            end(mine[victim]);
            mine[victim] = mine.back();
            mine.pop_back();
        }
    }
    for (const block& b : mine) {
        end(b);
    }
}

template <class Policy>
struct general_purpose_threads : heap_test<Policy> {};
#ifdef TEST_ALL_POLICIES
using shared_policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::fast_policy>, with<pmr_debug::release_policy>,
                     with<immediate_policy>, with<quarantined_policy>, with<canary_policy>, with<keeping_policy>>;
#else
using shared_policies =
    ::testing::Types<with<pmr_debug::default_policy>, with<pmr_debug::fast_policy>, with<pmr_debug::release_policy>,
                     with<quarantined_policy>, with<keeping_policy>>;
#endif
TYPED_TEST_SUITE(general_purpose_threads, shared_policies);

TYPED_TEST(general_purpose_threads, blocks_passed_between_threads_and_between_resources) {
    typename TypeParam::resource second(&*this->pages, {.name = "second", .handler = &this->errors});
    {
        exchange first_blocks;
        exchange second_blocks;
        std::atomic<bool> intact{true};
        std::vector<std::thread> threads;
        for (std::uint64_t t = 1; t <= 4; ++t) {
            threads.emplace_back([&, t] { work(*this->heap, first_blocks, t, intact); });
            if (t % 2 == 0) {
                threads.emplace_back([&, t] { work(second, second_blocks, t + 10, intact); });
            }
        }
        for (std::thread& t : threads) {
            t.join();
        }
        for (block b{}; first_blocks.take(b);) {
            this->heap->deallocate(b.p, b.bytes, 8);
        }
        for (block b{}; second_blocks.take(b);) {
            second.deallocate(b.p, b.bytes, 8);
        }
        EXPECT_TRUE(intact);
    }
    for (auto* const each : {&*this->heap, &second}) {
        EXPECT_EQ(each->stats().live_blocks, 0U);
        EXPECT_EQ(each->stats().live_bytes, 0U);
        EXPECT_EQ(each->stats().total_allocations, each->stats().total_deallocations);
        EXPECT_EQ(each->check(), 0U);
        EXPECT_TRUE(each->ok());
    }
    EXPECT_EQ(this->heap->stats().total_allocations, 4 * operations);
    EXPECT_EQ(this->errors.count(), 0U) << (this->errors.size() != 0 ? std::string(this->errors.back().text) : "");
}

TYPED_TEST(general_purpose_threads, many_short_lived_threads) {
    constexpr std::size_t threads = TEST_UNDER_TSAN ? 100 : 500;
    std::vector<void*> left;
    for (std::size_t i = 0; i < threads; ++i) {
        std::thread([&] {
            left.push_back(this->heap->allocate(64, 8));
            this->heap->deallocate(this->heap->allocate(64, 8), 64, 8);
        }).join();
    }
    EXPECT_EQ(this->heap->stats().live_blocks, threads);
    for (void* const p : left) {  // their threads are gone
        this->heap->deallocate(p, 64, 8);
    }
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    // A thread takes over what the one before left: no unit each.
    EXPECT_LT(this->heap->stats().upstream_bytes, std::uint64_t{4} << 20);
    EXPECT_TRUE(this->heap->ok());
}

TYPED_TEST(general_purpose_threads, block_of_a_thread_that_ended_names_it) {
    if (!this->rules.checks || !this->remembers_the_dead) {
        GTEST_SKIP() << "nothing is recorded";
    }
    void* p = nullptr;
    std::uint32_t gone = 0;
    std::thread([&] {
        gone = pmr_debug::os::this_thread().number;
        p = allocates_the_block(*this->heap, 64);
    }).join();
    frees_it_first(*this->heap, p, 64);
    frees_it_again(*this->heap, p, 64);
    const report r = this->only(error_kind::double_free);
    EXPECT_EQ(r.block.alloc_thread, gone);
    EXPECT_EQ(r.block.free_thread, pmr_debug::os::this_thread().number);
    EXPECT_EQ(r.thread, pmr_debug::os::this_thread().number);
}

TYPED_TEST(general_purpose_threads, of_two_concurrent_frees_exactly_one_is_reported) {
    if (!this->rules.checks || !this->remembers_the_dead) {
        GTEST_SKIP() << "a freed slot may belong to somebody else by then";
    }
    constexpr std::size_t rounds = TEST_SANITIZED ? 300 : 1'000;
    std::vector<void*> blocks;
    for (std::size_t i = 0; i < rounds; ++i) {
        blocks.push_back(allocates_the_block(*this->heap, 300));
    }
    void* const keeps_the_unit = this->heap->allocate(300, 8);
    std::array<std::atomic<std::size_t>, 2> at{};
    const auto run = [&](std::size_t self) {
        for (std::size_t i = 0; i < rounds; ++i) {
            at[self] = i + 1;
            while (at[1 - self] < i + 1) {
                std::this_thread::yield();
            }
            this->heap->deallocate(blocks[i], 300, 8);
        }
    };
    std::thread other(run, 1);
    run(0);
    other.join();
    EXPECT_EQ(this->errors.count(error_kind::double_free), rounds);
    EXPECT_EQ(this->errors.count(), rounds);
    EXPECT_EQ(this->heap->stats().live_blocks, 1U);
    EXPECT_EQ(this->heap->stats().total_deallocations, rounds);
    for (std::size_t i = 0; i < this->errors.size(); ++i) {
        const report& r = this->errors[i].facts;
        ASSERT_EQ(r.block.size, 300U);
        ASSERT_EQ(r.block.state, pmr_debug::block_state::freed);
        ASSERT_NE(r.block.free_thread, 0U);
        ASSERT_EQ(r.freed == pmr_debug::trace_id::none, this->rules.free_frames == 0);
    }
    this->heap->deallocate(keeps_the_unit, 300, 8);
    this->errors.clear();
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_threads, overruns_found_by_several_threads_at_once) {
    if (this->rules.guard_bytes == 0) {
        GTEST_SKIP() << "no canary";
    }
    std::vector<void*> blocks;
    for (int i = 0; i < 200; ++i) {
        blocks.push_back(this->heap->allocate(64, 8));
        *bytes_at(blocks.back(), 64) = std::byte{1};
    }
    const auto free_half = [&](std::size_t from) {
        for (std::size_t i = from; i < blocks.size(); i += 2) {
            this->heap->deallocate(blocks[i], 64, 8);
        }
    };
    std::thread other(free_half, 1);
    free_half(0);
    other.join();
    EXPECT_EQ(this->errors.count(error_kind::overrun), 200U);
    EXPECT_EQ(this->errors.count(), 200U);
}

TYPED_TEST(general_purpose_threads, a_refused_request_never_costs_another_thread_its_own) {
    typename TypeParam::resource inner(&*this->pages, {.handler = &this->errors, .limit_bytes = 1'000});
    std::atomic<bool> stop{false};
    std::thread greedy([&] {
        while (!stop) {
            try {
                inner.deallocate(inner.allocate(5'000, 8), 5'000, 8);
            } catch (const std::bad_alloc&) {
                std::this_thread::yield();
            }
        }
    });
    std::size_t refused = 0;
    for (int i = 0; i < 20'000 && inner.errors().total() < 900; ++i) {
        try {
            inner.deallocate(inner.allocate(8, 8), 8, 8);
        } catch (const std::bad_alloc&) {
            ++refused;
        }
    }
    stop = true;
    greedy.join();
    EXPECT_EQ(refused, 0U);
}

TYPED_TEST(general_purpose_threads, block_limit_is_exact) {
    typename TypeParam::resource inner(&*this->pages, {.handler = &this->errors, .limit_blocks = 100});
    std::atomic<std::size_t> granted{0};
    std::vector<std::thread> threads;
    std::mutex lock;
    std::vector<void*> live;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 50; ++i) {
                try {
                    void* const p = inner.allocate(16, 8);
                    ++granted;
                    const std::scoped_lock hold(lock);
                    live.push_back(p);
                } catch (const std::bad_alloc&) {
                    std::this_thread::yield();
                }
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_EQ(granted, 100U);
    const auto stats = inner.stats();
    EXPECT_EQ(stats.live_blocks, 100U);
    EXPECT_EQ(stats.peak_blocks, 100U);
    EXPECT_EQ(stats.failed_allocations, 100U);
    EXPECT_EQ(this->errors.count(error_kind::limit_exceeded), 100U);
    for (void* const p : live) {
        inner.deallocate(p, 16, 8);
    }
}

// ---- counters -------------------------------------------------------------------------------------------------------

template <class Policy>
struct general_purpose_statistics : heap_test<Policy> {};
TYPED_TEST_SUITE(general_purpose_statistics, all_policies);

TYPED_TEST(general_purpose_statistics, exact) {
    auto& r = *this->heap;
    void* const a = r.allocate(100, 8);
    void* const b = r.allocate(50'000, 8);
    void* const c = r.allocate(0, 1);
    auto s = r.stats();
    EXPECT_EQ(s.live_blocks, 3U);
    EXPECT_EQ(s.live_bytes, 50'100U);
    EXPECT_EQ(s.peak_blocks, 3U);
    EXPECT_EQ(s.peak_bytes, 50'100U);
    r.deallocate(b, 50'000, 8);
    r.deallocate(a, 100, 8);
    r.deallocate(c, 0, 1);
    s = r.stats();
    EXPECT_EQ(s.live_blocks, 0U);
    EXPECT_EQ(s.live_bytes, 0U);
    EXPECT_EQ(s.peak_blocks, 3U);
    EXPECT_EQ(s.peak_bytes, 50'100U);
    EXPECT_EQ(s.total_allocations, 3U);
    EXPECT_EQ(s.total_deallocations, 3U);
    EXPECT_EQ(s.total_bytes, 50'100U);
    EXPECT_EQ(s.failed_allocations, 0U);
    EXPECT_EQ(s.recycled_units, 0U);
}

TYPED_TEST(general_purpose_statistics, overhead_per_slot_is_16_bytes_or_8_without_traces) {
    // Each policy has slots of 32 or 16 bytes for this: a unit holds just below a power of two of them, and
    // private memory comes in powers of two. Exact alignment takes room to move the block by.
    const std::size_t bytes = this->rules.exact_alignment ? 8 : 16;
    std::vector<void*> blocks;
    const auto take = [&](std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) {
            blocks.push_back(this->heap->allocate(bytes, 8));
        }
    };
    // Few where records are protected, as each call then is system calls: three whole units, past what is set up once.
    take(this->rules.protect_metadata ? 2'047 : 20'000);
    const std::uint64_t before = this->heap->stats().overhead_bytes;
    const std::size_t more = this->rules.protect_metadata ? 3 * 2'047 : 100'000;
    take(more);
    const double per_slot =
        static_cast<double>(this->heap->stats().overhead_bytes - before) / static_cast<double>(more);
    const bool traces = this->rules.alloc_frames != 0 || this->rules.free_frames != 0;
    const double expected = !this->rules.checks ? 0 : traces ? 16 : 8;
    EXPECT_GE(per_slot, expected * 0.95);
    EXPECT_LE(per_slot, expected * 1.1 + 0.5);
    for (void* const p : blocks) {
        this->heap->deallocate(p, bytes, 8);
    }
}

}  // namespace
