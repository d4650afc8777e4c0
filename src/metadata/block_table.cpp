#include "metadata/block_table.hpp"

#include <cstring>

namespace pmr_debug::metadata {

namespace {

constexpr std::size_t first_slots = 16;
/// Where fewer than one slot of so many is taken, a table becomes smaller; but not one of so few slots.
constexpr std::size_t sparse = 16;
constexpr std::size_t least_to_shrink = 256;

}  // namespace

block_info describe(const block_entry& e) noexcept {
    return {.address = e.address,
            .size = e.size,
            .alignment = e.alignment,
            .serial = e.serial,
            .state = e.live ? block_state::live : block_state::freed,
            .alloc_thread = e.alloc_thread,
            .free_thread = e.free_thread};
}

bool block_table::open(arena& memory, unsigned shards, std::size_t freed_kept) noexcept {
    memory_ = &memory;
    shard_mask_ = shards - 1;
    ring_size_ = (freed_kept + shards - 1) / shards;
    shards_ = static_cast<shard*>(memory.allocate_zeroed(sizeof(shard) * shards));
    return shards_ != nullptr;
}

bool block_table::rehash(shard& s, std::size_t count) noexcept {
    const std::size_t old_count = s.slots != nullptr ? s.mask + 1 : 0;
    auto* const fresh = static_cast<slot*>(memory_->allocate_zeroed(count * sizeof(slot)));
    if (fresh == nullptr) {
        return false;
    }
    slot* const old = s.slots;
    // prefetch() reads the first and the last without the lock: no new slots with the shift of none. all_slots() and
    // signal handlers may see the old one of slots and mask with the new other: never too large a mask.
    __atomic_store_n(&s.shift, 64U - static_cast<unsigned>(std::countr_zero(count)), __ATOMIC_RELAXED);
    if (count < old_count) {
        __atomic_store_n(&s.mask, count - 1, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&s.slots, fresh, __ATOMIC_RELEASE);
    __atomic_store_n(&s.mask, count - 1, __ATOMIC_RELEASE);
    for (std::size_t i = 0; i < old_count; ++i) {
        if (old[i].address != 0) {
            *probe(s, old[i].address, hash(old[i].address)) = old[i];
        }
    }
    if (old != nullptr) {
        memory_->give_up(old, old_count * sizeof(slot));
    }
    return true;
}

bool block_table::grow(shard& s) noexcept {
    const std::size_t old_count = s.slots != nullptr ? s.mask + 1 : 0;
    // Crowded is better than refusing, as long as a probe still ends; then, to forget freed blocks is.
    return rehash(s, old_count != 0 ? old_count * 2 : first_slots) ||
           (old_count != 0 && (s.used + 1 < old_count || forget_oldest(s)));
}

bool block_table::open_ring(shard& s) noexcept {
    if (ring_size_ != 0) {
        s.ring = static_cast<ring_entry*>(memory_->allocate_zeroed(ring_size_ * sizeof(ring_entry)));
    }
    return s.ring != nullptr;
}

bool block_table::forget_oldest(shard& s) noexcept {
    for (std::size_t i = 0; s.ring != nullptr && i < ring_size_; ++i) {
        ring_entry& oldest = s.ring[(s.ring_next + i) % ring_size_];
        if (has_slot(oldest)) {
            remove(s, probe(s, oldest.address, hash(oldest.address)));
            oldest.address = 0;
            return true;
        }
    }
    return false;
}

bool block_table::find_former(const void* p, std::size_t size, block_entry& found) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    shard& s = shard_of(hash(address));
    const os::brief_hold<true> hold(s.lock);
    for (std::size_t i = 0; s.ring != nullptr && i < ring_size_; ++i) {
        const ring_entry& last = s.ring[(s.ring_next + ring_size_ - 1 - i) % ring_size_];
        if (last.address == (address | again) && last.size == size) {
            found = {.address = p, .size = size, .freed = last.freed, .free_thread = last.thread};
            return true;
        }
    }
    return false;
}

// Deletion by backward shift (Knuth, TAOCP 3, 6.4, algorithm R): close the gap with whoever probed past it.
void block_table::remove(shard& s, slot* hole) noexcept {
    auto gap = static_cast<std::size_t>(hole - s.slots);
    for (std::size_t i = (gap + 1) & s.mask; s.slots[i].address != 0; i = (i + 1) & s.mask) {
        const std::size_t wanted = home(s, hash(s.slots[i].address));
        if (((i - wanted) & s.mask) >= ((i - gap) & s.mask)) {
            s.slots[gap] = s.slots[i];
            gap = i;
        }
    }
    s.slots[gap] = {};
    --s.used;
    if (s.used < s.mask / sparse && s.mask >= least_to_shrink) [[unlikely]] {
        // To a third or less, so that it neither grows nor shrinks again soon. Without memory it stays as it is.
        (void)rehash(s, std::bit_ceil(s.used * 3 + first_slots));
    }
}

block_table::slot* block_table::live_slot(const shard& s, std::uintptr_t address, std::uint64_t h, block_entry& found,
                                          outcome& why) noexcept {
    slot* const r = s.slots != nullptr ? probe(s, address, h) : nullptr;
    if (r == nullptr || r->address == 0) {
        why = outcome::unknown;
        return nullptr;
    }
    found = entry(s, *r);
    why = found.live ? outcome::done : outcome::freed;
    return found.live ? r : nullptr;
}

block_table::outcome block_table::erase(const void* p, trace_id freed, std::uint32_t thread,
                                        block_entry& found) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uint64_t h = hash(address);
    shard& s = shard_of(h);
    const os::brief_hold<true> hold(s.lock);
    outcome result = outcome::done;
    if (slot* const r = live_slot(s, address, h, found, result); r != nullptr) {
        bury(s, *r, freed, thread);
    }
    return result;
}

std::size_t block_table::erase_live(trace_id gone) noexcept {
    std::size_t count = 0;
    for (unsigned i = 0; shards_ != nullptr && i <= shard_mask_; ++i) {
        shard& s = shards_[i];
        const os::brief_hold<true> hold(s.lock);
        // Burying one may shift others into slots that were looked at before: again, until none is found.
        for (bool any = s.slots != nullptr; any;) {
            any = false;
            for (std::size_t k = 0; k <= s.mask; ++k) {
                if (s.slots[k].address != 0 && (s.slots[k].bits & 1U) == 0) {
                    bury(s, s.slots[k], gone, 0);
                    any = true;
                    ++count;
                }
            }
        }
    }
    return count;
}

block_table::outcome block_table::resize(const void* p, std::size_t old_size, std::size_t new_size,
                                         block_entry& found) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uint64_t h = hash(address);
    shard& s = shard_of(h);
    const os::brief_hold<true> hold(s.lock);
    outcome result = outcome::done;
    if (slot* const r = live_slot(s, address, h, found, result); r != nullptr) {
        if (r->size != old_size) {
            return outcome::mismatch;
        }
        r->size = new_size;
    }
    return result;
}

bool block_table::find(const void* p, block_entry& found) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uint64_t h = hash(address);
    if (shards_ == nullptr || address == 0) {
        return false;
    }
    shard& s = shard_of(h);
    const os::brief_hold<true> hold(s.lock);
    const slot* const r = s.slots != nullptr ? probe(s, address, h) : nullptr;
    if (r == nullptr || r->address == 0) {
        return false;
    }
    found = entry(s, *r);
    return true;
}

block_table::relation block_table::nearest(const void* p, std::size_t reach, block_entry& found) noexcept {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    // Smaller is better: start or inside of a live block, then of a freed one, then by distance.
    relation best = relation::none;
    std::uint64_t best_rank = ~std::uint64_t{0};
    for_each([&](const block_entry& e) noexcept {
        const auto from = reinterpret_cast<std::uintptr_t>(e.address);
        const std::uintptr_t to = e.size < UINTPTR_MAX - from ? from + e.size : UINTPTR_MAX;
        relation r = relation::near;
        std::uint64_t rank = 0;
        if (at == from) {
            r = relation::start;
            rank = e.live ? 0 : 2;
        } else if (at > from && at < to) {
            r = relation::inside;
            rank = e.live ? 1 : 3;
        } else {
            const std::uintptr_t distance = at < from ? from - at : at - to;
            if (distance > reach) {
                return;
            }
            rank = 4 + 2 * static_cast<std::uint64_t>(distance) + (e.live ? 0 : 1);
        }
        if (rank < best_rank) {
            best_rank = rank;
            best = r;
            found = e;
        }
    });
    return best;
}

}  // namespace pmr_debug::metadata
