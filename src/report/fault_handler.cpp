#include <pmr_debug/fault_handler.hpp>

#include "metadata/registry.hpp"
#include "os/fault_signals.hpp"
#include "os/operands.hpp"
#include "os/output.hpp"
#include "os/stack_bounds.hpp"
#include "os/thread.hpp"
#include "report/comparison.hpp"
#include "report/copies.hpp"
#include "report/dispatch.hpp"
#include "report/repeats.hpp"
#include "report/text.hpp"
#include "report/wording.hpp"
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

/// Whether \p p is nothing but \p fill, or nearly so: an offset from such a pointer.
bool is_made_of(unsigned char fill, std::uintptr_t p) noexcept {
    constexpr std::uintptr_t ones = 0x0101'0101'0101'0101;
    return (p ^ ones * fill) >> 16 == 0;
}

/// The processor names no address: what the instruction made it from has to tell. Other registers hold what was there
/// before.
void explain_impossible(finding& f) noexcept {
    struct question {
        const os::interruption& where;
        os::operands used;
    } q{f.fault.where, {}};
    os::survives(
        [](void* context) {
            question& mine = *static_cast<question*>(context);
            os::pointers_used(mine.where, mine.used);
        },
        &q);
    report& r = f.result;
    for (unsigned i = 0; i < q.used.count; ++i) {
        if (is_made_of(0xDD, q.used.values[i])) {
            r.fault_cause = "a pointer that was itself read from freed memory, 0xdddd…";
            r.hint = "the object that holds the pointer was freed before";
            return;
        }
        if (is_made_of(0xAA, q.used.values[i])) {
            r.fault_cause = "a pointer that was itself read from memory never written, 0xaaaa…";
            r.hint = "the object that holds the pointer was not initialised";
            return;
        }
    }
    r.fault_cause = "an address that cannot exist";
    r.hint = "the pointer was overwritten, or never initialised";
}

/// A resource whose own object the address lies in. Returns: false if there is none.
bool explain_object(const os::fault& f, report& r) noexcept {
    const resource_ref object = metadata::peek_object_at(f.address);
    // Where something is mapped, the memory of a dead one may be somebody else's since.
    if (object.id == 0 || !f.unmapped) {
        return false;
    }
    r.resource = object;
    if (object.alive) {
        r.fault_cause = "the object of a resource, whose memory is gone though it was not destroyed";
        r.hint = "a resource must be destroyed before its memory goes away, and outlive all that allocates from it";
    } else {
        r.kind = error_kind::destroyed_resource;
    }
    return true;
}

/// A dead resource that had the address. Returns: false if none is known.
bool explain_former(const os::fault& f, report& r) noexcept {
    metadata::owned_block was;
    const resource_ref owner = metadata::peek_former_owner(f.address, &was);
    if (owner.id == 0) {
        return false;
    }
    r.owner = owner;
    r.block = was.block;
    r.allocated = was.allocated;
    r.fault_cause = f.unmapped ? "memory that a resource had which is destroyed"
                               : "memory that a resource had which is destroyed, unless it is somebody else's since";
    r.hint = "the resource must outlive all that allocates from it";
    return true;
}

void explain_address(finding& found) noexcept {
    const os::fault& f = found.fault;
    report& r = found.result;
    r.kind = error_kind::fault;
    if (!f.has_address) {
        explain_impossible(found);
    } else if (f.address < first_page_of_anything) {
        r.fault_cause = "a null pointer, not memory of any pmr_debug resource";
        r.hint = "a member of an object at a null pointer has its offset as address";
    } else if (explain_object(f, r)) {
        return;
    } else if (is_stack_overflow(f)) {
        r.fault_cause = "the thread's stack is used up";
        r.hint = "look for endless recursion, or a large local array";
    } else if (explain_former(f, r)) {
        return;
    } else if (f.bus_error) {
        r.fault_cause = "mapped, but without memory behind it; not memory of any pmr_debug resource";
        r.hint = "a mapped file was cut, or the system ran out of memory";
    } else {
        r.fault_cause = "not memory of any pmr_debug resource";
    }
}

// ---- a resource that is used before it is constructed
// ----------------------------------------------------------------

/// What the frames of a fault near null say.
struct frames_seen {
    std::uintptr_t innermost = 0;   ///< return address; inlined frames share it
    bool calls_a_resource = false;  ///< the innermost is memory_resource's own function
    bool in_library = false;
    bool in_engine = false;    ///< in a function that is given a resource's core, not the resource
    bool before_main = false;  ///< statics are being constructed
};

/// Statics are zero until they are constructed. So there are no virtual functions yet, and the call through them reads
/// close to address 0; or they are not needed, and the resource's core is null.
void look_for_early_use(void* context) {
    finding& f = *static_cast<finding*>(context);
    report& r = f.result;
    frames_seen seen;
    resolve(
        r.here,
        [](const resolved_frame& frame, void* argument) noexcept {
            frames_seen& s = *static_cast<frames_seen*>(argument);
            const std::string_view name = frame.function;
            const auto has = [name](std::string_view part) { return name.find(part) != std::string_view::npos; };
            s.innermost = s.innermost == 0 ? frame.address : s.innermost;
            if (frame.address == s.innermost) {
                // Its functions count as the library's otherwise.
                const bool of_standard = has("pmr::memory_resource::");
                s.in_library = s.in_library || (frame.in_library && !of_standard);
                s.in_engine = s.in_engine || (frame.in_library && !frame.inlined && has("pmr_debug::detail::"));
                s.calls_a_resource = s.calls_a_resource || of_standard;
            }
            s.before_main = s.before_main || has("__static_initialization_and_destruction_") ||
                            has("_GLOBAL__sub_I_") || has("_GLOBAL__I_") || has("__cxx_global_var_init");
        },
        &seen);
    // Of the virtual functions: the destructors have the first two places.
    constexpr std::uintptr_t first_call = 2 * sizeof(void*);
    constexpr std::uintptr_t last_call = 4 * sizeof(void*);
    const bool virtual_call =
        r.access == access_kind::read && f.fault.address >= first_call && f.fault.address <= last_call;
    // In this library's public functions it may be the pointer to the resource that is null.
    const bool null_core =
        seen.in_library && seen.before_main && (seen.in_engine || f.fault.address >= metadata::object_bytes);
    if (!(seen.calls_a_resource && virtual_call) && !null_core) {
        return;
    }
    if (seen.before_main) {
        r.fault_cause = "resource used before its construction, its object is still zero";
        r.hint = detail::hint_of_early_use;
    } else {
        r.fault_cause = "resource that is not constructed, or was overwritten: its object is zero";
        r.hint = "look at where the resource is constructed, and what else writes there";
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
    const bool likely = f.fault.has_address && f.fault.address >= first_page_of_anything;
    resource_ref owner = likely ? detail::find_at_anywhere(f.fault.address, &found) : resource_ref{};
    if (found.gone_back && !f.fault.unmapped) {
        owner = {};  // the memory went back to the upstream, and somebody has mapped it since
    }
    if (owner.id == 0) {
        explain_address(f);
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

/// Freed memory and guards are nobody else's to resolve.
bool knows(const os::fault& f, void* /*context*/) noexcept {
    using what = metadata::address_finding::what;
    metadata::address_finding found;
    if (f.aborted || !f.has_address || f.address < first_page_of_anything) {
        return false;
    }
    if (detail::find_at_anywhere(f.address, &found).id == 0) {
        return f.unmapped && metadata::peek_object_at(f.address).id != 0;
    }
    if (found.gone_back && !f.unmapped) {
        return false;
    }
    return found.is == what::freed_block || found.is == what::retired_unit || found.is == what::guard_after ||
           found.is == what::guard_before;
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
    if (r.kind == error_kind::fault && f.has_address && f.address < first_page_of_anything) {
        os::survives(look_for_early_use, &found);
    }
    os::survives([](void* at) { detail::add_circumstances(static_cast<finding*>(at)->result); }, &found);
    if (!os::survives(hand_over, &found)) {
        os::survives(write_raw, &found);
    }
    os::survives([](void*) { detail::tell_all_repeats(); }, nullptr);  // the process ends soon
    return true;
}

}  // namespace

fault_handler::fault_handler(const fault_handler_options& o) noexcept
    : options_(o), installed_(os::install_fault_signals({.knows = knows, .tell = tell, .context = &options_})) {}

fault_handler::~fault_handler() {
    if (installed_) {
        os::remove_fault_signals();
    }
}

bool fault_handler::prepare_thread() noexcept {
    return os::prepare_fault_stack();
}

}  // namespace pmr_debug
