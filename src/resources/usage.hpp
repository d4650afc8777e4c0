#pragma once

// Counters of live, peak and total use, floor 4. One small lock keeps them consistent with each other, so peaks and
// limits are exact with any number of threads; separate atomics would cost more, one read-modify-write each.

#include "os/brief_lock.hpp"
#include "os/fork_locks.hpp"

#include <pmr_debug/statistics.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace pmr_debug::detail {

/// Zeroed memory is a valid state. Members with Locked = false: one thread at a time.
class usage_counters {
public:
    /// What a limit says to a request.
    struct verdict {
        bool allowed = true;
        std::size_t limit = 0;   ///< the one that is in the way, bytes or blocks
        std::size_t in_use = 0;  ///< what it counts, requests under way included
    };

    /// Effects: counts a successful allocation. Returns: its number, 1-based.
    template <bool Locked>
    std::uint64_t add(std::size_t bytes) noexcept {
        const os::brief_hold<Locked> hold(lock_);
        return add_held(bytes);
    }

    /// Effects: counts a deallocation.
    template <bool Locked>
    void remove(std::size_t bytes) noexcept {
        const os::brief_hold<Locked> hold(lock_);
        live_bytes_ -= bytes;
        --live_blocks_;
    }

    /// Effects: counts a deallocation on the caller's word: without records, more may come back than went out.
    void remove_at_most(std::size_t bytes) noexcept {
        const os::brief_hold<true> hold(lock_);
        live_bytes_ -= bytes < live_bytes_ ? bytes : live_bytes_;
        live_blocks_ -= live_blocks_ != 0 ? 1 : 0;
    }

    /// Effects: counts all live blocks as deallocated. Returns: how many.
    std::uint64_t remove_all() noexcept {
        const os::brief_hold<true> hold(lock_);
        live_bytes_ = 0;
        return std::exchange(live_blocks_, 0);
    }

    /// Effects: sets \p bytes aside, if the limits (0: none) allow them, until settle() or abandon().
    template <bool Locked>
    verdict reserve(std::size_t bytes, std::size_t limit_bytes, std::size_t limit_blocks) noexcept {
        const os::brief_hold<Locked> hold(lock_);
        const std::size_t bytes_used = live_bytes_ + pending_bytes_;
        const std::size_t blocks_used = live_blocks_ + pending_blocks_;
        if (limit_bytes != 0 && (bytes_used > limit_bytes || bytes > limit_bytes - bytes_used)) {
            return {.allowed = false, .limit = limit_bytes, .in_use = bytes_used};
        }
        if (limit_blocks != 0 && blocks_used >= limit_blocks) {
            return {.allowed = false, .limit = limit_blocks, .in_use = blocks_used};
        }
        pending_bytes_ += bytes;
        ++pending_blocks_;
        return {};
    }

    /// Effects: as add(), for bytes set aside before.
    template <bool Locked>
    std::uint64_t settle(std::size_t bytes) noexcept {
        const os::brief_hold<Locked> hold(lock_);
        pending_bytes_ -= bytes;
        --pending_blocks_;
        return add_held(bytes);
    }

    /// Effects: forgets about bytes set aside.
    void abandon(std::size_t bytes) noexcept {
        const os::brief_hold<true> hold(lock_);
        pending_bytes_ -= bytes;
        --pending_blocks_;
    }

    /// Effects: counts an allocation that ended in bad_alloc.
    void fail() noexcept {
        const os::brief_hold<true> hold(lock_);
        ++failed_;
    }

    /// Effects: a live block changes its size.
    void resize(std::size_t from, std::size_t to) noexcept {
        const os::brief_hold<true> hold(lock_);
        live_bytes_ += to - from;
        total_bytes_ += to > from ? to - from : 0;
        peak_bytes_ = live_bytes_ > peak_bytes_ ? live_bytes_ : peak_bytes_;
    }

    /// Returns: successful allocations by size; bucket i: [2^(i-1)+1, 2^i] bytes, bucket 0: 0 or 1 byte.
    [[nodiscard]] std::array<std::uint64_t, 65> by_size() noexcept {
        const os::look seen(lock_);
        return by_size_;
    }

    /// In a signal handler that interrupted a change, some numbers may have changed already and others not.
    [[nodiscard]] statistics snapshot() noexcept {
        const os::look seen(lock_);
        return {.live_blocks = live_blocks_,
                .live_bytes = live_bytes_,
                .peak_blocks = peak_blocks_,
                .peak_bytes = peak_bytes_,
                .total_allocations = allocations_,
                .total_deallocations = allocations_ - live_blocks_,
                .total_bytes = total_bytes_,
                .failed_allocations = failed_};
    }

    /// Effects: a fork takes the lock.
    void hold(os::fork_locks& locks) noexcept { locks.take(lock_); }

private:
    std::uint64_t add_held(std::size_t bytes) noexcept {
        live_bytes_ += bytes;
        ++live_blocks_;
        peak_bytes_ = live_bytes_ > peak_bytes_ ? live_bytes_ : peak_bytes_;
        peak_blocks_ = live_blocks_ > peak_blocks_ ? live_blocks_ : peak_blocks_;
        total_bytes_ += bytes;
        ++by_size_[static_cast<std::size_t>(std::bit_width(bytes - (bytes != 0 ? 1 : 0)))];
        return ++allocations_;
    }

    os::brief_lock lock_;
    std::uint64_t live_bytes_ = 0;
    std::uint64_t live_blocks_ = 0;
    std::uint64_t peak_bytes_ = 0;
    std::uint64_t peak_blocks_ = 0;
    std::uint64_t allocations_ = 0;
    std::uint64_t total_bytes_ = 0;
    std::uint64_t failed_ = 0;
    std::uint64_t pending_bytes_ = 0;
    std::uint64_t pending_blocks_ = 0;
    std::array<std::uint64_t, 65> by_size_{};
};

}  // namespace pmr_debug::detail
