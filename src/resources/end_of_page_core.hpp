#pragma once

// State of an end-of-page resource, floor 4. It sits in private pages.
//
//   address range of the resource, in granules of 2 MiB, handed out front to back, then again where retired
//   +----------------+----------------+------------------------------+------------ …
//   | strip, 8 KiB   | strip, 64 KiB  | single: one large block      | never used
//   +----------------+----------------+------------------------------+------------ …
//     D#D#D#D#D#D#D#   DDDDDDD#DDDDDDD#  DDDDDDDDDDDDDDDDDDDD#
//
// D: data pages, #: guard page. A slot is a power of two of pages, one of them the guard; so the guards of a strip
// stand where they stood when its pages move to another strip. `index` tells the unit of each granule. Over an upstream
// whose pages are not ours to protect, units are single allocations, found by the process-wide address map. There the
// guard page is memory as any other: each half is the canary of a neighbour, and one more page lies at the open end.
//
// Who writes what: a record belongs to whoever moved its state to live, or away from live; a unit's `next` to the
// holder of `bump`; lists, frontier and granules to the holder of `lock`.

#include <pmr_debug/end_of_page_resource.hpp>

#include "metadata/address_map.hpp"
#include "metadata/arena.hpp"
#include "metadata/quarantine_budget.hpp"
#include "metadata/registry.hpp"
#include "os/brief_lock.hpp"
#include "os/other_tools.hpp"
#include "os/thread.hpp"
#include "os/virtual_memory.hpp"
#include "report/dispatch.hpp"
#include "resources/bytes.hpp"
#include "resources/thread_binding.hpp"
#include "resources/trap_choice.hpp"
#include "resources/upstream_watch.hpp"
#include "resources/usage.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace pmr_debug::detail {

namespace fence {

inline constexpr unsigned char canary_byte = 0xAA;  ///< fresh memory, too
inline constexpr unsigned char freed_byte = 0xDD;
inline constexpr std::size_t page = std::size_t{1} << metadata::address_map::page_bits;
inline constexpr unsigned granule_shift = 21;
inline constexpr std::size_t granule = std::size_t{1} << granule_shift;
/// Slots of 2, 4, … 512 pages.
inline constexpr unsigned smallest_shift = 13;
inline constexpr std::size_t smallest_slot = std::size_t{1} << smallest_shift;
inline constexpr unsigned classes = granule_shift - smallest_shift + 1;
inline constexpr unsigned single_shift = 63;  ///< every offset in the unit is slot 0
/// Strips over an upstream whose memory is not ours: 8 slots, and a page for the canary at the end that no slot
/// follows.
inline constexpr std::size_t foreign_strip = 8 * smallest_slot + page;
/// Strips whose pages are kept ready.
inline constexpr unsigned most_warm = 16;
/// Strips that are mappings of their own, moved there, or sealed between others that are not. The kernel allows 65 530
/// mappings by default, for all of the process.
inline constexpr std::size_t most_mappings = 8'192;

enum class slot_state : std::uint8_t {
    never,
    live,
    freeing,  ///< whoever got here from live still works on it
    freed,    ///< filled, and waits to be trapped
    trapped,  ///< its pages fault
    damaged,  ///< bytes in it or around it were written; set aside
};

struct slot_record {
    std::size_t size;  ///< as requested
    trace_id allocated;
    trace_id freed;
    std::uint32_t alloc_thread;
    std::uint32_t free_thread;
    std::atomic<slot_state> state;
    std::uint8_t alignment;  ///< base-2 logarithm
    os::guard_tier guard;    ///< how its guard page is guarded
    std::uint32_t later;     ///< waiting to be used again: number of the slot that was freed next, plus 1
};
static_assert(sizeof(slot_record) <= 32);

/// A strip of slots, or one block (a single).
struct unit : metadata::address_range {
    slot_record* records = nullptr;
    unsigned shift = single_shift;
    std::uint32_t capacity = 1;
    std::uint32_t next = 0;                 ///< first slot never handed out
    std::atomic<std::uint32_t> unfreed{1};  ///< slots not yet freed; 0 retires the unit
    std::atomic<bool> retired{false};
    std::atomic<bool> damaged{false};        ///< stays known, and is never used again
    std::atomic<bool> unmovable{false};      ///< a guard of it is no marker, or a block of it was trapped by itself
    bool warm = false;                       ///< has the pages and guards of an earlier strip, in a mapping of its own
    std::atomic<std::uint32_t> guarded{0};   ///< slots whose markers were installed, counted from the first
    std::atomic<bool> guard_by_slot{false};  ///< installing many at once was refused
    std::uint32_t guarded_singly = 0;        ///< placement::after_guard: behind the last slot that was guarded then
    os::guard_tier trap = os::guard_tier::none;
    std::atomic<int> protects{0};    ///< ranges of it that are guarded by os::guard_tier::protect
    std::uint32_t evicted = 0;       ///< freed blocks trapped ahead of the others; under the lock
    std::uintptr_t slots = 0;        ///< where slot 0 begins
    std::uintptr_t single_data = 0;  ///< single: first data page
    std::uintptr_t single_guard = 0;
    std::uint64_t first_serial = 0;
    std::size_t upstream_alignment = 0;  ///< foreign: what to give back with
    // Under the lock: neighbours in the list of active units, or of retired ones.
    unit* before = nullptr;
    unit* after = nullptr;
};

struct unit_list {
    unit* first = nullptr;
    unit* last = nullptr;
    std::size_t size = 0;
    void append(unit& u) noexcept;
    void remove(unit& u) noexcept;
};

/// A slot of a unit; `owner` null: none.
struct slot_ref {
    unit* owner = nullptr;
    std::uint32_t index = 0;
    [[nodiscard]] slot_record& record() const noexcept { return owner->records[index]; }
};

/// Freed slots of a page, in that order, linked by their records.
struct waiting_list {
    std::uint32_t first = 0;  ///< number of the slot plus 1; 0: none
    std::uint32_t last = 0;
    std::size_t size = 0;
};

/// Effects: adds \p n. Returns: the value before. Costs no atomic exchange while the process has one thread.
template <class T>
T add_to(std::atomic<T>& counter, T n) noexcept {
    if (!os::single_threaded()) {
        return counter.fetch_add(n, std::memory_order_acq_rel);
    }
    const T before = counter.load(std::memory_order_relaxed);
    counter.store(static_cast<T>(before + n), std::memory_order_relaxed);
    return before;
}

/// What became of a granule.
enum class granule_use : std::uint8_t {
    untouched,
    in_use,
    sealed,
    foreign,  ///< somebody else had mapped something there first
};

}  // namespace fence

struct fence_core {
    // Read by every call, written never.
    std::uintptr_t base = 0;  ///< of the range; 0 and no bytes: foreign memory
    std::size_t range_bytes = 0;
    std::atomic<fence::unit*>* index = nullptr;  ///< by granule
    fence_shape shape;
    policy rules;
    end_of_page_options options;
    std::size_t window = 0;    ///< canary bytes on the side without guard; 0: no canaries at all
    bool overrun_side = true;  ///< the guard is behind the block
    bool at_once = false;      ///< freed blocks are trapped at once; else only those above a page
    bool trapping = false;     ///< freed blocks are trapped at all
    bool limited = false;
    bool watched = false;          ///< Memcheck or AddressSanitizer is at work, see end_of_page_tools.cpp
    bool exact = false;            ///< blocks are aligned to no more than was asked for
    bool reuses = false;           ///< slots of a page are used again, see waiting_list
    std::size_t most_waiting = 0;  ///< of those: so many wait at least
    std::pmr::memory_resource* upstream = nullptr;  // the one given, or `watch` over it
    std::pmr::memory_resource* given = nullptr;
    upstream_watch watch;
    metadata::resource_record* self = nullptr;
    metadata::arena memory;
    error_tally errors;

    alignas(64) usage_counters usage;
    alignas(64) os::brief_lock bump;  ///< guards `open` and their `next`
    fence::unit* open[fence::classes]{};
    fence::waiting_list waiting;                            ///< under `bump`, too
    alignas(64) std::atomic<std::size_t> pending_bytes{0};  ///< of freed blocks that wait
    metadata::quarantine_share share;
    std::atomic<std::uint64_t> protected_blocks{0};
    std::atomic<std::uint64_t> unguarded_blocks{0};
    trap_choice chosen;  ///< blocks that are trapped when they are freed, whatever the policy

    thread_binding thread;

    os::spin_lock lock;                               ///< guards everything below
    std::atomic<fence::granule_use>* uses = nullptr;  ///< by granule
    std::size_t granules = 0;
    std::size_t frontier = 0;  ///< next granule to hand out
    std::size_t entered = 0;   ///< granules, from the first, whose entries in `index` and `uses` are writable
    /// The range is not reserved but mapped granule by granule, as there is a limit on the process's addresses; from so
    /// many on retired ones are used again first. 0: it is reserved.
    std::size_t piecemeal = 0;
    bool wrapped = false;
    fence::unit_list active;
    fence::unit_list retired;
    fence::unit_list kept;                ///< retired and damaged
    int lost_protects = 0;                ///< see unit::protects: of forgotten units
    fence::unit* next_evicted = nullptr;  ///< in `active`: whose freed blocks are trapped by themselves next
    std::size_t warm_count = 0;
    std::uintptr_t warm[fence::most_warm]{};  ///< bases of strips of the smallest slots
    std::size_t mappings = 0;                 ///< see most_mappings
    std::size_t unit_bytes = 0;
    std::size_t retired_bytes = 0;
    std::size_t retired_records = 0;  ///< bytes
    std::uint64_t untrapped_units = 0;
    std::uint64_t recycled_units = 0;
    std::uint64_t moved_strips = 0;
    std::uint64_t next_serial = 1;
    std::size_t index_bytes = 0;

    [[nodiscard]] bool guarded_range() const noexcept { return range_bytes != 0; }

    /// Effects: makes a core in private pages. Throws: std::bad_alloc if there are none.
    static fence_core* make(std::pmr::memory_resource* upstream, const end_of_page_options& o, const policy& p);
    /// Effects: gives everything back, this object included.
    void destroy() noexcept;
};

namespace fence {

/// Where a slot's pages are.
struct geometry {
    std::uintptr_t data = 0;  ///< first data page
    std::uintptr_t data_end = 0;
    std::uintptr_t guard = 0;  ///< its one page
};

[[nodiscard]] inline geometry geometry_of(const fence_core& core, slot_ref s) noexcept {
    const unit& u = *s.owner;
    if (u.shift == single_shift) {
        const bool behind = u.single_guard >= u.single_data;
        return {u.single_data, behind ? u.single_guard : u.base + u.size, u.single_guard};
    }
    const std::uintptr_t slot = u.slots + (std::uintptr_t{s.index} << u.shift);
    const std::uintptr_t end = slot + (std::uintptr_t{1} << u.shift);
    return core.overrun_side ? geometry{slot, end - page, end - page} : geometry{slot + page, end, slot};
}

/// What a block of \p bytes at \p alignment may take of a slot's pages.
[[nodiscard]] inline std::size_t extent(const fence_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    return core.exact && bytes != 0 && alignment < page ? os::round_up(bytes, alignment) + alignment : bytes;
}

/// The address of a block of \p size bytes in the slot: in its guard page, if \p size is 0 and that may fault.
[[nodiscard]] inline std::uintptr_t address_in(const fence_core& core, const geometry& g, std::size_t size,
                                               unsigned alignment) noexcept {
    if (!core.overrun_side) {
        return size == 0 && core.guarded_range() ? g.guard : g.data;
    }
    const std::size_t most = std::size_t{1} << (alignment < 12 ? alignment : 12U);
    const std::uintptr_t at = g.guard - os::round_up(size, most);
    if (core.exact) [[unlikely]] {
        // From a page on the unit sees to it, see make_single; an empty block lies in the guard page.
        return alignment >= 12 || size == 0 || (at & most) != 0 ? at : at - most;
    }
    return at;
}

[[nodiscard]] inline std::uintptr_t address_of(const fence_core& core, slot_ref s) noexcept {
    return address_in(core, geometry_of(core, s), s.record().size, s.record().alignment);
}

/// The canaries around a block: [front, block) and [block + size, back).
struct canaries {
    std::uintptr_t front = 0;
    std::uintptr_t block = 0;
    std::uintptr_t end = 0;
    std::uintptr_t back = 0;
};
[[nodiscard]] inline canaries canaries_of(const fence_core& core, slot_ref s) noexcept {
    const geometry g = geometry_of(core, s);
    const slot_record& r = s.record();
    canaries c;
    c.block = address_in(core, g, r.size, r.alignment);
    c.end = c.block + r.size;
    c.front = c.block;
    c.back = c.end;
    if (core.window == 0) {
        return c;
    }
    if (!core.guarded_range()) {
        const unit& u = *s.owner;
        const bool alone = u.shift == single_shift;
        const std::size_t width = std::min(core.window, page / 2);  // the other half is the neighbour's
        const std::uintptr_t first = alone ? u.base : g.data - page / 2;
        const std::uintptr_t last = alone ? u.base + u.size : g.data_end + page / 2;
        c.front = c.block - std::min(width, c.block - first);
        c.back = std::min((core.overrun_side ? g.guard : c.end) + width, last);
        return c;
    }
    const bool unguarded = r.guard == os::guard_tier::none;
    const std::uintptr_t guard_end = g.guard + page;
    if (core.overrun_side) {
        c.front = c.block - std::min(core.window, c.block - g.data);
        c.back = unguarded ? std::min(g.guard + core.window, guard_end) : g.guard;
    } else if (r.size != 0) {
        c.front = unguarded ? g.guard + page - core.window : c.block;
        c.back = std::min(c.end + core.window, g.data_end);
    } else if (unguarded) {
        c.back = std::min(c.end + core.window, guard_end);
    }
    return c;
}

/// Effects: reports the canaries of the slot if they are damaged. Returns: true if not, or if nothing is to be checked.
[[nodiscard]] inline bool verify_canaries(fence_core& core, slot_ref s) noexcept;

/// True if [from, to) is all \p value. The users may not touch it, this library may.
[[nodiscard]] inline bool all_seen(const fence_core& core, std::uintptr_t from, std::uintptr_t to,
                                   unsigned char value) noexcept {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(from);
    if (core.watched) [[unlikely]] {
        const os::unseen_by_valgrind hidden(true);
        return all_bytes(bytes, to - from, value);
    }
    return all_bytes(bytes, to - from, value);
}

/// True if the freed bytes of the slot, and the canaries around them, are as written, or not to be verified.
[[nodiscard]] inline bool fill_intact(const fence_core& core, slot_ref s) noexcept {
    const canaries c = canaries_of(core, s);
    return (!core.rules.fill || all_seen(core, c.block, c.end, freed_byte)) &&
           all_seen(core, c.front, c.block, canary_byte) && all_seen(core, c.end, c.back, canary_byte);
}

/// The unit that holds \p address, or null. Takes no lock.
[[nodiscard]] inline unit* find_unit(const fence_core& core, std::uintptr_t address) noexcept {
    const std::uintptr_t offset = address - core.base;
    if (offset < core.range_bytes) [[likely]] {
        return core.index[offset >> granule_shift].load(std::memory_order_acquire);
    }
    return core.guarded_range() ? nullptr : static_cast<unit*>(metadata::address_map::find(address, &core));
}

/// Slots of a page have numbers, in a range of at most most_range bytes.
inline constexpr std::size_t most_range = std::size_t{1} << 44;
[[nodiscard]] inline std::uint32_t number_of(const fence_core& core, slot_ref s) noexcept {
    return static_cast<std::uint32_t>((s.owner->base - core.base) >> smallest_shift) + s.index;
}
[[nodiscard]] inline slot_ref slot_of(const fence_core& core, std::uint32_t number) noexcept {
    const std::uintptr_t offset = std::uintptr_t{number} << smallest_shift;
    unit* const u = core.index[offset >> granule_shift].load(std::memory_order_relaxed);
    return {u, static_cast<std::uint32_t>((core.base + offset - u->base) >> smallest_shift)};
}

[[nodiscard]] inline slot_ref slot_at(unit& u, std::uintptr_t address) noexcept {
    return {&u, static_cast<std::uint32_t>((address - u.slots) >> u.shift)};
}

// ---- end_of_page_memory.cpp ----------------------------------------------------------------------------------------

/// Effects: makes the range and its tables. Returns: false if there is no memory for them.
bool open_range(fence_core& core) noexcept;

/// Effects: hands out a slot for \p bytes at \p alignment, guarded. Returns: none if there is no memory. Reports errors
/// of the upstream.
template <bool Locked>
[[nodiscard]] slot_ref take_slot(fence_core& core, std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: gives all memory of blocks back.
void close_range(fence_core& core) noexcept;

// ---- end_of_page_retirement.cpp ---------------------------------------------------------------------------------

/// Effects: the slot's block is freed and its bytes are filled, if they are to be: traps it if that is to be done at
/// once, retires its unit if it was the last, or lets it wait to be used again. The state is the slot's last one, freed
/// or damaged.
void let_go(fence_core& core, slot_ref s, slot_state state) noexcept;

/// Effects: takes the slot that waited longest, if more than \p at_least wait, and verifies it. Returns: none if there
/// is none.
template <bool Locked>
[[nodiscard]] slot_ref use_again(fence_core& core, std::size_t at_least) noexcept;

// ---- end_of_page_tools.cpp. Preconditions: core.watched. -----------------------------------------------------------

/// Effects: the slot is this library's to write to.
void open_slot(const fence_core& core, slot_ref s) noexcept;
/// Effects: the slot's block is the user's to touch, what is around it is nobody's.
void tell_handed_out(const fence_core& core, slot_ref s) noexcept;
/// Effects: the slot's block was freed, and is nobody's to touch.
void tell_taken_back(const fence_core& core, slot_ref s) noexcept;
/// Effects: a unit's memory is dead, and faults / is the upstream's again.
void tell_trapped(const unit& u) noexcept;
void tell_given_back(const unit& u) noexcept;
/// Effects: the resource ends: blocks that live are no longer its own to tell of, and its addresses may be others'.
void tell_end(const fence_core& core) noexcept;

// ---- end_of_page_reports.cpp: everything that ends in a report ---------------------------------------------------

/// Effects: finds out what is wrong with (p, bytes, alignment) and reports it. Returns: the slot to free all the same,
/// after a size or alignment mismatch, or none.
slot_ref examine_free(fence_core& core, void* p, std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: reports a free of a slot that was not live.
void report_not_live(fence_core& core, slot_ref s, slot_state found, void* p, std::size_t bytes,
                     std::size_t alignment) noexcept;

/// Effects: reports overrun and underrun, as canaries of the slot are damaged.
void report_canaries(fence_core& core, slot_ref s) noexcept;

/// Effects: marks slot and unit as damaged. Returns: the report of the write after free, to be raised.
[[nodiscard]] report note_written(fence_core& core, slot_ref s) noexcept;

void report_request(fence_core& core, error_kind kind, const void* p, std::size_t bytes,
                    std::size_t alignment) noexcept;
/// As report_request, about what the upstream returned, and the block that is there already.
void report_upstream(fence_core& core, error_kind kind, const void* p, std::size_t bytes,
                     std::size_t alignment) noexcept;
void report_limit(fence_core& core, std::size_t limit, std::size_t in_use, std::size_t bytes,
                  std::size_t alignment) noexcept;

inline bool verify_canaries(fence_core& core, slot_ref s) noexcept {
    const canaries c = canaries_of(core, s);
    if (!core.shape.checks ||
        (all_seen(core, c.front, c.block, canary_byte) && all_seen(core, c.end, c.back, canary_byte))) [[likely]] {
        return true;
    }
    report_canaries(core, s);
    return false;
}

/// As end_of_page_resource_base::check and report_leaks say.
std::size_t check_all(fence_core& core) noexcept;
std::size_t report_live(fence_core& core) noexcept;

/// Effects: live blocks and the memory of all units are remembered beyond the resource's end.
void leave_remains(fence_core& core, bool any_live) noexcept;

/// For the registry.
bool owns(void* core, const void* p, metadata::owned_block* out) noexcept;
bool describe_address(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept;

}  // namespace fence

}  // namespace pmr_debug::detail
