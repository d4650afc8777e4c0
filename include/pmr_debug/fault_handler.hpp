#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Explains segmentation faults and bus errors: what lies at the address, and what happened to it.
///
/// \code
///   int main() {
///       pmr_debug::fault_handler explain_faults;
///       …
///   }
/// \endcode
///
/// With a resource that makes freed or neighbouring memory inaccessible (`general_purpose_resource` on `page_resource`,
/// `end_of_page_resource`), an access behind the end faults at the very instruction, and so does one after the free
/// once the block is trapped: docs/faults.md says when. Without this handler the program just dies there. With it, a
/// report comes first: which block it was, how far off, read or written, by which call path, and where the block was
/// allocated and freed.
///
///     instruction faults ──> report ──> previous handler or default action, at the same instruction
///
/// So a core dump, a debugger, or a test framework sees the fault as if there had been no handler. Where the address is
/// not certainly freed memory or a guard, a previous handler comes first: programs resolve faults of their own, such as
/// a collector's write barrier, and those are no errors.

#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>

namespace pmr_debug {

struct fault_handler_options {
    /// Who gets the report; null: text on standard error. Called in a signal handler, on a stack of the library's:
    /// `text_handler` and `json_handler` are made for it; one of your own must not allocate, and take no lock that the
    /// program may hold. What it answers makes no difference.
    report_handler* handler = nullptr;
    /// Frames of the faulting call path, 2 to `max_frames`.
    unsigned frames = max_frames;
};

/// Effects: from construction to destruction, a SIGSEGV or SIGBUS that an instruction caused is reported, and then the
///   process ends by that signal, as if the instruction had just faulted, whatever was mapped meanwhile.
///   - With a handler from before: it is called after the report of an access to freed memory or a guard, but before
///     that of any other; if it resolves the fault, or jumps away, there is no report, and the program goes on. This
///     one stays in place. If it puts the default action in place instead, the report follows.
///   - A handler installed later may pass on what it does not resolve: that is reported once.
///   One fault_handler at a time: a second one does nothing. A call of abort goes on to the action of before, and is
///   reported only if it is libstdc++'s answer to containers on different resources, which it gives without a word. It
///   is known by its name, so the program needs debug information, or no optimisation; and the resource asked must be
///   one of this library.
/// Reports:
///   - wrong_resource: nodes were to go to a container on another resource (`std::list::splice`, `merge`), see above;
///   - use_after_free: in a freed block, or in retired memory of a resource;
///   - overrun, underrun: in the guard behind or before a block;
///   - fault: anything else, with what is known: a null pointer, a stack overflow, a pointer that was itself read from
///     freed memory, a live block whose pages refuse the access, or memory of no resource.
///   - destroyed_resource: in the object of a resource that was destroyed, and whose memory is gone.
/// Where several threads fault at once, the first is reported; the others wait until it has met its end, some seconds
/// at most. Allocates nothing from the program, needs no lock of the program, and tells what it can when its own
/// records are damaged. Not together with ThreadSanitizer or AddressSanitizer, which catch these signals themselves.
class fault_handler {
public:
    fault_handler() noexcept : fault_handler(fault_handler_options{}) {}
    /// Effects: as above. The calling thread gets a signal stack, and so does each thread that first uses a resource
    ///   from now on.
    explicit fault_handler(const fault_handler_options& o) noexcept;
    fault_handler(const fault_handler&) = delete;
    fault_handler& operator=(const fault_handler&) = delete;
    ~fault_handler();

    /// False if another handler was there before, or the system refused.
    [[nodiscard]] bool installed() const noexcept { return installed_; }

    /// Effects: gives the calling thread a signal stack, if it has none. For threads that use no resource, or did so
    ///   before the handler came. Without one, faults are reported all the same, except for a stack overflow.
    /// Returns: false if the system refuses.
    static bool prepare_thread() noexcept;

private:
    fault_handler_options options_;
    bool installed_ = false;
};

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
