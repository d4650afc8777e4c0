#pragma once

// Where the calling thread's stack lies, floor 0: a frame-pointer walk reads nothing outside.

#include <cstdint>

namespace pmr_debug::os {

/// Addresses [low, high) of a thread's own stack. From any frame on it up to `high` everything can be read, for as long
/// as the thread lives. {1, 1}: could not be found out, nothing lies inside. {0, 0}: not yet looked for.
struct stack_bounds {
    std::uintptr_t low = 0;
    std::uintptr_t high = 0;
};

/// A mapping of this process, [low, high); {0, 0} for none.
struct mapping {
    std::uintptr_t low = 0;
    std::uintptr_t high = 0;
    bool executable = false;
};

/// True if the word at \p address, a multiple of its size, can be read now. Keeps errno; one system call.
[[nodiscard]] bool can_read(std::uintptr_t address) noexcept;

/// Returns: the mapping that holds \p address. Keeps errno. Allocates nothing; a few system calls.
[[nodiscard]] mapping find_mapping(std::uintptr_t address) noexcept;

namespace detail {

// initial-exec: one load off the thread register, in shared libraries too, and no allocation at first use.
extern constinit thread_local stack_bounds current_stack __attribute__((tls_model("initial-exec")));
stack_bounds find_stack(std::uintptr_t frame) noexcept;

/// The two ways find_mapping asks the kernel, apart for tests. {0, 0} also where the kernel does not know the way.
mapping query_mapping(std::uintptr_t address) noexcept;
mapping read_mapping(std::uintptr_t address) noexcept;

}  // namespace detail

/// Bounds of the calling thread's stack, looked for once a thread. \p frame is the address of a frame of the caller; it
/// need not lie inside: the caller may run on an alternate signal stack or on a fiber. Allocates nothing, keeps errno.
[[nodiscard]] inline stack_bounds this_stack(std::uintptr_t frame) noexcept {
    const stack_bounds b = detail::current_stack;
    return b.high != 0 ? b : detail::find_stack(frame);
}

}  // namespace pmr_debug::os
