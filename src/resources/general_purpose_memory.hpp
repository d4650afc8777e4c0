#pragma once

// Memory for units, floor 4: between the upstream and the unit functions of the general-purpose resource. All of it
// runs under the resource's lock.

#include "resources/general_purpose_core.hpp"

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace pmr_debug::detail {

/// Holds a resource's lock. When it ends, what was given back meanwhile goes to the upstream, without the lock: an
/// upstream, or its handler, may use the same resource.
class guard_lock {
public:
    explicit guard_lock(general_purpose_core& core) noexcept : core_(core) { lock(); }
    guard_lock(const guard_lock&) = delete;
    guard_lock& operator=(const guard_lock&) = delete;
    ~guard_lock() {
        if (!held_) {
            lock();
        }
        return_departing();
        unlock();
    }

    void lock() noexcept {
        core_.lock.lock();
        held_ = true;
    }
    void unlock() noexcept {
        held_ = false;
        core_.lock.unlock();
    }
    /// Effects: lets the upstream have what was given back. Releases the lock meanwhile.
    void return_departing() noexcept;

private:
    general_purpose_core& core_;
    bool held_ = false;
};

inline constexpr std::size_t unit_page = std::size_t{1} << metadata::address_map::page_bits;
/// Offsets in a unit of slots stay below this: the reciprocal is exact there.
inline constexpr std::size_t largest_unit = std::size_t{1} << 16;

/// Memory for a unit.
struct piece {
    std::uintptr_t base = 0;
    std::size_t size = 0;
    chunk* from = nullptr;
    slab* in = nullptr;
    bool warm = false;
    bool zeroed = false;  ///< never written to since it came as zeroed pages
};

/// What went wrong upstream, reported once the lock is released.
struct upstream_fault {
    error_kind kind = error_kind::upstream_null;
    void* p = nullptr;
    std::size_t bytes = 0;
    std::size_t alignment = 0;
};

[[nodiscard]] inline unsigned char* bytes_of(const unit& u) noexcept {
    return reinterpret_cast<unsigned char*>(u.base);
}

/// Whether fresh memory is filled, be it for the canaries only.
[[nodiscard]] inline bool fills(const general_purpose_core& core) noexcept {
    return core.rules.fill || core.guard_bytes != 0;
}

/// Behind the last slot, up to here, a unit is filled and verified. A unit made of a large block's memory may go on for
/// long.
[[nodiscard]] inline unsigned char* rest_end(const unit& u) noexcept {
    const std::size_t left = u.end() - u.slots_end();
    return reinterpret_cast<unsigned char*>(u.slots_end() + (left < u.slot_size ? left : u.slot_size));
}

[[nodiscard]] inline std::size_t record_memory(const general_purpose_core& core, const unit& u) noexcept {
    return u.large ? 0 : std::size_t{u.capacity} * core.record_bytes;
}

[[nodiscard]] inline std::size_t bit_memory(const unit& u) noexcept {
    return u.words() * sizeof(std::uint64_t);
}

/// Effects: takes a chunk off the books; it is returned to the upstream when the lock is released. Lock held.
void give_back(general_purpose_core& core, chunk& c) noexcept;

/// Effects: notes that \p bytes of the chunk will not be used again; returns it to the upstream when that is all of it,
/// unless its addresses are to stay taken.
void spend(general_purpose_core& core, chunk& c, std::size_t bytes, bool keep_address) noexcept;

/// Effects: cuts a piece off the open chunk. Returns: false if it has no room.
bool carve(general_purpose_core& core, std::size_t bytes, std::size_t alignment, piece& out) noexcept;

/// Effects: a piece the size of a slab and aligned to it, of the open chunk or a new one. Returns: false if there is no
/// address space. May release the lock.
bool carve_slab_memory(general_purpose_core& core, guard_lock& hold, piece& out,
                       std::optional<upstream_fault>& fault) noexcept;

/// Effects: memory of \p bytes (whole pages) from wherever there is some; a reusable piece may be larger, up to \p
/// most. When nothing else is left the oldest retired memory is used again, which as calls of the upstream releases the
/// lock for a while.
bool obtain(general_purpose_core& core, guard_lock& hold, std::size_t bytes, std::size_t most, std::size_t alignment,
            piece& out, std::optional<upstream_fault>& fault) noexcept;

/// Effects: memory for a unit of slots: \p want bytes, or less, but at least \p least, where that avoids reuse. May
/// release the lock for a while.
bool obtain_slots(general_purpose_core& core, guard_lock& hold, std::size_t want, std::size_t least, piece& out,
                  std::optional<upstream_fault>& fault) noexcept;

// ---- general_purpose_units.cpp --------------------------------------------------------------------------------------

/// Effects: lets go of a unit, most often one whose slots were all handed out; that may have been retired and
/// forgotten since. Owner only; lock held. Returns: true if it is dead now and to be retired: slots were left, as this
/// thread came back to the resource from a handler or the upstream, and the others are freed.
[[nodiscard]] bool detach(general_purpose_core& core, unit& u) noexcept;

/// Effects: nothing of \p u lives: whoever finds that first is to retire it. Lock held. Returns: true if it is the
/// caller.
[[nodiscard]] inline bool to_retire(unit& u) noexcept {
    const bool first = !u.retiring && u.phase.load(std::memory_order_relaxed) == unit_phase::active;
    u.retiring = true;
    return first;
}

// ---- general_purpose_reuse.cpp --------------------------------------------------------------------------------------

/// What a thread's unit whose slots are handed out again has for it.
enum class readiness : std::uint8_t {
    ready,
    look_again,  ///< a report was made, and its handler may have used the resource: nothing is as it was
    used_up,
};

/// Effects: makes some freed slots of an attached unit ready. Owner only.
[[nodiscard]] readiness ready_more(general_purpose_core& core, unit& u) noexcept;

/// Effects: makes slots that are ready, and not wanted any more, freed ones again. Owner only.
void unready(general_purpose_core& core, unit& u) noexcept;

/// Effects: if more is kept than may be, makes a closed unit of class \p cls the thread's current one, to have its
/// freed slots used again; without any, gives memory back. Returns: true if the current unit is another one now.
[[nodiscard]] bool reopen_closed(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept;

// ---- general_purpose_budget.cpp -------------------------------------------------------------------------------------

/// Returns: the bytes by which what is kept of freed memory exceeds what may be. Lock held.
[[nodiscard]] std::size_t excess(general_purpose_core& core) noexcept;

/// Effects: traps retired units and gives dead pages of closed ones back, so that what is kept comes down by some of
/// \p too_much: by more than a new unit takes. Lock held; released meanwhile.
void come_down(general_purpose_core& core, guard_lock& hold, std::size_t too_much) noexcept;

/// Effects: all slots of the unit were handed out: puts it in line, unless it is dead. Lock held.
void close_unit(general_purpose_core& core, unit& u) noexcept;

/// Effects: takes the unit out of line, if it stands in one. Lock held.
void leave_line(general_purpose_core& core, unit& u) noexcept;

/// So many bytes are retired, or freed, before the process's books are told.
inline constexpr std::size_t settle_step = std::size_t{1} << 18;

/// Effects: reuse::immediate: the listed unit \p u has free slots: gives its dead pages back if more free memory is
/// kept than may be. Lock held.
void trim_listed(general_purpose_core& core, unit& u) noexcept;

/// Effects: the same for the next \p most units that are listed, of all classes in turn; before, tells the books if
/// that is due, as about \p passed bytes were freed or are about to be taken. Lock held.
void trim_lists(general_purpose_core& core, std::size_t passed, unsigned most) noexcept;

/// Effects: reuse::immediate: the unit leaves the list of partly free ones. Lock held.
void leave_list(general_purpose_core& core, unit& u) noexcept;

/// Effects: tells the process's books what is kept. Lock held.
void settle_quarantine(general_purpose_core& core) noexcept;

[[nodiscard]] std::size_t history_memory(const unit& u) noexcept;

// ---- general_purpose_retirement.cpp -------------------------------------------------------------------------------

/// Effects: frees private memory that a call with a stale pointer may be looking at, after a while. Lock held.
void bury(general_purpose_core& core, void* p, std::size_t bytes) noexcept;

/// Effects: frees what belongs to the unit in private memory, except its descriptor. Lock held.
void free_records(general_purpose_core& core, unit& u) noexcept;

/// Effects: frees the descriptor, now or once its thread lets go of it.
void free_descriptor(general_purpose_core& core, unit& u) noexcept;

/// Effects: reuse::immediate: lists \p u as partly free.
void list_partly_free(general_purpose_core& core, unit& u) noexcept;

/// Effects: forgets the unit for good: map, records, descriptor.
void forget(general_purpose_core& core, unit& u, bool keep_address) noexcept;

/// Effects: address space or upstream ran out: makes the oldest retired memory available again, for a
/// request of \p bytes with \p alignment. May release the lock.
/// Returns: false if there is none.
bool reclaim(general_purpose_core& core, guard_lock& hold, std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: private memory ran out: forgets the oldest retired unit. May release the lock. Returns: false if there is
/// none.
bool forget_oldest(general_purpose_core& core, guard_lock& hold) noexcept;

/// Effects: too much is kept: traps units that wait for their slab, the oldest first, until \p wanted bytes are;
/// elsewhere than over pages, gives retired ones back.
/// Lock held; released meanwhile.
void trap_pending(general_purpose_core& core, guard_lock& hold, std::size_t wanted) noexcept;

/// Effects: verifies and traps a slab if all its units are dead. May release the lock.
void trap_if_dead(general_purpose_core& core, guard_lock& hold, slab& s) noexcept;

}  // namespace pmr_debug::detail
