#pragma once

// What happens where a thread meets a lock that it holds itself, floor 0: a signal handler ran in the middle of the
// library's work, and calls the library. To wait would be for ever.

#include <cstdint>

namespace pmr_debug::os {

enum class lock_outcome : std::uint8_t {
    locked,
    mine_already,  ///< the calling thread holds it: we are below ourselves on the stack
    gave_up,       ///< another thread held it all the time
};

/// Effects: says that the library was called from within itself, and ends the process. What the interrupted call was
/// changing is half done, so that neither an allocation nor a deallocation could be carried out.
[[noreturn]] void end_in_own_lock() noexcept;

/// Effects: \p tell says it in place of a plain line, once.
void tell_own_lock(void (*tell)() noexcept) noexcept;

/// A look at what a lock guards, for calls that a signal handler may make: statistics, for example. Waits for other
/// threads, a second at most, as one of them may be waiting for what this thread held when it was interrupted.
template <class Lock>
class look {
public:
    explicit look(Lock& lock) noexcept : lock_(lock), held_(lock.lock_for(1'000) == lock_outcome::locked) {}
    look(const look&) = delete;
    look& operator=(const look&) = delete;
    ~look() {
        if (held_) {
            lock_.unlock();
        }
    }
    /// False: what is seen may be half changed. Numbers may be read, links may not be followed.
    [[nodiscard]] bool is_whole() const noexcept { return held_; }

private:
    Lock& lock_;
    bool held_;
};

}  // namespace pmr_debug::os
