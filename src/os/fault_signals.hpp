#pragma once

// SIGSEGV, SIGBUS and SIGABRT, floor 0: who is told of a fault, on which stack, and what becomes of the process
// afterwards.

#include <cstdint>

namespace pmr_debug::os {

enum class fault_access : std::uint8_t { unknown, read, write, execute };

/// Where a thread was when a signal interrupted it.
struct interruption {
    std::uintptr_t instruction = 0;
    std::uintptr_t stack_pointer = 0;
    std::uintptr_t frame_pointer = 0;
    std::uintptr_t registers[16]{};  ///< the general ones, in no order to rely on
};

struct fault {
    bool aborted = false;      ///< no access at all: the thread called abort
    bool bus_error = false;    ///< SIGBUS: there is a mapping, but no memory behind it
    bool has_address = false;  ///< false: the processor does not say, as for an address that cannot exist
    std::uintptr_t address = 0;
    fault_access access = fault_access::unknown;
    interruption where;
};

/// Told of a fault, in the thread that faulted, in the signal handler. Returns: false if there was nothing to tell, as
/// may be with a thread that aborted.
using fault_function = bool (*)(const fault& f, void* context) noexcept;

/// Effects: \p tell is called at the first fault of the process from now on. Then the actions of before are in place
///   again, and the faulting instruction is executed again: whoever handled faults before gets this one, or the process
///   ends, and a core dump shows the instruction. Other threads that fault meanwhile wait, some seconds at most.
///   Threads that are numbered from now on (see this_thread) get a signal stack of their own, and so does the caller.
///   A signal that another process or thread sent is no fault, and goes to the action of before. An abort goes there,
///   too, once it was told of.
/// Returns: false, nothing changed, if this is in effect already, or the system refuses.
bool install_fault_signals(fault_function tell, void* context) noexcept;

/// True from install_fault_signals() to remove_fault_signals().
[[nodiscard]] bool faults_are_told() noexcept;

/// Effects: puts the actions of before in place again, where nobody else has changed them since.
void remove_fault_signals() noexcept;

/// Effects: gives the calling thread a signal stack until it ends, unless it has one. A fault in a thread that has none
///   is told on its usual stack, which is not possible when that is used up.
/// Returns: false if the system refuses.
bool prepare_fault_stack() noexcept;

/// True in the thread that tells of a fault just now. Locks may then be held by code that never goes on.
[[nodiscard]] bool telling_fault() noexcept;

/// Effects: calls \p step; if that faults, comes back at once. Only while install_fault_signals() is in effect.
/// Returns: false if it faulted. Destructors of what \p step left unfinished are not called.
bool survives(void (*step)(void* context), void* context) noexcept;

}  // namespace pmr_debug::os
