#pragma once

// Capture, floor 2: what resources call on every allocation and free.

#include <pmr_debug/stack_trace.hpp>

#include "stack/recent.hpp"

#include <cstdint>

namespace pmr_debug::stack {

/// capture(), the whole of it.
[[nodiscard]] trace_id capture_walking(unsigned frames, std::uintptr_t frame_pointer) noexcept;

/// Effects: captures the calling thread's stack as capture_trace() does, and interns it. The
///   trace begins with the return address of the function whose frame address is \p frame_pointer, which must be a
///   caller of this function, or the function that ends with this call.
/// Returns: as capture_trace().
/// Thread safety: any thread, no lock, no allocation; safe in a signal handler.
[[nodiscard]] inline trace_id capture(unsigned frames, std::uintptr_t frame_pointer) noexcept {
    if (const recent_traces* const recent = this_recent(); recent != nullptr) [[likely]] {
        if (const trace_id id = recent->find(frame_pointer, frames); id != trace_id::none) [[likely]] {
            return id;
        }
    }
    return capture_walking(frames, frame_pointer);
}

/// As capture(), for use in an entry of the library: the trace begins with the caller of the function this stands in.
[[nodiscard, gnu::always_inline]] inline trace_id capture_from_caller(unsigned frames) noexcept {
    // Asking for its frame address makes a function keep a frame pointer, whatever the compiler's options.
    return capture(frames, reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)));
}

}  // namespace pmr_debug::stack
