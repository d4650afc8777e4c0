#include "workloads.hpp"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <ctime>
#include <numeric>
#include <thread>
#include <utility>

namespace bench {
namespace {

constexpr std::uint64_t seed = 0x9E3779B97F4A7C15;
constexpr std::size_t many = 1'000'000;

/// xorshift64*.
class generator {
public:
    explicit generator(std::uint64_t state) noexcept : state_(state) {}

    /// Returns: a number in [0, n).
    std::uint64_t below(std::uint64_t n) noexcept { return (u32() * n) >> 32; }
    /// Returns: a size in [1, 1024], about as many in every power of two.
    std::size_t small_size() noexcept { return size_of(below(10)); }
    /// Returns: a size in [4096, 262144].
    std::size_t large_size() noexcept { return size_of(12 + below(6)); }

private:
    std::uint64_t u32() noexcept {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return (state_ * 0x2545F4914F6CDD1D) >> 32;
    }
    std::size_t size_of(std::uint64_t exponent) noexcept {
        const std::uint64_t base = std::uint64_t{1} << exponent;
        return base + below(base + 1);
    }

    std::uint64_t state_;
};

/// One thread's use of the resource.
struct user {
    std::pmr::memory_resource& resource;
    std::uint64_t checksum = 0;

    block allocate(std::size_t bytes) {
        auto* p = static_cast<unsigned char*>(resource.allocate(bytes, 1));
        asm volatile("" : "+r"(p)::"memory");  // nothing is known of this pointer
        p[0] = static_cast<unsigned char>(bytes & 255);
        p[bytes - 1] = static_cast<unsigned char>((bytes >> 3) & 255);
        checksum = checksum * 31 + bytes;
        return {p, bytes};
    }
    void free(block b) {
        checksum += std::uint64_t{b.p[0]} + b.p[b.bytes - 1];
        resource.deallocate(b.p, b.bytes, 1);
    }
};

class stopwatch {
public:
    void stop(outcome& result) const noexcept {
        result.wall_ns = static_cast<double>((clock::now() - wall_).count());
        result.cpu_ns = thread_ns() - cpu_;
    }

private:
    using clock = std::chrono::steady_clock;
    static double thread_ns() noexcept {
        std::timespec t{};
        ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
    }

    double cpu_ = thread_ns();
    clock::time_point wall_ = clock::now();
};
static_assert(std::is_same_v<std::chrono::steady_clock::duration, std::chrono::nanoseconds>);

// The timed loops are functions of their own, so that a profiler can be told to look at nothing else.

[[gnu::noinline]] void pair_loop(user& u) {
    for (std::uint64_t i = 0; i < find(workload_id::w1).operations; ++i) {
        u.free(u.allocate(64));
    }
}

[[gnu::noinline]] void ring_loop(user& u, std::vector<block>& ring) {
    for (std::uint64_t i = 0; i < find(workload_id::w1b).operations; ++i) {
        block& b = ring[i & 63];
        u.free(b);
        b = u.allocate(64);
    }
}

template <std::size_t (generator::*Size)()>
[[gnu::noinline]] void churn_loop(user& u, std::vector<block>& live, generator& random, std::uint64_t operations) {
    for (std::uint64_t i = 0; i < operations; ++i) {
        block& b = live[random.below(live.size())];
        u.free(b);
        b = u.allocate((random.*Size)());
    }
}

void free_all(user& u, const std::vector<block>& blocks) {
    for (const block& b : blocks) {
        u.free(b);
    }
}

void pairs(user& u, outcome& result) {
    const stopwatch time;
    pair_loop(u);
    time.stop(result);
}

void ring(user& u, std::vector<block>& live, outcome& result) {
    for (block& b : live) {
        b = u.allocate(64);
    }
    const stopwatch time;
    ring_loop(u, live);
    time.stop(result);
    free_all(u, live);
}

template <std::size_t (generator::*Size)(), class Start>
void churn(user& u, std::vector<block>& live, std::uint64_t start, std::uint64_t operations, outcome& result,
           Start await_start) {
    generator random(start);
    for (block& b : live) {
        b = u.allocate((random.*Size)());
    }
    await_start();
    const stopwatch time;
    churn_loop<Size>(u, live, random, operations);
    time.stop(result);
    free_all(u, live);
}

[[gnu::noinline]] void fill_and_free(user& u, std::vector<block>& live) {
    for (block& b : live) {
        b = u.allocate(16);
    }
    free_all(u, live);
}

[[gnu::noinline]] void fill_and_free_shuffled(user& u, std::vector<block>& live,
                                              const std::vector<std::uint32_t>& order) {
    for (block& b : live) {
        b = u.allocate(16);
    }
    for (const std::uint32_t i : order) {
        u.free(live[i]);
    }
}

outcome churn_in_two_threads(std::pmr::memory_resource& resource, scratch& space) {
    std::array<outcome, 2> results;
    std::barrier filled(2);
    const auto work = [&](std::size_t i) {
        user u{resource};
        const auto body = [&] {
            churn<&generator::small_size>(u, space.blocks[i], seed + 1 + i, find(workload_id::w6).operations,
                                          results[i], [&] { filled.arrive_and_wait(); });
        };
        nested<20>(body);
        results[i].checksum = u.checksum;
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    outcome slower = results[0].wall_ns > results[1].wall_ns ? results[0] : results[1];
    slower.checksum = results[0].checksum ^ results[1].checksum;
    return slower;
}

// Waits for the other process; not for ever, as it may have failed.
void meet(std::atomic<unsigned>& arrived) {
    constexpr std::chrono::seconds long_enough{60};
    arrived.fetch_add(1);
    const auto start = std::chrono::steady_clock::now();
    while (arrived.load() < 2 && std::chrono::steady_clock::now() - start < long_enough) {
        std::this_thread::yield();
    }
}

}  // namespace

scratch::scratch(workload_id id) {
    switch (id) {
        case workload_id::w1: break;
        case workload_id::w1b: blocks.assign(1, std::vector<block>(64)); break;
        case workload_id::w2:
        case workload_id::w2x2: blocks.assign(1, std::vector<block>(100'000)); break;
        case workload_id::w3: blocks.assign(1, std::vector<block>(1'000)); break;
        case workload_id::w4: blocks.assign(1, std::vector<block>(many)); break;
        case workload_id::w5: {
            blocks.assign(1, std::vector<block>(many));
            order.resize(many);
            std::iota(order.begin(), order.end(), std::uint32_t{0});
            generator random(seed);
            for (std::size_t i = many - 1; i >= 1; --i) {
                std::swap(order[i], order[random.below(i + 1)]);
            }
            break;
        }
        case workload_id::w6: blocks.assign(2, std::vector<block>(100'000)); break;
    }
}

outcome run(workload_id id, std::pmr::memory_resource& resource, scratch& space) {
    if (id == workload_id::w6) {
        return churn_in_two_threads(resource, space);
    }
    outcome result;
    user u{resource};
    const std::uint64_t operations = find(id).operations;
    const auto at_once = [] {};
    const auto body = [&] {
        switch (id) {
            case workload_id::w1: pairs(u, result); break;
            case workload_id::w1b: ring(u, space.blocks[0], result); break;
            case workload_id::w2:
                churn<&generator::small_size>(u, space.blocks[0], seed, operations, result, at_once);
                break;
            case workload_id::w2x2:
                churn<&generator::small_size>(u, space.blocks[0], seed, operations, result,
                                              [&] { meet(*space.arrived); });
                break;
            case workload_id::w3:
                churn<&generator::large_size>(u, space.blocks[0], seed, operations, result, at_once);
                break;
            case workload_id::w4: {
                const stopwatch time;
                fill_and_free(u, space.blocks[0]);
                time.stop(result);
                break;
            }
            case workload_id::w5: {
                const stopwatch time;
                fill_and_free_shuffled(u, space.blocks[0], space.order);
                time.stop(result);
                break;
            }
            case workload_id::w6: break;
        }
    };
    nested<20>(body);
    result.checksum = u.checksum;
    return result;
}

}  // namespace bench
