// The process's one budget of freed memory, and the limits that it looks at.

#include "metadata/quarantine_budget.hpp"
#include "os/memory_limits.hpp"
#include "os/other_tools.hpp"

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <gtest/gtest.h>

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

namespace {

namespace os = pmr_debug::os;
using pmr_debug::metadata::quarantine_now;
using pmr_debug::metadata::quarantine_share;

constexpr std::size_t mib = std::size_t{1} << 20;

/// A folder that looks like /sys/fs/cgroup, and a file that looks like /proc/self/cgroup.
struct control_groups {
    std::filesystem::path root;
    control_groups() {
        char name[] = "/tmp/groupsXXXXXX";
        root = ::mkdtemp(name);
    }
    ~control_groups() { std::filesystem::remove_all(root); }
    control_groups(const control_groups&) = delete;
    control_groups& operator=(const control_groups&) = delete;

    void write(const std::string& file, const std::string& text) const {
        std::filesystem::create_directories((root / file).parent_path());
        std::ofstream(root / file) << text;
    }
    [[nodiscard]] std::size_t limit() const { return os::control_group_limit((root / "member").c_str(), root.c_str()); }
};

TEST(control_group_limit, is_the_least_of_the_group_and_those_above) {
    control_groups g;
    EXPECT_EQ(g.limit(), os::no_limit);  // no file
    g.write("member", "0::/a/b\n");
    EXPECT_EQ(g.limit(), os::no_limit);
    g.write("a/b/memory.max", "max\n");
    EXPECT_EQ(g.limit(), os::no_limit);
    g.write("a/memory.max", "1000000\n");
    EXPECT_EQ(g.limit(), 1'000'000U);
    g.write("a/b/memory.max", "500000\n");
    EXPECT_EQ(g.limit(), 500'000U);
    g.write("memory.max", "400000\n");  // of a container, which sees its own group as the root
    EXPECT_EQ(g.limit(), 400'000U);
    g.write("memory.max", "99999999999999999999999\n");
    EXPECT_EQ(g.limit(), 500'000U);
}

TEST(control_group_limit, of_version_1_is_that_of_its_memory_controller) {
    control_groups g;
    g.write("member", "5:cpu,cpuacct:/x\n4:cpuset,memory:/y\n0::/\n");
    g.write("x/memory.max", "1\n");
    g.write("memory/y/memory.limit_in_bytes", "700000\n");
    EXPECT_EQ(g.limit(), 700'000U);
}

TEST(quarantine_budget, is_twice_what_lives_within_bounds_and_shared) {
    const std::size_t usual = 128 * mib;
    quarantine_share a;
    quarantine_share b;
    a.open(usual, usual, 0);
    b.open(usual, usual, 0);
    const std::size_t most = std::min<std::size_t>(quarantine_now().budget, 16 * mib);
    EXPECT_EQ(a.settle(0, 0), most);
    EXPECT_EQ(a.settle(10 * mib, mib), most);
    EXPECT_EQ(b.settle(0, 0), most - 10 * mib);
    std::size_t left = b.settle(mib, 20 * mib);
    EXPECT_EQ(left, std::min(quarantine_now().budget, 42 * mib) - 10 * mib);
    EXPECT_EQ(quarantine_now().kept, 11 * mib);
    left = b.settle(0, 500 * mib);
    EXPECT_EQ(left, std::min(quarantine_now().budget, usual) - 10 * mib);
    a.settle(300 * mib, 0);
    EXPECT_EQ(b.settle(0, 0), std::size_t{64} << 10);  // others have used it up
    a.close();
    b.close();
    EXPECT_EQ(quarantine_now().kept, 0U);
    EXPECT_EQ(quarantine_now().live, 0U);
}

TEST(quarantine_budget, grows_with_what_an_option_asks_for) {
    quarantine_share a;
    a.open(300 * mib, 128 * mib, 0);
    EXPECT_EQ(a.settle(0, 0), std::min(quarantine_now().budget, 300 * mib));
    quarantine_share b;
    b.open(mib, 128 * mib, 0);
    EXPECT_EQ(b.settle(0, 0), mib);
    a.close();
    b.close();
}

TEST(quarantine_budget, does_not_grow_with_what_stands_on_another_and_is_kept) {
    const std::size_t usual = 128 * mib;
    quarantine_share lower;
    quarantine_share middle;
    quarantine_share upper;
    lower.open(usual, usual, 0);
    middle.open(usual, usual, 1);
    upper.open(usual, usual, 2);
    const std::size_t most = std::min(quarantine_now().budget, 16 * mib);
    lower.settle(0, 60 * mib);
    middle.settle(20 * mib, 40 * mib);
    EXPECT_EQ(upper.settle(40 * mib, 0), std::size_t{64} << 10);  // 20 of the lower's 60 MiB are kept by the middle one
    EXPECT_EQ(quarantine_now().live, 0U);
    EXPECT_EQ(quarantine_now().budget, most);
    upper.settle(10 * mib, 30 * mib);
    EXPECT_EQ(quarantine_now().live, 30 * mib);
    lower.settle(0, 0);  // it was not told for long
    EXPECT_EQ(quarantine_now().live, 30 * mib);
    upper.close();
    middle.close();
    lower.close();
}

TEST(quarantine_budget, is_for_what_lives_in_the_uppermost_of_a_chain) {
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource lower(&pages);
    pmr_debug::tracking_resource between(&lower);
    pmr_debug::general_purpose_resource upper(&between);
    pmr_debug::end_of_page_resource fences(&between);
    pmr_debug::canary_resource canaries(&between);
    const std::vector<std::pmr::memory_resource*> all{&upper, &fences, &canaries};
    for (std::pmr::memory_resource* const r : all) {
        for (int i = 0; i < 20'000; ++i) {
            r->deallocate(r->allocate(3'000), 3'000);
        }
        EXPECT_LE(quarantine_now().live, 2 * mib);
        EXPECT_LE(quarantine_now().kept, 17 * mib);
    }
}

// A sanitizer's own memory takes far more addresses than that.
#if !PMR_DEBUG_INSTRUMENTED
TEST(quarantine_budget, is_at_most_a_quarter_of_the_address_space) {
    EXPECT_EXIT(
        {
            rlimit limit{};
            limit.rlim_cur = limit.rlim_max = 40 * mib;
            quarantine_share a;
            if (::setrlimit(RLIMIT_AS, &limit) == 0) {
                a.open(128 * mib, 128 * mib, 0);
            }
            ::_exit(a.settle(0, 0) == 10 * mib ? 0 : 1);
        },
        ::testing::ExitedWithCode(0), "");
}
#endif

TEST(quarantine_budget, resources_keep_together_what_one_may) {
    pmr_debug::page_resource pages;
    std::vector<std::unique_ptr<pmr_debug::general_purpose_resource>> all;
    for (int i = 0; i < 8; ++i) {
        all.push_back(std::make_unique<pmr_debug::general_purpose_resource>(&pages));
        auto& heap = *all.back();
        std::vector<void*> blocks;
        for (int n = 0; n < 10'000; ++n) {
            blocks.push_back(heap.allocate(300));
        }
        for (std::size_t n = 0; n < blocks.size(); n += 1) {
            if (n % 100 != 0) {
                heap.deallocate(blocks[n], 300);
            }
        }
        EXPECT_LE(quarantine_now().kept, quarantine_now().budget + 4 * mib) << i;
        EXPECT_GT(heap.stats().quarantine_limit, 0U);
        for (std::size_t n = 0; n < blocks.size(); n += 100) {
            heap.deallocate(blocks[n], 300);
        }
    }
}

TEST(quarantine_budget, is_what_canaries_keep_to) {
    const std::size_t before = quarantine_now().kept;
    std::pmr::monotonic_buffer_resource memory;
    pmr_debug::canary_resource first(&memory);
    pmr_debug::canary_resource second(&memory);
    for (pmr_debug::canary_resource* const r : {&first, &second}) {
        for (int i = 0; i < 1'000; ++i) {
            r->deallocate(r->allocate(20'000), 20'000);
        }
    }
    EXPECT_GT(quarantine_now().kept, before);
    EXPECT_LE(first.stats().quarantined_bytes + second.stats().quarantined_bytes, quarantine_now().budget + mib);
    first.before_upstream_release();
    second.before_upstream_release();
    EXPECT_EQ(quarantine_now().kept, before) << "others may keep more now";
}

}  // namespace
