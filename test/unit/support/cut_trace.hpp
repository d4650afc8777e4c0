#pragma once

#include "stack/depot.hpp"

#include <pmr_debug/stack_trace.hpp>

#include <cstdint>

namespace test_support {

/// A trace that ended for lack of unwind information, or as \p ending says, straight from the depot.
/// Preconditions: a trace was captured before, so the depot is open.
inline pmr_debug::trace_id cut_trace(std::uint8_t ending = pmr_debug::stack::ends_cut_short) {
    namespace stack = pmr_debug::stack;
    const std::uintptr_t frames[] = {0x1000, 0x2000};
    return stack::hand_out(stack::intern(stack::hash_chain(frames, 2, ending), frames, 2, ending));
}

}  // namespace test_support
