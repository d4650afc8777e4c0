// Freed slots in units that live. One block of a unit that lives long would keep the memory of all others, so they
// count as quarantine, and beyond the budget the oldest units' are used again (general_purpose_reuse.cpp), or their
// dead pages are given back.
//
//   all slots handed out ──> closed: in the line of its class, oldest first ──> last slot freed: retired
//                              │ ^                                   │ ^
//    over the budget, a thread │ │ all its freed         over the    │ │ dead pages verified, given back,
//    needs slots of the class  v │ slots used again      budget      v │ and guarded
//                            attached to the thread                borrowed
//
// Freed slots are not counted when they are freed. What all threads freed is known; how much of it is in closed units
// is counted when it may be too much.

#include "os/virtual_memory.hpp"
#include "resources/general_purpose_pages.hpp"

#include <algorithm>
#include <bit>

namespace pmr_debug::detail {

namespace {

/// Units whose pages are given back, and that are looked at, for one that is made.
constexpr unsigned most_trims = 8;
constexpr unsigned most_looks = 32;
/// Freed bytes after which it is worth to count again, at least.
constexpr std::size_t least_between_counts = std::size_t{1} << 16;

/// What all threads freed so far, slack included; a tenth less where blocks are large. More than that would have slots
/// used again that need not be, so that fewer units die, whose memory others could have.
[[nodiscard]] std::uint64_t freed_so_far(const general_purpose_core& core, const live_totals& now) noexcept {
    return now.deallocated_bytes + now.deallocations * (core.guard_bytes + size_classes::granularity / 2);
}

/// Bytes of freed slots in closed units, or more.
[[nodiscard]] std::size_t freed_estimate(const general_purpose_core& core, const live_totals& now) noexcept {
    const std::size_t upper = core.freed_counted + static_cast<std::size_t>(freed_so_far(core, now) - core.counted_at);
    return std::min(core.closed_bytes, upper > core.reclaimed ? upper - core.reclaimed : 0);
}

/// reuse::immediate.
[[nodiscard]] std::uint32_t free_slots(const unit& u) noexcept {
    std::uint32_t free = 0;
    for (std::uint32_t w = 0; w < u.words(); ++w) {
        free += static_cast<std::uint32_t>(std::popcount(u.free_bits[w].load(std::memory_order_relaxed)));
    }
    return free;
}

/// Effects: counts them. Lock held.
void count_freed(general_purpose_core& core, const live_totals& now) noexcept {
    core.freed_counted = 0;
    core.counted_at = freed_so_far(core, now);
    core.reclaimed = 0;
    core.trims_left = core.closed_count;
    for (const unit_line& line : core.closed) {
        for (const unit* u = line.first; u != nullptr; u = u->line_after) {
            core.freed_counted += freed_bytes(*u);
        }
    }
}

/// Effects: counts out whoever had \p u, which is in no line; there it goes again, unless the rest was freed meanwhile.
/// Lock held; released meanwhile.
void end_visit(general_purpose_core& core, guard_lock& hold, unit& u) noexcept {
    if (u.unfreed.subtract(1) != 0) {
        close_unit(core, u);
    } else if (to_retire(u)) {
        hold.unlock();
        retire(core, u);
        hold.lock();
    }
}

/// Effects: verifies the dead pages of \p u, which is in no line, and gives them back. Returns: bytes. Lock held;
/// released meanwhile.
std::size_t give_dead_pages_back(general_purpose_core& core, guard_lock& hold, unit& u) noexcept {
    u.borrowed = true;
    hold.unlock();
    std::size_t given = 0;
    const page_set dead = dead_pages(core, u);
    if (dead != 0 && verify_pages(core, u, dead)) {
        u.unsettle();
        given = give_pages_back(core, u, dead);
        u.settle();
    }
    hold.lock();
    u.borrowed = false;
    if (u.in != nullptr && u.guarded.load(std::memory_order_relaxed) != 0) {
        u.in->holes = true;
    }
    return given;
}

/// Effects: gives the dead pages of closed units back, the oldest of a class first, a class after the other, until
/// \p wanted bytes are, or it has been tried often enough. Lock held; released meanwhile.
void trim(general_purpose_core& core, guard_lock& hold, std::size_t wanted) noexcept {
    if (!core.discards) {
        return;
    }
    std::size_t given = 0;
    unsigned looks = 0;
    for (unsigned trims = 0; trims < most_trims && looks < most_looks && given < wanted && core.trims_left != 0;) {
        unsigned classes = 0;
        while (core.closed[core.trim_class].first == nullptr && classes != size_classes::count) {
            core.trim_class = (core.trim_class + 1) % size_classes::count;
            ++classes;
        }
        unit* const u = core.closed[core.trim_class].first;
        if (u == nullptr) {
            return;
        }
        core.trims_left -= 1;
        core.closed[core.trim_class].remove(*u);
        core.closed[core.trim_class].push(*u);
        core.trim_class = (core.trim_class + 1) % size_classes::count;
        // Where nothing was to be had, and nothing was freed since, nothing is.
        const std::uint32_t left = u->unfreed.left();
        if (u->damaged || u->futile_at == left || !u->unfreed.up()) {
            continue;
        }
        ++looks;
        leave_line(core, *u);
        const bool only_records = freed_bytes(*u) < unit_page;
        const std::size_t now_given = only_records ? 0 : give_dead_pages_back(core, hold, *u);
        u->futile_at = left;
        if (only_records || now_given != 0) {
            forget_gone(core, *u);
        }
        trims += now_given != 0 ? 1 : 0;
        given += now_given;
        core.reclaimed += now_given;
        end_visit(core, hold, *u);
    }
}

}  // namespace

std::size_t history_memory(const unit& u) noexcept {
    return u.capacity * sizeof(slot_history);
}

std::size_t excess(general_purpose_core& core) noexcept {
    const live_totals now = sum_caches(core);
    std::size_t freed = freed_estimate(core, now);
    std::size_t limit = core.share.settle(core.untrapped_bytes + freed, now.bytes());
    if (core.untrapped_bytes + freed > limit &&
        // A count walks all closed units, so it waits for a part of what they hold.
        freed_so_far(core, now) - core.counted_at >=
            std::max({limit / 8, core.closed_bytes / 16, least_between_counts})) {
        count_freed(core, now);
        freed = core.freed_counted;
        limit = core.share.settle(core.untrapped_bytes + freed, now.bytes());
    }
    core.unsettled = 0;
    const std::size_t kept = core.untrapped_bytes + freed;
    return kept > limit ? kept - limit : 0;
}

void come_down(general_purpose_core& core, guard_lock& hold, std::size_t too_much) noexcept {
    const std::size_t wanted = std::min(too_much, 4 * largest_unit);
    trap_pending(core, hold, wanted);
    trim(core, hold, wanted);
}

void close_unit(general_purpose_core& core, unit& u) noexcept {
    const bool remembers = core.record_bytes != 0 && core.rules.freed != reuse::immediate;
    if (remembers && !u.closed && !u.damaged && u.phase.load(std::memory_order_relaxed) == unit_phase::active) {
        u.closed = true;
        core.closed[u.size_class].push(u);
        core.closed_bytes += u.size;
        core.closed_records += records_kept(core, u);
        core.closed_count += 1;
    }
}

void trim_listed(general_purpose_core& core, unit& u) noexcept {
    if (core.trim_wanted == 0) {
        return;
    }
    // Slots of a listed unit only become free: where their number is the same, they are.
    if (const std::uint32_t free = free_slots(u); free != u.futile_at) {
        u.futile_at = free;
        const std::size_t given = give_pages_back(core, u, free_pages(core, u));
        core.closed_bytes -= given;
        core.trim_wanted -= std::min(core.trim_wanted, given);
    }
}

void trim_lists(general_purpose_core& core, std::size_t passed, unsigned most) noexcept {
    core.unsettled += passed;
    if (core.unsettled >= settle_step) {
        settle_quarantine(core);
    }
    unsigned classes = 0;
    for (unsigned seen = 0; seen < most && core.trim_wanted != 0;) {
        if (unit* const u = core.trim_next; u != nullptr) {
            core.trim_next = u->line_after;
            trim_listed(core, *u);
            ++seen;
        } else if (classes != size_classes::count) {
            core.trim_class = (core.trim_class + 1) % size_classes::count;
            core.trim_next = core.closed[core.trim_class].first;
            ++classes;
        } else {
            return;
        }
    }
}

void leave_list(general_purpose_core& core, unit& u) noexcept {
    core.trim_next = core.trim_next == &u ? u.line_after : core.trim_next;
    core.closed[u.size_class].remove(u);
    u.futile_at = 0;
    core.closed_bytes -= u.size - bytes_in(u.gone.load(std::memory_order_relaxed));
}

void leave_line(general_purpose_core& core, unit& u) noexcept {
    if (u.closed) {
        u.closed = false;
        core.closed[u.size_class].remove(u);
        core.closed_bytes -= u.size;
        core.closed_records -= records_kept(core, u);
        core.closed_count -= 1;
    }
}

std::size_t kept_freed(const general_purpose_core& core, const live_totals& now) noexcept {
    if (core.rules.freed == reuse::immediate) {
        // Live small blocks, as if all of them were in listed units.
        const auto all = static_cast<std::size_t>(now.bytes() + now.blocks() * core.guard_bytes);
        const std::size_t live = all > core.large_bytes ? all - core.large_bytes : 0;
        return core.closed_bytes > live ? core.closed_bytes - live : 0;
    }
    return freed_estimate(core, now);
}

void settle_quarantine(general_purpose_core& core) noexcept {
    const live_totals now = sum_caches(core);
    const std::size_t kept = core.untrapped_bytes + kept_freed(core, now);
    const std::size_t limit = core.share.settle(kept, now.bytes());
    core.unsettled = 0;
    core.trim_wanted = core.discards && core.rules.freed == reuse::immediate && kept > limit ? kept - limit : 0;
}

void few_left(general_purpose_core& core, std::uintptr_t address) noexcept {
    guard_lock hold(core);
    // Another thread may have freed the rest meanwhile; whatever is there now is alive while the lock is held.
    auto* const u = static_cast<unit*>(metadata::address_map::find(address, &core));
    if (u == nullptr || u->large) {
        return;
    }
    u->unfreed.tell_at_a_quarter();
    if (u->unfreed.left() == 0) {
        if (to_retire(*u)) {
            hold.unlock();
            retire(core, *u);
        }
        return;
    }
    if (!u->closed) {
        return;
    }
    if (const std::size_t too_much = excess(core); too_much != 0) {
        come_down(core, hold, too_much);
    }
}

}  // namespace pmr_debug::detail
