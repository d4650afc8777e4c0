#include "stack/interrupted.hpp"

#include <pmr_debug/policy.hpp>

#include "os/stack_bounds.hpp"
#include "os/start_code.hpp"
#include "stack/depot.hpp"
#include "stack/ending.hpp"

#include <unwind.h>

#include <algorithm>
#include <cstdint>

namespace pmr_debug::stack {

namespace {

struct walk_from {
    const os::interruption& where;
    std::uintptr_t frames[max_frames + 1];
    unsigned depth;
    unsigned most;
    bool whole;
};

_Unwind_Reason_Code step(_Unwind_Context* context, void* argument) {
    walk_from& w = *static_cast<walk_from*>(argument);
    int before_instruction = 0;
    const std::uintptr_t pc = _Unwind_GetIPInfo(context, &before_instruction);
    if (pc == 0) {
        w.whole = true;
        return _URC_END_OF_STACK;
    }
    // The handler's own frames come first, then the one that the kernel made, then the interrupted one.
    if (w.depth == 0 && (before_instruction == 0 || pc != w.where.instruction)) {
        return _URC_NO_REASON;
    }
    if (w.depth == w.most) {
        return _URC_END_OF_STACK;
    }
    w.frames[w.depth] = before_instruction != 0 ? pc + 1 : pc;
    ++w.depth;
    return _URC_NO_REASON;
}

void walk_by_rules(void* context) {
    _Unwind_Backtrace(step, context);
}

// A call pushed the return address and did nothing else, so the frame pointer is still the caller's.
[[gnu::no_sanitize_address, gnu::no_sanitize_thread]] void walk_by_pointers(void* context) {
    walk_from& w = *static_cast<walk_from*>(context);
    const os::stack_bounds stack = os::this_stack(w.where.stack_pointer);
    const std::uintptr_t last = stack.high - 2 * sizeof(std::uintptr_t);
    const auto is_frame = [&](std::uintptr_t at) {
        return at >= stack.low && at <= last && at % sizeof(std::uintptr_t) == 0;
    };
    w.frames[0] = w.where.instruction + 1;
    w.depth = 1;
    if (!is_frame(w.where.stack_pointer)) {
        return;
    }
    w.frames[w.depth++] = *reinterpret_cast<const std::uintptr_t*>(w.where.stack_pointer);
    for (std::uintptr_t at = w.where.frame_pointer; is_frame(at) && w.depth < w.most;) {
        const auto* const words = reinterpret_cast<const std::uintptr_t*>(at);
        w.frames[w.depth++] = words[1];
        if (words[0] <= at) {
            break;
        }
        at = words[0];
    }
}

}  // namespace

trace_id capture_interrupted(const os::interruption& where, unsigned frames) noexcept {
    if (frames == 0) {
        return trace_id::none;
    }
    walk_from w{where, {}, 0, std::clamp(frames, 2U, max_frames), false};
    bool by_rules = os::survives(walk_by_rules, &w) && w.depth > 1;
    if (!by_rules) {
        w.depth = 0;
        w.whole = false;
        os::survives(walk_by_pointers, &w);
    }
    while (w.depth > 1 && os::is_start_code(w.frames[w.depth - 1]) && !is_end_code(w.frames[w.depth - 1])) {
        --w.depth;
    }
    if (w.depth == 0) {
        w.frames[w.depth++] = where.instruction + 1;
    }
    const std::uint8_t ending = w.depth == w.most ? ends_at_depth : w.whole ? std::uint8_t{0} : ends_cut_short;
    const std::uint32_t id = intern(hash_chain(w.frames, w.depth, ending), w.frames, w.depth, ending);
    if (id == 0) {
        count_lost();
        return trace_id::none;
    }
    return hand_out(id);
}

}  // namespace pmr_debug::stack
