// Freed slots of units that live are handed out again: beyond the budget (general_purpose_budget.cpp) those of the
// oldest unit of the class, and when memory has run out any that fits.

#include "resources/general_purpose_pages.hpp"

#include <algorithm>
#include <new>

namespace pmr_debug::detail {

namespace {

/// Slots are made ready in steps of so many bytes.
constexpr std::size_t ready_step = std::size_t{1} << 12;
/// A unit is worth to be taken if one slot of so many is free.
constexpr std::uint32_t worthwhile = 8;
/// Units that are looked at for one that is wanted.
constexpr unsigned most_tries = 16;

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

/// Whether so many slots of \p u, one that is closed, are worth it; if so, it is taken out of its line. Lock held.
bool take(general_purpose_core& core, unit& u, std::uint32_t slots) noexcept {
    if (slots * worthwhile < u.capacity || !has_history(core, u) || !u.unfreed.up()) {
        return false;
    }
    leave_line(core, u);
    return true;
}

/// Effects: takes the oldest unit of class \p cls that is worth it out of its line. One whose pages were given back is
/// taken only if no other is found: what it takes from the system others have to give. Lock held. Returns: it, or null.
unit* take_oldest(general_purpose_core& core, unsigned cls) noexcept {
    unit_line& line = core.closed[cls];
    unit* oldest_gone = nullptr;
    for (unsigned tries = 0; tries < most_tries && line.first != nullptr; ++tries) {
        unit& u = *line.first;
        if (u.damaged) {
            leave_line(core, u);
            continue;
        }
        line.remove(u);
        line.push(u);
        if (take(core, u, reusable_in_memory(core, u))) {
            u.brings_back = false;
            return &u;
        }
        if (oldest_gone == nullptr && u.gone.load(std::memory_order_relaxed) != 0 &&
            reusable_slots(core, u) * worthwhile >= u.capacity) {
            oldest_gone = &u;
        }
    }
    if (oldest_gone != nullptr && take(core, *oldest_gone, reusable_slots(core, *oldest_gone))) {
        oldest_gone->brings_back = true;
        return oldest_gone;
    }
    return nullptr;
}

}  // namespace

bool freed_intact(const general_purpose_core& core, const unit& u, std::uint32_t index) noexcept {
    bool intact = true;
    if (core.rules.fill) {
        const unsigned char* const start =
            reinterpret_cast<const unsigned char*>(u.first + std::size_t{index} * u.slot_size);
        for_each_part(u, start, u.slot_bytes(), [&intact](const unsigned char* p, std::size_t n, bool gone) noexcept {
            intact = intact && (gone ? all_bytes_or_zero(p, n, freed_byte) : all_bytes(p, n, freed_byte));
        });
    }
    return intact;
}

bool reopen_closed(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    unit* dead = nullptr;
    bool reopened = false;
    {
        guard_lock hold(core);
        std::size_t too_much = core.closed_count != 0 || core.untrapped_bytes != 0 ? excess(core) : 0;
        if (too_much == 0) {
            return false;
        }
        if (unit* const u = take_oldest(core, cls); u != nullptr) {
            const std::size_t used_again =
                u->brings_back ? freed_bytes(*u) : std::size_t{reusable_in_memory(core, *u)} * u->slot_size;
            core.reclaimed += used_again;
            too_much -= std::min(too_much, used_again);
            u->futile_at = 0;
            u->again.store(true, std::memory_order_release);
            u->scan = 0;
            u->next.store(0, std::memory_order_relaxed);
            u->prepared.store(0, std::memory_order_relaxed);
            u->attached.store(true, std::memory_order_relaxed);
            unit* const old = cache.current[cls];
            dead = old != nullptr && detach(core, *old) ? old : nullptr;
            cache.current[cls] = u;
            reopened = true;
        }
        come_down(core, hold, too_much);
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
        if (slot_history* const all = u.history.load(std::memory_order_relaxed); all != nullptr) {
            const std::uint64_t owners = all[i].owners;
            all[i].owners = static_cast<std::uint16_t>(owners - (owners == 2 ? 2 : 1));  // nobody had it
        }
        slot_ref{&u, i}.record(core).state.store(slot_state::freed, std::memory_order_release);
    }
    core.reused_slots.fetch_sub(behind - u.next.load(std::memory_order_relaxed), std::memory_order_relaxed);
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
            if (!u.brings_back && (u.gone.load(std::memory_order_relaxed) & pages_of(u, behind)) != 0) {
                break;
            }
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
            const page_set pages = pages_of(*u, s.index);
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
