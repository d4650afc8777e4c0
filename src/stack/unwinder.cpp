#include "stack/unwinder.hpp"

#include "os/start_code.hpp"

#include <unwind.h>

namespace pmr_debug::stack {

namespace {

struct request {
    walk& result;
    std::uintptr_t first_cfa;
    unsigned most;
};

_Unwind_Reason_Code step(_Unwind_Context* context, void* argument) {
    const request& r = *static_cast<request*>(argument);
    walk& w = r.result;
    int before_instruction = 0;
    const std::uintptr_t pc = _Unwind_GetIPInfo(context, &before_instruction);
    if (pc == 0) {  // the outermost frame has been passed
        w.end = walk_end::outermost;
        return _URC_END_OF_STACK;
    }
    // This frame's stack pointer at the call; those of the library's inner frames lie below.
    const std::uintptr_t cfa = _Unwind_GetCFA(context);
    if (w.depth == 0 && cfa < r.first_cfa) {
        return _URC_NO_REASON;
    }
    if (w.depth == r.most) {
        w.end = walk_end::depth;
        return _URC_END_OF_STACK;
    }
    w.frames[w.depth] = before_instruction != 0 ? pc + 1 : pc;
    w.slots[w.depth] = cfa - sizeof(void*);
    ++w.depth;
    return _URC_NO_REASON;
}

}  // namespace

void unwind(std::uintptr_t frame_pointer, unsigned most, walk& w) noexcept {
    w.depth = 0;
    w.end = walk_end::no_rules;  // unless told otherwise on the way
    // A frame is {saved frame pointer, return address}; above that is its caller's stack pointer at the call.
    request r{w, frame_pointer + 2 * sizeof(void*), most};
    _Unwind_Backtrace(step, &r);
    // In some static programs the entry point has no rules, but it needs none. LLVM's unwinder does not tell the end of
    // the stack from the lack of rules: the C library has rules all over, so there it is the end.
    if (w.end == walk_end::no_rules && w.depth != 0 && os::is_start_code(w.frames[w.depth - 1])) {
        w.end = walk_end::outermost;
    }
}

}  // namespace pmr_debug::stack
