#pragma once

// Address -> what is recorded of the block, floor 1. See docs/block_table.md.

#include "metadata/arena.hpp"
#include "os/brief_lock.hpp"
#include "os/own_lock.hpp"

#include <pmr_debug/report.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace pmr_debug::metadata {

/// What the table knows of a block: a copy.
struct block_entry {
    const void* address = nullptr;
    std::size_t size = 0;
    std::size_t alignment = 1;
    std::uint64_t serial = 0;
    trace_id allocated = trace_id::none;
    trace_id freed = trace_id::none;
    std::uint32_t alloc_thread = 0;
    std::uint32_t free_thread = 0;
    bool live = false;
};

/// The public view of an entry.
[[nodiscard]] block_info describe(const block_entry& e) noexcept;

/// A hash table from address to record, for live blocks and the most recently freed ones. Open addressing with linear
/// probing, split into shards with a lock each; deletion shifts back, so there are no tombstones.
///
///   shard:  | lock | slots: address, size, serial + alignment, trace, thread (32 bytes each) … | ring of freed … |
///
/// A freed block keeps its slot, marked as freed, until the ring of its shard comes round to it or its address is
/// allocated again; the ring holds what only freed blocks have.
///
/// Thread safety: `Locked` members from any thread. Members with Locked = false: one thread at a time, and no thread in
/// any other member meanwhile. Members that are no templates always lock. No lock is held when a member returns, and
/// `visit` functions run with a shard's lock held: they must not call back.
class block_table {
public:
    /// Most shards, and the number for tables that several threads use.
    static constexpr unsigned max_shards = 64;
    /// The largest alignment log2 and serial a record can hold.
    static constexpr unsigned serial_bits = 57;

    enum class outcome : std::uint8_t {
        done,
        occupied,   ///< insert: a live block has this address
        no_memory,  ///< insert: private memory is used up; nothing changed
        unknown,    ///< erase, resize: no record has this address
        freed,      ///< erase, resize: the block was freed before
        mismatch,   ///< resize: the recorded size differs
    };

    /// How an address lies to a block.
    enum class relation : std::uint8_t { none, start, inside, near };

    block_table() = default;
    block_table(const block_table&) = delete;
    block_table& operator=(const block_table&) = delete;

    /// Effects: makes an empty table of \p shards shards (a power of two, at most max_shards) that takes its memory
    ///   from \p memory and remembers about \p freed_kept freed blocks, spread evenly over the shards.
    /// Returns: false if private memory is used up. The table needs no destruction: the arena takes everything back.
    bool open(arena& memory, unsigned shards, std::size_t freed_kept) noexcept;

    /// Effects: records a live block. \p number() is called once, with the shard's lock held, only if the block is
    ///   recorded, and returns its serial number.
    template <bool Locked, class Number>
    [[nodiscard]] outcome insert(const void* p, std::size_t size, std::size_t alignment, trace_id allocated,
                                 std::uint32_t thread, Number&& number) noexcept;

    /// Effects: marks the block at \p p as freed, if it is live and of that size and alignment; known(entry) gets its
    ///   record as it was before, with the shard's lock held. Returns: false if not; nothing changed then, and erase()
    ///   tells why.
    template <bool Locked, class Known>
    [[nodiscard]] bool erase_exact(const void* p, std::size_t size, std::size_t alignment, trace_id freed,
                                   std::uint32_t thread, Known&& known) noexcept;
    template <bool Locked>
    [[nodiscard]] bool erase_exact(const void* p, std::size_t size, std::size_t alignment, trace_id freed,
                                   std::uint32_t thread) noexcept {
        return erase_exact<Locked>(p, size, alignment, freed, thread, [](const block_entry&) noexcept {});
    }

    /// Effects: has the record of \p p fetched into the cache. Takes no lock: while the table grows it may be another
    ///   place that is fetched.
    void prefetch(const void* p) const noexcept {
        const std::uint64_t h = hash(reinterpret_cast<std::uintptr_t>(p));
        const shard& s = shard_of(h);
        const slot* const slots = __atomic_load_n(&s.slots, __ATOMIC_ACQUIRE);
        if (slots != nullptr) {
            __builtin_prefetch(slots + ((h << 6U) >> __atomic_load_n(&s.shift, __ATOMIC_RELAXED)), 1);
        }
    }

    /// Effects: marks the block at \p p as freed. \p found gets its record as it was before; on `unknown` it is left.
    [[nodiscard]] outcome erase(const void* p, trace_id freed, std::uint32_t thread, block_entry& found) noexcept;

    /// Effects: marks every live block as freed at \p gone by nobody: a free_thread of 0 says that its memory went away
    ///   without it. Returns: how many.
    std::size_t erase_live(trace_id gone) noexcept;

    /// Effects: replaces the size of the live block at \p p, if it is \p old_size. \p found gets the record as it was.
    [[nodiscard]] outcome resize(const void* p, std::size_t old_size, std::size_t new_size,
                                 block_entry& found) noexcept;

    /// Effects: copies the record of \p p. Returns: false if there is none.
    bool find(const void* p, block_entry& found) noexcept;

    /// Effects: looks for the last block of \p size bytes that was freed at \p p, and whose address is in use again.
    ///   \p found: its address, size, and who freed it. Returns: false if none is remembered. Slow.
    bool find_former(const void* p, std::size_t size, block_entry& found) noexcept;

    /// Effects: copies the block that starts at or holds \p p, live ones first, else the nearest one within \p reach
    ///   bytes. Slow: looks at every record.
    [[nodiscard]] relation nearest(const void* p, std::size_t reach, block_entry& found) noexcept;

    /// Effects: calls visit(entry) for every live block, in no order, with a lock held.
    template <class Visit>
    void for_each_live(Visit&& visit) noexcept {
        for_each([&](const block_entry& e) noexcept {
            if (e.live) {
                visit(e);
            }
        });
    }

    /// Where a live block is.
    struct place {
        const void* address;
        std::size_t size;
    };

    /// Effects: calls visit(place) for every live block, in no order, without a lock: some at a time are copied. A
    ///   block whose record is moved meanwhile may be missed, or come twice. For signal handlers, too: where the thread
    ///   that was interrupted holds a lock, records may look torn.
    template <class Visit>
    void for_each_place(Visit&& visit) noexcept {
        for (unsigned i = 0; shards_ != nullptr && i <= shard_mask_; ++i) {
            shard& s = shards_[i];
            for (std::size_t k = 0, last = 0; k <= last;) {
                place some[32];
                std::size_t count = 0;
                {
                    const os::look seen(s.lock);
                    const auto [slots, mask] = all_slots(s);
                    last = mask;
                    for (; slots != nullptr && k <= last && count < std::size(some); ++k) {
                        const slot r = slots[k];
                        if (r.address != 0 && (r.bits & 1U) == 0) {
                            some[count++] = {reinterpret_cast<const void*>(r.address), r.size};
                        }
                    }
                    k += slots == nullptr ? 1 : 0;
                }
                for (std::size_t n = 0; n < count; ++n) {
                    visit(some[n]);
                }
            }
        }
    }

    /// Effects: calls visit(entry) for every block, in no order, until it returns false. Takes no lock: for signal
    ///   handlers, to which records may look torn. Reads nothing but private memory, which stays mapped.
    template <class Visit>
    void peek(Visit&& visit) const noexcept {
        for (unsigned i = 0; shards_ != nullptr && i <= shard_mask_; ++i) {
            const shard& s = shards_[i];
            const auto [slots, last] = all_slots(s);
            for (std::size_t k = 0; slots != nullptr && k <= last; ++k) {
                const slot r = slots[k];
                const bool known = (r.bits & 1U) == 0 || (s.ring != nullptr && r.size < ring_size_);
                if (r.address != 0 && known && !visit(entry(s, r))) {
                    return;
                }
            }
        }
    }

    /// Effects: a fork takes the locks.
    void hold(os::fork_locks& locks) noexcept {
        for (std::uint64_t i = 0; shards_ != nullptr && i <= shard_mask_; ++i) {
            locks.take(shards_[i].lock);
        }
    }

private:
    // The size of a freed block moves into its ring entry, and the index of that takes its place.
    struct slot {
        std::uintptr_t address;  // 0: empty
        std::size_t size;
        std::uint64_t bits;  // serial << 7 | alignment log2 << 1 | freed
        trace_id allocated;
        std::uint32_t thread;
    };
    struct ring_entry {
        std::uintptr_t address;  // with `again` set: it was allocated again, and has no slot for this
        std::size_t size;
        trace_id freed;
        std::uint32_t thread;
    };
    struct alignas(64) shard {
        os::brief_lock lock;
        unsigned shift;  // 64 - log2 of the number of slots; 0 while there are none
        slot* slots;
        std::size_t mask;
        std::size_t used;
        ring_entry* ring;
        std::size_t ring_next;
    };

    // The highest bit, which no address of a program has.
    static constexpr std::uintptr_t again = ~(~std::uintptr_t{0} >> 1U);
    [[nodiscard]] static bool has_slot(const ring_entry& e) noexcept {
        return static_cast<std::intptr_t>(e.address) > 0;
    }

    // Multiplicative hashing; the top 6 bits choose the shard, those below it the slot.
    [[nodiscard]] static std::uint64_t hash(std::uintptr_t address) noexcept {
        return static_cast<std::uint64_t>(address) * 0x9E37'79B9'7F4A'7C15U;
    }
    [[nodiscard]] shard& shard_of(std::uint64_t h) const noexcept { return shards_[(h >> 58U) & shard_mask_]; }
    [[nodiscard]] static std::size_t home(const shard& s, std::uint64_t h) noexcept { return (h << 6U) >> s.shift; }

    // The slot that holds `address`, or the empty one where it would go.
    [[nodiscard]] static slot* probe(const shard& s, std::uintptr_t address, std::uint64_t h) noexcept {
        std::size_t i = home(s, h);
        while (s.slots[i].address != address && s.slots[i].address != 0) {
            i = (i + 1) & s.mask;
        }
        return s.slots + i;
    }

    // The slot of the block at `address`, if it lives; else null. `why` and `found` are those of erase().
    [[nodiscard]] static slot* live_slot(const shard& s, std::uintptr_t address, std::uint64_t h, block_entry& found,
                                         outcome& why) noexcept;

    [[nodiscard]] static block_entry entry(const shard& s, const slot& r) noexcept {
        const bool freed = (r.bits & 1U) != 0;
        block_entry e{.address = reinterpret_cast<const void*>(r.address),
                      .size = r.size,
                      .alignment = std::size_t{1} << ((r.bits >> 1U) & 63U),
                      .serial = r.bits >> 7U,
                      .allocated = r.allocated,
                      .alloc_thread = r.thread,
                      .live = !freed};
        if (freed) {
            const ring_entry& more = s.ring[r.size];
            e.size = more.size;
            e.freed = more.freed;
            e.free_thread = more.thread;
        }
        return e;
    }

    template <class Visit>
    void for_each(Visit&& visit) noexcept {
        for (unsigned i = 0; shards_ != nullptr && i <= shard_mask_; ++i) {
            shard& s = shards_[i];
            const os::brief_hold<true> hold(s.lock);
            for (std::size_t k = 0; s.slots != nullptr && k <= s.mask; ++k) {
                if (s.slots[k].address != 0) {
                    visit(entry(s, s.slots[k]));
                }
            }
        }
    }

    /// The slots, and the index of the last, without the lock: no more than there are.
    struct slots_view {
        const slot* slots;
        std::size_t last;
    };
    [[nodiscard]] static slots_view all_slots(const shard& s) noexcept {
        for (;;) {
            const slot* const slots = __atomic_load_n(&s.slots, __ATOMIC_ACQUIRE);
            const std::size_t last = __atomic_load_n(&s.mask, __ATOMIC_ACQUIRE);
            if (slots == __atomic_load_n(&s.slots, __ATOMIC_RELAXED)) {
                return {slots, last};
            }
        }
    }

    /// Effects: moves everything to \p count slots. Returns: false if there is no memory for them.
    bool rehash(shard& s, std::size_t count) noexcept;
    bool grow(shard& s) noexcept;
    bool forget_oldest(shard& s) noexcept;
    bool open_ring(shard& s) noexcept;
    void bury(shard& s, slot& r, trace_id freed, std::uint32_t thread) noexcept;
    /// Effects: takes a record out; where hardly any is left, the table becomes smaller.
    void remove(shard& s, slot* hole) noexcept;

    arena* memory_ = nullptr;
    shard* shards_ = nullptr;
    std::uint64_t shard_mask_ = 0;
    std::size_t ring_size_ = 0;  // per shard
};

template <bool Locked, class Number>
block_table::outcome block_table::insert(const void* p, std::size_t size, std::size_t alignment, trace_id allocated,
                                         std::uint32_t thread, Number&& number) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uint64_t h = hash(address);
    shard& s = shard_of(h);
    const os::brief_hold<Locked> hold(s.lock);
    // Two slots in three may be taken; a shard without slots has mask 0 and grows here, too.
    if ((s.used + 1) * 3 > s.mask * 2 && !grow(s)) [[unlikely]] {
        return outcome::no_memory;
    }
    slot& r = *probe(s, address, h);
    if (r.address == 0) {
        ++s.used;
        r.address = address;
    } else if ((r.bits & 1U) == 0) [[unlikely]] {
        return outcome::occupied;
    } else {
        s.ring[r.size].address |= again;
    }
    r.size = size;
    r.bits = (number() << 7U) | (static_cast<std::uint64_t>(std::countr_zero(alignment)) << 1U);
    r.allocated = allocated;
    r.thread = thread;
    return outcome::done;
}

template <bool Locked, class Known>
bool block_table::erase_exact(const void* p, std::size_t size, std::size_t alignment, trace_id freed,
                              std::uint32_t thread, Known&& known) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uint64_t h = hash(address);
    shard& s = shard_of(h);
    const os::brief_hold<Locked> hold(s.lock);
    if (s.slots == nullptr) [[unlikely]] {
        return false;
    }
    slot& r = *probe(s, address, h);
    // Alignment and the bit that says freed, in one comparison.
    const auto state = static_cast<std::uint64_t>(std::countr_zero(alignment)) << 1U;
    if (r.address == 0 || r.size != size || (r.bits & 127U) != state || (alignment & (alignment - 1)) != 0)
        [[unlikely]] {
        return false;
    }
    known(entry(s, r));
    bury(s, r, freed, thread);
    return true;
}

inline void block_table::bury(shard& s, slot& r, trace_id freed, std::uint32_t thread) noexcept {
    if (s.ring == nullptr && !open_ring(s)) [[unlikely]] {
        remove(s, &r);
        return;
    }
    ring_entry& kept = s.ring[s.ring_next];
    const std::uintptr_t oldest = has_slot(kept) ? kept.address : 0;
    kept = {.address = r.address, .size = r.size, .freed = freed, .thread = thread};
    r.size = s.ring_next;
    r.bits |= 1U;
    s.ring_next = s.ring_next + 1 == ring_size_ ? 0 : s.ring_next + 1;
    if (oldest != 0) {
        remove(s, probe(s, oldest, hash(oldest)));
        // By the time it is that one's turn, its slot is in the cache.
        __builtin_prefetch(s.slots + home(s, hash(s.ring[s.ring_next].address)), 1);
    }
}

}  // namespace pmr_debug::metadata
