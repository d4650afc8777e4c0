#pragma once

// Whether a call path is part of the end of the program, or of a thread, floor 2.

#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <cstdint>

namespace pmr_debug::stack {

/// Returns: program_phase::exit if \p id leads through the C library's exit, thread_end if it leads through what
/// destroys
///   a thread's thread_local objects, else running. Asks the loader nothing: where those functions lie was noted when
///   the library was loaded. A trace that is too short to reach them says running.
[[nodiscard]] program_phase phase_of(trace_id id) noexcept;

/// True if the call that returns to \p address is one of those that phase_of() looks for. They lie in the C library, as
/// what comes before main does, but tell something.
[[nodiscard]] bool is_end_code(std::uintptr_t address) noexcept;

}  // namespace pmr_debug::stack
