// Where units come from and where they go. Everything here is off the fast path.

#include "resources/general_purpose_core.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <optional>

namespace pmr_debug::detail {

namespace {

using guard_lock = std::unique_lock<os::spin_lock>;

constexpr std::size_t page = std::size_t{1} << metadata::address_map::page_bits;
/// Offsets in a unit of slots stay below this: the reciprocal is exact there.
constexpr std::size_t largest_unit = std::size_t{1} << 16;
constexpr std::size_t first_unit = std::size_t{1} << 14;
/// Slots are filled and made resident in steps of this.
constexpr std::size_t prepare_step = std::size_t{1} << 14;
constexpr std::size_t largest_chunk = std::size_t{1} << 26;
/// Larger blocks are chunks of their own.
constexpr std::size_t largest_carved = std::size_t{1} << 18;

/// Memory for a unit.
struct piece {
    std::uintptr_t base = 0;
    std::size_t size = 0;
    chunk* from = nullptr;
};

bool can_trap(const general_purpose_core& core) noexcept {
    return core.over_pages && core.rules.dead == dead_unit::trap;
}

unsigned char* bytes_of(const unit& u) noexcept {
    return reinterpret_cast<unsigned char*>(u.base);
}

std::size_t record_memory(const general_purpose_core& core, const unit& u) noexcept {
    return u.large ? 0 : std::size_t{u.capacity} * core.record_bytes;
}

std::size_t bit_memory(const unit& u) noexcept {
    return u.words() * sizeof(std::uint64_t);
}

// ---- chunks -------------------------------------------------------------------------------------------------------

void give_back(general_purpose_core& core, chunk& c) noexcept {
    (c.previous != nullptr ? c.previous->next : core.chunks) = c.next;
    if (c.next != nullptr) {
        c.next->previous = c.previous;
    }
    if (core.open_chunk == &c) {
        core.open_chunk = nullptr;
    }
    core.held_bytes -= c.size;
    os::forget_protect_guards(c.protect_guards);
    core.upstream->deallocate(reinterpret_cast<void*>(c.base), c.size, c.alignment);
    core.memory->free(&c, sizeof(chunk));
}

/// Whether memory that the upstream says is free is still in one of this resource's units.
bool overlaps_own(const general_purpose_core& core, std::uintptr_t p, std::size_t bytes) noexcept {
    const std::size_t last = std::min(bytes, metadata::address_map::indexed_bytes);
    for (std::size_t at = 0; at < last; at += page) {
        if (metadata::address_map::find(p + at, &core) != nullptr) {
            return true;
        }
    }
    return false;
}

/// What went wrong upstream, reported once the lock is released.
struct upstream_fault {
    error_kind kind = error_kind::upstream_null;
    void* p = nullptr;
    std::size_t bytes = 0;
    std::size_t alignment = 0;
};

/// Effects: asks the upstream. Returns: null if it refused, with \p fault set if it misbehaved.
chunk* new_chunk(general_purpose_core& core, std::size_t bytes, std::size_t alignment,
                 std::optional<upstream_fault>& fault) noexcept {
    auto* const memory = static_cast<chunk*>(core.memory->allocate(sizeof(chunk)));
    if (memory == nullptr) {
        return nullptr;
    }
    void* p = nullptr;
    bool refused = false;
    try {
        p = core.upstream->allocate(bytes, alignment);
        // libstdc++ declares allocate as never returning null, so the compiler would drop a plain test of p.
        asm volatile("" : "+r"(p));
    } catch (...) {
        refused = true;  // whatever upstream throws, our caller sees bad_alloc
    }
    const auto base = reinterpret_cast<std::uintptr_t>(p);
    if (refused) {
    } else if (p == nullptr) {
        fault = {error_kind::upstream_null, p, bytes, alignment};
    } else if (base % alignment != 0) {
        fault = {error_kind::upstream_misaligned, p, bytes, alignment};
        core.upstream->deallocate(p, bytes, alignment);
    } else if (!core.over_pages && overlaps_own(core, base, bytes)) {
        fault = {error_kind::upstream_overlap, p, bytes, alignment};
    } else {
        auto* const c = ::new (static_cast<void*>(memory)) chunk{.base = base, .size = bytes, .alignment = alignment};
        c->next = core.chunks;
        if (c->next != nullptr) {
            c->next->previous = c;
        }
        core.chunks = c;
        core.held_bytes += bytes;
        return c;
    }
    core.memory->free(memory, sizeof(chunk));
    return nullptr;
}

// ---- forgetting units ---------------------------------------------------------------------------------------------

/// Effects: removes the unit from the map and from the books; its descriptor stays. Lock held.
void forget_records(general_purpose_core& core, unit& u) noexcept {
    metadata::address_map::erase(u);
    if (!u.large && u.records != nullptr) {
        core.memory->free(u.records, record_memory(core, u));
    }
    if (u.free_bits != nullptr) {
        core.memory->free(u.free_bits, bit_memory(u));
    }
    u.records = nullptr;
    u.free_bits = nullptr;
    (u.previous != nullptr ? u.previous->following : core.units) = u.following;
    if (u.following != nullptr) {
        u.following->previous = u.previous;
    }
    u.previous = u.following = nullptr;
}

/// Effects: forgets the unit for good; its chunk goes back to the upstream where the policy lets it. Lock held.
void forget(general_purpose_core& core, unit& u, bool keep_address) noexcept {
    forget_records(core, u);
    chunk& c = *u.from;
    c.spent += u.size;
    core.memory->free(&u, sizeof(unit));
    if (!keep_address && c.spent == c.carved && &c != core.open_chunk) {
        give_back(core, c);
    }
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

/// Effects: takes the unit that waits longest out of the retired list and lets its memory go. The lock is released
/// while its fill is verified. \p wanted: memory has run out. Returns: false if none waits.
bool evict_oldest(general_purpose_core& core, guard_lock& hold, bool wanted) noexcept {
    unit* const u = core.retired.pop();
    if (u == nullptr) {
        return false;
    }
    core.retired_bytes -= u->size;
    core.retired_record_bytes -= record_memory(core, *u) + sizeof(unit);
    if (!u->trapped()) {
        core.untrapped_bytes -= u->size;
        core.untrapped_units -= 1;
        hold.unlock();
        const bool intact = verify_unit(core, *u);
        hold.lock();
        if (!intact) {
            u->damaged = true;
            return true;  // stays known and is never used again
        }
    }
    const bool own_chunk = u->from->size == u->size;
    if (core.rules.freed == reuse::never && core.over_pages && !wanted) {
        if (!u->trapped()) {
            os::discard(bytes_of(*u), u->size);
        }
        forget(core, *u, true);
    } else if (own_chunk) {
        forget(core, *u, false);
    } else {
        make_reusable(core, *u);
    }
    core.recycled_units += wanted ? 1 : 0;
    return true;
}

/// Effects: address space or upstream ran out: makes the oldest retired memory available again. Returns: false if there
/// is none.
bool reclaim(general_purpose_core& core, guard_lock& hold) noexcept {
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
    return evict_oldest(core, hold, true);
}

// ---- obtaining memory ---------------------------------------------------------------------------------------------

/// Effects: finds a reusable piece of at least \p bytes and at most \p most. Lock held.
bool take_reusable(general_purpose_core& core, std::size_t bytes, std::size_t most, std::size_t alignment,
                   piece& out) noexcept {
    unit* before = nullptr;
    for (unit* u = core.reusable.first; u != nullptr; before = u, u = u->queue) {
        if (u->size < bytes || u->size > most || u->base % alignment != 0) {
            continue;
        }
        if (u->trapped() && !os::remove_guard(bytes_of(*u), u->size, u->trap)) {
            continue;
        }
        u->from->protect_guards -= u->trap == os::guard_tier::protect ? 1 : 0;
        (before != nullptr ? before->queue : core.reusable.first) = u->queue;
        core.reusable.last = core.reusable.last == u ? before : core.reusable.last;
        core.reusable.count -= 1;
        out = {u->base, u->size, u->from};
        core.memory->free(u, sizeof(unit));
        return true;
    }
    return false;
}

/// Effects: cuts a piece off the open chunk. Lock held.
bool carve(general_purpose_core& core, std::size_t bytes, std::size_t alignment, piece& out) noexcept {
    chunk* const c = core.open_chunk;
    if (c == nullptr) {
        return false;
    }
    const std::uintptr_t at = os::round_up(c->base + c->carved, alignment);
    const std::size_t skipped = at - (c->base + c->carved);
    if (skipped + bytes > c->size - c->carved) {
        return false;
    }
    c->carved += skipped + bytes;
    c->spent += skipped;
    out = {at, bytes, c};
    return true;
}

/// Effects: closes the open chunk: what is left of it will not be carved.
void close_open_chunk(general_purpose_core& core) noexcept {
    chunk* const c = core.open_chunk;
    if (c == nullptr) {
        return;
    }
    c->spent += c->size - c->carved;
    c->carved = c->size;
    core.open_chunk = nullptr;
}

bool within_address_space(const general_purpose_core& core, std::size_t more) noexcept {
    const std::size_t most = core.options.address_space_bytes;
    return core.held_bytes <= most && more <= most - core.held_bytes;
}

/// Effects: a chunk from the upstream for one piece, or over pages for many.
bool from_upstream(general_purpose_core& core, std::size_t bytes, std::size_t alignment, piece& out,
                   std::optional<upstream_fault>& fault) noexcept {
    if (core.over_pages && bytes <= largest_carved && alignment <= largest_carved) {
        const std::size_t least = bytes + (alignment > page ? alignment : 0);
        for (std::size_t want = std::max(core.next_chunk_bytes, least);; want = std::max(want / 4, least)) {
            chunk* const c = within_address_space(core, want) ? new_chunk(core, want, page, fault) : nullptr;
            if (c != nullptr) {
                close_open_chunk(core);
                core.open_chunk = c;
                core.next_chunk_bytes = std::min(core.next_chunk_bytes * 2, largest_chunk);
                return carve(core, bytes, alignment, out);
            }
            if (want == least || fault.has_value()) {
                return false;
            }
        }
    }
    chunk* const c = within_address_space(core, bytes) ? new_chunk(core, bytes, alignment, fault) : nullptr;
    if (c == nullptr) {
        return false;
    }
    c->carved = bytes;
    out = {c->base, bytes, c};
    return true;
}

/// Effects: memory of \p bytes (whole pages) for a unit, from wherever there is some; a reusable piece may be larger,
/// up to \p most.
bool obtain(general_purpose_core& core, guard_lock& hold, std::size_t bytes, std::size_t most, std::size_t alignment,
            piece& out, std::optional<upstream_fault>& fault) noexcept {
    if (take_reusable(core, bytes, most, alignment, out) || carve(core, bytes, alignment, out) ||
        from_upstream(core, bytes, alignment, out, fault)) {
        return true;
    }
    if (bytes > core.held_bytes) {
        return false;  // hopeless: don't throw the quarantine away for it
    }
    while (!fault.has_value() && reclaim(core, hold)) {
        if (take_reusable(core, bytes, std::numeric_limits<std::size_t>::max(), alignment, out) ||
            from_upstream(core, bytes, alignment, out, fault)) {
            return true;
        }
    }
    return false;
}

/// Effects: enters a unit for \p memory in the map and the books. Lock held. Returns: null, memory returned, if private
/// memory is used up.
unit* make_unit(general_purpose_core& core, const piece& memory) noexcept {
    void* const place = core.memory->allocate(sizeof(unit));
    unit* u = nullptr;
    if (place != nullptr) {
        u = ::new (place) unit;
        u->base = memory.base;
        u->size = memory.size;
        u->owner = &core;
        u->from = memory.from;
        if (metadata::address_map::insert(*u)) {
            u->following = core.units;
            if (u->following != nullptr) {
                u->following->previous = u;
            }
            core.units = u;
            return u;
        }
        core.memory->free(place, sizeof(unit));
    }
    memory.from->spent += memory.size;
    if (memory.from->spent == memory.from->carved && memory.from != core.open_chunk) {
        give_back(core, *memory.from);
    }
    return nullptr;
}

/// Effects: gives the unit its slots of class \p cls. Lock held. Returns: false if private memory is used up.
bool divide(general_purpose_core& core, unit& u, unsigned cls) noexcept {
    u.size_class = static_cast<std::uint8_t>(cls);
    u.slot_size = size_classes::slot_sizes[cls];
    u.reciprocal = size_classes::reciprocal_of(u.slot_size);
    u.capacity = static_cast<std::uint32_t>(std::min(u.size, largest_unit) / u.slot_size);
    u.unfreed.store(u.capacity, std::memory_order_relaxed);
    u.first_serial = core.next_serial.fetch_add(u.capacity, std::memory_order_relaxed);
    if (core.record_bytes != 0) {
        u.records = static_cast<unsigned char*>(core.memory->allocate_zeroed(record_memory(core, u)));
        if (u.records == nullptr) {
            return false;
        }
    }
    if (core.rules.freed == reuse::immediate) {
        u.free_bits = static_cast<std::atomic<std::uint64_t>*>(core.memory->allocate(bit_memory(u)));
        if (u.free_bits == nullptr) {
            return false;
        }
        for (std::uint32_t w = 0; w < u.words(); ++w) {
            ::new (static_cast<void*>(&u.free_bits[w])) std::atomic<std::uint64_t>(u.full_word(w));
        }
        u.taken_word = u.words() - 1;
        u.attached.store(true, std::memory_order_relaxed);
        u.next.store(u.capacity, std::memory_order_relaxed);
        u.prepared.store(u.capacity, std::memory_order_relaxed);
    }
    return true;
}

/// Effects: fills the next slots of a unit, or all if nothing needs a fill. Owner only. Returns: false if all are
/// ready.
bool prepare_more(const general_purpose_core& core, unit& u) noexcept {
    const std::uint32_t from = u.prepared.load(std::memory_order_relaxed);
    if (from == u.capacity) {
        return false;
    }
    std::uint32_t to = u.capacity;
    if (core.rules.fill || core.guard_bytes != 0) {
        // The fill for fresh memory is the canary as well, so that an allocation need not touch its block.
        to = std::min(u.capacity,
                      from + std::max<std::uint32_t>(1, static_cast<std::uint32_t>(prepare_step / u.slot_size)));
        unsigned char* const start = bytes_of(u) + std::size_t{from} * u.slot_size;
        std::memset(start, fresh_byte, std::size_t{to - from} * u.slot_size);
    }
    u.prepared.store(to, std::memory_order_relaxed);
    return true;
}

/// Effects: takes over the free slots of one word of \p u. Owner only. Returns: false if none is free.
bool take_bits(unit& u) noexcept {
    for (std::uint32_t tried = 0; tried < u.words(); ++tried) {
        u.taken_word = u.taken_word + 1 < u.words() ? u.taken_word + 1 : 0;
        if (u.free_bits[u.taken_word].load(std::memory_order_relaxed) != 0) {
            u.taken_bits = u.free_bits[u.taken_word].exchange(0);
            return true;
        }
    }
    return false;
}

/// Effects: lists \p u as partly free. Lock held.
void list_partly_free(general_purpose_core& core, unit& u) noexcept {
    u.listed.store(true);
    u.queue = core.partly_free[u.size_class];
    core.partly_free[u.size_class] = &u;
}

/// Effects: gives up the current unit, which has no free slot. Returns: another one with some, or null.
unit* next_partly_free(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    if (unit* const old = cache.current[cls]; old != nullptr) {
        cache.current[cls] = nullptr;
        // Both sides first write and then look (seq_cst): either this thread sees a slot freed meanwhile, or the thread
        // that frees it sees the unit detached and lists it.
        old->attached.store(false);
        bool free_again = false;
        for (std::uint32_t w = 0; w < old->words(); ++w) {
            free_again = free_again || old->free_bits[w].load() != 0;
        }
        if (free_again) {
            relist(core, *old);
        }
    }
    const std::scoped_lock hold(core.lock);
    while (unit* const u = core.partly_free[cls]) {
        core.partly_free[cls] = u->queue;
        u->attached.store(true);
        u->listed.store(false);
        if (take_bits(*u)) {  // it has some: only its owner takes them, and it had none
            return u;
        }
    }
    return nullptr;
}

unit* make_slots(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    const std::size_t slot = size_classes::slot_sizes[cls];
    const bool hot = cache.units_taken[cls] != 0;
    const std::size_t least = os::round_up(slot, page);
    std::size_t want = hot ? largest_unit : std::clamp(os::round_up(8 * slot, page), first_unit, largest_unit);
    std::optional<upstream_fault> fault;
    unit* u = nullptr;
    {
        guard_lock hold(core.lock);
        piece memory;
        bool found = false;
        for (; !found; want = std::max(os::round_up(want / 2, page), least)) {
            // A smaller unit is better than giving up addresses of retired ones, so only the last try reclaims.
            found = want == least
                        ? obtain(core, hold, want, largest_unit, page, memory, fault)
                        : take_reusable(core, want, largest_unit, page, memory) || carve(core, want, page, memory) ||
                              from_upstream(core, want, page, memory, fault);
            if (want == least || fault.has_value()) {
                break;
            }
        }
        if (found) {
            u = make_unit(core, memory);
            if (u != nullptr && !divide(core, *u, cls)) {
                forget(core, *u, false);
                u = nullptr;
            }
        }
    }
    if (fault.has_value()) {
        report_upstream(core, fault->kind, fault->p, fault->bytes, fault->alignment);
    }
    if (u != nullptr) {
        cache.units_taken[cls] = 1;
    }
    return u;
}

}  // namespace

thread_cache& cache_of(general_purpose_core& core, std::uint32_t index) noexcept {
    if (os::is_shared_index(index)) {
        return core.spare;
    }
    thread_cache* cache = core.all_caches[index].load(std::memory_order_relaxed);
    if (cache == nullptr) {
        const std::scoped_lock hold(core.lock);
        void* const place = core.memory->allocate(sizeof(thread_cache));
        if (place == nullptr) {
            return core.spare;
        }
        cache = ::new (place) thread_cache;
        cache->next = core.caches;
        core.caches = cache;
        core.all_caches[index].store(cache, std::memory_order_relaxed);
    }
    if (!core.limited && core.gate == nullptr) {
        // A foreign thread of a single_checked resource never gets to look here.
        core.fast_caches[index].store(cache, std::memory_order_relaxed);
    }
    return *cache;
}

unit* refill(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    unit* u = cache.current[cls];
    if (core.rules.freed == reuse::immediate) {
        if (u != nullptr && take_bits(*u)) {
            return u;
        }
        u = next_partly_free(core, cache, cls);
        if (u == nullptr) {
            u = make_slots(core, cache, cls);
            if (u != nullptr && !take_bits(*u)) {
                u = nullptr;
            }
        }
    } else {
        if (u != nullptr && prepare_more(core, *u)) {
            return u;
        }
        u = make_slots(core, cache, cls);
        if (u != nullptr) {
            prepare_more(core, *u);
        }
    }
    cache.current[cls] = u;
    if (core.rules.threads == threading::synchronized) {
        const live_totals now = sum_caches(core);
        raise_peak(core, now.blocks(), now.bytes());
    }
    return u;
}

unit* make_large(general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    // Callers refuse sizes above PTRDIFF_MAX, so this sum cannot wrap.
    const std::size_t size = os::round_up(std::max<std::size_t>(bytes + core.guard_bytes, 1), page);
    std::optional<upstream_fault> fault;
    unit* u = nullptr;
    {
        guard_lock hold(core.lock);
        piece memory;
        if (obtain(core, hold, size, size + size / 4, std::max(alignment, page), memory, fault)) {
            u = make_unit(core, memory);
        }
        if (u != nullptr) {
            u->large = true;
            u->capacity = 1;
            u->request = bytes;
            u->records = reinterpret_cast<unsigned char*>(&u->large_record);
            u->first_serial = core.next_serial.fetch_add(1, std::memory_order_relaxed);
            u->unfreed.store(1, std::memory_order_relaxed);
            u->next.store(1, std::memory_order_relaxed);
            u->prepared.store(1, std::memory_order_relaxed);
        }
    }
    if (fault.has_value()) {
        report_upstream(core, fault->kind, fault->p, fault->bytes, fault->alignment);
    }
    if (u != nullptr) {
        const std::size_t clean = core.rules.fill ? 0 : bytes;
        if (core.rules.fill || core.guard_bytes != 0) {
            std::memset(bytes_of(*u) + clean, fresh_byte, u->size - clean);
        }
    }
    return u;
}

slot_ref take_freed_slot(general_purpose_core& core, unsigned cls, std::size_t alignment) noexcept {
    guard_lock hold(core.lock);
    for (unit* u = core.units; u != nullptr; u = u->following) {
        if (u->large || u->damaged || u->size_class < cls || u->slot_size % alignment != 0 ||
            u->phase.load(std::memory_order_relaxed) != unit_phase::active) {
            continue;
        }
        const std::uint32_t used = u->next.load(std::memory_order_relaxed);
        for (std::uint32_t i = 0; i < used; ++i) {
            const slot_ref s{u, i};
            std::atomic<slot_state>& state = s.record(core).state;
            if (state.load(std::memory_order_acquire) != slot_state::freed) {
                continue;
            }
            // Count the slot in first: a unit whose count reached 0 is being retired by somebody.
            std::uint32_t unfreed = u->unfreed.load(std::memory_order_relaxed);
            while (unfreed != 0 && !u->unfreed.compare_exchange_weak(unfreed, unfreed + 1, std::memory_order_acq_rel)) {
            }
            if (unfreed == 0) {
                break;
            }
            slot_state expected = slot_state::freed;
            if (!state.compare_exchange_strong(expected, slot_state::never, std::memory_order_acq_rel)) {
                u->unfreed.fetch_sub(1, std::memory_order_acq_rel);  // cannot be the last: this slot is not freed
                continue;
            }
            core.recycled_units += 1;
            hold.unlock();
            state.store(slot_state::freed, std::memory_order_relaxed);  // for the report, if there is one
            const bool intact = verify_freed(core, s);
            state.store(intact ? slot_state::never : slot_state::damaged, std::memory_order_relaxed);
            if (intact) {
                if (core.rules.fill || core.guard_bytes != 0) {
                    std::memset(s.address(), fresh_byte, u->slot_size);
                }
                return s;
            }
            u->damaged = true;
            hold.lock();
            break;
        }
    }
    return {};
}

void retire(general_purpose_core& core, unit& u) noexcept {
    const bool immediately = core.rules.freed == reuse::immediate;
    if (!u.large && core.record_bytes != 0 && !verify_unit(core, u)) {
        u.damaged = true;
    }
    if (!immediately && can_trap(core)) {
        u.trap = os::install_guard(bytes_of(u), u.size);
    }
    if (u.large && core.rules.fill && !u.trapped() && !u.damaged && !immediately) {
        std::memset(bytes_of(u), freed_byte, u.size);
    }
    guard_lock hold(core.lock);
    u.phase.store(unit_phase::retired, std::memory_order_release);
    u.from->protect_guards += u.trap == os::guard_tier::protect ? 1 : 0;
    if (u.damaged) {
        return;  // known to the map, never used again
    }
    if (immediately) {  // large ones only
        if (u.from->size == u.size) {
            forget(core, u, false);
        } else {
            if (core.over_pages) {
                os::discard(bytes_of(u), u.size);
            }
            make_reusable(core, u);
        }
        return;
    }
    core.retired.push(u);
    core.retired_bytes += u.size;
    core.retired_record_bytes += record_memory(core, u) + sizeof(unit);
    if (!u.trapped()) {
        core.untrapped_bytes += u.size;
        core.untrapped_units += 1;
    }
    const bool quarantined = core.rules.freed == reuse::quarantined;
    while (core.retired_record_bytes > core.options.retired_record_bytes ||
           core.untrapped_bytes > core.options.quarantine_bytes ||
           (quarantined && core.retired_bytes > core.options.quarantine_bytes)) {
        if (!evict_oldest(core, hold, false)) {
            break;
        }
    }
}

void relist(general_purpose_core& core, unit& u) noexcept {
    const std::scoped_lock hold(core.lock);
    if (u.attached.load()) {
        return;
    }
    if (!u.listed.load()) {
        list_partly_free(core, u);
    }
    for (std::uint32_t w = 0; w < u.words(); ++w) {
        if (u.free_bits[w].load() != u.full_word(w)) {
            return;
        }
    }
    if (core.partly_free[u.size_class] == &u && u.queue == nullptr) {
        return;  // the only one: kept as a spare, so that a lone pair of calls does not map and unmap
    }
    unit** link = &core.partly_free[u.size_class];
    while (*link != &u) {
        link = &(*link)->queue;
    }
    *link = u.queue;
    if (u.from->size == u.size) {
        forget(core, u, false);
        return;
    }
    if (core.over_pages) {
        os::discard(bytes_of(u), u.size);
    }
    make_reusable(core, u);
}

void release_all(general_purpose_core& core) noexcept {
    for (unit* u = core.units; u != nullptr; u = u->following) {
        metadata::address_map::erase(*u);
    }
    while (core.chunks != nullptr) {
        give_back(core, *core.chunks);
    }
}

live_totals sum_caches(general_purpose_core& core) noexcept {
    live_totals sum;
    const auto add = [&sum](const thread_cache& cache) {
        // Frees first: a block counted as freed is then counted as allocated, too.
        sum.deallocations += cache.deallocations.get();
        sum.deallocated_bytes += cache.deallocated_bytes.get();
    };
    const auto add_allocations = [&sum](const thread_cache& cache) {
        sum.allocations += cache.allocations.get();
        sum.allocated_bytes += cache.allocated_bytes.get();
    };
    const std::scoped_lock hold(core.lock);
    add(core.spare);
    for (const thread_cache* c = core.caches; c != nullptr; c = c->next) {
        add(*c);
    }
    add_allocations(core.spare);
    for (const thread_cache* c = core.caches; c != nullptr; c = c->next) {
        add_allocations(*c);
    }
    return sum;
}

void raise_peak(general_purpose_core& core, std::uint64_t blocks, std::uint64_t bytes) noexcept {
    const auto raise_to = [](std::atomic<std::uint64_t>& peak, std::uint64_t value) {
        std::uint64_t seen = peak.load(std::memory_order_relaxed);
        while (seen < value && !peak.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
        }
    };
    raise_to(core.peak_blocks, blocks);
    raise_to(core.peak_bytes, bytes);
}

}  // namespace pmr_debug::detail
