#pragma once

// State of a general-purpose resource, floor 4. The resource object holds only a pointer to this; everything here lives
// in private pages.
//
//   core ── caches[thread] ── current[class] ──> unit ── records[slot]
//        ├─ all units (list)                      │  └─ chunk: what one upstream allocation gave
//        ├─ retired units (first in, first out)   └─ entered in the address map, page by page
//        └─ chunks (list)
//
// Who writes what: a unit's `next` and `prepared` belong to the thread whose cache holds it; a record belongs to
// whoever moved its state to live (allocation) or away from live (free); lists, chunks and phases belong to the holder
// of `lock`.

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>

#include "metadata/address_map.hpp"
#include "metadata/arena.hpp"
#include "metadata/quarantine_budget.hpp"
#include "metadata/registry.hpp"
#include "os/thread.hpp"
#include "os/virtual_memory.hpp"
#include "report/dispatch.hpp"
#include "resources/bytes.hpp"
#include "resources/size_classes.hpp"
#include "resources/trap_choice.hpp"
#include "resources/upstream_watch.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

/// Fresh memory and the canary in the slack behind a live block.
inline constexpr unsigned char fresh_byte = 0xAA;
/// Freed memory.
inline constexpr unsigned char freed_byte = 0xDD;

enum class slot_state : std::uint8_t {
    never,  ///< not handed out yet
    live,
    freeing,  ///< being freed: whoever got here from live still fills it
    freed,
    damaged,  ///< freed, and set aside because bytes around it were written
    ready,    ///< freed, verified and filled as fresh memory: its unit hands it out again
};

/// What is known of one slot: 16 bytes with traces, 8 without. `size` holds large_size where the size is the unit's:
/// that of a large block, and of the block in a unit's first slot, so that its free is not plain, and what lies before
/// the slot is looked at.
struct slot_record {
    std::uint16_t size;
    std::uint8_t alignment;  ///< base-2 logarithm
    std::atomic<slot_state> state;
    std::uint16_t alloc_thread;  ///< saturates at 65 535
    std::uint16_t free_thread;
};
struct traced_record : slot_record {
    trace_id allocated;
    trace_id freed;
};
static_assert(sizeof(slot_record) == 8 && sizeof(traced_record) == 16);

inline constexpr std::uint16_t large_size = 0xFFFF;

/// Of a slot that was handed out more than once. All zero: once so far.
struct slot_history {
    std::uint64_t serial : 48;  ///< of the latest allocation
    std::uint64_t owners : 16;  ///< blocks that it was so far, this one included; saturates
    trace_id former_allocated;  ///< of the block before
    trace_id former_freed;
};
static_assert(sizeof(slot_history) == 16);

/// One upstream allocation, from which units are carved, front to back.
struct chunk {
    std::uintptr_t base = 0;
    std::size_t size = 0;
    std::size_t alignment = 0;
    std::size_t carved = 0;  ///< bytes handed to units, or skipped
    std::size_t spent = 0;   ///< of those, bytes of units that are forgotten
    bool nested = false;     ///< in a block of another resource: Memcheck does not take a block within a block
    int protect_guards = 0;  ///< ranges in it that are guarded by os::guard_tier::protect
    chunk* previous = nullptr;
    chunk* next = nullptr;
};

struct unit;

/// Memory from which units are carved that are to be trapped together: reuse::never over pages. When all its units are
/// dead its pages move on to fresh addresses and become the next slab, which is far cheaper than giving them back and
/// faulting in others.
struct slab {
    std::uintptr_t base = 0;
    std::size_t carved = 0;  ///< bytes handed to units, or left over
    std::size_t dead = 0;    ///< of those, bytes of retired units, or left over
    chunk* from = nullptr;
    unit* units = nullptr;  ///< linked by next_in_slab
    slab* next = nullptr;   ///< in the list of warm slabs
    bool warm = false;      ///< has the pages of an earlier slab, in a mapping of its own
    bool busy = false;      ///< somebody verifies or moves units of it, without the lock
    bool holes = false;     ///< a unit of it was trapped by itself
    bool fixed = false;     ///< …by other means than a marker, so the pages cannot move in one go

    static constexpr std::size_t size = std::size_t{1} << 18;
    [[nodiscard]] bool all_dead() const noexcept { return dead == size && !busy; }
};

enum class unit_phase : std::uint8_t {
    active,
    retired,   ///< every slot was handed out and freed; waits in the retired list
    reusable,  ///< carries no records; its memory may become a unit of any class
};

/// Slots of a unit that are not freed for good, and how few of them are to be told of, in one number: the upper half is
/// the difference, so that a free looks at nothing but the sign of what it leaves.
class slot_count {
public:
    static constexpr std::uint32_t most = 0x7FFF;

    /// Preconditions: n <= most, and 1 <= told <= n or n == 0 for this and all below.
    void set(std::uint32_t n, std::uint32_t told) noexcept { both_.store(pack(n, told), std::memory_order_relaxed); }
    [[nodiscard]] std::uint32_t left() const noexcept { return count(both_.load(std::memory_order_acquire)); }
    /// Effects: one less. Returns: true if fewer are left than are to be told of; always if none is. As an operator it
    /// is a subtraction and a jump on its sign; from fetch_sub() compilers make two instructions more.
    [[nodiscard]] bool down() noexcept { return (both_ -= one) < 0; }
    /// The same, for one thread at a time.
    [[nodiscard]] bool down_alone() noexcept {
        const std::int32_t now = both_.load(std::memory_order_relaxed) - one;
        both_.store(now, std::memory_order_relaxed);
        return now < 0;
    }
    void add(std::uint32_t n) noexcept { both_.fetch_add(times(n), std::memory_order_acq_rel); }
    /// Returns: what is left.
    [[nodiscard]] std::uint32_t subtract(std::uint32_t n) noexcept {
        return count(both_.fetch_sub(times(n), std::memory_order_acq_rel) - times(n));
    }
    /// Effects: one more, unless there is none. Returns: false if there is none.
    [[nodiscard]] bool up() noexcept {
        std::int32_t now = both_.load(std::memory_order_relaxed);
        while (count(now) != 0 && !both_.compare_exchange_weak(now, now + one, std::memory_order_acq_rel)) {
        }
        return count(now) != 0;
    }
    /// Effects: the next to be told is who leaves less than a quarter of what is left now, or none.
    void tell_at_a_quarter() noexcept {
        std::int32_t now = both_.load(std::memory_order_relaxed);
        while (!both_.compare_exchange_weak(now, pack(count(now), std::max(1U, count(now) / 4)),
                                            std::memory_order_acq_rel)) {
        }
    }

private:
    static constexpr std::int32_t one = 1 << 16;

    static std::int32_t times(std::uint32_t n) noexcept { return static_cast<std::int32_t>(n) * one; }
    static std::int32_t pack(std::uint32_t n, std::uint32_t told) noexcept {
        return times(n) - times(told) + static_cast<std::int32_t>(told);
    }
    static std::uint32_t count(std::int32_t both) noexcept {
        const std::int32_t told = both & (one - 1);
        return static_cast<std::uint32_t>((both - told) / one + told);
    }

    std::atomic<std::int32_t> both_{0};
};

/// A span of slots of one size, or one large block (capacity 1, slot_size 0, so that every offset is slot 0).
struct unit : metadata::address_range {
    // Read by every free.
    std::uintptr_t first = 0;  ///< of slot 0: what lies before it in the unit are canary bytes
    unsigned char* records = nullptr;
    std::uint32_t slot_size = 0;
    std::uint32_t reciprocal = 0;  ///< 0: a free is not plain, see examine_free; slots may not begin with their blocks
    slot_count unfreed;            ///< slots not yet freed for good; 0 retires the unit
    std::uint32_t capacity = 0;
    std::atomic<unit_phase> phase{unit_phase::active};
    bool large = false;
    std::atomic<bool> damaged{false};  ///< a canary or fill was found broken: never used again
    std::uint8_t size_class = 0;
    os::guard_tier trap = os::guard_tier::none;  ///< how it was made inaccessible
    // Written by the owning thread. Atomic with relaxed order, as reports and statistics of other threads read them.
    std::atomic<std::uint32_t> next{0};      ///< first slot never handed out
    std::atomic<std::uint32_t> prepared{0};  ///< slots before this are filled and ready
    std::atomic<bool> attached{false};       ///< is the current unit of some thread, which may look at it at any time
    // Slots that are handed out again: [next, prepared) are those that are ready, the owner looks for more from `scan`
    // on, and `unfreed` counts one more while the unit is attached, so that it stays.
    std::atomic<bool> again{false};  ///< once true, all slots may have been used
    bool brings_back = false;        ///< …those in pages that were given back as well
    std::uint32_t scan = 0;
    std::atomic<slot_history*> history{nullptr};  ///< a slot each; set under the lock, before the first is used again
    // Dead pages in a unit that lives. Written by whoever borrows it, or has it attached.
    std::atomic<std::uint16_t> gone{0};       ///< a bit a page: its memory was given back
    std::atomic<std::uint16_t> guarded{0};    ///< of those: guarded by a marker
    std::atomic<std::uint16_t> forgotten{0};  ///< a bit a page of records: given up, with all that was known of slots
    // reuse::immediate only.
    std::atomic<std::uint64_t>* free_bits = nullptr;  ///< a set bit is a free slot, ready for its owner to take
    std::uint64_t taken_bits = 0;                     ///< owner's: free slots taken over from word `taken_word`
    std::uint32_t taken_word = 0;
    std::atomic<bool> listed{false};  ///< is in the list of partly free units of its class
    // Under the lock.
    unit* previous = nullptr;
    unit* following = nullptr;
    unit* queue = nullptr;  ///< next in the retired or reusable list
    chunk* from = nullptr;
    slab* in = nullptr;  ///< null: trapped by itself
    unit* next_in_slab = nullptr;
    // Neighbours in the line it stands in: of closed or partly free units of its class, or of retired ones that wait
    // for their slab.
    unit* line_before = nullptr;
    unit* line_after = nullptr;
    bool pending = false;
    bool closed = false;         ///< all its slots were handed out, some are live, and nobody works on it
    bool borrowed = false;       ///< somebody gives pages of it back, without the lock
    bool retiring = false;       ///< nothing of it lives, and somebody is about to retire it
    bool booked = false;         ///< its bytes are in the totals of retired ones
    bool untrapped = false;      ///< counts as retired and not, or not yet, trapped
    bool orphaned = false;       ///< forgotten while attached: whoever detaches it frees this descriptor
    bool warm = false;           ///< its pages are in memory already
    bool zeroed = false;         ///< its memory was all zero when it was made
    bool chosen = false;         ///< large: to be trapped when it is freed, by the options' trap_freed
    bool rest_verified = false;  ///< what is around its slots was looked at for the last time

    /// A thread changes its memory, without the lock, to what the records do not say yet. In the child of a fork that
    /// thread may not exist, and the memory stays as it is: it cannot be verified.
    std::atomic<bool> unsettled{false};
    std::uint32_t freed_search = 0;  ///< slot at which the last search for a freed one ended
    /// In a line: `unfreed` when its dead pages were last given back, or there were none; reuse::immediate: free slots.
    std::uint32_t futile_at = 0;
    std::uint64_t first_serial = 0;
    std::size_t request = 0;  ///< size as requested of the block in slot 0
    traced_record large_record{};

    /// The bits of word \p w when all its slots are free.
    [[nodiscard]] std::uint64_t full_word(std::uint32_t w) const noexcept {
        const std::uint32_t left = capacity - w * 64;
        return left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
    }
    [[nodiscard]] std::uint32_t words() const noexcept { return (capacity + 63) / 64; }
    /// Effects: the memory is about to change; or has changed, and the records say so.
    void unsettle() noexcept {
        unsettled.store(true, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_release);
    }
    void settle() noexcept { unsettled.store(false, std::memory_order_release); }
    /// Whether slot \p i waits to be used again. If it is in no thread's hands any more it may be half filled. Only
    /// where slots are used again.
    [[nodiscard]] bool waits(std::uint32_t i) const noexcept {
        const std::uint64_t taken = i / 64 == taken_word ? taken_bits : 0;
        return (((free_bits[i / 64].load(std::memory_order_relaxed) | taken) >> (i % 64)) & 1) != 0;
    }
    /// reuse::immediate: whether the free of the slot at \p address is one of those after which somebody looks at what
    /// could be given back. Spread at random over the unit's slots, as any of them may live on.
    [[nodiscard]] bool is_looked_after(std::uintptr_t address) const noexcept {
        const std::uint64_t random = (address * 0x9E3779B97F4A7C15U) >> 32;
        return (random * capacity) >> 32 < looks_after_frees;
    }
    static constexpr std::uint32_t looks_after_frees = 4;  ///< in a unit all of whose slots are freed, about
    [[nodiscard]] bool trapped() const noexcept { return trap != os::guard_tier::none; }
    [[nodiscard]] std::size_t slot_bytes() const noexcept { return large ? base + size - first : slot_size; }
    [[nodiscard]] std::uintptr_t end() const noexcept { return base + size; }
    /// Behind the last slot.
    [[nodiscard]] std::uintptr_t slots_end() const noexcept {
        return large ? end() : first + std::uintptr_t{capacity} * slot_size;
    }
    /// Canary bytes before slot 0. Before a large block that is aligned to more than a page, only so much is filled.
    [[nodiscard]] std::size_t front() const noexcept { return first - base < most_front ? first - base : most_front; }
    static constexpr std::size_t most_front = 4096;
    /// True if slot \p index was freed long ago, and its record given up.
    [[nodiscard]] bool forgets(std::uint32_t index, std::uint32_t record_bytes) const noexcept {
        const std::uint16_t pages = forgotten.load(std::memory_order_acquire);
        return pages != 0 &&
               (pages >> (std::size_t{index} * record_bytes >> metadata::address_map::page_bits) & 1U) != 0;
    }
    /// Slots from here on were never handed out.
    [[nodiscard]] std::uint32_t used() const noexcept {
        return again.load(std::memory_order_acquire) ? capacity : next.load(std::memory_order_relaxed);
    }
};
static_assert(sizeof(unit) <= 256);  // small pieces of private memory have sizes of powers of two

/// A counter that one thread writes and any thread reads.
class owned_counter {
public:
    void add(std::uint64_t n) noexcept { value_.store(get() + n, std::memory_order_relaxed); }
    [[nodiscard]] std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

private:
    std::atomic<std::uint64_t> value_{0};
};

/// What a thread keeps of a resource.
struct alignas(64) thread_cache {
    unit* current[size_classes::count]{};
    std::uint8_t units_taken[size_classes::count]{};  ///< saturating: the second unit of a class is a larger one
    owned_counter allocations;
    owned_counter allocated_bytes;
    owned_counter deallocations;
    owned_counter deallocated_bytes;
    thread_cache* next = nullptr;
};

/// A line of units, oldest first, that each may leave at any time.
struct unit_line {
    unit* first = nullptr;
    unit* last = nullptr;

    void push(unit& u) noexcept {
        u.line_before = last;
        u.line_after = nullptr;
        (last != nullptr ? last->line_after : first) = &u;
        last = &u;
    }
    void remove(unit& u) noexcept {
        (u.line_before != nullptr ? u.line_before->line_after : first) = u.line_after;
        (u.line_after != nullptr ? u.line_after->line_before : last) = u.line_before;
    }
};

/// A first-in first-out list of units, linked by `queue`.
struct unit_queue {
    unit* first = nullptr;
    unit* last = nullptr;
    std::size_t count = 0;

    void push(unit& u) noexcept {
        u.queue = nullptr;
        (last != nullptr ? last->queue : first) = &u;
        last = &u;
        ++count;
    }
    unit* pop() noexcept {
        unit* const u = first;
        if (u != nullptr) {
            first = u->queue;
            last = first != nullptr ? last : nullptr;
            --count;
        }
        return u;
    }
};

/// Private memory of a forgotten unit. A double free may still be looking at it, so it is used again only when so many
/// others were forgotten.
struct buried_piece {
    void* p = nullptr;
    std::size_t bytes = 0;
};

inline constexpr std::size_t cache_slots = os::max_thread_index + 1;

struct general_purpose_core {
    // Read on every call. A null entry sends the call down the slow way: first use by a thread, a limit to account for,
    // records to unprotect, blocks to place exactly or to choose, or too many threads. So the fast way tests for none
    // of these.
    std::atomic<thread_cache*>* fast_caches = nullptr;
    std::uint32_t record_bytes = 0;
    std::uint8_t alloc_frames = 0;
    std::uint8_t free_frames = 0;
    std::uint16_t guard_bytes = 0;
    bool exact = false;                  ///< blocks are aligned to no more than was asked for
    std::uint32_t bound_thread = 0;      ///< single_checked: number of the thread, 0 before the first use
    trace_id last_use = trace_id::none;  ///< single_checked: its most recent trace

    policy rules;
    general_purpose_options options;
    std::pmr::memory_resource* upstream = nullptr;  ///< the one given, or `watch` over it
    std::pmr::memory_resource* given = nullptr;
    upstream_watch watch;
    trap_choice chosen;     ///< blocks that are trapped when they are freed, whatever the policy
    bool trapping = false;  ///< dead units are made inaccessible
    bool belted = false;    ///< …a slab at a time
    bool over_pages =
        false;              ///< the upstream is a page_resource: its memory may be guarded and given back page by page
    bool discards = false;  ///< the upstream is that, or the heap: whole pages may be given back in memory it gave
    metadata::resource_record* record = nullptr;
    std::atomic<thread_cache*>* all_caches = nullptr;
    error_tally tally{};
    metadata::arena* memory = nullptr;  ///< holds everything of this resource, this object and itself included
    struct write_gate* gate = nullptr;  ///< policy::protect_metadata: who may write now; else null
    bool memcheck = false;              ///< under Valgrind: tells Memcheck of each block
    bool poisons = false;               ///< with AddressSanitizer: what is no block is poisoned
    thread_cache spare;                 ///< for threads that have no cache of their own; under shared_cache_lock
    std::atomic<std::uint64_t> failed{0};
    std::atomic<std::uint64_t> peak_blocks{0};
    std::atomic<std::uint64_t> peak_bytes{0};
    std::atomic<std::uint64_t> next_serial{1};
    /// Another tool wants to know of each block: every call goes the slow way.
    [[nodiscard]] bool watched() const noexcept { return memcheck || poisons; }
    /// True if there is more to be carved from \p c.
    [[nodiscard]] bool is_open(const chunk& c) const noexcept { return &c == open_chunk || &c == open_slab_chunk; }
    bool limited = false;             ///< a limit is set; then these are kept:
    os::spin_lock limit_lock;         ///< guards the next two
    std::size_t limited_bytes = 0;    ///< live bytes
    std::size_t limited_blocks = 0;   ///< live blocks
    os::spin_lock shared_cache_lock;  ///< serialises threads that share the last cache

    std::atomic<thread_cache*> caches{nullptr};  ///< all of them; they stay until the end

    os::spin_lock lock;  ///< guards everything below; not held while the upstream is called
    unit* units = nullptr;
    unit* freed_search = nullptr;  ///< unit at which the last search for a freed slot ended; null: none
    unit_queue retired;
    unit_queue reusable;
    unit_line pending;
    std::size_t pending_count = 0;
    // Freed slots in units that live, see general_purpose_budget.cpp.
    // reuse::immediate: detached units with free slots, which nobody else needs to look at.
    unit_line closed[size_classes::count]{};
    std::size_t closed_bytes = 0;  ///< of units in those; reuse::immediate: that were not given back
    std::size_t closed_count = 0;
    std::size_t large_bytes = 0;      ///< reuse::immediate: of large blocks that live
    std::size_t freed_counted = 0;    ///< bytes of freed slots when they were last counted
    std::uint64_t counted_at = 0;     ///< what all threads together had freed then, bytes
    std::size_t reclaimed = 0;        ///< bytes used again or given back since
    std::size_t closed_records = 0;   ///< bytes of records of units in those
    std::size_t dropped_records = 0;  ///< bytes of records that were given up in units that live
    std::size_t trims_left = 0;       ///< units not yet looked at for dead pages since
    unsigned trim_class = 0;          ///< where the next is looked for
    unit* trim_next = nullptr;        ///< reuse::immediate: in the line of that class; null: at its end
    std::atomic<std::uint64_t> reused_slots{0};
    metadata::quarantine_share share;
    std::size_t unsettled = 0;    ///< bytes retired, or about so many freed, since the share was settled
    std::size_t trim_wanted = 0;  ///< reuse::immediate: bytes that are too much, as of then
    slab* open_slab = nullptr;    ///< where the next unit is carved
    slab* ready_slabs = nullptr;  ///< to be opened next
    std::size_t warm_count = 0;   ///< of those, slabs with pages; and of slabs that are being moved
    std::size_t moved_count = 0;  ///< slabs that are a mapping of their own
    chunk* chunks = nullptr;
    chunk* departing = nullptr;  ///< off the books, to be returned to the upstream once the lock is released
    buried_piece buried[64]{};
    std::size_t next_grave = 0;
    chunk* open_chunk = nullptr;       ///< where the next unit is carved, over a page_resource
    chunk* open_slab_chunk = nullptr;  ///< and where the next slab is
    std::size_t next_chunk_bytes = 0;
    std::size_t held_bytes = 0;  ///< from upstream
    /// Of addresses, before retired ones are used again: options.address_space_bytes, or less where the process has a
    /// limit, as others need some of it. If that does not help there is the option's.
    std::size_t address_share = 0;
    std::size_t retired_bytes = 0;
    std::size_t retired_record_bytes = 0;
    std::size_t untrapped_bytes = 0;  ///< of retired units
    std::uint64_t untrapped_units = 0;
    std::uint64_t recycled_units = 0;
};

/// Lies outside the protected memory. One thread at a time is inside, as often as it likes.
struct write_gate {
    os::spin_lock lock;
    std::atomic<std::uint32_t> inside{0};  ///< number of the thread inside
    std::uint32_t depth = 0;
};

/// Makes a resource's records writable for its lifetime, if its policy protects them.
class writable_section {
public:
    explicit writable_section(general_purpose_core& core) noexcept;
    writable_section(const writable_section&) = delete;
    writable_section& operator=(const writable_section&) = delete;
    ~writable_section();

private:
    write_gate* gate_;
    metadata::arena* memory_;
};

/// Leaves a writable section for its lifetime, however deep the thread is in it: around what is called while other
/// threads may use the resource, which are handlers and the upstream. What was found before may have changed
/// afterwards.
class outside_section {
public:
    explicit outside_section(general_purpose_core& core) noexcept;
    outside_section(const outside_section&) = delete;
    outside_section& operator=(const outside_section&) = delete;
    ~outside_section();

private:
    write_gate* gate_;  ///< null: there is nothing to leave
    metadata::arena* memory_;
    std::uint32_t depth_ = 0;
};

/// Effects: as raise(), outside of writable sections. Preconditions: no lock of the resource is held.
void raise_from(general_purpose_core& core, report& r) noexcept;

/// A slot of a unit; `owner` null means none.
struct slot_ref {
    unit* owner = nullptr;
    std::uint32_t index = 0;

    [[nodiscard]] slot_record& record(const general_purpose_core& core) const noexcept {
        return *reinterpret_cast<slot_record*>(owner->records + std::size_t{index} * core.record_bytes);
    }
    /// Of the slot's memory.
    [[nodiscard]] unsigned char* address() const noexcept {
        return reinterpret_cast<unsigned char*>(owner->first + std::size_t{index} * owner->slot_size);
    }
    /// Of its block, which starts with the slot unless it is to be aligned to no more than was asked for.
    [[nodiscard]] unsigned char* block(const general_purpose_core& core) const noexcept {
        if (!core.exact || owner->large) {
            return address();
        }
        const std::uintptr_t alignment = std::uintptr_t{1} << record(core).alignment;
        return address() + ((reinterpret_cast<std::uintptr_t>(address()) & alignment) != 0 ? 0 : alignment);
    }
    [[nodiscard]] std::size_t requested(const general_purpose_core& core) const noexcept {
        const std::uint16_t size = record(core).size;
        return size == large_size ? owner->request : size;
    }
};

/// The slot that \p address lies in; if in none, its index is beyond the unit's capacity.
[[nodiscard]] inline slot_ref slot_holding(unit& u, std::uintptr_t address) noexcept {
    if (address < u.first) {
        return {&u, UINT32_MAX};
    }
    return {&u, u.large ? 0 : static_cast<std::uint32_t>((address - u.first) / u.slot_size)};
}

/// The canary bytes around the block in a slot: [front, block) and [end, back).
struct surroundings {
    unsigned char* front = nullptr;
    unsigned char* block = nullptr;
    unsigned char* end = nullptr;
    unsigned char* back = nullptr;
};
/// Preconditions: the block is live, or is being freed.
[[nodiscard]] inline surroundings around(const general_purpose_core& core, slot_ref s) noexcept {
    surroundings a;
    a.block = s.block(core);
    a.end = a.block + s.requested(core);
    a.front = s.address() - (s.index == 0 ? s.owner->front() : 0);
    a.back = s.address() + s.owner->slot_bytes();
    return a;
}

[[nodiscard]] inline std::uint16_t saturated(std::uint32_t number) noexcept {
    return static_cast<std::uint16_t>(number < 0xFFFF ? number : 0xFFFF);
}

// ---- general_purpose_units.cpp: slots for the fast path -------------------------------------------------------------

/// Returns: the cache of the thread with \p index, made if need be; `core.spare` if that is not to be had.
thread_cache& cache_of(general_purpose_core& core, std::uint32_t index) noexcept;

/// Effects: makes `cache.current[cls]` a unit with a slot ready (never and quarantined: next < prepared; immediate:
/// taken_bits != 0). Returns: it; null if there is no memory. Reports upstream errors.
unit* refill(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept;

/// Returns: a unit that holds one block of \p bytes; null if there is no memory.
unit* make_large(general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: raises the recorded peak to at least these.
void raise_peak(general_purpose_core& core, std::uint64_t blocks, std::uint64_t bytes) noexcept;

struct live_totals {
    std::uint64_t allocations = 0, allocated_bytes = 0, deallocations = 0, deallocated_bytes = 0;
    [[nodiscard]] std::uint64_t blocks() const noexcept { return allocations - deallocations; }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return allocated_bytes - deallocated_bytes; }
};
/// Takes no lock.
[[nodiscard]] live_totals sum_caches(general_purpose_core& core) noexcept;

// ---- general_purpose_reuse.cpp and _budget.cpp: freed slots of units that live -------------------------------------

/// Effects: last resort when no unit is to be had: finds a freed slot that fits and makes it ready. Returns: it, or
/// none.
slot_ref take_freed_slot(general_purpose_core& core, unsigned cls, std::size_t alignment) noexcept;

/// Effects: a slot at \p address of a unit was freed, and few of it are left, see slot_count: retires the unit if none
/// is; else gives pages back if too much is kept.
void few_left(general_purpose_core& core, std::uintptr_t address) noexcept;

/// Bytes of freed slots in units that live, or more. Lock held.
[[nodiscard]] std::size_t kept_freed(const general_purpose_core& core, const live_totals& now) noexcept;

/// True if the freed bytes of slot \p index hold their fill; or zeros, in pages that were given back.
[[nodiscard]] bool freed_intact(const general_purpose_core& core, const unit& u, std::uint32_t index) noexcept;

/// Calls \p piece(pointer, bytes, given_back) for the parts of [from, from + bytes), in unit \p u, that are not
/// guarded. What was given back is zero, unless somebody wrote to it since; or, memory that is shared with other
/// processes, as it was.
template <class Byte, class Piece>
void for_each_part(const unit& u, Byte* from, std::size_t bytes, Piece&& piece) noexcept {
    constexpr std::size_t page = std::size_t{1} << metadata::address_map::page_bits;
    const std::uint16_t gone = u.gone.load(std::memory_order_acquire);
    if (gone == 0) {
        piece(from, bytes, false);
        return;
    }
    const std::uint16_t guarded = u.guarded.load(std::memory_order_relaxed);
    while (bytes != 0) {
        const std::size_t at = reinterpret_cast<std::uintptr_t>(from) - u.base;
        const std::size_t n = std::min(bytes, page - at % page);
        if ((guarded >> (at / page) & 1U) == 0) {
            piece(from, n, (gone >> (at / page) & 1U) != 0);
        }
        from += n;
        bytes -= n;
    }
}

// ---- general_purpose_retirement.cpp: what becomes of dead units -----------------------------------------------------

/// Effects: takes a unit out of use whose blocks are all freed: verifies its fill, makes it inaccessible, queues it.
/// Preconditions: the unit is large, or the caller set `retiring`.
void retire(general_purpose_core& core, unit& u) noexcept;

/// Effects: reuse::immediate: the slot at \p address of a detached unit became free, perhaps as the last one.
void relist(general_purpose_core& core, std::uintptr_t address) noexcept;

/// Effects: gives everything back to the upstream.
void release_all(general_purpose_core& core) noexcept;

// ---- general_purpose_tools.cpp: what Valgrind and AddressSanitizer are told ----------------------------------------

/// Effects: tells the tool of a block that was handed out. Preconditions for all of these: core.watched().
void tell_handed_out(const general_purpose_core& core, slot_ref s, std::size_t bytes) noexcept;

/// Effects: tells the tool that the block at \p p is about to be freed, if it is one. Before its memory may go back to
/// the upstream, because Memcheck knows blocks by their address, and the upstream's may have the same. For
/// AddressSanitizer all of the slot is this library's, until free_block() has poisoned it.
void tell_taken_back(general_purpose_core& core, const void* p) noexcept;

/// Effects: tells Memcheck that all blocks go, with their memory.
void tell_end(general_purpose_core& core) noexcept;

/// Effects: fills memory of this resource that holds no live block; AddressSanitizer permitting.
void fill_memory(const general_purpose_core& core, void* p, unsigned char value, std::size_t bytes) noexcept;

// ---- general_purpose_errors.cpp: everything that ends in a report --------------------------------------------------

/// Effects: finds out why (p, bytes, alignment) is not the plain free of a small live block, and reports it.
/// Returns: the slot to free all the same (large blocks, mismatches), or none.
slot_ref examine_free(general_purpose_core& core, void* p, std::size_t bytes, std::size_t alignment) noexcept;

/// Asked by the registry: is \p p the start of a live block of \p core (a general_purpose_core)?
bool owns_block(void* core, const void* p, metadata::owned_block* out) noexcept;

/// Asked for fault reports: what is at \p address in \p core (a general_purpose_core)? See describe_address_function.
bool describe_address(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept;

/// Effects: reports a free of a slot that is not live; waits for a thread that is freeing it, whose trace is wanted.
void report_not_live(general_purpose_core& core, slot_ref s, slot_state found, std::size_t bytes,
                     std::size_t alignment) noexcept;

/// Returns: true if the canary bytes before and behind the block in \p s are as they were written.
[[nodiscard]] bool surroundings_intact(const general_purpose_core& core, slot_ref s) noexcept;

/// Effects: reports the damage around a block that is being freed, or was found by a check.
void report_surroundings(general_purpose_core& core, slot_ref s) noexcept;

/// Effects: verifies what no block of \p u has, and nobody may have written to: the canary before its first slot, what
/// is left behind the last one, and slots that were not handed out yet. Reports what is damaged, and puts it right.
/// Returns: how many of the three are damaged. Preconditions: no other thread uses the unit meanwhile.
std::size_t verify_rest(general_purpose_core& core, unit& u) noexcept;

/// A report of bytes in [from, to) that no block has and that are not \p expected, and of the block that is nearest.
[[nodiscard]] report stray_write(general_purpose_core& core, const unsigned char* from, const unsigned char* to,
                                 unsigned char expected) noexcept;

/// Effects: verifies the fill of freed slot \p s. If it is broken, reports a write after free, and sets slot and unit
/// aside as damaged. Returns: true if it was intact.
bool verify_freed(general_purpose_core& core, slot_ref s) noexcept;

/// Effects: binds a single_checked resource to its first thread, or reports a foreign one. Returns: true if the caller
/// is the bound one.
bool bind_thread(general_purpose_core& core, os::thread_numbers thread) noexcept;

/// Effects: reports a bad alignment.
void report_bad_alignment(general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: reports that a request would break \p limit; it and \p in_use are both bytes, or both blocks.
void report_limit(general_purpose_core& core, std::size_t bytes, std::size_t alignment, std::size_t limit,
                  std::size_t in_use) noexcept;

/// Effects: reports that the upstream gave back \p p for a request of (bytes, alignment).
void report_upstream(general_purpose_core& core, error_kind kind, void* p, std::size_t bytes,
                     std::size_t alignment) noexcept;

/// Effects: as general_purpose_resource_base::check and report_leaks say.
std::size_t check_all(general_purpose_core& core) noexcept;
std::size_t report_live(general_purpose_core& core) noexcept;

/// Effects: live blocks and the memory are remembered beyond the resource's end.
void leave_remains(general_purpose_core& core, bool any_live) noexcept;

}  // namespace pmr_debug::detail
