// Where units come from: pieces of chunks, and over pages of slabs.

#include "resources/general_purpose_memory.hpp"

#include "os/other_tools.hpp"
#include "resources/upstream.hpp"

#include <algorithm>
#include <limits>
#include <new>

namespace pmr_debug::detail {

namespace {

constexpr std::size_t largest_chunk = std::size_t{1} << 26;
// Until so much was taken from the upstream one chunk serves all: a small heap, or a small upstream, has no second one.
constexpr std::size_t few_bytes = std::size_t{16} << 20;
/// Larger blocks are chunks of their own.
constexpr std::size_t largest_carved = std::size_t{1} << 18;

[[nodiscard]] bool is_carved(const general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    return core.over_pages && ((bytes <= largest_carved && alignment <= largest_carved) || bytes == slab::size);
}

/// Whether memory that the upstream says is free is still in one of this resource's units.
bool overlaps_own(const general_purpose_core& core, std::uintptr_t p, std::size_t bytes) noexcept {
    const std::size_t last = std::min(bytes, metadata::address_map::indexed_bytes);
    for (std::size_t at = 0; at < last; at += unit_page) {
        if (metadata::address_map::find(p + at, &core) != nullptr) {
            return true;
        }
    }
    return false;
}

/// Effects: asks the upstream, with the lock released. Returns: null if it refused, with \p fault set if it
/// misbehaved.
chunk* new_chunk(general_purpose_core& core, guard_lock& hold, std::size_t bytes, std::size_t alignment,
                 std::optional<upstream_fault>& fault) noexcept {
    auto* const memory = static_cast<chunk*>(core.memory->allocate(sizeof(chunk)));
    if (memory == nullptr) {
        return nullptr;
    }
    hold.unlock();
    void* p = nullptr;
    bool refused = false;
    {
        const outside_section called(core);
        try {
            p = ask_upstream(*core.upstream, bytes, alignment);
        } catch (...) {
            refused = true;  // whatever upstream throws, our caller sees bad_alloc
        }
    }
    const auto base = reinterpret_cast<std::uintptr_t>(p);
    if (refused) {
    } else if (p == nullptr) {
        fault = {error_kind::upstream_null, p, bytes, alignment};
    } else if (base % alignment != 0) {
        fault = {error_kind::upstream_misaligned, p, bytes, alignment};
        const outside_section called(core);
        core.upstream->deallocate(p, bytes, alignment);
    } else if (!core.over_pages && overlaps_own(core, base, bytes)) {
        fault = {error_kind::upstream_overlap, p, bytes, alignment};
    } else {
        hold.lock();
        auto* const c = ::new (static_cast<void*>(memory)) chunk{.base = base, .size = bytes, .alignment = alignment};
        c->nested = metadata::address_map::find(base) != nullptr;
        c->next = core.chunks;
        if (c->next != nullptr) {
            c->next->previous = c;
        }
        core.chunks = c;
        core.held_bytes += bytes;
        return c;
    }
    hold.lock();
    core.memory->free(memory, sizeof(chunk));
    return nullptr;
}

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
        if (u->guarded.load(std::memory_order_relaxed) != 0 && u->trap != os::guard_tier::marker &&
            !os::remove_guard(bytes_of(*u), u->size, os::guard_tier::marker)) {
            continue;
        }
        u->from->protect_guards -= u->trap == os::guard_tier::protect ? 1 : 0;
        (before != nullptr ? before->queue : core.reusable.first) = u->queue;
        core.reusable.last = core.reusable.last == u ? before : core.reusable.last;
        core.reusable.count -= 1;
        out = {.base = u->base, .size = u->size, .from = u->from};
        free_descriptor(core, *u);
        return true;
    }
    return false;
}

/// Where a piece is carved: slabs by themselves, once there are many. A large block between two of them would keep the
/// places that they left from becoming one mapping, of which the kernel allows 65 530 by default.
chunk*& open_for(general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    const bool apart = bytes == slab::size && alignment == slab::size && core.held_bytes >= few_bytes;
    return apart ? core.open_slab_chunk : core.open_chunk;
}

bool carve_in(chunk* c, std::size_t bytes, std::size_t alignment, piece& out) noexcept {
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
    out = {.base = at, .size = bytes, .from = c, .zeroed = true};
    return true;
}

/// Effects: as carve, where the upstream gives no more.
bool carve_anywhere(general_purpose_core& core, std::size_t bytes, std::size_t alignment, piece& out) noexcept {
    return carve_in(core.open_chunk, bytes, alignment, out) || carve_in(core.open_slab_chunk, bytes, alignment, out);
}

/// Effects: closes an open chunk: what is left of it will not be carved.
void close_open_chunk(chunk*& open) noexcept {
    if (open == nullptr) {
        return;
    }
    open->spent += open->size - open->carved;
    open->carved = open->size;
    open = nullptr;
}

/// How much address space may be taken from the upstream.
enum class reach : std::uint8_t { share, all };

bool within_address_space(const general_purpose_core& core, std::size_t more, reach how_far) noexcept {
    const std::size_t most = how_far == reach::all ? core.options.address_space_bytes : core.address_share;
    return core.held_bytes <= most && more <= most - core.held_bytes;
}

/// Effects: a chunk from the upstream for one piece, or over pages for many.
bool from_upstream(general_purpose_core& core, guard_lock& hold, std::size_t bytes, std::size_t alignment, piece& out,
                   std::optional<upstream_fault>& fault, reach how_far = reach::share) noexcept {
    if (is_carved(core, bytes, alignment)) {
        for (std::size_t want = std::max(core.next_chunk_bytes, bytes);; want = std::max(want / 4, bytes)) {
            chunk* const c =
                within_address_space(core, want, how_far) ? new_chunk(core, hold, want, alignment, fault) : nullptr;
            if (c != nullptr) {
                chunk*& open = open_for(core, bytes, alignment);
                close_open_chunk(open);
                open = c;
                core.next_chunk_bytes = std::min(core.next_chunk_bytes * 2, largest_chunk);
                return carve_in(c, bytes, alignment, out);
            }
            if (want == bytes || fault.has_value()) {
                return false;
            }
        }
    }
    chunk* const c =
        within_address_space(core, bytes, how_far) ? new_chunk(core, hold, bytes, alignment, fault) : nullptr;
    if (c == nullptr) {
        return false;
    }
    c->carved = bytes;
    out = {.base = c->base, .size = bytes, .from = c};
    return true;
}

/// Effects: takes the first of the slabs that are ready. Returns: false if there is none.
bool open_ready_slab(general_purpose_core& core) noexcept {
    slab* const s = core.ready_slabs;
    if (s == nullptr) {
        return false;
    }
    core.ready_slabs = s->next;
    core.warm_count -= s->warm ? 1 : 0;
    core.open_slab = s;
    return true;
}

/// Effects: opens a slab: one with warm pages, or a fresh one. May release the lock.
bool open_slab(general_purpose_core& core, guard_lock& hold, std::optional<upstream_fault>& fault) noexcept {
    if (open_ready_slab(core)) {
        return true;
    }
    piece memory;
    void* const place = core.memory->allocate(sizeof(slab));
    if (place == nullptr) {
        return false;
    }
    if (!carve_slab_memory(core, hold, memory, fault)) {
        core.memory->free(place, sizeof(slab));
        return core.open_slab != nullptr || open_ready_slab(core);  // another thread was luckier meanwhile
    }
    auto* const fresh = ::new (place) slab{.base = memory.base, .from = memory.from};
    if (core.open_slab == nullptr) {
        core.open_slab = fresh;
    } else {  // another thread opened one meanwhile
        fresh->next = core.ready_slabs;
        core.ready_slabs = fresh;
    }
    return true;
}

bool carve_slab(general_purpose_core& core, guard_lock& hold, std::size_t want, std::size_t least, piece& out,
                std::optional<upstream_fault>& fault) noexcept {
    for (;;) {
        if (core.open_slab == nullptr && !open_slab(core, hold, fault)) {
            return false;
        }
        slab& s = *core.open_slab;
        const std::size_t left = slab::size - s.carved;
        if (left >= least) {
            out = {.base = s.base + s.carved,
                   .size = std::min(want, left),
                   .from = s.from,
                   .in = &s,
                   .warm = s.warm,
                   .zeroed = !s.warm};
            s.carved += out.size;
            if (s.carved == slab::size) {
                core.open_slab = nullptr;
            }
            return true;
        }
        s.carved = slab::size;
        s.dead += left;
        s.from->spent += left;
        core.open_slab = nullptr;
        trap_if_dead(core, hold, s);
    }
}

}  // namespace

void give_back(general_purpose_core& core, chunk& c) noexcept {
    (c.previous != nullptr ? c.previous->next : core.chunks) = c.next;
    if (c.next != nullptr) {
        c.next->previous = c.previous;
    }
    for (chunk** const open : {&core.open_chunk, &core.open_slab_chunk}) {
        *open = *open == &c ? nullptr : *open;
    }
    core.held_bytes -= c.size;
    os::forget_protect_guards(c.protect_guards);
    if (core.memcheck) {
        os::tell_undefined(reinterpret_cast<void*>(c.base), c.size);
    }
    if (core.poisons) {
        os::unpoison(reinterpret_cast<void*>(c.base), c.size);
    }
    c.next = core.departing;
    core.departing = &c;
}

void guard_lock::return_departing() noexcept {
    while (chunk* const c = core_.departing) {
        core_.departing = c->next;
        unlock();
        {
            const outside_section called(core_);
            core_.upstream->deallocate(reinterpret_cast<void*>(c->base), c->size, c->alignment);
        }
        lock();
        core_.memory->free(c, sizeof(chunk));
    }
}

void spend(general_purpose_core& core, chunk& c, std::size_t bytes, bool keep_address) noexcept {
    c.spent += bytes;
    if (!keep_address && c.spent == c.carved && !core.is_open(c)) {
        give_back(core, c);
    }
}

bool carve(general_purpose_core& core, std::size_t bytes, std::size_t alignment, piece& out) noexcept {
    return carve_in(open_for(core, bytes, alignment), bytes, alignment, out);
}

bool carve_slab_memory(general_purpose_core& core, guard_lock& hold, piece& out,
                       std::optional<upstream_fault>& fault) noexcept {
    return carve(core, slab::size, slab::size, out) || from_upstream(core, hold, slab::size, slab::size, out, fault) ||
           carve_anywhere(core, slab::size, slab::size, out);
}

bool obtain(general_purpose_core& core, guard_lock& hold, std::size_t bytes, std::size_t most, std::size_t alignment,
            piece& out, std::optional<upstream_fault>& fault) noexcept {
    if (take_reusable(core, bytes, most, alignment, out) || carve(core, bytes, alignment, out) ||
        from_upstream(core, hold, bytes, alignment, out, fault) || carve_anywhere(core, bytes, alignment, out)) {
        return true;
    }
    const auto more = [&] {
        return core.address_share < core.options.address_space_bytes && !fault.has_value() &&
               from_upstream(core, hold, bytes, alignment, out, fault, reach::all);
    };
    if (bytes > core.held_bytes) {
        return more();  // don't throw the quarantine away for it, which would not help
    }
    while (!fault.has_value() && reclaim(core, hold, bytes, alignment)) {
        if (take_reusable(core, bytes, std::numeric_limits<std::size_t>::max(), alignment, out) ||
            from_upstream(core, hold, bytes, alignment, out, fault)) {
            return true;
        }
    }
    return more();
}

bool obtain_slots(general_purpose_core& core, guard_lock& hold, std::size_t want, std::size_t least, piece& out,
                  std::optional<upstream_fault>& fault) noexcept {
    if (core.belted && carve_slab(core, hold, want, least, out, fault)) {
        return true;
    }
    // A smaller unit is better than giving up the addresses of retired ones, so only the last try reclaims.
    for (; want > least && !fault.has_value(); want = std::max(os::round_up(want / 2, unit_page), least)) {
        if (take_reusable(core, want, largest_unit, unit_page, out) || carve(core, want, unit_page, out) ||
            from_upstream(core, hold, want, unit_page, out, fault)) {
            return true;
        }
    }
    return !fault.has_value() && obtain(core, hold, least, largest_unit, unit_page, out, fault);
}

}  // namespace pmr_debug::detail
