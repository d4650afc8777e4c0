#pragma once

// Locks across a fork, floor 0. In the child only the thread that forked exists, so a lock that another one held would
// stay held for ever, with what it guards half done. So whoever forks takes all locks first, and both processes release
// them. In between the program's own handlers for forks may run, and use resources: the thread in charge passes the
// locks that it holds for the fork, which stay held then.

#include "os/brief_lock.hpp"
#include "os/thread.hpp"

namespace pmr_debug::os {

/// The locks that a fork takes. Outer ones first, in the order in which they are nested elsewhere.
class fork_locks {
public:
    fork_locks(const fork_locks&) = delete;
    fork_locks& operator=(const fork_locks&) = delete;

    /// Effects: waits for \p lock and takes it; lets it be if the calling thread holds it already. If that takes too
    ///   long everything is released, and the process forks without.
    void take(spin_lock& lock) noexcept;
    void take(brief_lock& lock) noexcept;

    /// Effects: what is taken from now on belongs to \p whose. forget(whose): is about to be destroyed with that, and
    ///   will not be released.
    void of(const void* whose) noexcept;
    void forget(const void* whose) noexcept;

    /// For fork_locks.cpp.
    static fork_locks& the_only() noexcept;
    void begin() noexcept;
    void release() noexcept;

private:
    fork_locks() = default;
    bool wait() noexcept;
    template <class Lock>
    void take_any(Lock& lock, bool is_brief) noexcept;
};

/// Effects: from now on \p collect is called before each fork. Only one can be set; later calls change nothing.
void hold_across_fork(void (*collect)(fork_locks& locks) noexcept) noexcept;

}  // namespace pmr_debug::os
