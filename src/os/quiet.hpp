#pragma once

// What the program must not notice of the library's work, floor 0.

#include <cerrno>

namespace pmr_debug::os {

/// Keeps errno over a scope: what a program reads there is not for a deallocation to change, nor for a report.
class errno_keeper {
public:
    errno_keeper() noexcept = default;
    errno_keeper(const errno_keeper&) = delete;
    errno_keeper& operator=(const errno_keeper&) = delete;
    ~errno_keeper() { errno = value_; }

private:
    int value_ = errno;
};

/// The calling thread is not cancelled within a scope. Cancelling unwinds the stack, which ends the process where that
/// meets a function that is noexcept, as deallocations and handlers are. A cancellation that was asked for stays so.
class no_cancellation {
public:
    no_cancellation() noexcept;
    no_cancellation(const no_cancellation&) = delete;
    no_cancellation& operator=(const no_cancellation&) = delete;
    ~no_cancellation();

private:
    int before_;
};

}  // namespace pmr_debug::os
