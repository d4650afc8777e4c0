#include "stack/unwinder.hpp"

#include "os/start_code.hpp"

#include <unwind.h>

extern "C" {
// Of libgcc and LLVM's libunwind, for their own use.
struct dwarf_eh_bases {
    void* text;
    void* data;
    void* function;
};
[[gnu::weak]] const void* _Unwind_Find_FDE(const void* address, dwarf_eh_bases* bases);  // NOLINT(*-naming)
}

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

const void* find_entry(std::uintptr_t address) noexcept {
    dwarf_eh_bases bases{};
    return &_Unwind_Find_FDE != nullptr ? _Unwind_Find_FDE(reinterpret_cast<const void*>(address), &bases) : nullptr;
}

void unwind(std::uintptr_t frame_pointer, unsigned most, walk& w) noexcept {
    w.depth = 0;
    w.end = walk_end::no_rules;  // unless told otherwise on the way
    // At the end of a static program its tables are taken back, and libgcc's unwinder aborts where it has none for
    // its own caller.
    if (&_Unwind_Find_FDE != nullptr && find_entry(reinterpret_cast<std::uintptr_t>(&find_entry) + 1) == nullptr) {
        return;
    }
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
