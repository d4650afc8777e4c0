#include <pmr_debug/fault_handler.hpp>

#include "metadata/registry.hpp"
#include "os/fault_signals.hpp"
#include "os/output.hpp"
#include "os/stack_bounds.hpp"
#include "os/thread.hpp"
#include "report/comparison.hpp"
#include "report/text.hpp"
#include "stack/interrupted.hpp"

#include <cstddef>
#include <cstdint>

namespace pmr_debug {

namespace {

constexpr int standard_error = 2;

/// Objects behind a null pointer are smaller.
constexpr std::uintptr_t first_page_of_anything = 0x1'0000;
/// How far below the stack pointer a function may write before it moves it, generously.
constexpr std::uintptr_t below_stack = 0x1'0000;

/// A fault on its way to a report.
struct finding {
    const os::fault& fault;
    const fault_handler_options& options;
    report result;
};

access_kind access_of(os::fault_access access) noexcept {
    switch (access) {
        case os::fault_access::read: return access_kind::read;
        case os::fault_access::write: return access_kind::write;
        case os::fault_access::execute: return access_kind::execute;
        case os::fault_access::unknown: break;
    }
    return access_kind::unknown;
}

/// Everything between the stack pointer and the stack's high end is stack, so it faults only when there is no more.
bool is_stack_overflow(const os::fault& f) noexcept {
    const std::uintptr_t sp = f.where.stack_pointer;
    const os::stack_bounds stack = os::this_stack(sp);
    const bool known = stack.high > 1;
    const std::uintptr_t end = known ? stack.high : sp + below_stack;
    const bool on_stack = sp < end && (!known || sp >= stack.low || stack.low - sp < below_stack);
    return on_stack && f.address >= sp - below_stack && f.address < end;
}

/// Whether a register holds nothing but \p fill, or nearly so: an offset from such a pointer.
bool has_pointer_of(unsigned char fill, const os::fault& f) noexcept {
    constexpr std::uintptr_t ones = 0x0101'0101'0101'0101;
    for (const std::uintptr_t value : f.where.registers) {
        if ((value ^ ones * fill) >> 16 == 0) {
            return true;
        }
    }
    return false;
}

void explain_address(const os::fault& f, report& r) noexcept {
    r.kind = error_kind::fault;
    if (!f.has_address && has_pointer_of(0xDD, f)) {
        r.fault_cause = "a pointer that was itself read from freed memory, 0xdddd…";
        r.hint = "the object that holds the pointer was freed before";
    } else if (!f.has_address && has_pointer_of(0xAA, f)) {
        r.fault_cause = "a pointer that was itself read from memory never written, 0xaaaa…";
        r.hint = "the object that holds the pointer was not initialised";
    } else if (!f.has_address) {
        r.fault_cause = "an address that cannot exist";
        r.hint = "the pointer was overwritten, or never initialised";
    } else if (f.address < first_page_of_anything) {
        r.fault_cause = "a null pointer, not memory of any pmr_debug resource";
        r.hint = "a member of an object at a null pointer has its offset as address";
    } else if (is_stack_overflow(f)) {
        r.fault_cause = "the thread's stack is used up";
        r.hint = "look for endless recursion, or a large local array";
    } else if (f.bus_error) {
        r.fault_cause = "mapped, but without memory behind it; not memory of any pmr_debug resource";
        r.hint = "a mapped file was cut, or the system ran out of memory";
    } else {
        r.fault_cause = "not memory of any pmr_debug resource";
    }
}

void explain_finding(const metadata::address_finding& found, report& r) noexcept {
    using what = metadata::address_finding::what;
    r.block = found.block;
    r.allocated = found.allocated;
    r.freed = found.freed;
    switch (found.is) {
        case what::freed_block: r.kind = error_kind::use_after_free; break;
        case what::retired_unit:
            r.kind = error_kind::use_after_free;
            if (found.block.address == nullptr) {
                r.hint = "all blocks that were here are freed; what was known of them was given up";
            } else {
                r.nearest_only = true;
            }
            break;
        case what::guard_after: r.kind = error_kind::overrun; break;
        case what::guard_before: r.kind = error_kind::underrun; break;
        case what::live_block:
            r.kind = error_kind::fault;
            r.fault_cause = "in a live block, whose pages refuse it";
            r.hint = "somebody changed the protection of these pages";
            break;
        case what::never_used:
        case what::unknown:
            r.kind = error_kind::fault;
            r.fault_cause = "memory of the resource that was never handed out";
            r.nearest_only = true;
            break;
    }
}

void classify(void* context) {
    finding& f = *static_cast<finding*>(context);
    metadata::address_finding found;
    const resource_ref owner = f.fault.has_address ? metadata::find_at(f.fault.address, &found) : resource_ref{};
    if (owner.id == 0) {
        explain_address(f.fault, f.result);
    } else {
        f.result.resource = owner;
        explain_finding(found, f.result);
    }
}

void hand_over(void* context) {
    finding& f = *static_cast<finding*>(context);
    text_handler text;
    (f.options.handler != nullptr ? *f.options.handler : text).handle(f.result);
}

void write_raw(void* context) {
    const finding& f = *static_cast<finding*>(context);
    detail::write_text(
        f.result, {}, detail::symbols::raw,
        [](std::string_view piece, void*) noexcept { os::write_all(standard_error, piece.data(), piece.size()); },
        nullptr);
}

void classify_abort(void* context) {
    finding& f = *static_cast<finding*>(context);
    if (!detail::explain_abort(f.result.here, f.result)) {
        f.result.here = trace_id::none;
    }
}

bool tell_abort(finding& found) noexcept {
    if (!detail::has_found_unequal()) {
        return false;
    }
    report& r = found.result;
    r.thread = os::this_thread().number;
    r.here = stack::capture_interrupted(found.fault.where, max_frames);
    if (!os::survives(classify_abort, &found) || r.here == trace_id::none) {
        return false;
    }
    if (!os::survives(hand_over, &found)) {
        os::survives(write_raw, &found);
    }
    return true;
}

bool tell(const os::fault& f, void* context) noexcept {
    finding found{f, *static_cast<const fault_handler_options*>(context), {}};
    if (f.aborted) {
        return tell_abort(found);
    }
    report& r = found.result;
    r.kind = error_kind::fault;
    r.faulted = true;
    r.pointer = reinterpret_cast<const void*>(f.address);
    r.access = access_of(f.access);
    r.thread = os::this_thread().number;
    // Each step may itself fault, on records that the program has overwritten. The next one tells what is known by
    // then.
    if (!os::survives(classify, &found)) {
        r.fault_cause = "the records about this address are damaged";
    }
    r.here = stack::capture_interrupted(f.where, found.options.frames);
    if (!os::survives(hand_over, &found)) {
        os::survives(write_raw, &found);
    }
    return true;
}

}  // namespace

fault_handler::fault_handler(const fault_handler_options& o) noexcept
    : options_(o), installed_(os::install_fault_signals(tell, &options_)) {}

fault_handler::~fault_handler() {
    if (installed_) {
        os::remove_fault_signals();
    }
}

bool fault_handler::prepare_thread() noexcept {
    return os::prepare_fault_stack();
}

}  // namespace pmr_debug
