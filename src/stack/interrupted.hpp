#pragma once

// Traces of a thread that a signal interrupted, floor 2.

#include <pmr_debug/stack_trace.hpp>

#include "os/fault_signals.hpp"

namespace pmr_debug::stack {

/// Effects: captures the calling thread's stack, from the interrupted instruction outwards, at most \p frames deep
///   (clamped to `max_frames`). To be called in the signal handler. Where the instruction lies in no code, as after a
///   call through a bad pointer, its caller comes from the stack. Takes no lock, allocates nothing, survives stacks
///   that were overwritten.
/// Returns: as capture_trace(). Like a return address, the first one lies behind the instruction it stands for.
[[nodiscard]] trace_id capture_interrupted(const os::interruption& where, unsigned frames) noexcept;

}  // namespace pmr_debug::stack
