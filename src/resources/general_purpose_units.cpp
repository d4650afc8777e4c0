// Units and their slots: everything the fast path falls back to.

#include "os/other_tools.hpp"
#include "resources/general_purpose_pages.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>

namespace pmr_debug::detail {

namespace {

constexpr std::size_t first_unit = std::size_t{1} << 14;
/// Slots are filled and made resident in steps of this.
constexpr std::size_t prepare_step = std::size_t{1} << 14;

/// Returns: a unit for \p memory that nobody knows of yet; null if private memory is used up. Lock not held.
unit* new_unit(general_purpose_core& core, const piece& memory) noexcept {
    void* const place = core.memory->allocate(sizeof(unit));
    if (place == nullptr) {
        return nullptr;
    }
    auto* const u = ::new (place) unit;
    u->base = memory.base;
    u->first = memory.base;
    u->size = memory.size;
    u->owner = &core;
    u->from = memory.from;
    u->in = memory.in;
    u->warm = memory.warm;
    u->zeroed = memory.zeroed && core.over_pages;
    if (core.memcheck) {
        os::tell_inaccessible(bytes_of(*u), u->size);
    }
    return u;
}

/// Effects: enters the unit in the map and the books. Lock held. Returns: false if private memory is used up.
bool enter(general_purpose_core& core, unit& u) noexcept {
    if (!metadata::address_map::insert(u)) {
        return false;
    }
    u.following = core.units;
    if (u.following != nullptr) {
        u.following->previous = &u;
    }
    core.units = &u;
    if (u.in != nullptr) {
        u.next_in_slab = u.in->units;
        u.in->units = &u;
    }
    return true;
}

/// Effects: gives up memory for which no unit could be made. Lock held.
void give_up(general_purpose_core& core, guard_lock& hold, const piece& memory) noexcept {
    spend(core, *memory.from, memory.size, memory.in != nullptr);
    if (memory.in != nullptr) {
        memory.in->dead += memory.size;  // lost to the slab, and trapped with the rest of it
        trap_if_dead(core, hold, *memory.in);
    }
}

/// Canary bytes before the first slot of \p slot bytes: the least that leaves slots aligned.
std::size_t front_of(const general_purpose_core& core, std::size_t slot) noexcept {
    return core.guard_bytes == 0 ? 0 : std::min(slot & (~slot + 1), size_classes::largest_alignment);
}

/// Effects: gives the unit its slots of class \p cls. Lock not held. Returns: false if private memory is used up.
bool divide(general_purpose_core& core, unit& u, unsigned cls) noexcept {
    u.size_class = static_cast<std::uint8_t>(cls);
    u.slot_size = size_classes::slot_sizes[cls];
    u.reciprocal = core.exact ? 0 : size_classes::reciprocal_of(u.slot_size);
    u.first = u.base + front_of(core, u.slot_size);
    u.capacity = static_cast<std::uint32_t>((std::min(u.size, largest_unit) - (u.first - u.base)) / u.slot_size);
    u.unfreed.set(u.capacity, std::max(1U, u.capacity / 4));
    u.first_serial = core.next_serial.fetch_add(u.capacity, std::memory_order_relaxed);
    u.attached.store(true, std::memory_order_relaxed);
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
        if (core.poisons) {
            os::poison(bytes_of(u), u.size);
        }
        fill_memory(core, bytes_of(u), fresh_byte, u.front());
        u.next.store(u.capacity, std::memory_order_relaxed);
        u.prepared.store(u.capacity, std::memory_order_relaxed);
    }
    return true;
}

/// Effects: undoes new_unit and divide. Lock held.
void drop_unit(general_purpose_core& core, unit& u) noexcept {
    free_records(core, u);
    core.memory->free(&u, sizeof(unit));
}

/// Effects: makes a unit of slots of class \p cls, or with none a large one. If private memory is used up, retired
/// units are forgotten for it, the oldest first. Lock not held. Returns: null if that does not help.
unit* new_unit(general_purpose_core& core, const piece& memory, std::optional<unsigned> cls) noexcept {
    for (;;) {
        unit* const u = new_unit(core, memory);
        if (u != nullptr && (!cls.has_value() || divide(core, *u, *cls))) {
            return u;
        }
        guard_lock hold(core);
        if (u != nullptr) {
            drop_unit(core, *u);
        }
        if (!forget_oldest(core, hold)) {
            return nullptr;
        }
    }
}

/// Effects: fills the next slots of a unit, or all if nothing needs a fill; with the first of them what lies before,
/// with the last of them what is left. Owner only. Returns: false if all are ready.
bool prepare_more(general_purpose_core& core, unit& u) noexcept {
    const std::uint32_t from = u.prepared.load(std::memory_order_relaxed);
    if (from == u.capacity) {
        return false;
    }
    unsigned char* const start = from == 0 ? bytes_of(u) : slot_ref{&u, from}.address();
    std::uint32_t to = u.capacity;
    std::optional<report> written;
    if (fills(core)) {
        // The fill for fresh memory is the canary as well, so that an allocation need not touch its block.
        to = std::min(u.capacity,
                      from + std::max<std::uint32_t>(1, static_cast<std::uint32_t>(prepare_step / u.slot_size)));
        unsigned char* const end = to == u.capacity ? rest_end(u) : slot_ref{&u, to}.address();
        const auto bytes = static_cast<std::size_t>(end - start);
        // The fill wipes out what was written here by mistake. The first slots were no part of a unit until now. After
        // a fork, a thread that does not exist may have filled some.
        if (from != 0 && u.zeroed && core.rules.checks && !u.unsettled.load(std::memory_order_relaxed) &&
            !all_bytes(start, bytes, 0)) [[unlikely]] {
            written = stray_write(core, start, end, 0);
        }
        u.unsettle();
        fill_memory(core, start, fresh_byte, bytes);
    } else if (core.poisons) {
        os::poison(start, u.end() - reinterpret_cast<std::uintptr_t>(start));
    }
    u.prepared.store(to, std::memory_order_relaxed);
    u.settle();
    if (written.has_value()) {
        raise_from(core, *written);  // the handler may use the resource, and finds the unit ready
    }
    return true;
}

/// Owner only.
bool has_slots(const unit& u) noexcept {
    return u.next.load(std::memory_order_relaxed) < u.prepared.load(std::memory_order_relaxed);
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

bool has_free_bits(const unit& u) noexcept {
    for (std::uint32_t w = 0; w < u.words(); ++w) {
        if (u.free_bits[w].load() != 0) {
            return true;
        }
    }
    return false;
}

/// Effects: lets go of a unit that is some thread's no longer. Lock held, or another thread could release the unit
/// while this one looks at it.
void detach_partly_free(general_purpose_core& core, unit& u) noexcept {
    // Both sides first write and then look (seq_cst): either this thread sees a slot freed meanwhile, or the thread
    // that frees it sees the unit detached and lists it.
    u.attached.store(false);
    if (has_free_bits(u)) {
        list_partly_free(core, u);
    }
}

/// Effects: gives up the current unit, which has no free slot. Returns: another one with some, or null.
unit* next_partly_free(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    const std::scoped_lock hold(core.lock);
    if (unit* const old = cache.current[cls]; old != nullptr) {
        cache.current[cls] = nullptr;
        detach_partly_free(core, *old);
    }
    while (unit* const u = core.closed[cls].last) {
        leave_list(core, *u);
        (void)bring_back(core, *u, all_pages(*u));  // not guarded, so that it cannot be refused
        u->attached.store(true);
        u->listed.store(false);
        if (take_bits(*u)) {
            return u;
        }
        detach_partly_free(core, *u);  // listed by a thread that came late
    }
    trim_lists(core, largest_unit, 64);
    return nullptr;
}

bool recycles(const general_purpose_core& core) noexcept {
    return core.rules.freed == reuse::immediate;
}

/// Effects: makes a unit with slots of \p cls. Where slots are not used again it takes the place of the thread's
/// current one, of which it lets go.
unit* make_slots(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    const std::size_t slot = size_classes::slot_sizes[cls];
    const bool hot = cache.units_taken[cls] != 0;
    const std::size_t least = os::round_up(slot + front_of(core, slot), unit_page);
    const std::size_t want =
        hot ? largest_unit : std::clamp(os::round_up(8 * slot, unit_page), std::max(first_unit, least), largest_unit);
    std::optional<upstream_fault> fault;
    unit* u = nullptr;
    unit* dead = nullptr;
    piece memory;
    bool found = false;
    {
        guard_lock hold(core);
        found = obtain_slots(core, hold, want, least, memory, fault);
    }
    if (found) {
        if (hot && core.over_pages && !memory.warm) {
            os::populate(reinterpret_cast<void*>(memory.base), memory.size);  // all of it will be used: no fault a page
        }
        u = new_unit(core, memory, cls);
        guard_lock hold(core);
        if (u == nullptr || !enter(core, *u)) {
            if (u != nullptr) {
                drop_unit(core, *u);
                u = nullptr;
            }
            give_up(core, hold, memory);
        }
        if (u != nullptr && !recycles(core)) {
            unit* const old = cache.current[cls];
            dead = old != nullptr && detach(core, *old) ? old : nullptr;
            cache.current[cls] = u;
        }
    }
    if (dead != nullptr) {
        retire(core, *dead);
    }
    if (fault.has_value()) {
        report_upstream(core, fault->kind, fault->p, fault->bytes, fault->alignment);
    }
    if (u != nullptr) {
        cache.units_taken[cls] = 1;
    }
    return u;
}

/// Where a large block lies in its memory.
struct large_place {
    std::size_t front = 0;      ///< bytes before it
    std::size_t alignment = 0;  ///< of the memory
};

/// A canary goes before the block: of what its alignment asks for, and at least a cache line. If that is more than a
/// page there is none, unless the alignment is to be exact, as it could be gigabytes.
large_place place_large(const general_purpose_core& core, std::size_t alignment) noexcept {
    constexpr std::size_t line = 64;
    constexpr std::size_t largest_exact = std::size_t{1} << 21;
    const std::size_t plain = std::max(alignment, unit_page);
    if (core.exact && alignment <= largest_exact) {
        // An odd multiple of the alignment from an address that is a multiple of twice that.
        return {alignment < line ? line + alignment : alignment, std::max(2 * alignment, unit_page)};
    }
    const bool guarded = core.guard_bytes != 0 && alignment <= unit_page;
    return {guarded ? std::max(alignment, line) : 0, plain};
}

/// Effects: as refill, where a freed slot is not used again within the budget.
unit* slots_used_once(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    constexpr int most_units = 16;  // with freed slots that are not to be had after all
    for (int reopened = 0;;) {
        unit* const u = cache.current[cls];
        if (u != nullptr && u->again.load(std::memory_order_relaxed)) {
            const readiness now = ready_more(core, *u);
            if (now == readiness::ready) {
                return u;
            }
            if (now == readiness::look_again) {
                if (unit* const c = cache.current[cls]; c != nullptr && has_slots(*c)) {
                    return c;
                }
                continue;
            }
        } else if (u != nullptr && prepare_more(core, *u)) {
            return u;
        }
        if (reopened < most_units && reopen_closed(core, cache, cls)) {
            ++reopened;
            continue;
        }
        if (make_slots(core, cache, cls) == nullptr) {
            return nullptr;
        }
        // Where a handler used the resource, another unit than was made here.
        if (unit* const c = cache.current[cls]; has_slots(*c)) {
            return c;
        }
    }
}

}  // namespace

bool detach(general_purpose_core& core, unit& u) noexcept {
    u.attached.store(false, std::memory_order_relaxed);
    if (u.orphaned) {
        bury(core, &u, sizeof(unit));
        return false;
    }
    std::uint32_t left = u.capacity - u.next.load(std::memory_order_relaxed);
    const bool all_used = left == 0 || u.again.load(std::memory_order_relaxed);
    if (u.again.load(std::memory_order_relaxed)) {
        left = u.prepared.load(std::memory_order_relaxed) - u.next.load(std::memory_order_relaxed) + 1;
        unready(core, u);
    }
    if (left != 0) {
        if (u.unfreed.subtract(left) == 0) {
            return to_retire(u);
        }
        u.unfreed.tell_at_a_quarter();
    }
    if (all_used) {
        close_unit(core, u);
    }
    return false;
}

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
        cache->next = core.caches.load(std::memory_order_relaxed);
        core.caches.store(cache, std::memory_order_release);
        core.all_caches[index].store(cache, std::memory_order_relaxed);
    }
    if (!core.limited && core.gate == nullptr && !core.exact && !core.chosen.any(true) && !core.watched()) {
        // A foreign thread of a single_checked resource never gets to look here.
        core.fast_caches[index].store(cache, std::memory_order_relaxed);
    }
    return *cache;
}

unit* refill(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
    unit* u = cache.current[cls];
    if (recycles(core)) {
        if (u != nullptr && take_bits(*u)) {
            return u;
        }
        u = next_partly_free(core, cache, cls);
        if (u == nullptr) {
            u = make_slots(core, cache, cls);
            if (u == nullptr || !take_bits(*u)) {
                return nullptr;  // a handler that was told why may have left a unit in the cache: it stays
            }
        }
    } else {
        u = slots_used_once(core, cache, cls);
        if (u == nullptr) {
            return nullptr;
        }
    }
    cache.current[cls] = u;
    return u;
}

unit* make_large(general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    const large_place place = place_large(core, alignment);
    // Callers refuse sizes above address_space_bytes, so this sum cannot wrap.
    const std::size_t size = os::round_up(std::max<std::size_t>(place.front + bytes + core.guard_bytes, 1), unit_page);
    std::optional<upstream_fault> fault;
    unit* u = nullptr;
    piece memory;
    bool found = false;
    {
        guard_lock hold(core);
        found = obtain(core, hold, size, size + size / 4, place.alignment, memory, fault);
    }
    if (found) {
        u = new_unit(core, memory, std::nullopt);
        if (u != nullptr) {
            u->large = true;
            u->first = u->base + place.front;
            u->capacity = 1;
            u->request = bytes;
            u->records = reinterpret_cast<unsigned char*>(&u->large_record);
            u->first_serial = core.next_serial.fetch_add(1, std::memory_order_relaxed);
            u->unfreed.set(1, 1);
            u->next.store(1, std::memory_order_relaxed);
            u->prepared.store(1, std::memory_order_relaxed);
        }
        guard_lock hold(core);
        if (u == nullptr || !enter(core, *u)) {
            if (u != nullptr) {
                core.memory->free(u, sizeof(unit));
                u = nullptr;
            }
            give_up(core, hold, memory);
        } else if (recycles(core)) {
            core.large_bytes += bytes;
        }
    }
    if (fault.has_value()) {
        report_upstream(core, fault->kind, fault->p, fault->bytes, fault->alignment);
    }
    if (u != nullptr) {
        unsigned char* const block = slot_ref{u, 0}.address();
        if (fills(core)) {
            fill_memory(core, block - u->front(), fresh_byte, u->front());
            const std::size_t clean = core.rules.fill ? 0 : bytes;
            fill_memory(core, block + clean, fresh_byte, u->slot_bytes() - clean);
        }
    }
    return u;
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
    const thread_cache* const first = core.caches.load(std::memory_order_acquire);
    add(core.spare);
    for (const thread_cache* c = first; c != nullptr; c = c->next) {
        add(*c);
    }
    add_allocations(core.spare);
    for (const thread_cache* c = core.caches.load(std::memory_order_acquire); c != nullptr; c = c->next) {
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
