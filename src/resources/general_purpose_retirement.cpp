// What becomes of dead units: verified, made inaccessible, remembered for a while, forgotten, and in need used again.
//
//   last slot freed ─> retired ─┬─ by itself ──> verified, trapped
//                               └─ in a slab ──> pending ──> slab all dead: verified, its pages move to the next slab
//   retired list (first in, first out) ──> records forgotten ──> in need: memory used again

#include "resources/general_purpose_memory.hpp"

#include <cstring>
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
    (u.previous != nullptr ? u.previous->following : core.units) = u.following;
    if (u.following != nullptr) {
        u.following->previous = u.previous;
    }
    u.previous = u.following = nullptr;
}

/// Effects: makes a unit's memory available to units of any class. Lock held.
void make_reusable(general_purpose_core& core, unit& u) noexcept {
    forget_records(core, u);
    u.phase.store(unit_phase::reusable, std::memory_order_relaxed);
    core.reusable.push(u);
}

bool verify_unit(general_purpose_core& core, unit& u) noexcept {
    if (!core.rules.fill) {
        return true;
    }
    const std::uint32_t used = u.next.load(std::memory_order_relaxed);
    if (!u.damaged && all_bytes(bytes_of(u), used * u.slot_bytes(), freed_byte)) {
        return true;
    }
    bool intact = true;
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
    u.pending_before = core.newest_pending;
    u.pending_after = nullptr;
    (core.newest_pending != nullptr ? core.newest_pending->pending_after : core.oldest_pending) = &u;
    core.newest_pending = &u;
    set_untrapped(core, u, true);
}

void remove_pending(general_purpose_core& core, unit& u) noexcept {
    if (!u.pending) {
        return;
    }
    u.pending = false;
    (u.pending_before != nullptr ? u.pending_before->pending_after : core.oldest_pending) = u.pending_after;
    (u.pending_after != nullptr ? u.pending_after->pending_before : core.newest_pending) = u.pending_before;
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

/// Effects: moves the pages of a dead slab to fresh addresses, where they make a warm slab.
os::move_result move_on(general_purpose_core& core, slab& s) noexcept {
    if (s.broken || core.warm_count >= most_warm || core.moved_count >= most_moved) {
        return {};
    }
    void* const place = core.memory->allocate(sizeof(slab));
    piece fresh;
    if (place == nullptr || !carve(core, slab::size, unit_page, fresh)) {
        if (place != nullptr) {
            core.memory->free(place, sizeof(slab));
        }
        return {};
    }
    void* const old = reinterpret_cast<void*>(s.base);
    const os::move_result result = os::move_pages(old, reinterpret_cast<void*>(fresh.base), slab::size);
    if (!result.moved) {
        core.memory->free(place, sizeof(slab));
        spend(core, *fresh.from, slab::size, true);
        return {};
    }
    if (result.trap == os::guard_tier::none && core.rules.fill) {
        std::memset(old, freed_byte, slab::size);  // it will be verified once more
    }
    core.moved_count += s.warm ? 0 : 1;  // its predecessor's mapping is gone
    auto* const next =
        ::new (place) slab{.base = fresh.base, .from = fresh.from, .next = core.warm_slabs, .warm = true};
    core.warm_slabs = next;
    core.warm_count += 1;
    return result;
}

/// Effects: verifies \p u by itself and makes it inaccessible. Its slab can then not move any more. The lock is
/// released meanwhile.
void trap_alone(general_purpose_core& core, guard_lock& hold, unit& u) noexcept {
    slab& s = *u.in;
    remove_pending(core, u);
    s.busy = true;
    hold.unlock();
    const bool intact = verify_unit(core, u);
    hold.lock();
    s.busy = false;
    u.damaged = u.damaged || !intact;
    s.broken = true;
    note_guard(core, u, os::install_guard(bytes_of(u), u.size));
    trap_if_dead(core, hold, s);
}

/// Effects: takes the unit that waits longest out of the retired list and forgets it. If memory has run out, \p wanted
/// is how many bytes of \p alignment are needed (else 0), and its memory is used again: by this resource if it fits, as
/// the upstream may be one that takes nothing back. May release the lock. Returns: false if none waits.
bool evict_oldest(general_purpose_core& core, guard_lock& hold, std::size_t wanted = 0,
                  std::size_t alignment = 1) noexcept {
    unit* const u = core.retired.first;
    if (u == nullptr || (u->in != nullptr && u->in->busy)) {
        return false;
    }
    core.retired.pop();
    core.retired_bytes -= u->size;
    core.retired_record_bytes -= record_memory(core, *u) + sizeof(unit);
    if (u->pending) {
        trap_alone(core, hold, *u);
    } else if (!u->trapped()) {
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
           (core.oldest_pending == nullptr && core.untrapped_bytes > o.quarantine_bytes) ||
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
    while (core.untrapped_bytes > core.options.quarantine_bytes && core.oldest_pending != nullptr &&
           !core.oldest_pending->in->busy) {
        trap_alone(core, hold, *core.oldest_pending);
    }
}

}  // namespace

void free_records(general_purpose_core& core, unit& u) noexcept {
    if (!u.large && u.records != nullptr) {
        core.memory->free(u.records, record_memory(core, u));
    }
    if (u.free_bits != nullptr) {
        core.memory->free(u.free_bits, bit_memory(u));
    }
    u.records = nullptr;
    u.free_bits = nullptr;
}

void trap_if_dead(general_purpose_core& core, guard_lock& hold, slab& s) noexcept {
    if (!s.all_dead()) {
        return;
    }
    s.busy = true;  // nobody else touches its units now
    hold.unlock();
    for (unit* u = s.units; u != nullptr; u = u->next_in_slab) {
        if (!u->trapped() && !verify_unit(core, *u)) {
            u->damaged = true;
        }
    }
    hold.lock();
    void* const base = reinterpret_cast<void*>(s.base);
    const os::move_result result = move_on(core, s);
    os::guard_tier tier = result.trap;
    if (!result.moved) {
        core.moved_count -= s.warm ? 1 : 0;
        if (s.warm && !s.broken) {
            tier = os::seal(base, slab::size) ? os::guard_tier::moved : os::guard_tier::none;
        } else if (!s.broken) {
            tier = os::install_guard(base, slab::size);
        }
    }
    s.from->protect_guards += tier == os::guard_tier::protect ? 1 : 0;
    for (unit* u = s.units; u != nullptr; u = u->next_in_slab) {
        if (u->trapped()) {
            continue;
        }
        remove_pending(core, *u);
        if (s.broken) {
            note_guard(core, *u, os::install_guard(bytes_of(*u), u->size));
        } else {
            note_trap(core, *u, tier);
        }
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
        core.memory->free(&u, sizeof(unit));
    }
}

void list_partly_free(general_purpose_core& core, unit& u) noexcept {
    u.listed.store(true);
    u.queue = core.partly_free[u.size_class];
    core.partly_free[u.size_class] = &u;
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
        if (c->spent != 0 && c->spent == c->carved && c != core.open_chunk) {
            oldest = c;
        }
    }
    if (oldest != nullptr) {
        give_back(core, *oldest);
        core.recycled_units += 1;
        return true;
    }
    return evict_oldest(core, hold, bytes, alignment);
}

void retire(general_purpose_core& core, unit& u) noexcept {
    const bool immediately = core.rules.freed == reuse::immediate;
    const bool alone = u.in == nullptr;
    auto tier = os::guard_tier::none;
    if (alone) {
        if (!u.large && core.record_bytes != 0 && !verify_unit(core, u)) {
            u.damaged = true;
        }
        if (core.trapping) {
            tier = os::install_guard(bytes_of(u), u.size);
        }
        if (u.large && core.rules.fill && tier == os::guard_tier::none && !u.damaged && !immediately) {
            std::memset(bytes_of(u), freed_byte, u.size);
        }
    }
    guard_lock hold(core.lock);
    u.phase.store(unit_phase::retired, std::memory_order_release);
    if (immediately) {  // large ones only
        release_now(core, u);
        return;
    }
    if (alone) {
        note_guard(core, u, tier);
    }
    if (!u.damaged) {  // a damaged one stays known to the map and is never used again
        core.retired.push(u);
        core.retired_bytes += u.size;
        core.retired_record_bytes += record_memory(core, u) + sizeof(unit);
    }
    if (!alone) {
        retire_in_slab(core, hold, u);
    }
    evict_surplus(core, hold);
}

void relist(general_purpose_core& core, std::uintptr_t address) noexcept {
    const std::scoped_lock hold(core.lock);
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
            return;
        }
    }
    if (core.partly_free[u->size_class] == u && u->queue == nullptr) {
        return;  // the only one: kept as a spare, so that a lone pair of calls does not map and unmap
    }
    unit** link = &core.partly_free[u->size_class];
    while (*link != u) {
        link = &(*link)->queue;
    }
    *link = u->queue;
    release_now(core, *u);
}

void release_all(general_purpose_core& core) noexcept {
    for (unit* u = core.units; u != nullptr; u = u->following) {
        metadata::address_map::erase(*u);
    }
    while (core.chunks != nullptr) {
        give_back(core, *core.chunks);
    }
}

}  // namespace pmr_debug::detail
