// Units of an end-of-page resource, from their making to their end.
//
//   frontier ──> strip ──> slots handed out ──> all freed: verified ──┬──> its pages go on to a fresh strip (warm)
//                  │                                                 └──> sealed: memory given back, addresses taken
//                  └─ too much waits: freed slots of the oldest strips are trapped by themselves
//   retired units (first in, first out) ──> records forgotten ──> range used up: addresses handed out again

#include "resources/end_of_page_core.hpp"
#include "resources/upstream.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>

namespace pmr_debug::detail::fence {

namespace {

using guard_lock = std::unique_lock<os::spin_lock>;

void* at(std::uintptr_t address) noexcept {
    return reinterpret_cast<void*>(address);
}

/// What the upstream did wrong, reported once the lock is released.
struct upstream_fault {
    error_kind kind;
    void* p;
    std::size_t bytes;
    std::size_t alignment;
};

os::guard_tier guard_range(unit& u, std::uintptr_t from, std::size_t bytes) noexcept {
    if (bytes == 0 || os::page_size() != page) {
        return os::guard_tier::none;
    }
    const os::guard_tier tier = os::install_guard(at(from), bytes);
    if (tier == os::guard_tier::protect) {
        u.protects.fetch_add(1, std::memory_order_relaxed);
    }
    if (tier != os::guard_tier::marker) {
        u.unmovable.store(true, std::memory_order_relaxed);
    }
    return tier;
}

void drop_protects(unit& u) noexcept {
    const int count = u.protects.exchange(0, std::memory_order_relaxed);
    if (count != 0) {
        os::forget_protect_guards(count);
    }
}

// ---- granules -----------------------------------------------------------------------------------------------------

std::size_t granule_of(const fence_core& core, std::uintptr_t address) noexcept {
    return (address - core.base) >> granule_shift;
}

/// Effects: keeps count of the mappings that sealing, or using, [first, first + count) costs or saves. Lock held.
void note_use(fence_core& core, std::size_t first, std::size_t count, granule_use use) noexcept {
    const auto apart = [&](std::size_t g) {
        return g < core.granules && core.uses[g].load(std::memory_order_relaxed) == granule_use::in_use;
    };
    const bool left = first != 0 && apart(first - 1);
    const bool right = apart(first + count);
    if (use == granule_use::sealed) {
        core.mappings += left && right ? 1 : 0;
        core.mappings -= !left && !right && core.mappings != 0 ? 1 : 0;
    }
    for (std::size_t g = first; g < first + count; ++g) {
        core.uses[g].store(use, std::memory_order_relaxed);
    }
}

/// Effects: forgets a retired unit: index, records, descriptor; what is trapped stays trapped. Lock held.
void forget(fence_core& core, unit& u) noexcept {
    for (std::uintptr_t a = u.base; a < u.base + u.size; a += granule) {
        core.index[granule_of(core, a)].store(nullptr, std::memory_order_release);
    }
    core.retired.remove(u);
    core.retired_bytes -= u.size;
    core.retired_records -= u.capacity * sizeof(slot_record) + sizeof(unit);
    core.lost_protects += u.protects.load(std::memory_order_relaxed);
    core.memory.free(u.records, u.capacity * sizeof(slot_record));
    core.memory.free(&u, sizeof(unit));
}

/// True if a granule holds nothing but retired memory.
bool is_spent(const fence_core& core, std::size_t g) noexcept {
    const unit* const u = core.index[g].load(std::memory_order_relaxed);
    return u == nullptr ? core.uses[g].load(std::memory_order_relaxed) != granule_use::in_use
                        : u->retired.load(std::memory_order_relaxed) && !u->damaged.load(std::memory_order_relaxed);
}

/// Effects: finds \p count granules in a row, behind the frontier, whose memory may be used again, and forgets what is
/// known of them. Returns: the first, or SIZE_MAX. Lock held.
std::size_t recycle(fence_core& core, std::size_t count) noexcept {
    if (count > core.granules) {
        return SIZE_MAX;
    }
    std::size_t run = 0;
    std::size_t g = core.frontier < core.granules ? core.frontier : 0;
    for (std::size_t seen = 0; seen < core.granules + count; ++seen, ++g) {
        if (g == core.granules) {
            g = 0;
            run = 0;
        }
        run = is_spent(core, g) ? run + 1 : 0;
        if (run != count) {
            continue;
        }
        const std::size_t first = g + 1 - count;
        for (std::size_t i = first; i <= g; ++i) {
            if (unit* const u = core.index[i].load(std::memory_order_relaxed); u != nullptr) {
                forget(core, *u);
            }
        }
        return first;
    }
    return SIZE_MAX;
}

/// Effects: hands out \p count granules. \p usable: readable and writable; else anything may be mapped there.
/// Returns: their address, or 0. Lock held.
std::uintptr_t carve(fence_core& core, std::size_t count, bool usable) noexcept {
    std::size_t first = core.frontier;
    if (core.wrapped || count > core.granules - core.frontier) {
        core.wrapped = true;
        first = recycle(core, count);
        if (first == SIZE_MAX) {
            return 0;
        }
        core.recycled_units += 1;
        // Whatever was trapped there, and how, is gone with this.
        if (usable && !os::seal(at(core.base + first * granule), count * granule)) {
            return 0;
        }
    }
    const std::uintptr_t base = core.base + first * granule;
    if (usable && !os::commit(at(base), count * granule)) {
        return 0;
    }
    core.frontier = first + count;
    note_use(core, first, count, granule_use::in_use);
    return base;
}

// ---- making units -------------------------------------------------------------------------------------------------

void* ask(fence_core& core, std::size_t bytes, std::size_t alignment, std::optional<upstream_fault>& fault) noexcept {
    void* p = nullptr;
    try {
        p = ask_upstream(*core.upstream, bytes, alignment);
    } catch (...) {
        return nullptr;  // whatever it throws, our caller sees bad_alloc
    }
    if (p == nullptr) {
        fault = {error_kind::upstream_null, p, bytes, alignment};
    } else if ((reinterpret_cast<std::uintptr_t>(p) & (alignment - 1)) != 0) {
        fault = {error_kind::upstream_misaligned, p, bytes, alignment};
        core.upstream->deallocate(p, bytes, alignment);
        p = nullptr;
    }
    return p;
}

void give_back(fence_core& core, unit& u) noexcept {
    core.upstream->deallocate(at(u.base), u.size, u.upstream_alignment);
}

/// Effects: makes the descriptor of a unit and enters it. Its memory is \p base, or is got here. Lock held.
/// Returns: null if there is no memory.
unit* make_unit(fence_core& core, std::size_t bytes, std::size_t alignment, unsigned shift, std::uint32_t capacity,
                std::optional<upstream_fault>& fault) noexcept {
    void* const records = core.memory.allocate_zeroed(capacity * sizeof(slot_record));
    void* const place = records != nullptr ? core.memory.allocate(sizeof(unit)) : nullptr;
    if (place == nullptr) {
        if (records != nullptr) {
            core.memory.free(records, capacity * sizeof(slot_record));
        }
        return nullptr;
    }
    auto* const u = ::new (place) unit;
    if (!core.guarded_range()) {
        u->base = reinterpret_cast<std::uintptr_t>(ask(core, bytes, alignment, fault));
        u->upstream_alignment = alignment;
    } else if (shift == smallest_shift && core.warm_count != 0) {
        u->base = core.warm[--core.warm_count];
        u->warm = true;
    } else {
        u->base = carve(core, bytes / granule, true);
    }
    u->size = bytes;
    u->owner = &core;
    u->records = static_cast<slot_record*>(records);
    u->shift = shift;
    u->capacity = capacity;
    u->unfreed.store(capacity, std::memory_order_relaxed);
    u->first_serial = core.next_serial;
    bool entered = u->base != 0;
    if (entered && core.guarded_range()) {
        for (std::uintptr_t a = u->base; a < u->base + bytes; a += granule) {
            core.index[granule_of(core, a)].store(u, std::memory_order_release);
        }
    } else if (entered && !metadata::address_map::insert(*u)) {
        give_back(core, *u);
        entered = false;
    }
    if (!entered) {
        core.memory.free(records, capacity * sizeof(slot_record));
        core.memory.free(place, sizeof(unit));
        return nullptr;
    }
    core.next_serial += capacity;
    core.unit_bytes += bytes;
    core.active.append(*u);
    return u;
}

/// Effects: a unit for one block. Lock held. Returns: null if there is no memory.
unit* make_single(fence_core& core, std::size_t bytes, std::size_t alignment,
                  std::optional<upstream_fault>& fault) noexcept {
    const std::size_t data = os::round_up(bytes, page);
    const std::size_t wide = std::max(alignment, page);
    // The guard page behind, or room before the block for it; and a range's granules may have to be aligned.
    std::size_t need = data + (core.overrun_side ? page : wide);
    if (core.guarded_range()) {
        need += alignment > page ? alignment : 0;
        need = os::round_up(need, granule);
    }
    if (core.guarded_range() && need > core.range_bytes) {
        return nullptr;
    }
    unit* const u = make_unit(core, need, wide, single_shift, 1, fault);
    if (u == nullptr) {
        return nullptr;
    }
    u->next = 1;
    u->unmovable.store(true, std::memory_order_relaxed);
    u->single_data = os::round_up(u->base + (core.overrun_side || data == 0 ? 0 : page), wide);
    u->single_guard = data == 0 ? u->single_data : core.overrun_side ? u->single_data + data : u->single_data - page;
    return u;
}

// ---- the end of units ---------------------------------------------------------------------------------------------

/// Effects: moves the pages of a dead strip to a fresh one. Lock held. Returns: false if it is where it was.
bool move_on(fence_core& core, unit& u) noexcept {
    if (u.shift != smallest_shift || u.damaged.load(std::memory_order_relaxed) ||
        u.unmovable.load(std::memory_order_relaxed) || core.warm_count == most_warm || core.mappings >= most_mappings) {
        return false;
    }
    const std::uintptr_t fresh = carve(core, 1, false);
    if (fresh == 0) {
        return false;
    }
    if (!os::move_pages(at(u.base), at(fresh), granule)) {
        os::seal(at(fresh), granule);  // spent: a refusal leaves it as it is, and unused
        note_use(core, granule_of(core, fresh), 1, granule_use::sealed);
        return false;
    }
    core.mappings += u.warm ? 0 : 1;  // else its predecessor's mapping is gone
    core.moved_strips += 1;
    core.warm[core.warm_count++] = fresh;
    return true;
}

/// Effects: takes the memory of a dead unit away, so that accesses fault. Lock held.
void trap_unit(fence_core& core, unit& u) noexcept {
    const std::size_t first = granule_of(core, u.base);
    if (core.rules.dead == dead_unit::keep) {
        os::discard(at(u.base), u.size);
        core.untrapped_units += 1;
    } else if (move_on(core, u)) {
        u.trap = os::guard_tier::moved;
    } else {
        core.mappings -= u.warm && core.mappings != 0 ? 1 : 0;
        // Gives page tables back, too, which markers do not.
        if (core.mappings < most_mappings && os::seal(at(u.base), u.size)) {
            u.trap = os::guard_tier::moved;
        } else {
            drop_protects(u);
            u.trap = guard_range(u, u.base, u.size);
            core.untrapped_units += u.trap == os::guard_tier::none ? 1 : 0;
            note_use(core, first, u.size / granule, granule_use::in_use);
            return;
        }
    }
    drop_protects(u);
    note_use(core, first, u.size / granule, granule_use::sealed);
}

/// Effects: verifies the freed blocks of a unit, all of whose slots are freed. Returns: bytes of those that waited.
std::size_t verify_unit(fence_core& core, unit& u) noexcept {
    std::size_t waited = 0;
    for (std::uint32_t i = 0; i < u.capacity; ++i) {
        const slot_ref s{&u, i};
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

/// Effects: foreign: gives the oldest dead units back while they exceed the quarantine. May release the lock.
void evict_foreign(fence_core& core, guard_lock& hold) noexcept {
    while (core.retired_bytes > core.options.quarantine_bytes && core.retired.first != nullptr) {
        unit& u = *core.retired.first;
        core.retired.remove(u);
        core.retired_bytes -= u.size;
        core.retired_records -= u.capacity * sizeof(slot_record) + sizeof(unit);
        hold.unlock();
        verify_unit(core, u);
        hold.lock();
        if (u.damaged.load(std::memory_order_relaxed)) {
            core.kept.append(u);
            continue;
        }
        metadata::address_map::erase(u);
        core.unit_bytes -= u.size;
        give_back(core, u);
        core.memory.free(u.records, u.capacity * sizeof(slot_record));
        core.memory.free(&u, sizeof(unit));
    }
}

void retire(fence_core& core, unit& u) noexcept {
    guard_lock hold(core.lock);
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
        evict_foreign(core, hold);
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

/// Effects: traps the freed blocks of a strip that is not dead yet, those next to each other in one go. Lock held.
/// Returns: bytes of them.
std::size_t trap_freed(fence_core& core, unit& u, findings& found) noexcept {
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
        const std::uintptr_t from = geometry_of(core, {&u, first}).data;
        const std::uintptr_t to = geometry_of(core, {&u, i - 1}).data_end;
        if (guard_range(u, from, to - from) == os::guard_tier::none) {
            for (std::uint32_t j = first; j < i; ++j) {  // the memory at least
                const geometry g = geometry_of(core, {&u, j});
                os::discard(at(g.data), g.data_end - g.data);
            }
            core.untrapped_units += 1;
        }
    }
    return bytes;
}

/// Effects: traps freed blocks in the oldest strips until those that wait are well within the quarantine.
void evict(fence_core& core) noexcept {
    const std::size_t enough = core.options.quarantine_bytes - core.options.quarantine_bytes / 8;
    findings found;
    do {
        found.count = 0;
        {
            const std::scoped_lock hold(core.lock);
            for (std::size_t seen = 0; seen <= core.active.size && found.count < findings::most &&
                                       core.pending_bytes.load(std::memory_order_relaxed) > enough;
                 ++seen) {
                unit* const u = core.next_evicted != nullptr ? core.next_evicted : core.active.first;
                if (u == nullptr) {
                    break;
                }
                if (u->capacity - u->unfreed.load(std::memory_order_acquire) > u->evicted) {
                    core.pending_bytes.fetch_sub(trap_freed(core, *u, found), std::memory_order_relaxed);
                }
                core.next_evicted = found.count < findings::most ? u->after : u;
            }
        }
        for (std::size_t i = 0; i < found.count; ++i) {
            raise(core.errors, found.reports[i]);
        }
    } while (found.count == findings::most);
}

}  // namespace

void unit_list::append(unit& u) noexcept {
    u.before = last;
    u.after = nullptr;
    (last != nullptr ? last->after : first) = &u;
    last = &u;
    ++size;
}

void unit_list::remove(unit& u) noexcept {
    (u.before != nullptr ? u.before->after : first) = u.after;
    (u.after != nullptr ? u.after->before : last) = u.before;
    u.before = u.after = nullptr;
    --size;
}

template <bool Locked>
slot_ref take_slot(fence_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    const std::size_t pages = bytes == 0 ? 1 : (bytes + page - 1) / page;
    const std::size_t slot = std::bit_ceil((pages + 1) * page);
    const std::size_t largest = core.guarded_range() ? granule : smallest_slot;
    std::optional<upstream_fault> fault;
    slot_ref s;
    if (alignment > page || slot > largest) {
        const std::scoped_lock hold(core.lock);
        s.owner = make_single(core, bytes, alignment, fault);
    } else {
        const auto shift = static_cast<unsigned>(std::countr_zero(slot));
        unit*& open = core.open[shift - smallest_shift];
        const auto take = [&] {
            const os::brief_hold<Locked> hold(core.bump);
            if (open != nullptr) {
                s = {open, open->next++};
                open = open->next == open->capacity ? nullptr : open;
            }
        };
        take();
        if (s.owner == nullptr) [[unlikely]] {
            const std::scoped_lock hold(core.lock);
            take();  // another thread may have opened one
            if (s.owner == nullptr) {
                const std::size_t strip = core.guarded_range() ? granule : foreign_strip;
                unit* const u = make_unit(core, strip, page, shift, static_cast<std::uint32_t>(strip >> shift), fault);
                if (u != nullptr) {
                    s = {u, 0};
                    const os::brief_hold<Locked> both(core.bump);
                    u->next = 1;
                    open = u->capacity == 1 ? nullptr : u;
                }
            }
        }
    }
    if (s.owner == nullptr) {
        if (fault.has_value() && core.shape.checks) {
            report_request(core, fault->kind, fault->p, fault->bytes, fault->alignment);
        }
        return s;
    }
    os::guard_tier tier = os::guard_tier::marker;
    if (!core.guarded_range()) {
        tier = os::guard_tier::none;
    } else if (!s.owner->warm) {
        tier = guard_range(*s.owner, geometry_of(core, s).guard, page);
    }
    s.record().guard = tier;
    if (tier != os::guard_tier::marker) {
        (tier == os::guard_tier::none ? core.unguarded_blocks : core.protected_blocks)
            .fetch_add(1, std::memory_order_relaxed);
    }
    return s;
}

template slot_ref take_slot<true>(fence_core&, std::size_t, std::size_t) noexcept;
template slot_ref take_slot<false>(fence_core&, std::size_t, std::size_t) noexcept;

void let_go(fence_core& core, slot_ref s, slot_state state) noexcept {
    unit& u = *s.owner;
    slot_record& r = s.record();
    if (state == slot_state::damaged) {
        u.damaged.store(true, std::memory_order_relaxed);
    } else {
        if (core.trapping && (core.at_once || u.shift != smallest_shift)) {
            const geometry g = geometry_of(core, s);
            if (r.size == 0 || guard_range(u, g.data, g.data_end - g.data) != os::guard_tier::none) {
                u.unmovable.store(true, std::memory_order_relaxed);
                state = slot_state::trapped;
            }
        }
        if (state == slot_state::freed && r.size != 0) {
            if (core.rules.fill) {
                std::memset(at(address_of(core, s)), freed_byte, r.size);
            }
            add_to(core.pending_bytes, os::round_up(r.size, page));
        }
    }
    r.state.store(state, std::memory_order_release);
    if (add_to(u.unfreed, ~std::uint32_t{0}) == 1) {  // one less
        retire(core, u);
    } else if (core.trapping && core.pending_bytes.load(std::memory_order_relaxed) > core.options.quarantine_bytes) {
        evict(core);
    }
}

bool open_range(fence_core& core) noexcept {
#if defined(__SANITIZE_THREAD__)
#define PMR_DEBUG_SMALL_RANGE 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PMR_DEBUG_SMALL_RANGE 1
#endif
#endif
#ifdef PMR_DEBUG_SMALL_RANGE
    constexpr std::size_t most = std::size_t{1} << 35;  // ThreadSanitizer has little room for mappings
#else
    constexpr std::size_t most = std::size_t{1} << 40;
#endif
    constexpr std::size_t least = std::size_t{1} << 25;
    constexpr std::size_t over_pages = std::size_t{1} << 33;
    const bool asked = core.options.address_space_bytes != 0;
    std::size_t bytes =
        asked ? std::max(core.options.address_space_bytes, granule) : (core.upstream != nullptr ? over_pages : most);
    bytes = os::round_up(std::min(bytes, std::size_t{1} << 46), granule);
    void* range = nullptr;
    if (core.upstream != nullptr) {
        try {
            range = core.upstream->allocate(bytes, granule);
        } catch (...) {
            return false;
        }
    } else {
        range = os::reserve(bytes, granule);
        for (; range == nullptr && !asked && bytes > least; range = os::reserve(bytes, granule)) {
            bytes = os::round_up(bytes / 4, granule);
        }
    }
    if (range == nullptr) {
        return false;
    }
    core.base = reinterpret_cast<std::uintptr_t>(range);
    core.range_bytes = bytes;
    core.granules = bytes / granule;
    core.index_bytes = os::round_up(core.granules * (sizeof(std::atomic<unit*>) + 1), page);
    void* const tables = os::map(core.index_bytes, page);
    if (tables == nullptr) {
        close_range(core);
        return false;
    }
    // Zeroed pages: null pointers, and granules never touched.
    core.index = static_cast<std::atomic<unit*>*>(tables);
    core.uses = reinterpret_cast<std::atomic<granule_use>*>(core.index + core.granules);
    return true;
}

void close_range(fence_core& core) noexcept {
    int protects = core.lost_protects;
    for (const unit_list* const list : {&core.active, &core.retired, &core.kept}) {
        for (unit *u = list->first, *next = nullptr; u != nullptr; u = next) {
            next = u->after;
            protects += u->protects.load(std::memory_order_relaxed);
            if (!core.guarded_range()) {
                metadata::address_map::erase(*u);
                give_back(core, *u);
            }
        }
    }
    if (core.guarded_range()) {
        if (core.upstream != nullptr) {
            core.upstream->deallocate(at(core.base), core.range_bytes, granule);
        } else {
            os::unmap(at(core.base), core.range_bytes);
        }
    }
    os::forget_protect_guards(protects);
    if (core.index != nullptr) {
        os::unmap(core.index, core.index_bytes);
    }
}

}  // namespace pmr_debug::detail::fence
