#pragma once

// A lock for a few instructions, floor 0. Unlike spin_lock it may not be held across a system call: a waiter spins,
// then yields. In return it unlocks with a plain store, and costs no atomic exchange while the process has one thread.

#include "os/own_lock.hpp"

#include <atomic>
#include <cstdint>

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

/// Zeroed memory is an unlocked one. Not recursive, but for the thread that forks, see fork_locks.hpp. It knows its
/// holder by the thread pointer, which costs no more than a flag.
class brief_lock {
public:
    /// Returns: what unlock() is to be given. Ends the process with a message if this thread holds it, see
    /// own_lock.hpp.
    std::uintptr_t lock() noexcept {
        // No other thread can hold it, and a thread started later sees everything this one wrote before.
        if (single_threaded()) [[likely]] {
            if (holder_.load(std::memory_order_relaxed) == 0) [[likely]] {
                holder_.store(the_only_thread, std::memory_order_relaxed);
                return 0;
            }
        } else if (try_lock()) [[likely]] {
            return 0;
        }
        return wait();
    }
    [[nodiscard]] bool try_lock() noexcept {
        std::uintptr_t nobody = 0;
        return holder_.compare_exchange_strong(nobody, self(), std::memory_order_acquire, std::memory_order_relaxed);
    }
    void unlock(std::uintptr_t after = 0) noexcept { holder_.store(after, std::memory_order_release); }

    /// Effects: as lock(), if it is neither this thread's nor taken for longer than \p longest_ms.
    [[nodiscard]] lock_outcome lock_for(int longest_ms) noexcept;
    [[nodiscard]] bool is_mine() const noexcept { return is_me(holder_.load(std::memory_order_relaxed)); }

    /// Effects: a lock that is held becomes one that its holder, who forks, may take again; and is released after that.
    void keep_for_fork() noexcept { holder_.store(self() | for_fork, std::memory_order_relaxed); }
    void end_fork() noexcept { unlock(); }

private:
    // No thread pointer is odd, or as small.
    static constexpr std::uintptr_t for_fork = 1;
    static constexpr std::uintptr_t the_only_thread = 2;

    static bool is_me(std::uintptr_t holder) noexcept {
        return (holder & ~for_fork) == self() || (holder == the_only_thread && single_threaded());
    }
    static std::uintptr_t self() noexcept { return reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer()); }
    std::uintptr_t wait() noexcept;

    std::atomic<std::uintptr_t> holder_{0};
};

/// Holds a lock for a scope if the shape of the code needs one.
template <bool Locked>
class brief_hold {
public:
    explicit brief_hold(brief_lock& lock) noexcept : lock_(lock), after_(lock.lock()) {}
    ~brief_hold() { lock_.unlock(after_); }
    brief_hold(const brief_hold&) = delete;
    brief_hold& operator=(const brief_hold&) = delete;

private:
    brief_lock& lock_;
    std::uintptr_t after_;
};

template <>
class brief_hold<false> {
public:
    explicit brief_hold(brief_lock&) noexcept {}
    ~brief_hold() {}  // NOLINT(modernize-use-equals-default): not trivial, so that it is no unused variable
    brief_hold(const brief_hold&) = delete;
    brief_hold& operator=(const brief_hold&) = delete;
};

}  // namespace pmr_debug::os
