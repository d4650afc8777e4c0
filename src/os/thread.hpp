#pragma once

// Who is running, floor 0. A thread has two numbers: an index, small and used again after the thread's end, to find
// per-thread state in an array; and a number, given out in order and never again, to name the thread in reports.

#include "os/own_lock.hpp"

#include <atomic>
#include <cstdint>

namespace pmr_debug::os {

/// Threads beyond this many at once share the last index, see is_shared_index.
inline constexpr std::uint32_t max_thread_index = 16'383;

struct thread_numbers {
    std::uint32_t index = 0;   ///< 1-based; 0: not assigned, yet or any more
    std::uint32_t number = 0;  ///< never reused; 1 is the main thread; kept to the thread's very end
};

namespace detail {
// initial-exec: one load off the thread register, in shared libraries too, and no allocation at first use.
extern thread_local thread_numbers current_thread __attribute__((tls_model("initial-exec")));
thread_numbers assign_thread() noexcept;
/// Effects: from now on \p f is called in each thread that gets its numbers, once it has them. Null: nothing is.
void call_on_new_thread(void (*f)() noexcept) noexcept;
}  // namespace detail

/// The calling thread's numbers. Allocates nothing; safe in static constructors and late thread-exit code.
[[nodiscard]] inline thread_numbers this_thread() noexcept {
    const thread_numbers t = detail::current_thread;
    return t.index != 0 ? t : detail::assign_thread();
}

/// True if the thread runs the last destructors of its pthread keys: those that run after this library's own.
[[nodiscard]] bool is_ending() noexcept;

/// Returns: how many threads have numbers and have not ended, the calling one included.
[[nodiscard]] std::uint32_t numbered_threads() noexcept;

/// True if \p index may be held by several threads at once, because more than max_thread_index are running.
[[nodiscard]] constexpr bool is_shared_index(std::uint32_t index) noexcept {
    return index >= max_thread_index;
}

/// A small lock that allocates nothing, may live in zeroed memory, and may be held across system calls. Knows its
/// holder. Not recursive, but for the thread that forks, see fork_locks.hpp.
class spin_lock {
public:
    /// Effects: ends the process with a message if this thread holds it, see own_lock.hpp.
    void lock() noexcept;
    [[nodiscard]] bool try_lock() noexcept;
    void unlock() noexcept;

    /// Effects: as lock(), if it is neither this thread's nor taken for longer than \p longest_ms.
    [[nodiscard]] lock_outcome lock_for(int longest_ms) noexcept;
    [[nodiscard]] bool is_mine() const noexcept;

    /// Effects: a lock that is held becomes one that its holder, who forks, may take again; and is released after that.
    void keep_for_fork() noexcept;
    void end_fork() noexcept;

private:
    [[nodiscard]] static std::uint32_t self() noexcept;

    std::atomic<std::uint32_t> state_{0};  // 0 free, else the holder's number, and bits; see thread.cpp
};

/// Effects: lets the thread sleep. May return early.
void sleep_ms(int ms) noexcept;

/// Returns: the process's number; another one in the child of a fork.
[[nodiscard]] std::int64_t process_number() noexcept;

/// Ends the process the way std::abort does.
[[noreturn]] void abort_process() noexcept;

}  // namespace pmr_debug::os
