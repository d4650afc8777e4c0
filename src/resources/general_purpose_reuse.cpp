// Freed slots in units that live. One block of a unit that lives long would keep the memory of all others, so they
// count as quarantine, and beyond the budget the oldest units' are used again, or their dead pages are given back.
//
//   all slots handed out ──> closed: in the line of its class, oldest first ──> last slot freed: retired
//                              │ ^                                   │ ^
//    over the budget, a thread │ │ all its freed         over the    │ │ dead pages verified, given back,
//    needs slots of the class  v │ slots used again      budget      v │ and guarded
//                            attached to the thread                borrowed
//
// Freed slots are not counted when they are freed. What all threads freed is known; how much of it is in closed units
// is counted when it may be too much.

#include "os/other_tools.hpp"
#include "resources/general_purpose_memory.hpp"

#include <bit>
#include <cstring>
#include <new>

namespace pmr_debug::detail {

namespace {

/// Slots are made ready in steps of so many bytes.
constexpr std::size_t ready_step = std::size_t{1} << 12;
/// A unit is worth to be taken if one slot of so many is free.
constexpr std::uint32_t worthwhile = 8;
/// Units that are looked at for one that is wanted.
constexpr unsigned most_tries = 16;
/// Units whose pages are given back, for one that is made.
constexpr unsigned most_trims = 8;
/// Freed bytes after which it is worth to count again, at least.
constexpr std::size_t least_between_counts = std::size_t{1} << 16;

/// Pages a bit each, from the one that holds byte \p from to the one that holds the last before \p to.
[[nodiscard]] std::uint16_t pages_of(std::size_t from, std::size_t to) noexcept {
    const std::size_t first = from / unit_page;
    const std::size_t behind = (to + unit_page - 1) / unit_page;
    return static_cast<std::uint16_t>(((1U << behind) - 1U) & ~((1U << first) - 1U));
}

/// Offsets from the unit's base; what lies before the first slot, and what the last one leaves, belong to them.
[[nodiscard]] std::size_t start_of(const unit& u, std::uint32_t slot) noexcept {
    return slot == 0 ? 0 : u.first - u.base + std::size_t{slot} * u.slot_size;
}
[[nodiscard]] std::size_t end_of(const unit& u, std::uint32_t slot) noexcept {
    return slot + 1 >= u.capacity ? std::min(u.size, largest_unit) : start_of(u, slot + 1);
}

[[nodiscard]] std::uint16_t pages_of(const unit& u, std::uint32_t slot) noexcept {
    return pages_of(start_of(u, slot), end_of(u, slot));
}

/// What a page of a unit holds; in what order, and that one part may be missing, is the same in all.
struct page_parts {
    unsigned char* front = nullptr;  ///< canary, up to `slots`
    unsigned char* slots = nullptr;
    unsigned char* rest = nullptr;  ///< what the last slot leaves, up to `end`
    unsigned char* end = nullptr;
};
[[nodiscard]] page_parts parts_of(const unit& u, unsigned page) noexcept {
    unsigned char* const start = bytes_of(u) + page * unit_page;
    unsigned char* const end = std::min(start + unit_page, rest_end(u));
    const auto within = [&](std::uintptr_t p) noexcept {
        return std::min(std::max(reinterpret_cast<unsigned char*>(p), start), std::max(start, end));
    };
    return {start, within(u.first), within(u.slots_end()), std::max(start, end)};
}

[[nodiscard]] std::size_t bytes_between(const unsigned char* from, const unsigned char* to) noexcept {
    return static_cast<std::size_t>(to - from);
}

[[nodiscard]] std::uint16_t all_pages(const unit& u) noexcept {
    return pages_of(0, std::min(u.size, largest_unit));
}

/// Freed slots of a unit all of whose slots were handed out.
[[nodiscard]] std::uint32_t freed_slots(const unit& u) noexcept {
    const std::uint32_t unfreed = u.unfreed.left();
    return unfreed < u.capacity ? u.capacity - unfreed : 0;
}

/// Bytes of freed slots that are in memory, or a little less.
[[nodiscard]] std::size_t freed_bytes(const unit& u) noexcept {
    const std::size_t freed = std::size_t{freed_slots(u)} * u.slot_size;
    const std::size_t gone =
        static_cast<std::size_t>(std::popcount(u.gone.load(std::memory_order_relaxed))) * unit_page;
    return freed > gone ? freed - gone : 0;
}

/// True if slot \p i is freed, whether or not that is still on record.
[[nodiscard]] bool is_dead(const general_purpose_core& core, unit& u, std::uint32_t i) noexcept {
    return slot_ref{&u, i}.record(core).state.load(std::memory_order_acquire) == slot_state::freed ||
           u.forgets(i, core.record_bytes);
}

/// Bytes of records of a unit that lives which are in memory.
[[nodiscard]] std::size_t records_kept(const general_purpose_core& core, const unit& u) noexcept {
    const auto pages = static_cast<std::size_t>(std::popcount(u.forgotten.load(std::memory_order_relaxed)));
    const bool has_history = u.history.load(std::memory_order_relaxed) != nullptr;
    return record_memory(core, u) - pages * unit_page + (has_history ? history_memory(u) : 0);
}

/// True if more is remembered of freed blocks than options allow: what a page of records holds of freed slots counts
/// whether or not it could be given up. Lock held.
[[nodiscard]] bool remembers_too_much(general_purpose_core& core) noexcept {
    const std::size_t kept = core.retired_record_bytes + core.closed_records;
    const std::size_t limit = core.options.retired_record_bytes;
    return kept > limit && kept - limit > sum_caches(core).blocks() * core.record_bytes;
}

/// Effects: gives records up all of whose slots are freed and lie in memory that was given back, but for pages that
/// they share with others, while too much is remembered. \p u is in no line. Lock held.
void forget_gone(general_purpose_core& core, unit& u) noexcept {
    const std::size_t pages = record_memory(core, u) / unit_page;
    if (core.gate != nullptr || pages == 0 || !remembers_too_much(core)) {  // huge pages are not given up in pieces
        return;
    }
    const auto slots = static_cast<std::uint32_t>(unit_page / core.record_bytes);
    const std::uint16_t gone = u.gone.load(std::memory_order_relaxed);
    for (std::uint32_t i = 0; i < pages; ++i) {
        const auto bit = static_cast<std::uint16_t>(1U << i);
        const std::uint32_t behind = std::min(u.capacity, (i + 1) * slots);
        const std::size_t from = os::round_up(start_of(u, i * slots), unit_page);
        const std::size_t to = end_of(u, behind - 1) / unit_page * unit_page;
        const std::uint16_t held = from < to ? pages_of(from, to) : std::uint16_t{0};
        bool dead = (u.forgotten.load(std::memory_order_relaxed) & bit) == 0 && (gone & held) == held;
        for (std::uint32_t s = i * slots; s < behind && dead; ++s) {
            dead = is_dead(core, u, s);
        }
        if (dead && os::discard(u.records + i * unit_page, unit_page)) {
            u.forgotten.fetch_or(bit, std::memory_order_release);
            core.dropped_records += unit_page;
        }
    }
}

/// Slots that can be used again.
[[nodiscard]] std::uint32_t reusable_slots(const general_purpose_core& core, const unit& u) noexcept {
    const auto pages = static_cast<std::uint32_t>(std::popcount(u.forgotten.load(std::memory_order_relaxed)));
    const auto lost = pages * static_cast<std::uint32_t>(unit_page / core.record_bytes);
    const std::uint32_t freed = freed_slots(u);
    return freed > lost ? freed - lost : 0;
}

/// What all threads freed so far, slack included, or a little more.
[[nodiscard]] std::uint64_t freed_so_far(const general_purpose_core& core, const live_totals& now) noexcept {
    return now.deallocated_bytes + now.deallocations * (core.guard_bytes + size_classes::granularity / 2);
}

/// Bytes of freed slots in closed units, or more.
[[nodiscard]] std::size_t freed_estimate(const general_purpose_core& core, const live_totals& now) noexcept {
    const std::size_t upper = core.freed_counted + static_cast<std::size_t>(freed_so_far(core, now) - core.counted_at);
    return std::min(core.closed_bytes, upper > core.reclaimed ? upper - core.reclaimed : 0);
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

/// Returns: the bytes by which what is kept exceeds what may be. Lock held.
std::size_t excess(general_purpose_core& core) noexcept {
    const live_totals now = sum_caches(core);
    std::size_t freed = freed_estimate(core, now);
    std::size_t limit = core.share.settle(core.untrapped_bytes + freed, now.bytes());
    if (core.untrapped_bytes + freed > limit &&
        freed_so_far(core, now) - core.counted_at >= std::max(limit / 8, least_between_counts)) {
        count_freed(core, now);
        freed = core.freed_counted;
        limit = core.share.settle(core.untrapped_bytes + freed, now.bytes());
    }
    core.unsettled = 0;
    const std::size_t kept = core.untrapped_bytes + freed;
    return kept > limit ? kept - limit : 0;
}

/// Effects: makes pages that were given back usable again, with the fill of freed slots. By whoever has the unit.
/// Returns: false if the system refuses.
bool bring_back(const general_purpose_core& core, unit& u, std::uint16_t pages) noexcept {
    const std::uint16_t wanted = pages & u.gone.load(std::memory_order_relaxed);
    for (unsigned i = 0; i < 16; ++i) {
        const auto bit = static_cast<std::uint16_t>(1U << i);
        if ((wanted & bit) == 0) {
            continue;
        }
        unsigned char* const page = bytes_of(u) + i * unit_page;
        if ((u.guarded.load(std::memory_order_relaxed) & bit) != 0) {
            if (!os::remove_guard(page, unit_page, os::guard_tier::marker)) {
                return false;
            }
            u.guarded.fetch_and(static_cast<std::uint16_t>(~bit), std::memory_order_relaxed);
        }
        const page_parts p = parts_of(u, i);
        if (core.rules.fill) {
            fill_memory(core, p.slots, freed_byte, bytes_between(p.slots, p.rest));
        }
        if (fills(core)) {
            fill_memory(core, p.front, fresh_byte, bytes_between(p.front, p.slots));
            if (core.rules.freed != reuse::immediate) {  // there it is zero, as it came
                fill_memory(core, p.rest, fresh_byte, bytes_between(p.rest, p.end));
            }
        }
        u.gone.fetch_and(static_cast<std::uint16_t>(~bit), std::memory_order_release);
    }
    return true;
}

bool claim(std::atomic<slot_state>& state) noexcept {
    slot_state expected = slot_state::freed;
    // While it is freeing, nobody else touches the slot, and a double free waits for what it will become.
    return state.compare_exchange_strong(expected, slot_state::freeing, std::memory_order_acq_rel);
}

/// Effects: makes a claimed and verified slot ready to be handed out. Without a history, as private memory is used up,
/// it keeps the serial number that it had.
void make_ready(const general_purpose_core& core, slot_ref s, std::uint64_t serial) noexcept {
    unit& u = *s.owner;
    if (slot_history* const all = u.history.load(std::memory_order_relaxed); all != nullptr) {
        slot_history& h = all[s.index];
        const std::uint64_t owners = h.owners == 0 ? 1 : h.owners;
        h.serial = serial & ((std::uint64_t{1} << 48) - 1);
        h.owners = static_cast<std::uint16_t>(std::min<std::uint64_t>(owners + 1, 0xFFFF));
        if (core.record_bytes == sizeof(traced_record)) {
            const auto& r = static_cast<const traced_record&>(s.record(core));
            h.former_allocated = r.allocated;
            h.former_freed = r.freed;
        }
    }
    if (core.rules.fill || core.guard_bytes != 0) {
        fill_memory(core, s.address(), fresh_byte, u.slot_size);
    }
    s.record(core).state.store(slot_state::ready, std::memory_order_release);
}

/// Effects: sees to it that the unit's slots can be told apart from those that they were. Lock held. Returns: false if
/// private memory is used up.
bool has_history(general_purpose_core& core, unit& u) noexcept {
    if (u.history.load(std::memory_order_relaxed) == nullptr) {
        auto* const h = static_cast<slot_history*>(core.memory->allocate_zeroed(history_memory(u)));
        u.history.store(h, std::memory_order_release);
        core.closed_records += u.closed && h != nullptr ? history_memory(u) : 0;
    }
    return u.history.load(std::memory_order_relaxed) != nullptr;
}

/// Effects: takes the oldest unit of class \p cls that is worth it out of its line. Lock held. Returns: it, or null.
unit* take_oldest(general_purpose_core& core, unsigned cls) noexcept {
    unit_line& line = core.closed[cls];
    for (unsigned tries = 0; tries < most_tries && line.first != nullptr; ++tries) {
        unit& u = *line.first;
        if (u.damaged) {
            leave_line(core, u);
            continue;
        }
        line.remove(u);
        line.push(u);
        if (reusable_slots(core, u) * worthwhile >= u.capacity && has_history(core, u) && u.unfreed.up()) {
            leave_line(core, u);
            return &u;
        }
    }
    return nullptr;
}

/// The pages of a unit that hold freed slots only, and were not given back.
[[nodiscard]] std::uint16_t dead_pages(const general_purpose_core& core, unit& u) noexcept {
    std::uint16_t dead = all_pages(u) & static_cast<std::uint16_t>(~u.gone.load(std::memory_order_relaxed));
    for (std::uint32_t i = 0; i < u.capacity && dead != 0; ++i) {
        if (!is_dead(core, u, i)) {
            dead &= static_cast<std::uint16_t>(~pages_of(u, i));
        }
    }
    return dead;
}

/// Effects: verifies the slots in \p pages, and what is around all slots; what is broken is reported. Returns: true if
/// nothing is.
bool verify_pages(general_purpose_core& core, unit& u, std::uint16_t pages) noexcept {
    bool intact = verify_rest(core, u) == 0;
    for (unsigned i = 0; i < 16 && core.rules.fill; ++i) {
        const page_parts p = parts_of(u, i);
        if ((pages >> i & 1U) == 0 || all_bytes(p.slots, bytes_between(p.slots, p.rest), freed_byte)) {
            continue;
        }
        const std::uint32_t behind = slot_holding(u, reinterpret_cast<std::uintptr_t>(p.rest - 1)).index + 1;
        for (std::uint32_t s = slot_holding(u, reinterpret_cast<std::uintptr_t>(p.slots)).index; s < behind; ++s) {
            if (slot_ref{&u, s}.record(core).state.load(std::memory_order_acquire) == slot_state::freed) {
                intact = verify_freed(core, {&u, s}) && intact;
            }
        }
    }
    return intact;
}

/// Whether page \p i of a listed unit holds nothing but what it may: freed slots' fill, and what is around slots.
bool holds_fills(const general_purpose_core& core, const unit& u, unsigned i) noexcept {
    const page_parts p = parts_of(u, i);
    return (!core.rules.fill || all_bytes(p.slots, bytes_between(p.slots, p.rest), freed_byte)) &&
           (!fills(core) || (all_bytes(p.front, bytes_between(p.front, p.slots), fresh_byte) &&
                             (!u.zeroed || all_bytes(p.rest, bytes_between(p.rest, p.end), 0))));
}

/// Effects: gives the memory of \p pages back, and guards them where dead memory is to fault.
void give_pages_back(general_purpose_core& core, unit& u, std::uint16_t pages) noexcept {
    os::page_range ranges[8];
    std::uint16_t bits[8];
    std::size_t count = 0;
    for (unsigned i = 0; i < 16;) {
        unsigned n = 0;
        while (i + n < 16 && (pages >> (i + n) & 1U) != 0) {
            ++n;
        }
        if (n != 0) {
            ranges[count] = {bytes_of(u) + i * unit_page, n * unit_page};
            bits[count] = pages_of(i * unit_page, (i + n) * unit_page);
            ++count;
        }
        i += n + 1;
    }
    const os::markings done = core.trapping ? os::install_markers(ranges, count, true) : os::markings{};
    // In the heap nothing is mapped anew: those pages are not ours.
    const auto empty = core.over_pages ? os::discard : os::discard_in_place;
    for (std::size_t i = 0; i < count; ++i) {
        if (i >= done.emptied && !empty(ranges[i].start, ranges[i].bytes)) {
            continue;
        }
        if (i < done.guarded) {
            u.guarded.fetch_or(bits[i], std::memory_order_relaxed);
        }
        u.gone.fetch_or(bits[i], std::memory_order_release);
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

/// Effects: gives the dead pages of closed units back, the oldest of a class first, a class after the other, until
/// \p wanted bytes are, or it has been tried often enough. Lock held; released meanwhile.
void trim(general_purpose_core& core, guard_lock& hold, std::size_t wanted) noexcept {
    if (!core.discards) {
        return;
    }
    std::size_t given = 0;
    for (unsigned trims = 0; trims < most_trims && given < wanted && core.trims_left != 0;) {
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
        if (u->damaged || !u->unfreed.up()) {
            continue;
        }
        if (freed_bytes(*u) < unit_page) {  // nothing to be had but records
            leave_line(core, *u);
            forget_gone(core, *u);
            end_visit(core, hold, *u);
            continue;
        }
        leave_line(core, *u);
        u->borrowed = true;
        hold.unlock();
        const int before = std::popcount(u->gone.load(std::memory_order_relaxed));
        const std::uint16_t dead = dead_pages(core, *u);
        if (dead != 0 && verify_pages(core, *u, dead)) {
            u->unsettle();
            give_pages_back(core, *u, dead);
            u->settle();
            ++trims;
        }
        const int after = std::popcount(u->gone.load(std::memory_order_relaxed));
        hold.lock();
        u->borrowed = false;
        if (u->in != nullptr && u->guarded.load(std::memory_order_relaxed) != 0) {
            u->in->holes = true;
        }
        if (after != before) {
            forget_gone(core, *u);
        }
        given += static_cast<std::size_t>(after - before) * unit_page;
        core.reclaimed += static_cast<std::size_t>(after - before) * unit_page;
        end_visit(core, hold, *u);
    }
}

}  // namespace

std::size_t history_memory(const unit& u) noexcept {
    return u.capacity * sizeof(slot_history);
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
    if (!core.discards || core.closed_bytes <= core.share.limit()) {
        return;
    }
    const live_totals now = sum_caches(core);
    const std::size_t live = static_cast<std::size_t>(now.bytes() + now.blocks() * core.guard_bytes);
    const std::size_t kept = core.closed_bytes > live ? core.closed_bytes - live : 0;
    if (kept <= core.share.settle(kept, static_cast<std::size_t>(now.bytes()))) {
        return;
    }
    std::uint16_t dead = all_pages(u) & static_cast<std::uint16_t>(~u.gone.load(std::memory_order_relaxed));
    for (std::uint32_t i = 0; i < u.capacity && dead != 0; ++i) {
        if ((u.free_bits[i / 64].load() >> (i % 64) & 1U) == 0) {
            dead &= static_cast<std::uint16_t>(~pages_of(u, i));
        }
    }
    for (unsigned i = 0; i < 16; ++i) {
        if ((dead >> i & 1U) != 0 && !holds_fills(core, u, i)) {
            dead &= static_cast<std::uint16_t>(~(1U << i));  // fresh ones, or written to: whoever takes those will see
        }
    }
    if (dead == 0) {
        return;
    }
    const int before = std::popcount(u.gone.load(std::memory_order_relaxed));
    give_pages_back(core, u, dead);
    const int after = std::popcount(u.gone.load(std::memory_order_relaxed));
    core.closed_bytes -= static_cast<std::size_t>(after - before) * unit_page;
}

void trim_lists(general_purpose_core& core) noexcept {
    constexpr unsigned most_units = 64;
    unsigned seen = 0;
    for (unsigned n = 0; n < size_classes::count && seen < most_units; ++n) {
        core.trim_class = (core.trim_class + 1) % size_classes::count;
        unsigned left = most_units;
        for (unit* u = core.partly_free[core.trim_class]; u != nullptr && left != 0; u = u->queue, --left, ++seen) {
            if (core.closed_bytes <= core.share.limit()) {
                return;
            }
            trim_listed(core, *u);
        }
    }
}

void leave_list(general_purpose_core& core, unit& u) noexcept {
    const auto pages = static_cast<std::size_t>(std::popcount(u.gone.load(std::memory_order_relaxed)));
    core.closed_bytes -= u.size - pages * unit_page;
    (void)bring_back(core, u, 0xFFFF);  // not guarded, so that it cannot be refused
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

std::size_t kept_freed(general_purpose_core& core) noexcept {
    if (core.rules.freed == reuse::immediate) {
        const std::size_t live = static_cast<std::size_t>(sum_caches(core).bytes());
        return core.closed_bytes > live ? core.closed_bytes - live : 0;
    }
    return freed_estimate(core, sum_caches(core));
}

void settle_quarantine(general_purpose_core& core) noexcept {
    core.share.settle(core.untrapped_bytes + kept_freed(core), sum_caches(core).bytes());
    core.unsettled = 0;
}

bool freed_intact(const general_purpose_core& core, const unit& u, std::uint32_t index) noexcept {
    bool intact = true;
    if (core.rules.fill) {
        const unsigned char* const start =
            reinterpret_cast<const unsigned char*>(u.first + std::size_t{index} * u.slot_size);
        for_each_present(u, start, u.slot_bytes(), [&intact](const unsigned char* p, std::size_t n) noexcept {
            intact = intact && all_bytes(p, n, freed_byte);
        });
    }
    return intact;
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
        const std::size_t wanted = std::min(too_much, 4 * largest_unit);
        trap_pending(core, hold, wanted);
        trim(core, hold, wanted);
    }
}

bool reopen_closed(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    unit* dead = nullptr;
    bool reopened = false;
    {
        guard_lock hold(core);
        const std::size_t too_much = core.closed_count != 0 || core.untrapped_bytes != 0 ? excess(core) : 0;
        if (too_much == 0) {
            return false;
        }
        if (unit* const u = take_oldest(core, cls); u != nullptr) {
            core.reclaimed += freed_bytes(*u);
            u->again.store(true, std::memory_order_release);
            u->scan = 0;
            u->next.store(0, std::memory_order_relaxed);
            u->prepared.store(0, std::memory_order_relaxed);
            u->attached.store(true, std::memory_order_relaxed);
            unit* const old = cache.current[cls];
            dead = old != nullptr && detach(core, *old) ? old : nullptr;
            cache.current[cls] = u;
            reopened = true;
        } else {
            // More than the new unit takes, so that what is kept comes down.
            const std::size_t wanted = std::min(too_much, 4 * largest_unit);
            trap_pending(core, hold, wanted);
            trim(core, hold, wanted);
        }
    }
    if (dead != nullptr) {
        retire(core, *dead);
    }
    return reopened;
}

void unready(general_purpose_core& core, unit& u) noexcept {
    const std::uint32_t behind = u.prepared.load(std::memory_order_relaxed);
    for (std::uint32_t i = u.next.load(std::memory_order_relaxed); i < behind; ++i) {
        if (core.rules.fill) {
            fill_memory(core, slot_ref{&u, i}.address(), freed_byte, u.slot_size);
        }
        slot_ref{&u, i}.record(core).state.store(slot_state::freed, std::memory_order_release);
    }
    u.next.store(behind, std::memory_order_relaxed);
}

readiness ready_more(general_purpose_core& core, unit& u) noexcept {
    const auto most =
        static_cast<std::uint32_t>(std::max<std::size_t>(1, std::min<std::size_t>(ready_step / u.slot_size, 64)));
    for (; u.scan < u.capacity && !u.damaged; ++u.scan) {
        // A run of freed slots, claimed one by one: a double free may be looking at any of them.
        const std::uint32_t first = u.scan;
        std::uint32_t behind = first;
        bool broken = false;
        while (behind < u.capacity && behind - first < most && !broken) {
            const slot_ref s{&u, behind};
            std::atomic<slot_state>& state = s.record(core).state;
            if (state.load(std::memory_order_relaxed) != slot_state::freed || !claim(state)) {
                break;
            }
            broken = !freed_intact(core, u, behind) || !bring_back(core, u, pages_of(u, behind));
            if (broken) {
                state.store(slot_state::freed, std::memory_order_release);
            } else {
                ++behind;
            }
        }
        if (behind != first) {
            const std::uint32_t n = behind - first;
            u.unfreed.add(n);
            std::uint64_t serial = core.next_serial.fetch_add(n, std::memory_order_relaxed);
            for (std::uint32_t i = first; i < behind; ++i) {
                make_ready(core, {&u, i}, serial++);
            }
            core.reused_slots.fetch_add(n, std::memory_order_relaxed);
            u.scan = behind;
            u.next.store(first, std::memory_order_relaxed);
            u.prepared.store(behind, std::memory_order_relaxed);
            return readiness::ready;
        }
        if (broken) {
            u.scan += 1;
            // A handler is told, which may use the resource and the unit.
            (void)verify_freed(core, {&u, first});
            return readiness::look_again;
        }
    }
    return readiness::used_up;
}

slot_ref take_freed_slot(general_purpose_core& core, unsigned cls, std::size_t alignment) noexcept {
    guard_lock hold(core);
    // Each search goes on where the last one ended, or the slots that are not to be had would be looked at every time.
    unit* start = core.freed_search != nullptr ? core.freed_search : core.units;
    for (unit* u = start; u != nullptr;) {
        const bool suits =
            !u->large && !u->damaged && !u->borrowed && u->size_class >= cls && u->slot_size % alignment == 0 &&
            u->phase.load(std::memory_order_relaxed) == unit_phase::active && u->unfreed.left() != u->capacity;
        if (suits) {
            (void)has_history(core, *u);
        }
        const std::uint32_t used = suits ? u->used() : 0;
        for (std::uint32_t seen = 0; seen < used; ++seen) {
            u->freed_search = u->freed_search + 1 < used ? u->freed_search + 1 : 0;
            const slot_ref s{u, u->freed_search};
            std::atomic<slot_state>& state = s.record(core).state;
            if (state.load(std::memory_order_acquire) != slot_state::freed) {
                continue;
            }
            const std::uint16_t pages = pages_of(*u, s.index);
            if ((u->gone.load(std::memory_order_relaxed) & pages) != 0 && !u->closed) {
                continue;  // whoever has the unit brings pages back
            }
            // Count the slot in first: a unit whose count reached 0 is being retired by somebody.
            if (!u->unfreed.up()) {
                break;
            }
            const bool claimed = claim(state);
            if (!claimed || !bring_back(core, *u, pages)) {
                if (claimed) {
                    state.store(slot_state::freed, std::memory_order_release);
                }
                if (u->unfreed.subtract(1) == 0 && to_retire(*u)) {
                    hold.unlock();
                    retire(core, *u);
                    return {};
                }
                continue;
            }
            core.freed_search = u;
            core.recycled_units += 1;
            hold.unlock();
            if (freed_intact(core, *u, s.index)) {
                make_ready(core, s, core.next_serial.fetch_add(1, std::memory_order_relaxed));
                core.reused_slots.fetch_add(1, std::memory_order_relaxed);
                return s;
            }
            state.store(slot_state::freed, std::memory_order_release);
            (void)verify_freed(core, s);
            hold.lock();
            start = u;  // damaged units stay; the one that was the start may be gone
            break;
        }
        u = u->following != nullptr ? u->following : core.units;
        if (u == start) {
            break;
        }
    }
    return {};
}

}  // namespace pmr_debug::detail
