#pragma once

// The calls of the general-purpose resource, floor 4, compiled once for each shape of policy.
//
// allocate:   size class -> this thread's unit -> next slot -> record -> pointer. Nothing is searched, nothing locked.
// deallocate: address map -> unit -> slot by reciprocal multiply -> compare size and alignment -> one exchange of the
//             state decides who frees -> guard -> fill -> count down; the last slot retires the unit.
//
// Whatever is not plain goes through allocate_slowly / examine_free, which may take the resource's lock.

#include "os/other_tools.hpp"
#include "os/virtual_memory.hpp"
#include "resources/general_purpose_core.hpp"
#include "stack/capture.hpp"

#include <bit>
#include <cstring>
#include <mutex>
#include <new>

namespace pmr_debug::detail {

template <code_shape S>
class general_purpose_calls {
    static constexpr bool shared = S.threads == threading::synchronized;
    using record_type = std::conditional_t<S.traces, traced_record, slot_record>;

    /// The cache to use at once, or null for the slow way.
    static thread_cache* fast_cache(const general_purpose_core& core, os::thread_numbers thread) noexcept {
        if constexpr (S.threads == threading::single_checked) {
            if (thread.number != core.bound_thread) [[unlikely]] {
                return nullptr;
            }
        }
        return core.fast_caches[shared ? thread.index : 0].load(std::memory_order_relaxed);
    }

    static record_type& record_at(const unit& u, std::uint32_t index) noexcept {
        return *reinterpret_cast<record_type*>(u.records + std::size_t{index} * sizeof(record_type));
    }

    /// Effects: remembers a use by the thread that a single_checked resource is bound to.
    static void note_use(general_purpose_core& core, os::thread_numbers thread, trace_id where) noexcept {
        if (thread.number == core.bound_thread && where != trace_id::none) {
            core.last_use = where;
        }
    }

    static void count_peak(general_purpose_core& core, const thread_cache& cache) noexcept {
        // One thread at a time: exact, without read-modify-write.
        // Below zero if a foreign thread freed blocks of the bound one, or the other way round.
        const auto bytes = static_cast<std::int64_t>(cache.allocated_bytes.get() - cache.deallocated_bytes.get());
        const auto blocks = static_cast<std::int64_t>(cache.allocations.get() - cache.deallocations.get());
        if (bytes > static_cast<std::int64_t>(core.peak_bytes.load(std::memory_order_relaxed))) {
            core.peak_bytes.store(static_cast<std::uint64_t>(bytes), std::memory_order_relaxed);
        }
        if (blocks > static_cast<std::int64_t>(core.peak_blocks.load(std::memory_order_relaxed))) {
            core.peak_blocks.store(static_cast<std::uint64_t>(blocks), std::memory_order_relaxed);
        }
    }

    /// Effects: writes down a new live block.
    static void* hand_out(general_purpose_core& core, thread_cache& cache, os::thread_numbers thread, slot_ref s,
                          std::size_t bytes, std::size_t alignment, std::uintptr_t frame) noexcept {
        if constexpr (S.checks) {
            record_type& r = record_at(*s.owner, s.index);
            r.size = static_cast<std::uint16_t>(bytes);
            if (s.index == 0) [[unlikely]] {
                r.size = large_size;
                s.owner->request = bytes;
            }
            r.alignment = static_cast<std::uint8_t>(std::countr_zero(alignment));
            r.alloc_thread = saturated(thread.number);
            if constexpr (S.traces) {
                r.allocated = stack::capture(core.alloc_frames, frame);
                if constexpr (S.threads == threading::single_checked) {
                    note_use(core, thread, r.allocated);
                }
            }
            r.state.store(slot_state::live, std::memory_order_release);
        }
        cache.allocations.add(1);
        cache.allocated_bytes.add(bytes);
        if constexpr (!shared) {
            count_peak(core, cache);
        }
        return s.address();
    }

    /// Returns: a slot of class \p cls that is ready in the cache, or none.
    static slot_ref take(general_purpose_core& core, thread_cache& cache, unsigned cls) noexcept {
        unit* const u = cache.current[cls];
        if (u == nullptr) {
            return {};
        }
        if constexpr (!S.recycle) {
            const std::uint32_t next = u->next.load(std::memory_order_relaxed);
            if (next >= u->prepared.load(std::memory_order_relaxed)) {
                return {};
            }
            u->next.store(next + 1, std::memory_order_relaxed);
            return {u, next};
        } else {
            while (u->taken_bits != 0) {
                const slot_ref s{u, u->taken_word * 64 + static_cast<std::uint32_t>(std::countr_zero(u->taken_bits))};
                u->taken_bits &= u->taken_bits - 1;
                if constexpr (S.checks && S.fill) {
                    const slot_state state = s.record(core).state.load(std::memory_order_relaxed);
                    if (state == slot_state::damaged || (state == slot_state::freed && !verify_freed(core, s))) {
                        continue;  // never handed out again
                    }
                }
                if constexpr (S.checks && (S.fill || S.canary)) {
                    fill_memory(core, s.address(), fresh_byte, u->slot_size);
                }
                return s;
            }
            return {};
        }
    }

    static bool is_small(const general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept {
        return bytes <= size_classes::largest - core.guard_bytes && alignment <= size_classes::largest_alignment;
    }

    static unsigned class_for(const general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept {
        const std::size_t need = bytes + core.guard_bytes;
        return size_classes::class_of(need != 0 ? need : 1, alignment);
    }

    /// As the fast way, with every source of memory tried. Returns: none if there is no memory.
    static slot_ref find_slot(general_purpose_core& core, thread_cache& cache, std::size_t bytes,
                              std::size_t alignment) noexcept {
        const std::size_t room = core.exact ? alignment : 0;  // to move the block within its slot
        const bool small = is_small(core, bytes + room, alignment);
        const bool chosen = core.chosen.any(small) && core.chosen.takes(bytes);
        if (!small || (chosen && core.over_pages)) {
            unit* const u = make_large(core, bytes, alignment);
            if (u != nullptr) {
                u->chosen = chosen;
            }
            return {u, 0};
        }
        if (chosen) {
            core.chosen.miss();
        }
        const unsigned cls = class_for(core, bytes + room, alignment);
        slot_ref s = take(core, cache, cls);
        while (s.owner == nullptr && refill(core, cache, cls) != nullptr) {
            s = take(core, cache, cls);
        }
        if (s.owner == nullptr) {
            s = S.checks && !S.recycle ? take_freed_slot(core, cls, alignment) : slot_ref{};
        }
        return s;
    }

    /// What is in use once a block was accounted for.
    struct use {
        std::size_t blocks = 0;
        std::size_t bytes = 0;
    };

    /// Effects: accounts for a block before it is made. Returns: false, after a report, if that breaks a limit.
    static bool within_limits(general_purpose_core& core, std::size_t bytes, std::size_t alignment,
                              use& with_it) noexcept {
        if (!core.limited) {
            return true;
        }
        const general_purpose_options& o = core.options;
        std::size_t bytes_before = 0;
        std::size_t blocks_before = 0;
        bool too_many_bytes = false;
        bool too_many_blocks = false;
        {
            // Under a lock, so that a request which is refused never counts against another one.
            const std::scoped_lock hold(core.limit_lock);
            bytes_before = core.limited_bytes;
            blocks_before = core.limited_blocks;
            too_many_bytes = o.limit_bytes != 0 && (bytes > o.limit_bytes || bytes_before > o.limit_bytes - bytes);
            too_many_blocks = o.limit_blocks != 0 && blocks_before >= o.limit_blocks;
            if (!too_many_bytes && !too_many_blocks) {
                core.limited_bytes += bytes;
                core.limited_blocks += 1;
            }
        }
        if (too_many_bytes || too_many_blocks) {
            report_limit(core, bytes, alignment, too_many_bytes ? o.limit_bytes : o.limit_blocks,
                         too_many_bytes ? bytes_before : blocks_before);
            return false;
        }
        with_it = {.blocks = blocks_before + 1, .bytes = bytes_before + bytes};
        return true;
    }

    static void give_limits_back(general_purpose_core& core, std::size_t bytes) noexcept {
        if (core.limited) {
            const std::scoped_lock hold(core.limit_lock);
            core.limited_bytes -= bytes;
            core.limited_blocks -= 1;
        }
    }

    /// The cache for a call that came the slow way. A foreign thread of a single_checked resource gets one of its own.
    static thread_cache& slow_cache(general_purpose_core& core, os::thread_numbers thread, bool foreign) noexcept {
        return cache_of(core, shared || foreign ? thread.index : 0);
    }

    [[gnu::noinline]] static void* allocate_slowly(general_purpose_core& core, os::thread_numbers thread,
                                                   std::size_t bytes, std::size_t alignment, std::uintptr_t frame) {
        const writable_section section(core);
        const os::unseen_by_valgrind unseen(core.memcheck);
        if (!size_classes::is_power_of_two(alignment)) {
            core.failed.fetch_add(1, std::memory_order_relaxed);
            if constexpr (S.checks) {
                report_bad_alignment(core, bytes, alignment);
            }
            throw std::bad_alloc();
        }
        bool foreign = false;
        if constexpr (S.threads == threading::single_checked) {
            foreign = !bind_thread(core, thread);
        }
        if (bytes > os::address_space_bytes) {  // pools probe their upstream with such sizes: no report
            core.failed.fetch_add(1, std::memory_order_relaxed);
            throw std::bad_alloc();
        }
        use with_it;
        if (!within_limits(core, bytes, alignment, with_it)) {
            core.failed.fetch_add(1, std::memory_order_relaxed);
            throw std::bad_alloc();
        }
        thread_cache& cache = slow_cache(core, thread, foreign);
        slot_ref s;
        {
            std::unique_lock<os::spin_lock> hold(core.shared_cache_lock, std::defer_lock);
            if (&cache == &core.spare) {
                hold.lock();
            }
            s = find_slot(core, cache, bytes, alignment);
            if (s.owner != nullptr) {
                hand_out(core, cache, thread, s, bytes, alignment, frame);
                if (core.watched()) {
                    tell_handed_out(core, s, bytes);
                }
            }
        }
        if (s.owner == nullptr) {
            give_limits_back(core, bytes);
            core.failed.fetch_add(1, std::memory_order_relaxed);
            throw std::bad_alloc();
        }
        if (core.limited) {
            raise_peak(core, with_it.blocks, with_it.bytes);  // only now: a request that fails is no use
        } else if constexpr (shared) {
            // Each large block comes here, and of small ones the first of those that are prepared together.
            const live_totals now = sum_caches(core);
            raise_peak(core, now.blocks(), now.bytes());
        }
        return s.block(core);
    }

    /// Returns: the slot of a small live-looking block that fits what the caller says, or none.
    static slot_ref locate(const general_purpose_core& core, std::uintptr_t address, std::size_t bytes,
                           std::size_t alignment) noexcept {
        auto* const u = static_cast<unit*>(metadata::address_map::find(address));
        if (u == nullptr || u->owner != &core) [[unlikely]] {
            return {};
        }
        const std::uint64_t offset = address - u->first;
        const auto index = static_cast<std::uint32_t>((offset * u->reciprocal) >> 32);
        if constexpr (S.checks) {
            if (std::uint64_t{index} * u->slot_size != offset || index >= u->capacity) [[unlikely]] {
                return {};
            }
            const slot_record& r = record_at(*u, index);
            if (r.size != bytes || (std::size_t{1} << r.alignment) != alignment || bytes == large_size) [[unlikely]] {
                return {};  // a large block, the first one of a unit, or a mismatch
            }
        }
        return {u, index};
    }

    /// \p slot: its address, as the unit may be gone as soon as it is counted.
    static void count_down(general_purpose_core& core, slot_ref s, std::uintptr_t slot) noexcept {
        unit& u = *s.owner;
        if constexpr (S.recycle) {
            std::atomic<std::uint64_t>& word = u.free_bits[s.index / 64];
            const std::uint64_t bit = std::uint64_t{1} << (s.index % 64);
            const std::uint64_t before = word.fetch_or(bit);  // seq_cst: pairs with the owner's detach in refill()
            if (!u.attached.load() && (!u.listed.load() || (before | bit) == u.full_word(s.index / 64) ||
                                       u.is_looked_after(slot))) [[unlikely]] {
                relist(core, slot);
            }
        } else if (shared ? u.unfreed.down() : u.unfreed.down_alone()) [[unlikely]] {
            few_left(core, slot);
        }
    }

    /// Effects: undoes the exchange of a state that was not live. Whoever is freeing the slot, or has taken it anew
    /// since, has the last word.
    static void put_back(std::atomic<slot_state>& state, slot_state before) noexcept {
        slot_state expected = slot_state::freeing;
        if (before != slot_state::freeing) {
            state.compare_exchange_strong(expected, before, std::memory_order_release, std::memory_order_relaxed);
        }
    }

    static void poison_freed(const general_purpose_core& core, slot_ref s) noexcept {
        if (core.poisons) [[unlikely]] {
            os::poison(s.address(), s.owner->slot_bytes());
        }
    }

    /// Returns: the bytes freed, or SIZE_MAX if the call was refused.
    static std::size_t free_block(general_purpose_core& core, thread_cache& cache, os::thread_numbers thread, void* p,
                                  std::size_t bytes, std::size_t alignment, std::uintptr_t frame) noexcept {
        slot_ref s = locate(core, reinterpret_cast<std::uintptr_t>(p), bytes, alignment);
        bool plain = true;
        if constexpr (!S.checks) {
            if (s.owner == nullptr) {
                return SIZE_MAX;
            }
            cache.deallocations.add(1);
            cache.deallocated_bytes.add(bytes);
            poison_freed(core, s);
            s.owner->large ? retire(core, *s.owner) : count_down(core, s, reinterpret_cast<std::uintptr_t>(p));
            return bytes;
        } else {
            if (s.owner == nullptr) [[unlikely]] {
                plain = false;
                s = examine_free(core, p, bytes, alignment);
                if (s.owner == nullptr) {
                    return SIZE_MAX;
                }
            }
            record_type& r = record_at(*s.owner, s.index);
            trace_id here = trace_id::none;
            if constexpr (S.traces) {
                // Before the exchange: that one waits for the record's cache line, and everything after it waits, too.
                here = stack::capture(core.free_frames, frame);
            }
            slot_state before;
            if constexpr (shared) {
                before = r.state.exchange(slot_state::freeing, std::memory_order_acq_rel);
            } else {
                before = r.state.load(std::memory_order_relaxed);
                r.state.store(slot_state::freeing, std::memory_order_relaxed);
            }
            if (before != slot_state::live) [[unlikely]] {
                put_back(r.state, before);
                report_not_live(core, s, before, bytes, alignment);
                return SIZE_MAX;
            }
            r.free_thread = saturated(thread.number);
            if constexpr (S.traces) {
                r.freed = here;
                if constexpr (S.threads == threading::single_checked) {
                    note_use(core, thread, r.freed);
                }
            }
            const std::size_t size = plain ? bytes : s.requested(core);
            cache.deallocations.add(1);
            cache.deallocated_bytes.add(size);
            unsigned char* const slot = s.address();
            if constexpr (S.canary) {
                const bool intact = plain ? all_bytes(slot + size, s.owner->slot_size - size, fresh_byte)
                                          : surroundings_intact(core, s);
                if (!intact) [[unlikely]] {
                    r.state.store(slot_state::damaged, std::memory_order_release);
                    s.owner->damaged = true;
                    report_surroundings(core, s);
                    if constexpr (!S.recycle) {
                        s.owner->large ? retire(core, *s.owner)
                                       : count_down(core, s, reinterpret_cast<std::uintptr_t>(slot));
                    }
                    return size;
                }
            }
            if (!plain && s.owner->large) [[unlikely]] {
                s.owner->unsettle();  // retired ones are filled or trapped
                r.state.store(slot_state::freed, std::memory_order_release);
                poison_freed(core, s);
                retire(core, *s.owner);
                return size;
            }
            if constexpr (S.fill) {
                std::memset(slot, freed_byte, s.owner->slot_size);
            }
            poison_freed(core, s);  // before the slot, or its unit, may be somebody else's
            r.state.store(slot_state::freed, std::memory_order_release);
            count_down(core, s, reinterpret_cast<std::uintptr_t>(slot));
            return size;
        }
    }

    [[gnu::noinline]] static void deallocate_slowly(general_purpose_core& core, os::thread_numbers thread, void* p,
                                                    std::size_t bytes, std::size_t alignment,
                                                    std::uintptr_t frame) noexcept {
        const writable_section section(core);
        const os::unseen_by_valgrind unseen(core.memcheck);
        if (core.watched()) {
            tell_taken_back(core, p);
        }
        bool foreign = false;
        if constexpr (S.threads == threading::single_checked) {
            foreign = !bind_thread(core, thread);
        }
        thread_cache& cache = slow_cache(core, thread, foreign);
        std::size_t freed = 0;
        if (&cache == &core.spare) {
            // Counted apart and added under the lock, as reports may be made meanwhile.
            thread_cache mine;
            freed = free_block(core, mine, thread, p, bytes, alignment, frame);
            const std::scoped_lock hold(core.shared_cache_lock);
            cache.deallocations.add(mine.deallocations.get());
            cache.deallocated_bytes.add(mine.deallocated_bytes.get());
        } else {
            freed = free_block(core, cache, thread, p, bytes, alignment, frame);
        }
        if (freed != SIZE_MAX) {
            give_limits_back(core, freed);
        }
    }

public:
    static void* allocate(general_purpose_core& core, std::size_t bytes, std::size_t alignment, std::uintptr_t frame) {
        const os::thread_numbers thread = os::this_thread();
        thread_cache* const cache = fast_cache(core, thread);
        if (cache != nullptr && is_small(core, bytes, alignment) && size_classes::is_power_of_two(alignment))
            [[likely]] {
            const slot_ref s = take(core, *cache, class_for(core, bytes, alignment));
            if (s.owner != nullptr) [[likely]] {
                return hand_out(core, *cache, thread, s, bytes, alignment, frame);
            }
        }
        return allocate_slowly(core, thread, bytes, alignment, frame);
    }

    static void deallocate(general_purpose_core& core, void* p, std::size_t bytes, std::size_t alignment,
                           std::uintptr_t frame) noexcept {
        const os::thread_numbers thread = os::this_thread();
        thread_cache* const cache = fast_cache(core, thread);
        if (cache != nullptr) [[likely]] {
            free_block(core, *cache, thread, p, bytes, alignment, frame);
        } else {
            deallocate_slowly(core, thread, p, bytes, alignment, frame);
        }
    }
};

template <code_shape S>
void* general_purpose_engine<S>::allocate(general_purpose_core* core, std::size_t bytes, std::size_t alignment) {
    return general_purpose_calls<S>::allocate(*core, bytes, alignment,
                                              reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)));
}

template <code_shape S>
void general_purpose_engine<S>::deallocate(general_purpose_core* core, void* p, std::size_t bytes,
                                           std::size_t alignment) noexcept {
    general_purpose_calls<S>::deallocate(*core, p, bytes, alignment,
                                         reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)));
}

}  // namespace pmr_debug::detail
