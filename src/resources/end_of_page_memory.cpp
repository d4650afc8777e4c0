// Where the units of an end-of-page resource come from: its address range, or its upstream.

#include "resources/end_of_page_memory.hpp"
#include "resources/page_ranges.hpp"
#include "resources/upstream.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>

namespace pmr_debug::detail::fence {

namespace {

/// What the upstream did wrong, reported once the lock is released.
struct upstream_fault {
    error_kind kind;
    void* p;
    std::size_t bytes;
    std::size_t alignment;
};

// ---- granules -----------------------------------------------------------------------------------------------------

/// True if a granule holds nothing but retired memory.
bool is_spent(const fence_core& core, std::size_t g) noexcept {
    const unit* const u = core.index[g].load(std::memory_order_relaxed);
    const granule_use use = core.uses[g].load(std::memory_order_relaxed);
    return u == nullptr ? use == granule_use::sealed || (use == granule_use::untouched && core.piecemeal == 0)
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

// ---- making units -------------------------------------------------------------------------------------------------

/// Memory of a unit, from an upstream that is no page_resource.
struct foreign_memory {
    void* p = nullptr;
    std::size_t bytes = 0;
    std::size_t alignment = 0;
};

/// Effects: asks the upstream; while it refuses, retired units go back to it, the oldest first. No lock held: it may
/// use this resource. Returns: null if there is no memory.
void* ask(fence_core& core, std::size_t bytes, std::size_t alignment, std::optional<upstream_fault>& fault) noexcept {
    void* p = nullptr;
    for (bool refused = true; refused;) {
        try {
            p = ask_upstream(*core.upstream, bytes, alignment);
            refused = false;
        } catch (...) {
            if (!return_oldest(core, 0) && !retire_open(core)) {
                return nullptr;  // whatever it throws, our caller sees bad_alloc
            }
        }
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

/// Whether memory that the upstream says is free is still in one of this resource's units.
bool overlaps_own(const fence_core& core, const foreign_memory& m) noexcept {
    const std::size_t last = std::min(m.bytes, metadata::address_map::indexed_bytes);
    for (std::size_t i = 0; i < last; i += page) {
        if (metadata::address_map::find(reinterpret_cast<std::uintptr_t>(m.p) + i, &core) != nullptr) {
            return true;
        }
    }
    return false;
}

/// Effects: private memory, for which retired units are forgotten if need be, the oldest first. Over an upstream that
/// is done where it can be asked, see take_slot. Lock held. Returns: null if there is none.
void* obtain_private(fence_core& core, std::size_t bytes) noexcept {
    void* p = core.memory.allocate(bytes);
    while (p == nullptr && core.guarded_range() && core.retired.first != nullptr) {
        forget(core, *core.retired.first);
        p = core.memory.allocate(bytes);
    }
    return p;
}

/// Effects: makes the descriptor of a unit and enters it. Its memory is \p foreign, if the range is not guarded. Lock
/// held. Returns: null if there is no memory.
unit* make_unit(fence_core& core, std::size_t bytes, unsigned shift, std::uint32_t capacity,
                const foreign_memory& foreign) noexcept {
    void* const records = obtain_private(core, capacity * sizeof(slot_record));
    void* const place = records != nullptr ? obtain_private(core, sizeof(unit)) : nullptr;
    if (place == nullptr) {
        if (records != nullptr) {
            core.memory.free(records, capacity * sizeof(slot_record));
        }
        return nullptr;
    }
    std::memset(records, 0, capacity * sizeof(slot_record));
    auto* const u = ::new (place) unit;
    if (!core.guarded_range()) {
        u->base = reinterpret_cast<std::uintptr_t>(foreign.p);
        u->upstream_alignment = foreign.alignment;
    } else if (shift == smallest_shift && core.warm_count != 0) {
        u->base = core.warm[--core.warm_count];
        u->warm = true;
        u->guarded.store(capacity, std::memory_order_relaxed);
    } else {
        u->base = carve(core, bytes / granule, true);
    }
    u->slots = u->base + (!core.guarded_range() && core.overrun_side && shift != single_shift ? page : 0);
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
    } else {
        entered = entered && metadata::address_map::insert(*u);
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

/// Effects: makes a unit with \p make, from \p foreign (see make_unit). Returns: null if there is no memory, or it is
/// in use; it is returned to the upstream unless it was used, or is.
template <class Make>
unit* with_memory(fence_core& core, foreign_memory foreign, std::optional<upstream_fault>& fault, Make make) noexcept {
    if (!core.guarded_range()) {
        foreign.p = ask(core, foreign.bytes, foreign.alignment, fault);
        if (foreign.p == nullptr) {
            return nullptr;
        }
    }
    unit* u = nullptr;
    {
        const std::scoped_lock hold(core.lock);
        if (foreign.p != nullptr && overlaps_own(core, foreign)) {
            fault = {error_kind::upstream_overlap, foreign.p, foreign.bytes, foreign.alignment};
            return nullptr;
        }
        u = make(foreign);
    }
    if (u == nullptr && foreign.p != nullptr) {
        core.upstream->deallocate(foreign.p, foreign.bytes, foreign.alignment);
    }
    return u;
}

/// Effects: a unit for one block. Returns: null if there is no memory.
unit* make_single(fence_core& core, std::size_t bytes, std::size_t alignment,
                  std::optional<upstream_fault>& fault) noexcept {
    const std::size_t data = os::round_up(extent(core, bytes, alignment), page);
    const bool exact = core.exact && alignment >= page;
    const std::size_t wide = std::max(alignment, page);
    // The guard page behind, or room before the block for it; and a range's granules may have to be aligned. Where
    // there are no guards both ends have room for canaries.
    const bool before = !core.guarded_range() || (!core.overrun_side && data != 0);
    std::size_t need = data + (core.overrun_side ? page : wide);
    if (core.guarded_range()) {
        need += alignment > page ? alignment : 0;
    } else {
        need += core.overrun_side ? wide : page;
    }
    need += exact ? alignment : 0;
    if (core.guarded_range()) {
        need = os::round_up(need, granule);
    }
    if (core.guarded_range() && need > core.range_bytes) {
        return nullptr;
    }
    return with_memory(core, {nullptr, need, wide}, fault, [&](const foreign_memory& foreign) -> unit* {
        unit* const u = make_unit(core, need, single_shift, 1, foreign);
        if (u == nullptr) {
            return nullptr;
        }
        u->next = 1;
        u->unmovable.store(true, std::memory_order_relaxed);
        u->single_data = os::round_up(u->base + (before ? page : 0), wide);
        u->single_data |= exact ? alignment : 0;
        u->single_guard = data == 0           ? u->single_data
                          : core.overrun_side ? u->single_data + data
                                              : u->single_data - page;
        return u;
    });
}

/// Effects: installs the markers of slot \p index and of some behind it, each time of more, as a call for many costs
/// less. Returns: false if the slot is still without.
bool guard_ahead(fence_core& core, unit& u, std::uint32_t index) noexcept {
    constexpr std::uint32_t most = 32;
    if (u.shift == single_shift || u.guard_by_slot.load(std::memory_order_relaxed) || os::page_size() != page) {
        return false;
    }
    const std::scoped_lock hold(core.lock);
    std::uint32_t next = u.guarded.load(std::memory_order_relaxed);
    while (next <= index) {
        os::page_range guards[most];
        const std::uint32_t n = std::min({std::max(next, 1U), most, u.capacity - next});
        for (std::uint32_t i = 0; i < n; ++i) {
            guards[i] = {at(geometry_of(core, {&u, next + i}).guard), page};
        }
        const auto done = static_cast<std::uint32_t>(os::install_markers(guards, n, false).guarded);
        next += done;
        u.guarded.store(next, std::memory_order_release);
        if (done != n) {
            u.guard_by_slot.store(true, std::memory_order_relaxed);
            return index < next;
        }
    }
    return true;
}

}  // namespace

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

namespace {

/// Effects: makes the tables writable for all granules before \p end. They are readable from the start, as zeros.
/// Returns: false if the system refuses.
bool enter(fence_core& core, std::size_t end) noexcept {
    if (end <= core.entered) {
        return true;
    }
    constexpr std::size_t step = std::size_t{1} << 14;
    const std::size_t last = std::min(core.granules, os::round_up(end, step));
    const auto open = [&](std::uintptr_t table, std::size_t entry) {
        // Only pages that were not opened yet: if the usual call is refused, others take their place.
        const std::size_t unit_of_pages = os::page_size();
        const std::uintptr_t from = os::round_up(table + core.entered * entry, unit_of_pages);
        const std::uintptr_t to = os::round_up(table + last * entry, unit_of_pages);
        return from == to || os::commit(at(from), to - from);
    };
    if (!open(reinterpret_cast<std::uintptr_t>(core.index), sizeof *core.index) ||
        !open(reinterpret_cast<std::uintptr_t>(core.uses), sizeof *core.uses)) {
        return false;
    }
    core.entered = last;
    return true;
}

/// Effects: \p count granules where nothing was yet. Returns: the first; SIZE_MAX if there are none. Lock held.
std::size_t fresh_granules(fence_core& core, std::size_t count, bool usable) noexcept {
    while (!core.wrapped && count <= core.granules - core.frontier && enter(core, core.frontier + count)) {
        const std::size_t first = core.frontier;
        void* const p = at(core.base + first * granule);
        const std::size_t bytes = count * granule;
        if (core.piecemeal == 0) {
            if (usable && !os::commit(p, bytes)) {
                return SIZE_MAX;
            }
        } else if (const os::spot got = os::reserve_at(p, bytes); got == os::spot::taken) {
            core.uses[first].store(granule_use::foreign, std::memory_order_relaxed);
            core.frontier += 1;
            continue;
        } else if (got == os::spot::refused) {
            return SIZE_MAX;
        } else if (usable && !os::commit(p, bytes)) {
            os::unmap(p, bytes);
            return SIZE_MAX;
        }
        core.frontier = first + count;
        return first;
    }
    return SIZE_MAX;
}

/// Effects: \p count granules of retired memory. Returns: as fresh_granules. Lock held.
std::size_t used_granules(fence_core& core, std::size_t count, bool usable) noexcept {
    const std::size_t first = recycle(core, count);
    if (first == SIZE_MAX) {
        return SIZE_MAX;
    }
    core.recycled_units += 1;
    void* const p = at(core.base + first * granule);
    // Whatever was trapped there, and how, is gone with this.
    if (usable && (!enter(core, first + count) || !os::seal(p, count * granule) || !os::commit(p, count * granule))) {
        return SIZE_MAX;
    }
    if (core.wrapped) {
        core.frontier = first + count;
    }
    return first;
}

}  // namespace

std::uintptr_t carve(fence_core& core, std::size_t count, bool usable) noexcept {
    std::size_t first = SIZE_MAX;
    if (core.piecemeal != 0 && core.frontier + count > core.piecemeal) {
        first = used_granules(core, count, usable);
    }
    if (first == SIZE_MAX) {
        first = fresh_granules(core, count, usable);
    }
    if (first == SIZE_MAX && (core.wrapped || count > core.granules - core.frontier)) {
        core.wrapped = true;
        first = used_granules(core, count, usable);
    }
    if (first == SIZE_MAX) {
        return 0;
    }
    note_use(core, first, count, granule_use::in_use);
    return core.base + first * granule;
}

void give_back(fence_core& core, unit& u) noexcept {
    if (core.watched) {
        tell_given_back(u);
    }
    core.upstream->deallocate(at(u.base), u.size, u.upstream_alignment);
}

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

namespace {

/// Effects: a slot of \p slot bytes that was never used. Returns: none if there is no memory.
template <bool Locked>
slot_ref fresh_slot(fence_core& core, std::size_t slot, std::size_t bytes, std::size_t alignment,
                    std::optional<upstream_fault>& fault) noexcept {
    const std::size_t largest = core.guarded_range() ? granule : smallest_slot;
    slot_ref s;
    if (alignment > page || slot > largest || (core.exact && alignment == page)) {
        s.owner = make_single(core, bytes, alignment, fault);
        return s;
    }
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
        const std::size_t strip = core.guarded_range() ? granule : foreign_strip;
        with_memory(core, {nullptr, strip, page}, fault, [&](const foreign_memory& foreign) -> unit* {
            take();  // another thread, or the upstream, may have opened one
            if (s.owner != nullptr) {
                return nullptr;
            }
            unit* const u = make_unit(core, strip, shift, static_cast<std::uint32_t>(strip >> shift), foreign);
            if (u != nullptr) {
                s = {u, 0};
                const os::brief_hold<Locked> both(core.bump);
                u->next = 1;
                open = u->capacity == 1 ? nullptr : u;
            }
            return u;
        });
    }
    return s;
}

/// Effects: guards slot \p index and the next, and those before them that are not guarded yet. Returns: how that slot
/// is.
os::guard_tier guard_with_next(fence_core& core, unit& u, std::uint32_t index) noexcept {
    const std::scoped_lock hold(core.lock);
    const std::uint32_t markers = u.guarded.load(std::memory_order_relaxed);
    u.guarded_singly = std::max(u.guarded_singly, markers);
    for (const std::uint32_t behind = std::min(index + 2, u.capacity); u.guarded_singly < behind; ++u.guarded_singly) {
        const slot_ref s{&u, u.guarded_singly};
        s.record().guard = guard_range(u, geometry_of(core, s).guard, page);
    }
    return index < markers ? os::guard_tier::marker : u.records[index].guard;
}

/// Effects: guards a slot that was never used. Returns: how.
os::guard_tier guard_slot(fence_core& core, slot_ref s) noexcept {
    if (!core.guarded_range()) {
        return os::guard_tier::none;
    }
    // Where the guard comes first, what a block that fills its pages runs into is the next slot's.
    const std::uint32_t next = core.overrun_side ? s.index : std::min(s.index + 1, s.owner->capacity - 1);
    if (next < s.owner->guarded.load(std::memory_order_acquire) || guard_ahead(core, *s.owner, next)) {
        return os::guard_tier::marker;
    }
    if (!core.overrun_side && s.owner->shift != single_shift) {
        return guard_with_next(core, *s.owner, s.index);
    }
    return guard_range(*s.owner, geometry_of(core, s).guard, page);
}

}  // namespace

template <bool Locked>
slot_ref take_slot(fence_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    const std::size_t taken = extent(core, bytes, alignment);
    const std::size_t pages = taken == 0 ? 1 : (taken + page - 1) / page;
    const std::size_t slot = std::bit_ceil((pages + 1) * page);
    const bool reuses = core.reuses && slot == smallest_slot && alignment <= page - (core.exact ? 1 : 0);
    slot_ref s = reuses ? use_again<Locked>(core, core.most_waiting) : slot_ref{};
    if (s.owner == nullptr) {
        std::optional<upstream_fault> fault;
        do {
            s = fresh_slot<Locked>(core, slot, bytes, alignment, fault);
            // Without private memory, what is remembered of the oldest retired unit makes room.
        } while (s.owner == nullptr && !fault.has_value() && !core.guarded_range() &&
                 (return_oldest(core, 0) || retire_open(core)));
        if (s.owner != nullptr) {
            s.record().guard = guard_slot(core, s);
        } else if (reuses) {
            s = use_again<Locked>(core, 0);
        }
        if (s.owner == nullptr) {
            if (fault.has_value() && core.shape.checks) {
                report_upstream(core, fault->kind, fault->p, fault->bytes, fault->alignment);
            }
            return s;
        }
    }
    if (const os::guard_tier tier = s.record().guard; tier != os::guard_tier::marker) {
        (tier == os::guard_tier::none ? core.unguarded_blocks : core.protected_blocks)
            .fetch_add(1, std::memory_order_relaxed);
    }
    return s;
}

template slot_ref take_slot<true>(fence_core&, std::size_t, std::size_t) noexcept;
template slot_ref take_slot<false>(fence_core&, std::size_t, std::size_t) noexcept;

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
    constexpr std::size_t parts_of_addresses = 8;
    const bool asked = core.options.address_space_bytes != 0;
    std::size_t bytes = asked                      ? std::max(core.options.address_space_bytes, granule)
                        : core.upstream != nullptr ? os::share_of_addresses(over_pages, parts_of_addresses)
                                                   : most;
    bytes = os::round_up(std::min(bytes, most_range), granule);
    void* range = nullptr;
    if (core.upstream != nullptr) {
        // Without permissions: pages are committed as they are handed out.
        range = reserve_pages(*core.given, bytes, granule);
        for (; range == nullptr && !asked && bytes > least; range = reserve_pages(*core.given, bytes, granule)) {
            bytes = os::round_up(bytes / 4, granule);
        }
    } else if (!asked && os::address_limit() != SIZE_MAX) {
        // A reservation would take from the program what it may need more. There is no more to be had than the limit.
        bytes = os::round_up(std::min(bytes, os::address_limit()), granule);
        range = os::unused_addresses(bytes, granule);
        core.piecemeal = range != nullptr ? std::max(bytes / parts_of_addresses, granule) / granule : 0;
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
    // Two tables, each of whole pages.
    const std::size_t first_bytes = os::round_up(core.granules * sizeof(std::atomic<unit*>), os::page_size());
    core.index_bytes = first_bytes + os::round_up(core.granules * sizeof(std::atomic<granule_use>), os::page_size());
    void* const tables = os::reserve(core.index_bytes, page);
    if (tables == nullptr || !os::show(tables, core.index_bytes)) {
        if (tables != nullptr) {
            os::unmap(tables, core.index_bytes);
        }
        close_range(core);
        return false;
    }
    // Zeroed pages: null pointers, and granules never touched.
    core.index = static_cast<std::atomic<unit*>*>(tables);
    core.uses = reinterpret_cast<std::atomic<granule_use>*>(static_cast<std::byte*>(tables) + first_bytes);
    return true;
}

namespace {

/// Effects: unmaps what was mapped piecemeal, and nothing of anybody else's.
void unmap_granules(const fence_core& core) noexcept {
    for (std::size_t g = 0; core.uses != nullptr && g < core.entered;) {
        const auto ours = [&](std::size_t i) {
            const granule_use use = core.uses[i].load(std::memory_order_relaxed);
            return use == granule_use::in_use || use == granule_use::sealed;
        };
        const std::size_t first = g;
        while (g < core.entered && ours(g)) {
            ++g;
        }
        if (g != first) {
            os::unmap(at(core.base + first * granule), (g - first) * granule);
        } else {
            ++g;
        }
    }
}

}  // namespace

void close_range(fence_core& core) noexcept {
    if (core.watched) {
        tell_end(core);
    }
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
        if (core.piecemeal != 0) {
            unmap_granules(core);
        } else if (core.upstream != nullptr) {
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
