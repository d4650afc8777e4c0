#pragma once

// Stacks of the library's own, floor 0: a report needs more than a small thread, a fiber or a signal stack may have
// left, and where those end is not always known.

#include <cstddef>

namespace pmr_debug::os {

/// Bytes that a step on a spare stack has, at least. Pages that nobody touches take no memory.
inline constexpr std::size_t spare_stack_room = std::size_t{512} << 10;

/// Effects: calls \p step on a stack with that much room, with a guard page at its end; on the present one if that is
///   such a stack already, with a quarter of it left. An alternate signal stack, if the caller runs on one, is set
///   aside meanwhile: a signal that comes then must not begin at its top again.
/// Under AddressSanitizer and ThreadSanitizer the present stack it is: they know the bounds of each thread's stack,
/// take any other for an error, and give every thread 128 KiB at least. Returns: false, nothing called, if the system
/// has no memory for a stack. For signal handlers. Allocates nothing, takes no lock, uses less than 512 bytes of the
/// present stack.
bool on_spare_stack(void (*step)(void* context), void* context) noexcept;

/// Effects: as above; calls \p step on the present stack if there is no other.
inline void with_room(void (*step)(void* context), void* context) noexcept {
    if (!on_spare_stack(step, context)) {
        step(context);
    }
}

/// Effects: makes one stack now, so that the next on_spare_stack() needs no system call for it. Returns: false if the
/// system refuses.
bool prepare_spare_stack() noexcept;

/// Effects: gives those back that nobody uses, as the library is unloaded.
void give_back_spare_stacks() noexcept;

}  // namespace pmr_debug::os
