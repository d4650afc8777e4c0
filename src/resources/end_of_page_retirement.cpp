// The end of blocks and units of an end-of-page resource.
//
//   all slots of a strip freed ──> verified ──┬──> its pages go on to a fresh strip (warm)
//                                             └──> sealed: memory given back, addresses taken
//   too much waits ──> freed slots of the oldest strips are trapped by themselves
//   reuse::immediate, reuse::quarantined: freed slots of a page ──> wait (first in, first out) ──> verified, used again
//   retired units (first in, first out) ──> records forgotten ──> range used up: addresses handed out again

#include "resources/end_of_page_memory.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>

namespace pmr_debug::detail::fence {

namespace {

/// So many bytes come to wait before the process's books are told.
constexpr std::size_t settle_step = std::size_t{1} << 18;

/// Effects: tells them.
void settle(fence_core& core) noexcept {
    std::size_t retired = 0;
    if (!core.guarded_range()) {
        const std::scoped_lock hold(core.lock);
        retired = core.retired_bytes;
    }
    core.share.settle(core.pending_bytes.load(std::memory_order_relaxed) + retired,
                      static_cast<std::size_t>(core.usage.snapshot().live_bytes));
}

void drop_protects(unit& u) noexcept {
    const int count = u.protects.exchange(0, std::memory_order_relaxed);
    if (count != 0) {
        os::forget_protect_guards(count);
    }
}

/// Effects: moves the pages of a dead strip to a fresh one. Lock held.
os::move_result move_on(fence_core& core, unit& u) noexcept {
    if (u.shift != smallest_shift || u.damaged.load(std::memory_order_relaxed) ||
        u.unmovable.load(std::memory_order_relaxed) || core.warm_count == most_warm || core.mappings >= most_mappings) {
        return {};
    }
    const std::uintptr_t fresh = carve(core, 1, false);
    if (fresh == 0) {
        return {};
    }
    const os::move_result result = os::move_pages(at(u.base), at(fresh), granule);
    if (!result.moved) {
        os::seal(at(fresh), granule);  // spent: a refusal leaves it as it is, and unused
        note_use(core, granule_of(core, fresh), 1, granule_use::sealed);
        return {};
    }
    if (result.trap == os::guard_tier::protect) {
        u.protects.fetch_add(1, std::memory_order_relaxed);
    }
    core.mappings += u.warm ? 0 : 1;  // else its predecessor's mapping is gone
    core.moved_strips += 1;
    core.warm[core.warm_count++] = fresh;
    return result;
}

/// Effects: takes the memory of a dead unit away, so that accesses fault. Lock held.
void trap_unit(fence_core& core, unit& u) noexcept {
    // Once its memory is gone, or guarded as a whole, single guards take no mappings any more.
    drop_protects(u);
    if (core.rules.dead == dead_unit::keep) {
        os::discard(at(u.base), u.size);
        core.untrapped_units += 1;
    } else if (const os::move_result result = move_on(core, u); result.moved) {
        u.trap = result.trap;
        core.untrapped_units += result.trap == os::guard_tier::none ? 1 : 0;
    } else {
        core.mappings -= u.warm && core.mappings != 0 ? 1 : 0;
        // Sealing gives page tables back, too, which markers do not.
        if (core.mappings < most_mappings && os::seal(at(u.base), u.size)) {
            u.trap = os::guard_tier::moved;
        } else {
            u.trap = guard_range(u, u.base, u.size);
            core.untrapped_units += u.trap == os::guard_tier::none ? 1 : 0;
        }
    }
    if (core.watched && u.trap != os::guard_tier::none) {
        tell_trapped(u);
    }
    note_use(core, granule_of(core, u.base), u.size / granule, granule_use::sealed);
}

/// Effects: verifies the freed blocks of a unit, all of whose slots are freed. Returns: bytes of those that waited.
std::size_t verify_unit(fence_core& core, unit& u) noexcept {
    std::size_t waited = 0;
    constexpr std::uint32_t ahead = 8;
    for (std::uint32_t i = 0; i < u.capacity; ++i) {
        const slot_ref s{&u, i};
        if (i + ahead < u.capacity) {
            __builtin_prefetch(at(address_of(core, {&u, i + ahead})));
        }
        if (s.record().state.load(std::memory_order_acquire) == slot_state::freed) {
            waited += os::round_up(s.record().size, page);
            if (!fill_intact(core, s)) {
                report r = note_written(core, s);
                raise(core.errors, r);
            }
        }
    }
    return waited;
}

void retire(fence_core& core, unit& u) noexcept {
    std::unique_lock hold(core.lock);
    if (core.next_evicted == &u) {
        core.next_evicted = u.after;
    }
    core.active.remove(u);
    hold.unlock();
    // Nobody else works on the unit from here on.
    const std::size_t waited = verify_unit(core, u);
    hold.lock();
    core.pending_bytes.fetch_sub(waited, std::memory_order_relaxed);
    if (core.guarded_range()) {
        trap_unit(core, u);
    }
    u.retired.store(true, std::memory_order_release);
    if (u.damaged.load(std::memory_order_relaxed)) {
        core.kept.append(u);
        return;
    }
    core.retired.append(u);
    core.retired_bytes += u.size;
    core.retired_records += u.capacity * sizeof(slot_record) + sizeof(unit);
    if (!core.guarded_range()) {
        hold.unlock();
        settle(core);
        while (return_oldest(core, core.share.limit())) {
        }
        return;
    }
    while (core.retired_records > core.options.retired_record_bytes && core.retired.first != nullptr) {
        forget(core, *core.retired.first);
    }
}

/// Reports about damaged blocks found under the lock, to be raised without it: their strip may be gone by then.
struct findings {
    static constexpr std::size_t most = 8;
    report reports[most];
    std::size_t count = 0;
};

/// Freed blocks to be trapped: those next to each other in one piece, and many pieces in one go.
struct trapping {
    static constexpr std::size_t most = 64;
    struct piece {
        unit* owner;
        std::uint32_t first;
        std::uint32_t behind;  ///< of its last slot
    };
    piece pieces[most];
    std::size_t count = 0;
};

/// Effects: traps what is in \p t, and empties it. Lock held.
void trap_pieces(fence_core& core, trapping& t) noexcept {
    os::page_range ranges[trapping::most];
    for (std::size_t i = 0; i < t.count; ++i) {
        const trapping::piece& p = t.pieces[i];
        const std::uintptr_t from = geometry_of(core, {p.owner, p.first}).data;
        ranges[i] = {at(from), geometry_of(core, {p.owner, p.behind - 1}).data_end - from};
    }
    for (std::size_t i = os::page_size() == page ? os::install_markers(ranges, t.count, true).guarded : 0; i < t.count;
         ++i) {
        const trapping::piece& p = t.pieces[i];
        if (guard_range(*p.owner, reinterpret_cast<std::uintptr_t>(ranges[i].start), ranges[i].bytes) ==
            os::guard_tier::none) {
            for (std::uint32_t j = p.first; j < p.behind; ++j) {  // the memory at least
                const geometry g = geometry_of(core, {p.owner, j});
                os::discard(at(g.data), g.data_end - g.data);
            }
            core.untrapped_units += 1;
        }
    }
    t.count = 0;
}

/// Effects: puts the freed blocks of a strip that is not dead yet into \p t. Lock held. Returns: bytes of them.
std::size_t trap_freed(fence_core& core, unit& u, trapping& t, findings& found) noexcept {
    std::size_t bytes = 0;
    for (std::uint32_t i = 0; i < u.capacity; ++i) {
        const std::uint32_t first = i;
        for (; i < u.capacity && found.count < findings::most; ++i) {
            const slot_ref s{&u, i};
            if (s.record().state.load(std::memory_order_acquire) != slot_state::freed) {
                break;
            }
            bytes += os::round_up(s.record().size, page);
            if (!fill_intact(core, s)) {
                found.reports[found.count++] = note_written(core, s);
                u.evicted += 1;
                break;
            }
            s.record().state.store(slot_state::trapped, std::memory_order_release);
        }
        if (i == first) {
            continue;
        }
        u.evicted += i - first;
        u.unmovable.store(true, std::memory_order_relaxed);
        t.pieces[t.count++] = {&u, first, i};
        if (t.count == trapping::most) {
            trap_pieces(core, t);
        }
    }
    return bytes;
}

/// Effects: traps freed blocks in the oldest strips until those that wait are well within the quarantine.
void evict(fence_core& core) noexcept {
    const std::size_t limit = core.share.limit();
    const std::size_t enough = limit - limit / 8;
    findings found;
    do {
        found.count = 0;
        {
            const std::scoped_lock hold(core.lock);
            trapping t;
            for (std::size_t seen = 0; seen <= core.active.size && found.count < findings::most &&
                                       core.pending_bytes.load(std::memory_order_relaxed) > enough;
                 ++seen) {
                unit* const u = core.next_evicted != nullptr ? core.next_evicted : core.active.first;
                if (u == nullptr) {
                    break;
                }
                if (u->capacity - u->unfreed.load(std::memory_order_acquire) > u->evicted) {
                    core.pending_bytes.fetch_sub(trap_freed(core, *u, t, found), std::memory_order_relaxed);
                }
                core.next_evicted = found.count < findings::most ? u->after : u;
            }
            trap_pieces(core, t);
        }
        for (std::size_t i = 0; i < found.count; ++i) {
            raise(core.errors, found.reports[i]);
        }
    } while (found.count == findings::most);
}

/// Effects: puts a freed slot behind those that wait.
void wait(fence_core& core, slot_ref s) noexcept {
    const std::uint32_t me = number_of(core, s) + 1;
    s.record().later = 0;
    const os::brief_hold<true> hold(core.bump);
    waiting_list& w = core.waiting;
    (w.last != 0 ? slot_of(core, w.last - 1).record().later : w.first) = me;
    w.last = me;
    ++w.size;
}

}  // namespace

bool return_oldest(fence_core& core, std::size_t keep) noexcept {
    std::unique_lock hold(core.lock);
    if (core.retired_bytes <= keep || core.retired.first == nullptr) {
        return false;
    }
    unit& u = *core.retired.first;
    core.retired.remove(u);
    core.retired_bytes -= u.size;
    core.retired_records -= u.capacity * sizeof(slot_record) + sizeof(unit);
    hold.unlock();
    verify_unit(core, u);
    hold.lock();
    if (u.damaged.load(std::memory_order_relaxed)) {
        core.kept.append(u);
        return true;
    }
    metadata::address_map::erase(u);
    core.unit_bytes -= u.size;
    hold.unlock();
    give_back(core, u);
    core.memory.free(u.records, u.capacity * sizeof(slot_record));
    core.memory.free(&u, sizeof(unit));
    return true;
}

bool retire_open(fence_core& core) noexcept {
    unit* u = nullptr;
    std::uint32_t unused = 0;
    {
        const os::brief_hold<true> hold(core.bump);
        unit*& open = core.open[0];  // foreign strips have the smallest slots only
        if (open == nullptr || open->unfreed.load(std::memory_order_acquire) != open->capacity - open->next) {
            return false;
        }
        u = open;
        unused = u->capacity - u->next;
        open = nullptr;
    }
    add_to(u->unfreed, std::uint32_t{0} - unused);
    retire(core, *u);
    return true;
}

/// Effects: fetches what the next two turns of use_again will look at, as nobody did for long: the bytes of the next
/// slot, and the record of the one behind. Under `bump`.
inline void fetch_ahead(const fence_core& core) noexcept {
    if (core.waiting.first == 0) {
        return;
    }
    const slot_ref next = slot_of(core, core.waiting.first - 1);
    constexpr std::size_t line = 64;
    const std::uintptr_t from = address_of(core, next);
    for (std::size_t i = 0; i < std::min(next.record().size, 5 * line); i += line) {
        __builtin_prefetch(at(from + i), 1);
    }
    if (const std::uint32_t then = next.record().later; then != 0) {
        __builtin_prefetch(&slot_of(core, then - 1).record(), 1);
    }
}

template <bool Locked>
slot_ref use_again(fence_core& core, std::size_t at_least) noexcept {
    for (;;) {
        slot_ref s;
        {
            const os::brief_hold<Locked> hold(core.bump);
            waiting_list& w = core.waiting;
            if (w.size <= at_least || w.first == 0) {
                return {};
            }
            s = slot_of(core, w.first - 1);
            w.first = s.record().later;
            w.last = w.first != 0 ? w.last : 0;
            --w.size;
            fetch_ahead(core);
        }
        if (s.record().state.load(std::memory_order_acquire) != slot_state::freed) {
            continue;  // check() found it written to
        }
        add_to(core.pending_bytes, std::size_t{0} - os::round_up(s.record().size, page));
        if (fill_intact(core, s)) [[likely]] {
            return s;
        }
        report r = note_written(core, s);
        raise(core.errors, r);
    }
}

template slot_ref use_again<true>(fence_core&, std::size_t) noexcept;
template slot_ref use_again<false>(fence_core&, std::size_t) noexcept;

void let_go(fence_core& core, slot_ref s, slot_state state) noexcept {
    unit& u = *s.owner;
    slot_record& r = s.record();
    if (state == slot_state::damaged) {
        u.damaged.store(true, std::memory_order_relaxed);
    } else {
        const bool chosen = core.chosen.any(u.shift == smallest_shift) && core.chosen.takes(r.size);
        if ((core.trapping && (core.at_once || u.shift != smallest_shift)) || (chosen && core.guarded_range())) {
            const geometry g = geometry_of(core, s);
            if (r.size == 0 || guard_range(u, g.data, g.data_end - g.data) != os::guard_tier::none) {
                u.unmovable.store(true, std::memory_order_relaxed);
                state = slot_state::trapped;
            }
        }
        if (chosen && state == slot_state::freed) {
            core.chosen.miss();
        }
        if (state == slot_state::freed && r.size != 0) {
            if (core.rules.fill) {
                std::memset(at(address_of(core, s)), freed_byte, r.size);
            }
            const std::size_t bytes = os::round_up(r.size, page);
            const std::size_t before = add_to(core.pending_bytes, bytes);
            if (before / settle_step != (before + bytes) / settle_step) [[unlikely]] {
                settle(core);
            }
        }
    }
    if (core.watched) [[unlikely]] {
        tell_taken_back(core, s);
    }
    r.state.store(state, std::memory_order_release);
    if (core.reuses && u.shift == smallest_shift) {
        if (state == slot_state::freed) {
            wait(core, s);
        }
    } else if (add_to(u.unfreed, ~std::uint32_t{0}) == 1) {  // one less
        retire(core, u);
    } else if (core.trapping && !core.reuses &&
               core.pending_bytes.load(std::memory_order_relaxed) > core.share.limit()) {
        evict(core);
    }
}

}  // namespace pmr_debug::detail::fence
