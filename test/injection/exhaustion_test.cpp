// Memory runs out in earnest: address space, mappings, records. The oldest retired memory is used again, and if the
// system refuses that, a freed slot; whoever gets nothing gets bad_alloc, and nothing else changes.

#include "stack/depot.hpp"
#include "subjects.hpp"
#include "support/sanitizers.hpp"

#include <gtest/gtest.h>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

namespace {

using namespace injection;

class exhaustion : public ::testing::Test {
protected:
    void SetUp() override { the_handler() = &reports; }
    void TearDown() override { the_handler() = nullptr; }
    collecting_handler reports;
};

/// The code with which a child that runs \p f exits; -1: it ended otherwise, or not within \p seconds.
template <class F>
int exit_of(const F& f, unsigned seconds = 60) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
        ::alarm(seconds);
        ::_exit(f());
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
        std::printf("ended by signal %d\n", WTERMSIG(status));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// ---- who is used again ----------------------------------------------------------------------------------------------

constexpr std::size_t slot = 4096;  // three in the first unit, which is small

/// Effects: fills \p count units of blocks and frees all of them. Returns: the blocks, in order.
template <class Heap>
std::vector<void*> retire_blocks(Heap& heap, std::size_t count) {
    std::vector<void*> blocks;
    for (std::size_t i = 0; i < count; ++i) {
        blocks.push_back(heap.allocate(slot - 64));
    }
    for (void* const p : blocks) {
        heap.deallocate(p, slot - 64);
    }
    return blocks;
}

TEST_F(exhaustion, the_oldest_retired_unit_is_used_again) {
    page_resource pages({.handler = &reports});
    basic_general_purpose_resource<at_once_policy> heap(&pages, {.handler = &reports});
    const std::vector<void*> dead = retire_blocks(heap, 400);
    const std::uint64_t retired = heap.stats().retired_units;
    ASSERT_GT(retired, 10U);
    ASSERT_EQ(heap.stats().recycled_units, 0U);
    const std::set<void*> known(dead.begin(), dead.end());
    const faults none_left({.calls = only(call::map), .first = 1, .last = UINT64_MAX});
    // What is left of memory that was got before goes first.
    std::vector<void*> got;
    while (heap.stats().recycled_units == 0) {
        got.push_back(heap.allocate(slot - 64));
        ASSERT_LT(got.size(), 2000U);
    }
    EXPECT_EQ(got.back(), dead[0]) << "not the oldest";
    for (std::size_t i = 0; i + 1 < got.size(); ++i) {
        EXPECT_EQ(known.count(got[i]), 0U) << "used again before memory was out";
    }
    EXPECT_LT(heap.stats().retired_units, retired);
    for (void* const p : got) {
        heap.deallocate(p, slot - 64);
    }
    EXPECT_EQ(reports.count(), 0U);
    EXPECT_GT(faults::injected(), 0U);
}

TEST_F(exhaustion, a_freed_slot_is_used_if_the_system_refuses_that_too) {
    page_resource pages({.handler = &reports});
    basic_general_purpose_resource<at_once_policy> heap(&pages, {.handler = &reports});
    static_cast<void>(retire_blocks(heap, 400));
    // A unit with a block that lives and one that is freed.
    std::vector<void*> live;
    for (int i = 0; i < 4; ++i) {
        live.push_back(heap.allocate(slot - 64));
    }
    void* const freed = live[1];
    heap.deallocate(freed, slot - 64);
    live.erase(live.begin() + 1);
    const faults none_left({.first = 1, .last = UINT64_MAX});
    void* last = nullptr;
    while (last != freed) {
        ASSERT_NO_THROW(last = heap.allocate(slot - 64));
        live.push_back(last);
        ASSERT_LT(live.size(), 2000U);
        std::memset(last, 1, slot - 64);  // whatever it is, it is accessible
    }
    for (void* const p : live) {
        heap.deallocate(p, slot - 64);
    }
    EXPECT_EQ(heap.stats().live_blocks, 0U);
    EXPECT_EQ(reports.count(), 0U);
}

// One after the other, without looking at all others each time.
TEST_F(exhaustion, every_freed_slot_is_found) {
    page_resource pages({.handler = &reports});
    basic_general_purpose_resource<fast_policy> heap(&pages, {.handler = &reports});
    std::vector<void*> blocks;
    constexpr std::size_t count = 10'000;
    for (std::size_t i = 0; i < count; ++i) {
        blocks.push_back(heap.allocate(64, 8));
    }
    // All but one in a hundred, so that hardly a unit dies.
    std::size_t freed = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (i % 100 != 0) {
            heap.deallocate(blocks[i], 64, 8);
            ++freed;
        }
    }
    const std::set<void*> known(blocks.begin(), blocks.end());
    const faults none_left({.first = 1, .last = UINT64_MAX});
    std::size_t found = 0;
    try {
        for (;;) {
            found += known.count(heap.allocate(64, 8));
        }
    } catch (const std::bad_alloc&) {
    }
    EXPECT_EQ(found, freed);
    EXPECT_EQ(reports.count(), 0U);
}

// ---- limits of the system -------------------------------------------------------------------------------------------

/// Effects: runs the program on a subject that exists, once under pressure and once without. Returns: 0 if all is well.
template <class Subject, class Press, class Relieve>
int under_pressure(const Press& press, const Relieve& relieve) {
    Subject subject;
    findings out;
    {
        program before(subject.top(), out, [&subject] { return subject.resource.stats(); });
        before.run(true);
        for (int i = 0; i < 50; ++i) {
            before.allocate(3000, 8);
        }
        press();
        before.verify_all("the limit");
        for (int i = 0; i < 300; ++i) {  // some of which may be had
            before.allocate(20'000, 8);
        }
        before.verify_all("many requests");
    }
    {
        program within(subject.top(), out, [&subject] { return subject.resource.stats(); });
        within.run(true);
    }
    relieve();
    const std::uint64_t refused = out.refused;
    program after(subject.top(), out, [&subject] { return subject.resource.stats(); });
    after.run(true);
    if (out.refused != refused) {
        out.add("refused after the limit was gone");
    }
    if (!subject.ok()) {
        out.add("something was reported");
    }
    std::fputs(out.text.c_str(), stderr);
    return out.text.empty() ? 0 : 1;
}

/// Effects: maps pages of alternating permissions until the system has no mapping left.
class all_mappings {
public:
    void take() {
        bytes_ = std::size_t{140'000} * 4096;
        base_ = static_cast<unsigned char*>(
            ::mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (std::size_t i = 1; i < 140'000; i += 2) {
            if (::mprotect(base_ + i * 4096, 4096, PROT_READ) != 0) {
                taken_ = true;
                return;
            }
        }
    }
    void give_back() {
        // In one piece: the limit may refuse a part.
        ::munmap(base_, bytes_);
    }
    [[nodiscard]] bool taken() const { return taken_; }

private:
    unsigned char* base_ = nullptr;
    std::size_t bytes_ = 0;
    bool taken_ = false;
};

template <class Subject>
int without_mappings() {
    all_mappings all;
    const int result = under_pressure<Subject>([&all] { all.take(); }, [&all] { all.give_back(); });
    return all.taken() ? result : 99;
}

/// With 32 MiB of address space more than what is in use.
template <class Subject>
int without_address_space() {
    rlimit before{};
    ::getrlimit(RLIMIT_AS, &before);
    return under_pressure<Subject>(
        [] {
            std::size_t pages = 0;
            std::FILE* const f = std::fopen("/proc/self/statm", "r");
            const bool read = f != nullptr && std::fscanf(f, "%zu", &pages) == 1;
            std::fclose(f);
            const rlim_t most = read ? pages * 4096 + (std::size_t{32} << 20) : RLIM_INFINITY;
            const rlimit limit{most, RLIM_INFINITY};
            ::setrlimit(RLIMIT_AS, &limit);
        },
        [&before] { ::setrlimit(RLIMIT_AS, &before); });
}

template <class Subject>
void expect_survives_limits() {
    if (TEST_SANITIZED == 0) {  // a sanitizer needs address space and mappings of its own
        EXPECT_EQ(exit_of([] { return without_mappings<Subject>(); }), 0) << "vm.max_map_count";
        EXPECT_EQ(exit_of([] { return without_address_space<Subject>(); }), 0) << "RLIMIT_AS";
    }
}

TEST_F(exhaustion, page) {
    expect_survives_limits<page_subject>();
}
TEST_F(exhaustion, heap) {
    expect_survives_limits<heap_subject<default_policy>>();
}
TEST_F(exhaustion, heap_thorough) {
    expect_survives_limits<heap_subject<thorough_policy>>();
}
TEST_F(exhaustion, heap_immediate) {
    expect_survives_limits<heap_subject<immediate_policy>>();
}
TEST_F(exhaustion, heap_quarantined) {
    expect_survives_limits<heap_subject<quarantined_policy>>();
}
TEST_F(exhaustion, heap_over_new) {
    expect_survives_limits<heap_over_new_subject<default_policy>>();
}
TEST_F(exhaustion, tracking) {
    expect_survives_limits<tracking_subject>();
}
TEST_F(exhaustion, canary) {
    expect_survives_limits<canary_subject>();
}
TEST_F(exhaustion, end_of_page) {
    expect_survives_limits<fence_subject<default_policy>>();
}
TEST_F(exhaustion, end_of_page_thorough) {
    expect_survives_limits<fence_subject<thorough_policy>>();
}
TEST_F(exhaustion, temp) {
    expect_survives_limits<temp_subject>();
}

// ---- records and traces ---------------------------------------------------------------------------------------------

TEST_F(exhaustion, a_full_depot_costs_the_traces_and_nothing_else) {
    EXPECT_EQ(exit_of([this] {
                  stack::limit_bytes(0);
                  page_resource pages({.handler = &reports});
                  general_purpose_resource heap(&pages, {.handler = &reports});
                  tracking_resource tracking(&pages, {.handler = &reports});
                  void* const p = heap.allocate(100);
                  heap.deallocate(p, 100);
                  heap.deallocate(p, 100);
                  void* const q = tracking.allocate(100);
                  tracking.deallocate(q, 90);
                  const bool both =
                      reports.count(error_kind::double_free) == 1 && reports.count(error_kind::size_mismatch) == 1;
                  const report& r = reports[0].facts;
                  return both && r.block.address == p && r.block.size == 100 && r.allocated == trace_id::none &&
                                 heap.stats().live_blocks == 0 && tracking.stats().live_blocks == 0
                             ? 0
                             : 1;
              }),
              0);
}

TEST_F(exhaustion, threads_that_end_leave_their_blocks_to_others) {
    page_resource pages({.handler = &reports});
    general_purpose_resource heap(&pages, {.handler = &reports});
    canary_resource canary(&heap, {.handler = &reports});
    tracking_resource tracking(&canary, {.handler = &reports});
    end_of_page_resource fence({.handler = &reports});
    for (std::pmr::memory_resource* const r :
         {static_cast<std::pmr::memory_resource*>(&tracking), static_cast<std::pmr::memory_resource*>(&fence)}) {
        std::vector<void*> blocks;
        for (int t = 0; t < 20; ++t) {
            std::thread([&] {
                for (int i = 0; i < 20; ++i) {
                    void* const p = r->allocate(100 + static_cast<std::size_t>(i));
                    std::memset(p, t, 100);
                    blocks.push_back(p);
                }
            }).join();
        }
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            EXPECT_EQ(static_cast<unsigned char*>(blocks[i])[99], i / 20);
            r->deallocate(blocks[i], 100 + i % 20);
        }
    }
    EXPECT_EQ(tracking.stats().live_blocks, 0U);
    EXPECT_EQ(heap.check() + canary.check() + fence.check(), 0U);
    EXPECT_EQ(reports.count(), 0U);
}

// ---- the end of the program -----------------------------------------------------------------------------------------

TEST(static_objects, destroyed_before_their_resource_are_fine) {
    EXPECT_EXIT(
        {
            static page_resource pages;
            static general_purpose_resource heap(&pages);
            static tracking_resource tracking(&heap);
            static std::pmr::vector<std::pmr::string> names(&tracking);
            for (int i = 0; i < 100; ++i) {
                names.emplace_back(std::size_t{100}, 'x');
            }
            std::exit(0);  // NOLINT(concurrency-mt-unsafe): that is the test
        },
        ::testing::ExitedWithCode(0), "^$");
}

TEST(static_objects, destroyed_after_their_resource_are_reported) {
    if (TEST_SANITIZED != 0) {
        GTEST_SKIP() << "UndefinedBehaviorSanitizer ends the process at the call on a dead object";
    }
    EXPECT_DEATH(
        {
            static std::optional<std::pmr::vector<int>> late;
            static general_purpose_resource heap;
            late.emplace(&heap);
            late->resize(100);
            std::exit(0);  // NOLINT(concurrency-mt-unsafe): that is the test
        },
        "leak(.|\n)*destroyed_resource");
}

}  // namespace
