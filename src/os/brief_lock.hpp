#pragma once

// A lock for a few instructions, floor 0. Unlike spin_lock it may not be held across a system call: a waiter spins,
// then yields. In return it unlocks with a plain store, and costs no atomic exchange while the process has one thread.

#include <atomic>

#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#define PMR_DEBUG_HAS_SINGLE_THREADED 1
#endif

namespace pmr_debug::os {

/// True only if the calling thread is the only one of the process. May be false without need.
[[nodiscard]] inline bool single_threaded() noexcept {
#ifdef PMR_DEBUG_HAS_SINGLE_THREADED
    return __libc_single_threaded != 0;
#else
    return false;
#endif
}

/// Zeroed memory is an unlocked one. Not recursive.
class brief_lock {
public:
    void lock() noexcept {
        // No other thread can hold it, and a thread started later sees everything this one wrote before.
        if (single_threaded()) {
            held_.store(true, std::memory_order_relaxed);
        } else if (held_.exchange(true, std::memory_order_acquire)) {
            wait();
        }
    }
    [[nodiscard]] bool try_lock() noexcept { return !held_.exchange(true, std::memory_order_acquire); }
    void unlock() noexcept { held_.store(false, std::memory_order_release); }

private:
    void wait() noexcept;

    std::atomic<bool> held_{false};
};

/// Holds a lock for a scope if the shape of the code needs one.
template <bool Locked>
class brief_hold {
public:
    explicit brief_hold(brief_lock& lock) noexcept : lock_(lock) {
        if constexpr (Locked) {
            lock_.lock();
        }
    }
    ~brief_hold() {
        if constexpr (Locked) {
            lock_.unlock();
        }
    }
    brief_hold(const brief_hold&) = delete;
    brief_hold& operator=(const brief_hold&) = delete;

private:
    brief_lock& lock_;
};

}  // namespace pmr_debug::os
