#include "metadata/quarantine_budget.hpp"

#include "os/memory_limits.hpp"

#include <algorithm>

namespace pmr_debug::metadata {

namespace {

constexpr std::size_t most = std::size_t{128} << 20;
constexpr std::size_t least = std::size_t{16} << 20;
/// What a resource may keep although others have used the budget up: without any quarantine it would find nothing.
constexpr std::size_t least_share = std::size_t{64} << 10;

/// Resources that stand on no other in the books, on one, and so on. The last level is of all that are higher, so that
/// what lives there is known from below only.
constexpr unsigned levels = 4;
constinit std::atomic<std::size_t> all_kept[levels]{};
constinit std::atomic<std::size_t> all_live[levels]{};
constinit std::atomic<std::size_t> all_raised{0};
/// A quarter of what the process may have; 0: not known yet.
constinit std::atomic<std::size_t> ceiling{0};
constinit std::atomic<std::size_t> group_limit{0};

/// Effects: looks at the process's limits. The control group's is read once, a limit of the process each time.
void look_at_limits() noexcept {
    std::size_t group = group_limit.load(std::memory_order_relaxed);
    if (group == 0) {
        group = std::max<std::size_t>(os::control_group_limit(), 1);
        group_limit.store(group, std::memory_order_relaxed);
    }
    const std::size_t limit = std::min(group, os::address_space_limit());
    ceiling.store(limit == os::no_limit ? limit : std::max<std::size_t>(limit / 4, 1), std::memory_order_relaxed);
}

std::size_t budget_for(std::size_t live) noexcept {
    const std::size_t twice = live <= most ? 2 * live : most;
    const std::size_t usual = std::min(most, std::max(least, twice));
    return std::min(std::max(usual, all_raised.load(std::memory_order_relaxed)),
                    ceiling.load(std::memory_order_relaxed));
}

/// Effects: changes \p total by how much \p own differs from \p now. It may be behind for a moment; never below zero,
/// though others read it meanwhile.
void change(std::atomic<std::size_t>& total, std::atomic<std::size_t>& own, std::size_t now) noexcept {
    const std::size_t before = own.exchange(now, std::memory_order_relaxed);
    if (before != now) {
        total.fetch_add(now - before, std::memory_order_relaxed);
    }
}

}  // namespace

void quarantine_share::open(std::size_t wanted, std::size_t usual, unsigned below) noexcept {
    wanted_ = wanted;
    level_ = std::min(below, levels - 1);
    raise_ = wanted > usual ? std::min(wanted, os::no_limit / 1024) : 0;
    all_raised.fetch_add(raise_, std::memory_order_relaxed);
    look_at_limits();
    settle(0, 0);
}

void quarantine_share::close() noexcept {
    settle(0, 0);
    all_raised.fetch_sub(raise_, std::memory_order_relaxed);
    raise_ = 0;
}

std::size_t quarantine_share::settle(std::size_t kept, std::size_t live) noexcept {
    change(all_kept[level_], kept_, kept);
    change(all_live[level_], live_, live);
    const quarantine_totals now = quarantine_now();
    const std::size_t others = now.kept > kept ? now.kept - kept : 0;
    const std::size_t left = now.budget > others ? now.budget - others : 0;
    const std::size_t limit = std::min(wanted_, std::max(left, std::min(least_share, now.budget)));
    limit_.store(limit, std::memory_order_relaxed);
    return limit;
}

quarantine_totals quarantine_now() noexcept {
    quarantine_totals now;
    for (unsigned level = levels; level-- != 0;) {
        const std::size_t live = level + 1 != levels ? all_live[level].load(std::memory_order_relaxed) : 0;
        now.live = std::max(now.live, live > now.kept ? live - now.kept : 0);
        now.kept += all_kept[level].load(std::memory_order_relaxed);
    }
    now.budget = budget_for(now.live);
    return now;
}

}  // namespace pmr_debug::metadata
