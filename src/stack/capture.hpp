#pragma once

// Capture, floor 2: what resources call on every allocation and free.

#include <pmr_debug/stack_trace.hpp>

#include <cstdint>

namespace pmr_debug::stack {

/// Effects: captures the calling thread's stack, at most \p frames deep (clamped to `max_frames`), and interns it. The
///   trace begins with the return address of the function whose frame address is \p frame_pointer, which must be a
///   caller of this function, or the function that ends with this call.
/// Returns: as capture_trace().
/// Thread safety: any thread, no lock, no allocation; safe in a signal handler.
[[nodiscard]] trace_id capture(unsigned frames, std::uintptr_t frame_pointer) noexcept;

/// As capture(), for use in an entry of the library: the trace begins with the caller of the function this stands in.
[[nodiscard, gnu::always_inline]] inline trace_id capture_from_caller(unsigned frames) noexcept {
    // Asking for its frame address makes a function keep a frame pointer, whatever the compiler's options.
    return capture(frames, reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)));
}

}  // namespace pmr_debug::stack
