#include "resources/general_purpose_pages.hpp"

#include "os/virtual_memory.hpp"

#include <algorithm>

namespace pmr_debug::detail {

namespace {

/// Pages a bit each, from the one that holds byte \p from to the one that holds the last before \p to.
[[nodiscard]] page_set pages_of(std::size_t from, std::size_t to) noexcept {
    const std::size_t first = from / unit_page;
    const std::size_t behind = (to + unit_page - 1) / unit_page;
    return static_cast<page_set>(((1U << behind) - 1U) & ~((1U << first) - 1U));
}

/// Offsets from the unit's base; what lies before the first slot, and what the last one leaves, belong to them.
[[nodiscard]] std::size_t start_of(const unit& u, std::uint32_t slot) noexcept {
    return slot == 0 ? 0 : u.first - u.base + std::size_t{slot} * u.slot_size;
}

[[nodiscard]] std::size_t end_of(const unit& u, std::uint32_t slot) noexcept {
    return slot + 1 >= u.capacity ? std::min(u.size, largest_unit) : start_of(u, slot + 1);
}

/// Slots that lie in \p pages, if only in part.
[[nodiscard]] std::uint32_t slots_touching(const unit& u, page_set pages) noexcept {
    std::uint32_t slots = 0;
    std::uint32_t next = 0;  // not counted yet
    const std::size_t front = u.first - u.base;
    for (unsigned i = 0; i < 16; ++i) {
        if ((pages >> i & 1U) == 0) {
            continue;
        }
        const std::size_t from = std::max(i * unit_page, front) - front;
        const std::size_t to = std::max((i + 1) * unit_page, front + 1) - front;
        const auto first = std::min(static_cast<std::uint32_t>(from / u.slot_size), u.capacity - 1);
        const auto behind = std::min(static_cast<std::uint32_t>((to + u.slot_size - 1) / u.slot_size), u.capacity);
        slots += behind - std::min(behind, std::max(first, next));
        next = behind;
    }
    return slots;
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

/// True if slot \p i is freed, whether or not that is still on record.
[[nodiscard]] bool is_dead(const general_purpose_core& core, unit& u, std::uint32_t i) noexcept {
    return slot_ref{&u, i}.record(core).state.load(std::memory_order_acquire) == slot_state::freed ||
           u.forgets(i, core.record_bytes);
}

/// True if more is remembered of freed blocks than options allow: what a page of records holds of freed slots counts
/// whether or not it could be given up. Lock held.
[[nodiscard]] bool remembers_too_much(general_purpose_core& core) noexcept {
    const std::size_t kept = core.retired_record_bytes + core.closed_records;
    const std::size_t limit = core.options.retired_record_bytes;
    return kept > limit && kept - limit > sum_caches(core).blocks() * core.record_bytes;
}

/// Whether page \p i of a listed unit holds nothing but what it may: freed slots' fill, and what is around slots.
bool holds_fills(const general_purpose_core& core, const unit& u, unsigned i) noexcept {
    const page_parts p = parts_of(u, i);
    return (!core.rules.fill || all_bytes(p.slots, bytes_between(p.slots, p.rest), freed_byte)) &&
           (!fills(core) || (all_bytes(p.front, bytes_between(p.front, p.slots), fresh_byte) &&
                             (!u.zeroed || all_bytes(p.rest, bytes_between(p.rest, p.end), 0))));
}

/// Effects: fills memory that was given back. What somebody wrote to it meanwhile stays, to be found when it is
/// verified.
PMR_DEBUG_UNSEEN_BY_ASAN void refill_memory(const general_purpose_core& core, unsigned char* p, unsigned char value,
                                            std::size_t bytes, bool untouched) noexcept {
    if (untouched) {
        fill_memory(core, p, value, bytes);
        return;
    }
    for (std::size_t i = 0; i < bytes; ++i) {
        p[i] = p[i] == 0 ? value : p[i];
    }
}

/// The pages, of those that were not given back, all of whose slots are as \p wanted says.
template <class Wanted>
[[nodiscard]] page_set pages_that_hold_only(const unit& u, Wanted&& wanted) noexcept {
    page_set pages = all_pages(u) & static_cast<page_set>(~u.gone.load(std::memory_order_relaxed));
    for (std::uint32_t i = 0; i < u.capacity && pages != 0; ++i) {
        if (!wanted(i)) {
            pages &= static_cast<page_set>(~pages_of(u, i));
        }
    }
    return pages;
}

}  // namespace

page_set pages_of(const unit& u, std::uint32_t slot) noexcept {
    return pages_of(start_of(u, slot), end_of(u, slot));
}

page_set all_pages(const unit& u) noexcept {
    return pages_of(0, std::min(u.size, largest_unit));
}

std::uint32_t freed_slots(const unit& u) noexcept {
    const std::uint32_t unfreed = u.unfreed.left();
    return unfreed < u.capacity ? u.capacity - unfreed : 0;
}

std::uint32_t reusable_slots(const general_purpose_core& core, const unit& u) noexcept {
    const auto pages = static_cast<std::uint32_t>(std::popcount(u.forgotten.load(std::memory_order_relaxed)));
    const auto lost = pages * static_cast<std::uint32_t>(unit_page / core.record_bytes);
    const std::uint32_t freed = freed_slots(u);
    return freed > lost ? freed - lost : 0;
}

std::uint32_t reusable_in_memory(const general_purpose_core& core, const unit& u) noexcept {
    const std::uint32_t reusable = reusable_slots(core, u);
    // Pages that were given back hold freed slots only, so all slots that touch them are.
    const std::uint32_t gone = slots_touching(u, u.gone.load(std::memory_order_relaxed));
    return std::min(reusable, freed_slots(u) > gone ? freed_slots(u) - gone : 0);
}

std::size_t freed_bytes(const unit& u) noexcept {
    const std::size_t freed = std::size_t{freed_slots(u)} * u.slot_size;
    const std::size_t gone = bytes_in(u.gone.load(std::memory_order_relaxed));
    return freed > gone ? freed - gone : 0;
}

std::size_t records_kept(const general_purpose_core& core, const unit& u) noexcept {
    const std::size_t given_up = bytes_in(u.forgotten.load(std::memory_order_relaxed));
    const bool has_history = u.history.load(std::memory_order_relaxed) != nullptr;
    return record_memory(core, u) - given_up + (has_history ? history_memory(u) : 0);
}

void forget_gone(general_purpose_core& core, unit& u) noexcept {
    const std::size_t pages = record_memory(core, u) / unit_page;
    if (core.gate != nullptr || pages == 0 || !remembers_too_much(core)) {  // huge pages are not given up in pieces
        return;
    }
    const auto slots = static_cast<std::uint32_t>(unit_page / core.record_bytes);
    const page_set gone = u.gone.load(std::memory_order_relaxed);
    for (std::uint32_t i = 0; i < pages; ++i) {
        const auto bit = static_cast<page_set>(1U << i);
        const std::uint32_t behind = std::min(u.capacity, (i + 1) * slots);
        const std::size_t from = os::round_up(start_of(u, i * slots), unit_page);
        const std::size_t to = end_of(u, behind - 1) / unit_page * unit_page;
        const page_set held = from < to ? pages_of(from, to) : page_set{0};
        bool dead = (u.forgotten.load(std::memory_order_relaxed) & bit) == 0 && (gone & held) == held;
        for (std::uint32_t s = i * slots; s < behind && dead; ++s) {
            dead = is_dead(core, u, s);
        }
        if (!dead) {
            continue;
        }
        // First, as a double free may be looking at a record of the page: what it finds empty it must know to be given
        // up.
        u.forgotten.fetch_or(bit, std::memory_order_acq_rel);
        if (os::discard(u.records + i * unit_page, unit_page)) {
            core.dropped_records += unit_page;
        } else {
            u.forgotten.fetch_and(static_cast<page_set>(~bit), std::memory_order_release);
        }
    }
}

page_set dead_pages(const general_purpose_core& core, unit& u) noexcept {
    return pages_that_hold_only(u, [&](std::uint32_t i) noexcept { return is_dead(core, u, i); });
}

page_set free_pages(const general_purpose_core& core, const unit& u) noexcept {
    page_set dead = pages_that_hold_only(
        u, [&](std::uint32_t i) noexcept { return (u.free_bits[i / 64].load() >> (i % 64) & 1U) != 0; });
    for (unsigned i = 0; i < 16; ++i) {
        if ((dead >> i & 1U) != 0 && !holds_fills(core, u, i)) {
            dead &= static_cast<page_set>(~(1U << i));
        }
    }
    return dead;
}

bool verify_pages(general_purpose_core& core, unit& u, page_set pages) noexcept {
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

std::size_t give_pages_back(general_purpose_core& core, unit& u, page_set pages) noexcept {
    os::page_range ranges[8];
    page_set bits[8];
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
    std::size_t given = 0;
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
        given += ranges[i].bytes;
    }
    return given;
}

bool bring_back(const general_purpose_core& core, unit& u, page_set pages) noexcept {
    const page_set wanted = pages & u.gone.load(std::memory_order_relaxed);
    for (unsigned i = 0; i < 16; ++i) {
        const auto bit = static_cast<page_set>(1U << i);
        if ((wanted & bit) == 0) {
            continue;
        }
        unsigned char* const page = bytes_of(u) + i * unit_page;
        const bool was_guarded = (u.guarded.load(std::memory_order_relaxed) & bit) != 0;
        const bool untouched = was_guarded || os::resident(page, unit_page) == 0;
        if (was_guarded) {
            if (!os::remove_guard(page, unit_page, os::guard_tier::marker)) {
                return false;
            }
            u.guarded.fetch_and(static_cast<page_set>(~bit), std::memory_order_relaxed);
        }
        const page_parts p = parts_of(u, i);
        if (core.rules.fill) {
            refill_memory(core, p.slots, freed_byte, bytes_between(p.slots, p.rest), untouched);
        }
        if (fills(core)) {
            refill_memory(core, p.front, fresh_byte, bytes_between(p.front, p.slots), untouched);
            if (core.rules.freed != reuse::immediate) {  // there it is zero, as it came
                refill_memory(core, p.rest, fresh_byte, bytes_between(p.rest, p.end), untouched);
            }
        }
        u.gone.fetch_and(static_cast<page_set>(~bit), std::memory_order_release);
    }
    return true;
}

}  // namespace pmr_debug::detail
