#pragma once

// A lock for the report path, floor 3.

#include "os/thread.hpp"

namespace pmr_debug::detail {

/// Knows its holder, so a handler that ends up in itself can tell, and gives up waiting after some seconds, because a
/// report must not hang the program: after a fork, the holder may not exist.
class owned_lock {
public:
    using outcome = os::lock_outcome;
    /// Effects: waits at most \p longest_ms milliseconds, roughly.
    [[nodiscard]] outcome lock(int longest_ms = 10'000) noexcept;
    /// Preconditions: lock() returned outcome::locked.
    void unlock() noexcept;

private:
    os::spin_lock lock_;
};

/// Locks for a scope; unlocks only what it locked.
class owned_guard {
public:
    explicit owned_guard(owned_lock& lock) noexcept : lock_(lock), outcome_(lock.lock()) {}
    owned_guard(const owned_guard&) = delete;
    owned_guard& operator=(const owned_guard&) = delete;
    ~owned_guard() {
        if (has_lock()) {
            lock_.unlock();
        }
    }
    [[nodiscard]] bool has_lock() const noexcept { return outcome_ == owned_lock::outcome::locked; }

private:
    owned_lock& lock_;
    owned_lock::outcome outcome_;
};

}  // namespace pmr_debug::detail
