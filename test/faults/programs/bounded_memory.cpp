// Ten patterns of use that make an allocator keep more and more: bounded_memory <resource> <pattern>. Prints what is in
// memory afterwards, by the kernel's count and by the resource's, and what the same live blocks take in a fresh one:
//
//   resident=<KiB> counted=<KiB> fresh=<KiB> live=<KiB>

#include <pmr_debug/pmr_debug.hpp>

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using std::size_t;

class generator {
public:
    explicit generator(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15 + 1) {}
    size_t below(size_t n) {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return static_cast<size_t>((((state_ * 0x2545F4914F6CDD1D) >> 32) * n) >> 32);
    }

private:
    std::uint64_t state_;
};

/// A resource under test, with what stands below it.
struct subject {
    std::unique_ptr<std::pmr::memory_resource> below;
    std::unique_ptr<std::pmr::memory_resource> top;
    std::function<pmr_debug::statistics()> stats;
    size_t scale = 2;  ///< so many times less is done
};

template <class R>
subject make(std::unique_ptr<std::pmr::memory_resource> below) {
    subject s;
    s.below = std::move(below);
    auto top = std::make_unique<R>(s.below.get());
    s.stats = [r = top.get()] { return r->stats(); };
    s.top = std::move(top);
    return s;
}

subject make(std::string_view kind) {
    using namespace pmr_debug;
    if (kind == "default") {
        return make<general_purpose_resource>(std::make_unique<page_resource>());
    }
    if (kind == "default_over_heap") {
        subject s;
        auto top = std::make_unique<general_purpose_resource>();
        s.stats = [r = top.get()] { return r->stats(); };
        s.top = std::move(top);
        return s;
    }
    if (kind == "fast") {
        return make<basic_general_purpose_resource<fast_policy>>(std::make_unique<page_resource>());
    }
    if (kind == "thorough") {
        subject s = make<basic_general_purpose_resource<thorough_policy>>(std::make_unique<page_resource>());
        s.scale = 64;
        return s;
    }
    if (kind == "release") {
        return make<basic_general_purpose_resource<release_policy>>(std::make_unique<page_resource>());
    }
    subject s;
    const auto own = [&s]<class R>(std::unique_ptr<R> top) {
        s.stats = [r = top.get()] { return r->stats(); };
        s.top = std::move(top);
    };
    if (kind == "canary") {
        own(std::make_unique<canary_resource>());
    } else if (kind == "end_of_page") {
        own(std::make_unique<end_of_page_resource>());
        s.scale = 16;
    } else if (kind == "tracking") {
        own(std::make_unique<tracking_resource>());
    } else {
        std::abort();
    }
    return s;
}

struct block {
    void* p;
    size_t bytes;
    std::pmr::memory_resource* from;
};

block take(std::pmr::memory_resource& r, size_t bytes) {
    void* const p = r.allocate(bytes, 8);
    std::memset(p, 1, bytes);
    return {p, bytes, &r};
}

void give(const block& b) {
    b.from->deallocate(b.p, b.bytes, 8);
}

/// What a pattern leaves.
using blocks = std::vector<block>;

void shuffle(blocks& all, generator& any) {
    for (size_t i = all.size(); i > 1; --i) {
        std::swap(all[i - 1], all[any.below(i)]);
    }
}

void sawtooth(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    generator any(1);
    blocks now;
    for (int tooth = 0; tooth < 6; ++tooth) {
        for (size_t i = 0; i < 60'000 / scale; ++i) {
            now.push_back(take(r, 1 + any.below(1000)));
        }
        shuffle(now, any);
        for (size_t left = now.size() / 50; now.size() > left; now.pop_back()) {
            give(now.back());
        }
    }
    kept.insert(kept.end(), now.begin(), now.end());
}

void survivors(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    blocks batch;
    for (size_t b = 0; b < 8'000 / scale; ++b) {
        for (int i = 0; i < 128; ++i) {
            batch.push_back(take(r, 128));
        }
        kept.push_back(batch.back());
        batch.pop_back();
        std::for_each(batch.begin(), batch.end(), give);
        batch.clear();
    }
}

void one_class(std::pmr::memory_resource& r, size_t bytes, size_t scale, blocks& kept) {
    blocks batch;
    for (size_t i = 0; i < (size_t{6} << 20) / bytes / scale; ++i) {
        batch.push_back(take(r, bytes));
    }
    for (size_t i = 0; i < batch.size(); ++i) {
        i % 512 == 0 ? kept.push_back(batch[i]) : give(batch[i]);
    }
}

void growing(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    for (size_t bytes = 16; bytes < 20'000; bytes += bytes / 4) {
        one_class(r, bytes, scale, kept);
    }
}

void shrinking(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    for (size_t bytes = 20'000; bytes > 16; bytes -= bytes / 4) {
        one_class(r, bytes, scale, kept);
    }
}

void large_among_small(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    generator any(2);
    blocks small;
    for (size_t i = 0; i < 1'200 / scale; ++i) {
        for (int n = 0; n < 400; ++n) {
            small.push_back(take(r, 1 + any.below(300)));
        }
        const block large = take(r, 20'000 + any.below(200'000));
        std::for_each(small.begin(), small.end(), give);
        small.clear();
        i % 50 == 0 ? kept.push_back(large) : give(large);
    }
}

void producer_and_consumer(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    std::mutex lock;
    std::condition_variable changed;
    std::deque<block> waiting;
    bool done = false;
    std::thread consumer([&] {
        for (size_t seen = 0;;) {
            std::unique_lock hold(lock);
            changed.wait(hold, [&] { return done || !waiting.empty(); });
            if (waiting.empty()) {
                return;
            }
            std::deque<block> mine;
            mine.swap(waiting);
            changed.notify_all();
            hold.unlock();
            for (const block& b : mine) {
                ++seen % 200 == 0 ? kept.push_back(b) : give(b);
            }
        }
    });
    generator any(3);
    for (size_t i = 0; i < 4'000 / scale; ++i) {
        blocks made;
        for (int n = 0; n < 100; ++n) {
            made.push_back(take(r, 1 + any.below(600)));
        }
        std::unique_lock hold(lock);
        changed.wait(hold, [&] { return waiting.size() < 5'000; });
        waiting.insert(waiting.end(), made.begin(), made.end());
        changed.notify_all();
    }
    {
        const std::scoped_lock hold(lock);
        done = true;
        changed.notify_all();
    }
    consumer.join();
}

void many_threads(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    std::mutex lock;
    for (size_t round = 0; round < std::max<size_t>(24 / scale, 1); ++round) {
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < 8; ++t) {
            threads.emplace_back([&, t] {
                generator any(100 * round + t + 4);
                blocks mine;
                for (int i = 0; i < 8'000 / static_cast<int>(std::min<size_t>(scale, 8)); ++i) {
                    mine.push_back(take(r, 1 + any.below(400)));
                }
                shuffle(mine, any);
                while (mine.size() > 20) {
                    give(mine.back());
                    mine.pop_back();
                }
                const std::scoped_lock hold(lock);
                kept.insert(kept.end(), mine.begin(), mine.end());
            });
        }
        for (std::thread& t : threads) {
            t.join();
        }
    }
}

void alternating_large(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    generator any(5);
    blocks now;
    for (size_t i = 0; i < 1'600 / scale; ++i) {
        now.push_back(take(r, i % 2 == 0 ? 40'000 + any.below(60'000) : 300'000 + any.below(900'000)));
        if (now.size() > 8) {
            const size_t n = any.below(now.size());
            give(now[n]);
            now[n] = now.back();
            now.pop_back();
        }
    }
    kept.insert(kept.end(), now.begin(), now.end());
}

void heavy_tail(std::pmr::memory_resource& r, size_t scale, blocks& kept) {
    generator any(6);
    std::vector<std::vector<block>> ends(4'096);
    const size_t steps = 400'000 / scale;
    blocks far;
    for (size_t step = 0; step < steps; ++step) {
        std::vector<block>& due = ends[step % ends.size()];
        std::for_each(due.begin(), due.end(), give);
        due.clear();
        const block b = take(r, 1 + any.below(500));
        size_t life = 1 + any.below(16);
        while (any.below(3) == 0) {
            life *= 4;
        }
        life < ends.size() ? ends[(step + life) % ends.size()].push_back(b) : far.push_back(b);
        if (far.size() > 20'000 / scale) {
            const size_t n = any.below(far.size());
            give(far[n]);
            far[n] = far.back();
            far.pop_back();
        }
    }
    kept.insert(kept.end(), far.begin(), far.end());
    for (const std::vector<block>& due : ends) {
        kept.insert(kept.end(), due.begin(), due.end());
    }
}

struct pattern {
    const char* name;
    void (*run)(std::pmr::memory_resource&, size_t scale, blocks& kept);
};
constexpr pattern patterns[] = {
    {"sawtooth", sawtooth},
    {"survivors", survivors},
    {"growing", growing},
    {"shrinking", shrinking},
    {"large_among_small", large_among_small},
    {"producer_and_consumer", producer_and_consumer},
    {"many_threads", many_threads},
    {"alternating_large", alternating_large},
    {"heavy_tail", heavy_tail},
};

/// Bytes in memory.
size_t resident() {
    unsigned long total = 0;
    unsigned long now = 0;
    if (std::FILE* const f = std::fopen("/proc/self/statm", "r"); f != nullptr) {
        if (std::fscanf(f, "%lu %lu", &total, &now) != 2) {
            now = 0;
        }
        std::fclose(f);
    }
    return now * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

size_t counted(const std::vector<subject>& all) {
    size_t sum = 0;
    for (const subject& s : all) {
        const pmr_debug::statistics now = s.stats();
        sum += now.resident_bytes + now.overhead_bytes;
    }
    return sum;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        return 2;
    }
    const std::string_view kind = argv[1];
    const std::string_view name = argv[2];
    blocks kept;
    kept.reserve(200'000);
    const size_t resources = name == "many_resources" ? 24 : 1;
    std::vector<size_t> ends;  // of each resource's blocks among the kept ones
    const size_t before = resident();
    std::vector<subject> all;
    for (size_t i = 0; i < resources; ++i) {
        all.push_back(make(kind));
        if (resources != 1) {
            heavy_tail(*all[i].top, 8 * all[i].scale, kept);
        }
        for (const pattern& p : patterns) {
            if (p.name == name) {
                p.run(*all[i].top, all[i].scale, kept);
            }
        }
        ends.push_back(kept.size());
    }
    const size_t after = resident();
    const size_t count = counted(all);
    size_t live = 0;
    for (const block& b : kept) {
        live += b.bytes;
    }
    const size_t fresh_before = resident();
    std::vector<subject> fresh;
    size_t next = 0;
    for (const size_t end : ends) {
        fresh.push_back(make(kind));
        for (; next < end; ++next) {
            take(*fresh.back().top, kept[next].bytes);
        }
    }
    const size_t fresh_after = resident();
    const auto kib = [](size_t bytes) { return static_cast<unsigned long>(bytes >> 10); };
    std::printf("resident=%lu counted=%lu fresh=%lu live=%lu\n", kib(after > before ? after - before : 0), kib(count),
                kib(fresh_after > fresh_before ? fresh_after - fresh_before : 0), kib(live));
    std::fflush(stdout);
    ::_exit(0);  // leaks are not the subject
}
