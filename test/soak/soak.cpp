// pmr_debug_soak: allocates and frees for as long as asked, looks at every block when it is freed and at the whole
// resource now and then, and fails if anything is reported, lost, or if memory grows.

#include <pmr_debug/pmr_debug.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr const char* usage =
    R"(usage: pmr_debug_soak [--operations=N] [--threads=N] [--policy=default|thorough|fast|release]
                      [--resource=general_purpose|tracking|canary|end_of_page]
                      [--seed=N] [--live=N] [--round=N] [--address-space=BYTES] [--rss=MIB] [--quiet]

An operation is an allocation or a free. Threads start anew each round, of N operations; between rounds the resource is
checked as a whole, and memory is measured. Fails on any report, on contents that changed, on counters that do not add
up, and on memory above --rss, or without it on more than the policy allows and on memory that keeps growing after the first rounds, but for 0.2 % of the addresses used up.
)";

struct settings {
    std::uint64_t operations = 1'000'000;
    std::uint64_t threads = 1;
    std::string policy = "default";
    std::string resource = "general_purpose";
    std::uint64_t seed = 1;
    std::uint64_t live = 2000;  ///< most blocks in use, for each thread
    std::uint64_t round = 0;    ///< operations of all threads between checks; 0: a twentieth, up to ten million
    std::uint64_t address_space = std::uint64_t{1} << 44;
    std::uint64_t rss_mib = 0;  ///< 0: what the policy allows for
    bool quiet = false;
};

// ---- memory of the process ------------------------------------------------------------------------------------------

struct memory_use {
    std::uint64_t resident_kib = 0;
    std::uint64_t page_tables_kib = 0;
};

/// Returns: what the kernel says of this process.
memory_use memory_now() {
    std::ifstream status("/proc/self/status");
    memory_use now;
    for (std::string line; std::getline(status, line);) {
        for (const auto& [field, value] : {std::pair{"VmRSS:", &now.resident_kib}, {"VmPTE:", &now.page_tables_kib}}) {
            if (line.starts_with(field)) {
                *value = std::strtoull(line.c_str() + std::strlen(field), nullptr, 10);
            }
        }
    }
    return now;
}

// ---- the workload ---------------------------------------------------------------------------------------------------

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "pmr_debug_soak: FAILED: %s\n", what.c_str());
    std::exit(1);
}

class random_numbers {  // xorshift64* (Vigna 2016)
public:
    explicit random_numbers(std::uint64_t seed) noexcept : state_(seed * 0x9E3779B97F4A7C15U | 1) {}
    std::uint64_t operator()() noexcept {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545F4914F6CDD1DU;
    }

private:
    std::uint64_t state_;
};

struct block {
    void* p = nullptr;
    std::uint32_t bytes = 0;
    std::uint32_t alignment = 0;
    std::uint64_t tag = 0;  ///< stands at both ends of the block
};

/// Where a thread leaves blocks for another one to free.
class letter_box {
public:
    /// Returns: the block that lay there before.
    block exchange(const block& b) {
        const std::scoped_lock hold(lock_);
        return std::exchange(block_, b);
    }

private:
    std::mutex lock_;
    block block_;
};

class worker {
public:
    worker(const settings& s, std::uint64_t number, std::vector<letter_box>& letters)
        : blocks_(s.live), letters_(letters), random_(s.seed * 1000 + number) {}

    void run(std::pmr::memory_resource& r, std::uint64_t operations) {
        for (std::uint64_t done = 0; done < operations;) {
            const std::uint64_t dice = random_();
            block& b = blocks_[(dice >> 32) % blocks_.size()];
            if (letters_.size() > 1 && dice % 64 == 0) {
                b = letters_[(dice >> 8) % letters_.size()].exchange(b);  // freed by whoever meets it next
            }
            if (b.p == nullptr) {
                b = taken(r, dice);
            } else {
                give_back(r, b);
            }
            ++done;
        }
    }
    void finish(std::pmr::memory_resource& r) {
        for (block& b : blocks_) {
            if (b.p != nullptr) {
                give_back(r, b);
            }
        }
    }
    [[nodiscard]] std::uint64_t allocations() const noexcept { return allocations_; }

private:
    static constexpr std::size_t tag_bytes = sizeof(std::uint64_t);

    /// Most are small, one in 16 has up to 4 KiB, one in 4096 up to 64 KiB.
    static std::uint32_t size_of(std::uint64_t dice) noexcept {
        const std::uint64_t kind = dice >> 52;
        const std::uint64_t end = kind == 0 ? 65536 : (kind % 16 == 0 ? 4096 : 256);
        return static_cast<std::uint32_t>((dice >> 16) % end);
    }

    block taken(std::pmr::memory_resource& r, std::uint64_t dice) {
        block b;
        b.bytes = size_of(dice);
        b.alignment = dice % 32 == 1 ? 64 : 8;
        b.tag = dice;
        b.p = r.allocate(b.bytes, b.alignment);
        const std::size_t n = std::min<std::size_t>(b.bytes, tag_bytes);
        std::memcpy(b.p, &b.tag, n);
        std::memcpy(static_cast<std::byte*>(b.p) + b.bytes - n, &b.tag, n);
        ++allocations_;
        return b;
    }

    static void give_back(std::pmr::memory_resource& r, block& b) {
        const std::size_t n = std::min<std::size_t>(b.bytes, tag_bytes);
        // The front of a block with fewer than 16 bytes was written over by its end.
        const bool front = b.bytes >= 2 * tag_bytes ? std::memcmp(b.p, &b.tag, n) == 0 : true;
        if (!front || std::memcmp(static_cast<std::byte*>(b.p) + b.bytes - n, &b.tag, n) != 0) {
            fail("the contents of a block of " + std::to_string(b.bytes) + " bytes changed");
        }
        r.deallocate(b.p, b.bytes, b.alignment);
        b = {};
    }

    std::vector<block> blocks_;
    std::vector<letter_box>& letters_;
    random_numbers random_;
    std::uint64_t allocations_ = 0;
};

// ---- what is under test ---------------------------------------------------------------------------------------------

/// A resource with everything that a soak asks of it.
struct subject {
    virtual ~subject() = default;
    virtual std::pmr::memory_resource& top() = 0;
    virtual std::size_t check() = 0;
    virtual pmr_debug::statistics stats() = 0;
};

template <class Resource>
struct subject_of final : subject {
    template <class... Below>
    explicit subject_of(const Below&... below) : resource(below...) {}
    std::pmr::memory_resource& top() override { return resource; }
    std::size_t check() override {
        if constexpr (requires { resource.check(); }) {
            return resource.check();
        } else {
            return 0;
        }
    }
    pmr_debug::statistics stats() override { return resource.stats(); }
    Resource resource;
};

template <pmr_debug::policy P>
std::unique_ptr<subject> made(const settings& s, std::pmr::memory_resource* pages) {
    if (s.resource == "general_purpose") {
        return std::make_unique<subject_of<pmr_debug::basic_general_purpose_resource<P>>>(
            pages, pmr_debug::general_purpose_options{.address_space_bytes = s.address_space});
    }
    if (s.resource == "tracking") {
        return std::make_unique<subject_of<pmr_debug::basic_tracking_resource<P>>>(std::pmr::new_delete_resource());
    }
    if (s.resource == "canary") {
        return std::make_unique<subject_of<pmr_debug::basic_canary_resource<P>>>(std::pmr::new_delete_resource());
    }
    if (s.resource == "end_of_page") {
        return std::make_unique<subject_of<pmr_debug::basic_end_of_page_resource<P>>>(
            pmr_debug::end_of_page_options{.quarantine_bytes = std::size_t{32} << 20});
    }
    fail("no such resource: " + s.resource);
}

std::unique_ptr<subject> made(const settings& s, std::pmr::memory_resource* pages) {
    if (s.policy == "default") {
        return made<pmr_debug::default_policy>(s, pages);
    }
    if (s.policy == "thorough") {
        return made<pmr_debug::thorough_policy>(s, pages);
    }
    if (s.policy == "fast") {
        return made<pmr_debug::fast_policy>(s, pages);
    }
    if (s.policy == "release") {
        return made<pmr_debug::release_policy>(s, pages);
    }
    fail("no such policy: " + s.policy);
}

/// What the documentation allows for, in KiB. Live blocks pin their whole unit or page, so they count with a factor;
/// the rest is what may wait: quarantine (64 MiB at most), records of retired units, traces.
std::uint64_t allowed_kib(const settings& s) {
    if (s.rss_mib != 0) {
        return s.rss_mib * 1024;
    }
    const std::uint64_t blocks = s.live * s.threads;
    const std::uint64_t per_block = s.resource == "end_of_page" ? 16 : 8;  // KiB, with records
    return 160 * 1024 + blocks * per_block;
}

/// Never used twice, addresses take memory even when they are dead: the address map 0.2 % of them
/// (docs/address_map.md), and the kernel's page tables as much.
std::uint64_t for_addresses_kib(const pmr_debug::statistics& s) {
    return s.upstream_bytes / 512 / 1024;
}

// ---- the run --------------------------------------------------------------------------------------------------------

void soak(const settings& s) {
    using clock = std::chrono::steady_clock;
    const auto start = clock::now();
    pmr_debug::collecting_handler reports;
    pmr_debug::set_default_report_handler(&reports);
    pmr_debug::page_resource pages;
    std::unique_ptr<subject> tested = made(s, &pages);
    std::vector<letter_box> letters(s.threads > 1 ? 64 : 0);
    std::vector<worker> workers;
    for (std::uint64_t i = 0; i < s.threads; ++i) {
        workers.emplace_back(s, i, letters);
    }

    const std::uint64_t round = s.round != 0 ? s.round : std::clamp<std::uint64_t>(s.operations / 20, 1000, 10'000'000);
    const std::uint64_t allowed = allowed_kib(s);
    memory_use most;
    memory_use warm;
    std::uint64_t rounds = 0;
    std::uint64_t done = 0;
    while (done < s.operations) {
        const std::uint64_t each = std::max<std::uint64_t>(1, std::min(round, s.operations - done) / s.threads);
        if (s.threads == 1) {
            workers[0].run(tested->top(), each);
        } else {
            std::vector<std::thread> threads;
            for (worker& w : workers) {
                threads.emplace_back([&] { w.run(tested->top(), each); });
            }
            for (std::thread& t : threads) {
                t.join();
            }
        }
        done += each * s.threads;
        ++rounds;

        if (const std::size_t damaged = tested->check(); damaged != 0) {
            fail(std::to_string(damaged) + " damaged blocks after " + std::to_string(done) + " operations");
        }
        if (reports.count() != 0) {
            fail("reported after " + std::to_string(done) + " operations: " + std::string(reports[0].text));
        }
        const memory_use now = memory_now();
        most = {std::max(most.resident_kib, now.resident_kib), std::max(most.page_tables_kib, now.page_tables_kib)};
        const std::uint64_t for_addresses = for_addresses_kib(tested->stats());
        if (now.resident_kib > allowed + for_addresses) {
            fail(std::to_string(now.resident_kib) + " KiB resident, allowed are " +
                 std::to_string(allowed + for_addresses));
        }
        const std::uint64_t beside = now.resident_kib - std::min(now.resident_kib, for_addresses);
        if (rounds <= 8) {
            warm.resident_kib = std::max(warm.resident_kib, beside);
        } else if (s.rss_mib == 0 && beside > warm.resident_kib + warm.resident_kib / 4 + 16 * 1024) {
            fail("resident memory grows: beside the address map " + std::to_string(warm.resident_kib) +
                 " KiB in the first rounds, now " + std::to_string(beside));
        }
        if (!s.quiet && (rounds % 10 == 0 || done >= s.operations)) {
            std::printf("%12llu operations, %llu KiB resident, %llu KiB of page tables\n",
                        static_cast<unsigned long long>(done), static_cast<unsigned long long>(now.resident_kib),
                        static_cast<unsigned long long>(now.page_tables_kib));
            std::fflush(stdout);
        }
    }

    std::uint64_t allocations = 0;
    for (worker& w : workers) {
        w.finish(tested->top());
        allocations += w.allocations();
    }
    for (letter_box& l : letters) {
        if (const block b = l.exchange({}); b.p != nullptr) {
            tested->top().deallocate(b.p, b.bytes, b.alignment);
        }
    }
    const pmr_debug::statistics end = tested->stats();
    const std::uint64_t addresses_gib = end.upstream_bytes >> 30;
    if (end.live_blocks != 0 || end.live_bytes != 0 || end.total_allocations != allocations ||
        end.total_deallocations != allocations) {
        fail("counters: " + std::to_string(end.live_blocks) + " live blocks, " + std::to_string(end.total_allocations) +
             " allocations and " + std::to_string(end.total_deallocations) + " frees, of " +
             std::to_string(allocations));
    }
    tested.reset();
    if (reports.count() != 0) {
        fail("reported at the end: " + std::string(reports[0].text));
    }
    const double seconds = std::chrono::duration<double>(clock::now() - start).count();
    std::printf(
        "ok: %s, %s_policy, %llu threads, seed %llu: %llu operations, %llu checks, 0 reports; at most %llu MiB "
        "resident, %llu MiB of page tables, %llu GiB of addresses; %.1f s\n",
        s.resource.c_str(), s.policy.c_str(), static_cast<unsigned long long>(s.threads),
        static_cast<unsigned long long>(s.seed), static_cast<unsigned long long>(done),
        static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(most.resident_kib / 1024),
        static_cast<unsigned long long>(most.page_tables_kib / 1024), static_cast<unsigned long long>(addresses_gib),
        seconds);
}

// ---- options --------------------------------------------------------------------------------------------------------

[[noreturn]] void refuse(std::string_view argument) {
    std::fprintf(stderr, "pmr_debug_soak: %.*s?\n%s", static_cast<int>(argument.size()), argument.data(), usage);
    std::exit(2);
}

settings parsed(int count, char** arguments) {
    settings s;
    const std::array<std::pair<std::string_view, std::uint64_t*>, 7> numbers{{{"--operations=", &s.operations},
                                                                              {"--threads=", &s.threads},
                                                                              {"--seed=", &s.seed},
                                                                              {"--live=", &s.live},
                                                                              {"--round=", &s.round},
                                                                              {"--address-space=", &s.address_space},
                                                                              {"--rss=", &s.rss_mib}}};
    const std::array<std::pair<std::string_view, std::string*>, 2> words{
        {{"--policy=", &s.policy}, {"--resource=", &s.resource}}};
    for (int i = 1; i < count; ++i) {
        const std::string_view argument = arguments[i];
        bool known = argument == "--quiet";
        s.quiet = s.quiet || known;
        for (const auto& [name, value] : numbers) {
            if (argument.starts_with(name)) {
                const std::string_view digits = argument.substr(name.size());
                const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), *value);
                known = error == std::errc() && end == digits.data() + digits.size();
            }
        }
        for (const auto& [name, value] : words) {
            if (argument.starts_with(name)) {
                *value = argument.substr(name.size());
                known = true;
            }
        }
        if (!known) {
            refuse(argument);
        }
    }
    if (s.threads == 0 || s.live == 0) {
        refuse("--threads=0 or --live=0");
    }
    return s;
}

}  // namespace

int main(int count, char** arguments) {
    const settings s = parsed(count, arguments);
    soak(s);
    return 0;
}
