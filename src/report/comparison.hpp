#pragma once

// The last time that two different resources were compared, floor 3. The standard library compares the resources of two
// containers before it moves nodes from one to the other, and calls abort if they differ: so an abort can be explained.

#include "os/fault_signals.hpp"
#include "stack/capture.hpp"

#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>

#include <cstdint>
#include <memory_resource>

namespace pmr_debug::detail {

/// Effects: notes that this thread found two resources to be different, at \p here.
void note_unequal(const void* asked, const void* other, trace_id here) noexcept;

/// Returns: what do_is_equal of a resource without equals returns. Notes the comparison if a fault handler is there.
[[nodiscard, gnu::always_inline]] inline bool is_same(const std::pmr::memory_resource* asked,
                                                      const std::pmr::memory_resource& other) noexcept {
    if (asked != &other && os::faults_are_told()) {
        // More frames than a thread's recent traces have: there is nothing to look up.
        const auto frame = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
        note_unequal(asked, &other, stack::capture_walking(max_frames, frame));
    }
    return asked == &other;
}

/// True if this thread ever found two resources to be different, so that an abort may be explained at all.
[[nodiscard]] bool has_found_unequal() noexcept;

/// Effects: if \p aborted leads from libstdc++'s check of equal allocators to abort, and the resources that this thread
///   compared last were compared there, makes \p r the report of that. Returns: false if not. For signal handlers.
[[nodiscard]] bool explain_abort(trace_id aborted, report& r) noexcept;

}  // namespace pmr_debug::detail
