// What becomes of dead units: verified, made inaccessible, remembered for a while, forgotten, and in need used again.
//
//   last slot freed ─┬─ by itself ──> verified, trapped ───────────────────────────────────────────┐
//                    └─ in a slab ──> pending ──> slab all dead: verified, its pages move to the next slab
//                                                                                                 v
//          retired list (first in, first out) ──> records forgotten ──> in need: memory used again

#include "resources/general_purpose_pages.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>

namespace pmr_debug::detail {

namespace {

/// Slabs kept ready. More dead ones give their memory back.
constexpr std::size_t most_warm = 16;
/// Each slab that was moved is a mapping of its own, of which the kernel allows 65 530 by default.
constexpr std::size_t most_moved = 8'192;

/// Effects: removes the unit from the map and from the books; its descriptor stays. Lock held.
void forget_records(general_purpose_core& core, unit& u) noexcept {
    metadata::address_map::erase(u);
    if (u.in != nullptr) {
        unit** link = &u.in->units;
        while (*link != &u) {
            link = &(*link)->next_in_slab;
        }
        *link = u.next_in_slab;
        if (u.in->units == nullptr && u.in->dead == slab::size) {
            core.memory->free(u.in, sizeof(slab));
        }
        u.in = nullptr;
    }
    free_records(core, u);
    core.freed_search = core.freed_search == &u ? nullptr : core.freed_search;
    (u.previous != nullptr ? u.previous->following : core.units) = u.following;
    if (u.following != nullptr) {
        u.following->previous = u.previous;
    }
    u.previous = u.following = nullptr;
}

/// Effects: makes a unit's memory available to units of any class. Lock held.
void make_reusable(general_purpose_core& core, unit& u) noexcept {
    if (u.in != nullptr) {  // the memory may be in use while neighbours still live: it must stay where it is
        u.in->fixed = true;
    }
    forget_records(core, u);
    u.phase.store(unit_phase::reusable, std::memory_order_relaxed);
    core.reusable.push(u);
}

bool verify_unit(general_purpose_core& core, unit& u) noexcept {
    // Once: later it may be that all of the unit was filled anew.
    bool intact = verify_rest(core, u) == 0;
    u.rest_verified = true;
    if (!core.rules.fill) {
        return intact;
    }
    const std::uint32_t used = u.used();
    if (!u.damaged && u.gone.load(std::memory_order_relaxed) == 0 &&
        all_bytes(slot_ref{&u, 0}.address(), used * u.slot_bytes(), freed_byte)) {
        return intact;
    }
    for (std::uint32_t i = 0; i < used; ++i) {
        const slot_ref s{&u, i};
        if (s.record(core).state.load(std::memory_order_acquire) == slot_state::freed) {
            intact = verify_freed(core, s) && intact;
        }
    }
    return intact;
}

/// Effects: reuse::immediate: a unit without live blocks goes back, its memory to the system and its addresses to
/// others.
void release_now(general_purpose_core& core, unit& u) noexcept {
    if (u.damaged) {
        return;
    }
    if (u.from->size == u.size) {
        forget(core, u, false);
        return;
    }
    if (core.over_pages) {
        os::discard(bytes_of(u), u.size);
    }
    make_reusable(core, u);
}

/// Effects: keeps the count of retired memory that is not trapped. Lock held.
void set_untrapped(general_purpose_core& core, unit& u, bool untrapped) noexcept {
    if (u.untrapped == untrapped) {
        return;
    }
    u.untrapped = untrapped;
    if (untrapped) {
        core.untrapped_bytes += u.size;
        core.untrapped_units += 1;
    } else {
        core.untrapped_bytes -= u.size;
        core.untrapped_units -= 1;
    }
}

// ---- pending units ------------------------------------------------------------------------------------------------

void add_pending(general_purpose_core& core, unit& u) noexcept {
    u.pending = true;
    core.pending_count += 1;
    core.pending.push(u);
    set_untrapped(core, u, true);
}

void remove_pending(general_purpose_core& core, unit& u) noexcept {
    if (!u.pending) {
        return;
    }
    u.pending = false;
    core.pending_count -= 1;
    core.pending.remove(u);
}

/// Effects: notes how \p u was made inaccessible, if it was. A damaged one waits for nothing.
void note_trap(general_purpose_core& core, unit& u, os::guard_tier tier) noexcept {
    u.trap = tier;
    set_untrapped(core, u, !u.trapped() && !u.damaged);
}

/// As note_trap, for a guard of its own.
void note_guard(general_purpose_core& core, unit& u, os::guard_tier tier) noexcept {
    note_trap(core, u, tier);
    u.from->protect_guards += tier == os::guard_tier::protect ? 1 : 0;
}

/// What is remembered of a unit takes so many bytes.
std::size_t books_memory(const general_purpose_core& core, const unit& u) noexcept {
    return records_kept(core, u) + sizeof(unit);
}

/// Effects: counts the unit among the retired ones.
void enter_books(general_purpose_core& core, unit& u) noexcept {
    u.booked = true;
    core.retired_bytes += u.size;
    core.retired_record_bytes += books_memory(core, u);
}

void leave_books(general_purpose_core& core, unit& u) noexcept {
    if (u.booked) {
        u.booked = false;
        core.retired_bytes -= u.size;
        core.retired_record_bytes -= books_memory(core, u);
    }
}

/// Effects: puts a unit that waits for nothing else in the retired list. A damaged one stays known to the map and is
/// never used again.
void file(general_purpose_core& core, unit& u) noexcept {
    if (u.damaged) {
        leave_books(core, u);
        set_untrapped(core, u, false);
    } else {
        core.retired.push(u);
    }
}

/// Where the pages of a dead slab may go.
struct landing {
    void* descriptor = nullptr;  ///< place for the next slab's; null: nowhere
    piece memory;
};

/// Effects: finds fresh addresses for the pages of \p s and counts the warm slab that will be there. Lock held; may be
/// released meanwhile.
landing find_landing(general_purpose_core& core, guard_lock& hold, const slab& s) noexcept {
    landing to;
    if (s.fixed || core.warm_count >= std::clamp<std::size_t>(core.share.limit() / 8 / slab::size, 1, most_warm) ||
        core.moved_count >= most_moved) {
        return to;
    }
    void* const place = core.memory->allocate(sizeof(slab));
    std::optional<upstream_fault> fault;  // pages are ours, and have none
    if (place != nullptr && carve_slab_memory(core, hold, to.memory, fault)) {
        to.descriptor = place;
        core.warm_count += 1;
        core.moved_count += s.warm ? 0 : 1;  // else its predecessor's mapping is gone
    } else if (place != nullptr) {
        core.memory->free(place, sizeof(slab));
    }
    return to;
}

/// Effects: takes the count back, as the pages stayed where they were. Lock held.
void give_up_landing(general_purpose_core& core, const slab& s, const landing& to) noexcept {
    core.memory->free(to.descriptor, sizeof(slab));
    spend(core, *to.memory.from, slab::size, true);
    core.warm_count -= 1;
    core.moved_count -= s.warm ? 0 : 1;
}

/// Effects: verifies \p u by itself and makes it inaccessible, which leaves a hole in its slab. The lock is released
/// meanwhile.
void trap_alone(general_purpose_core& core, guard_lock& hold, unit& u) noexcept {
    slab& s = *u.in;
    remove_pending(core, u);
    s.busy = true;  // as unsettled
    hold.unlock();
    const bool intact = verify_unit(core, u);
    const os::guard_tier tier = os::install_guard(bytes_of(u), u.size);
    hold.lock();
    s.busy = false;
    u.damaged = u.damaged || !intact;
    s.holes = true;
    s.fixed = s.fixed || tier == os::guard_tier::protect;  // several mappings cannot move as one
    note_guard(core, u, tier);
    file(core, u);
    trap_if_dead(core, hold, s);
}

/// Effects: takes the unit that waits longest out of the retired list and forgets it. If memory has run out, \p wanted
/// is how many bytes of \p alignment are needed (else 0), and its memory is used again: by this resource if it fits, as
/// the upstream may be one that takes nothing back. May release the lock. Returns: false if none waits.
bool evict_oldest(general_purpose_core& core, guard_lock& hold, std::size_t wanted = 0,
                  std::size_t alignment = 1) noexcept {
    // Those that wait for their slab come last: to trap one by itself costs its neighbours their cheap move.
    while (core.retired.first == nullptr && core.pending.first != nullptr && !core.pending.first->in->busy) {
        trap_alone(core, hold, *core.pending.first);
    }
    unit* const u = core.retired.first;
    if (u == nullptr || (u->in != nullptr && u->in->busy)) {
        return false;
    }
    core.retired.pop();
    leave_books(core, *u);
    if (!u->trapped()) {
        set_untrapped(core, *u, false);
        hold.unlock();
        const bool intact = verify_unit(core, *u);
        hold.lock();
        u->damaged = u->damaged || !intact;
    }
    set_untrapped(core, *u, false);
    if (u->damaged) {
        return true;  // stays known and is never used again
    }
    core.recycled_units += wanted != 0 ? 1 : 0;
    const bool fits = wanted != 0 && u->size >= wanted && u->base % alignment == 0;
    if (core.rules.freed == reuse::never && core.over_pages && wanted == 0) {
        if (!u->trapped()) {
            os::discard(bytes_of(*u), u->size);
        }
        forget(core, *u, true);
    } else if (u->from->size == u->size && !fits) {
        forget(core, *u, false);
    } else {
        make_reusable(core, *u);
    }
    return true;
}

/// Effects: keeps what is remembered within the options.
void evict_surplus(general_purpose_core& core, guard_lock& hold) noexcept {
    const general_purpose_options& o = core.options;
    const bool quarantined = core.rules.freed == reuse::quarantined;
    while (core.retired_record_bytes > o.retired_record_bytes ||
           (core.pending.first == nullptr && core.untrapped_bytes > core.share.limit()) ||
           (quarantined && core.retired_bytes > o.quarantine_bytes)) {
        if (!evict_oldest(core, hold)) {
            break;
        }
    }
}

void retire_in_slab(general_purpose_core& core, guard_lock& hold, unit& u) noexcept {
    slab& s = *u.in;
    s.dead += u.size;
    add_pending(core, u);
    trap_if_dead(core, hold, s);
    if (core.untrapped_bytes > core.share.limit()) {
        trap_pending(core, hold, core.untrapped_bytes - core.share.limit());
    }
}

}  // namespace

void bury(general_purpose_core& core, void* p, std::size_t bytes) noexcept {
    buried_piece& oldest = core.buried[core.next_grave];
    if (oldest.p != nullptr) {
        core.memory->free(oldest.p, oldest.bytes);
    }
    oldest = {p, bytes};
    core.next_grave = (core.next_grave + 1) % std::size(core.buried);
}

void free_records(general_purpose_core& core, unit& u) noexcept {
    core.dropped_records -= bytes_in(u.forgotten.load(std::memory_order_relaxed));
    // The pointers stay, for a double free that is on its way to them.
    if (!u.large && u.records != nullptr) {
        bury(core, u.records, record_memory(core, u));
    }
    if (slot_history* const h = u.history.load(std::memory_order_relaxed); h != nullptr) {
        bury(core, h, history_memory(u));
    }
    if (u.free_bits != nullptr) {
        bury(core, u.free_bits, bit_memory(u));
    }
}

void trap_pending(general_purpose_core& core, guard_lock& hold, std::size_t wanted) noexcept {
    const std::size_t enough = core.untrapped_bytes > wanted ? core.untrapped_bytes - wanted : 0;
    while (core.untrapped_bytes > enough && core.pending.first != nullptr && !core.pending.first->in->busy) {
        trap_alone(core, hold, *core.pending.first);
    }
    // Not over pages: there a forgotten unit's addresses stay taken, which are wanted when they run out.
    while (!core.over_pages && core.untrapped_bytes > enough && evict_oldest(core, hold)) {
    }
}

void trap_if_dead(general_purpose_core& core, guard_lock& hold, slab& s) noexcept {
    if (!s.all_dead()) {
        return;
    }
    s.busy = true;  // nobody else touches its units now
    const landing to = find_landing(core, hold, s);
    // System calls on the process's mappings, and the verification, keep nobody else waiting for this lock.
    hold.unlock();
    for (unit* u = s.units; u != nullptr; u = u->next_in_slab) {
        if (!u->trapped() && !verify_unit(core, *u)) {
            u->damaged = true;
        }
    }
    void* const base = reinterpret_cast<void*>(s.base);
    os::move_result result;
    if (to.descriptor != nullptr) {
        result = os::move_pages(base, reinterpret_cast<void*>(to.memory.base), slab::size);
    }
    const bool moved = result.moved;
    os::guard_tier tier = result.trap;
    bool usable = true;
    const bool by_itself = !moved && s.fixed;
    if (moved) {
        if (s.holes) {  // markers travel along; where one cannot be removed, a slab of pages is lost
            void* const there = reinterpret_cast<void*>(to.memory.base);
            usable = os::remove_guard(there, slab::size, os::guard_tier::marker);
            if (!usable) {
                os::discard(there, slab::size);
            }
        }
        if (tier == os::guard_tier::none && core.rules.fill) {
            fill_memory(core, base, freed_byte, slab::size);  // it will be verified once more
        }
    } else if (!by_itself) {
        if (s.warm) {
            tier = os::seal(base, slab::size) ? os::guard_tier::moved : os::guard_tier::none;
        } else {
            tier = os::install_guard(base, slab::size);
        }
    }
    // Counted once, for the slab: the units are as if moved, in this respect.
    const int protect_guards = tier == os::guard_tier::protect ? 1 : 0;
    tier = protect_guards != 0 ? os::guard_tier::moved : tier;
    hold.lock();
    if (moved && usable) {
        core.ready_slabs = ::new (to.descriptor)
            slab{.base = to.memory.base, .from = to.memory.from, .next = core.ready_slabs, .warm = true};
    } else if (moved) {
        give_up_landing(core, s, to);
    } else {
        if (to.descriptor != nullptr) {
            give_up_landing(core, s, to);
        }
        core.moved_count -= s.warm ? 1 : 0;
    }
    s.from->protect_guards += protect_guards;
    for (unit* u = s.units; u != nullptr; u = u->next_in_slab) {
        if (!u->pending) {
            if (moved || (!by_itself && tier != os::guard_tier::none)) {
                u->trap = tier;  // its own guard went along, or another lies over it
            }
            continue;
        }
        remove_pending(core, *u);
        if (by_itself) {
            note_guard(core, *u, os::install_guard(bytes_of(*u), u->size));
        } else {
            note_trap(core, *u, tier);
        }
        file(core, *u);
    }
    s.busy = false;
    if (s.units == nullptr) {  // all of them were forgotten before the slab was closed
        core.memory->free(&s, sizeof(slab));
    }
}

void free_descriptor(general_purpose_core& core, unit& u) noexcept {
    if (u.attached.load(std::memory_order_relaxed)) {
        u.orphaned = true;  // its thread still asks it for a next slot, and must be told that there is none
    } else {
        bury(core, &u, sizeof(unit));
    }
}

void list_partly_free(general_purpose_core& core, unit& u) noexcept {
    u.listed.store(true);
    core.closed_bytes += u.size;
    core.closed[u.size_class].push(u);
}

void forget(general_purpose_core& core, unit& u, bool keep_address) noexcept {
    forget_records(core, u);
    chunk& c = *u.from;
    const std::size_t size = u.size;
    free_descriptor(core, u);
    spend(core, c, size, keep_address);
}

bool reclaim(general_purpose_core& core, guard_lock& hold, std::size_t bytes, std::size_t alignment) noexcept {
    chunk* oldest = nullptr;
    for (chunk* c = core.chunks; c != nullptr; c = c->next) {  // newest first
        if (c->spent != 0 && c->spent == c->carved && !core.is_open(*c)) {
            oldest = c;
        }
    }
    if (oldest != nullptr) {
        give_back(core, *oldest);
        core.recycled_units += 1;
        hold.return_departing();
        return true;
    }
    return evict_oldest(core, hold, bytes, alignment);
}

bool forget_oldest(general_purpose_core& core, guard_lock& hold) noexcept {
    return evict_oldest(core, hold);
}

void retire(general_purpose_core& core, unit& u) noexcept {
    const bool immediately = core.rules.freed == reuse::immediate;
    const bool alone = u.in == nullptr;
    auto tier = os::guard_tier::none;
    u.unsettle();
    if (alone) {
        if (!u.large && core.record_bytes != 0 && !verify_unit(core, u)) {
            u.damaged = true;
        }
        if (core.trapping || (u.chosen && core.over_pages)) {
            tier = os::install_guard(bytes_of(u), u.size);
        }
        if (u.chosen && tier == os::guard_tier::none) {
            core.chosen.miss();
        }
        if (u.large && core.rules.fill && tier == os::guard_tier::none && !u.damaged && !immediately) {
            fill_memory(core, slot_ref{&u, 0}.address(), freed_byte, u.slot_bytes());
        }
    }
    guard_lock hold(core);
    u.phase.store(unit_phase::retired, std::memory_order_release);
    u.settle();  // what follows is one change for a fork, which takes the lock
    core.large_bytes -= immediately && u.large ? u.request : 0;
    if (immediately && tier == os::guard_tier::none) {  // large ones only; those chosen to be trapped stay so
        // Fewer bytes live, so that less may be kept.
        trim_lists(core, u.size, static_cast<unsigned>(std::min<std::size_t>(u.size / largest_unit + 1, UINT32_MAX)));
        release_now(core, u);
        return;
    }
    leave_line(core, u);
    enter_books(core, u);
    core.unsettled += u.size;
    if (core.unsettled >= settle_step) {
        settle_quarantine(core);
    }
    if (alone) {
        note_guard(core, u, tier);
        file(core, u);
    } else {
        retire_in_slab(core, hold, u);
    }
    evict_surplus(core, hold);
}

void relist(general_purpose_core& core, std::uintptr_t address) noexcept {
    const guard_lock hold(core);
    // Since the caller's last write another thread may have freed the rest of the unit and released it. Whatever is
    // there now is alive as long as the lock is held, and to look after it once more does no harm.
    auto* const u = static_cast<unit*>(metadata::address_map::find(address, &core));
    if (u == nullptr || u->large || u->attached.load()) {
        return;
    }
    if (!u->listed.load()) {
        list_partly_free(core, *u);
    }
    for (std::uint32_t w = 0; w < u->words(); ++w) {
        if (u->free_bits[w].load() != u->full_word(w)) {
            trim_listed(core, *u);
            // The blocks of earlier units may be freed, and those of this one live on.
            trim_lists(core, u->size / unit::looks_after_frees, 2);
            return;
        }
    }
    if (const unit_line& line = core.closed[u->size_class]; line.first == line.last) {
        return;  // the only one: kept as a spare, so that a lone pair of calls does not map and unmap
    }
    leave_list(core, *u);
    release_now(core, *u);
}

void release_all(general_purpose_core& core) noexcept {
    for (unit* u = core.units; u != nullptr; u = u->following) {
        metadata::address_map::erase(*u);
    }
    guard_lock hold(core);
    while (core.chunks != nullptr) {
        give_back(core, *core.chunks);
    }
}

}  // namespace pmr_debug::detail
