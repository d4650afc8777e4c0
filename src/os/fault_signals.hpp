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
    bool unmapped = false;     ///< nothing was mapped at the address
    bool has_address = false;  ///< false: the processor does not say, as for an address that cannot exist
    std::uintptr_t address = 0;
    fault_access access = fault_access::unknown;
    interruption where;
};

/// Who is told of faults. Both are called in the thread that faulted, in the signal handler, on a stack with room
/// (spare_stack.hpp), and may fault themselves: then they are left.
struct fault_listener {
    /// Returns: true if the address is one that nobody else has an answer to. Any threads at once.
    bool (*knows)(const fault& f, void* context) noexcept = nullptr;
    /// Tells; one thread at a time. Returns: false if there was nothing to tell, as may be with a thread that aborted.
    bool (*tell)(const fault& f, void* context) noexcept = nullptr;
    void* context = nullptr;
};

/// Effects: \p listener is told of faults from now on. What becomes of one:
///   - Where no handler was installed before this one: it is told of, then the process ends by that signal, with the
///     registers of the faulting instruction and the signal's own information, whatever was mapped or made accessible
///     meanwhile.
///   - A handler of before comes first, unless the listener knows the address: programs resolve faults of their own.
///     If it resolves the fault (the page gives access, or the thread goes on elsewhere), nothing is told. If it gives
///     up (the default action is in place when it returns, and maybe the signal was sent anew), or the same instruction
///     is refused again and again, the fault is told of. It is called with the signal's information on the signal's
///     stack, and this one stays in place.
///   - A handler that was installed later and passes the fault on has it told of. If the instruction faults once more,
///     and no handler of before is left, the process ends by the signal.
///   - Told of once: the same instruction at the same address in the same thread is not told of twice in a row, by
///     several copies of this library neither.
///   - A handler of before whose code was unloaded is none.
///   Other threads that fault while one is told of wait, some seconds at most, and then have theirs told of.
///   Threads that are numbered from now on (see this_thread) get a signal stack of their own, and so does the caller.
///   A signal that another process or thread sent is no fault, and goes to the action of before. An abort goes there,
///   too, once it was told of.
/// Returns: false, nothing changed, if this is in effect already, or the system refuses.
bool install_fault_signals(const fault_listener& listener) noexcept;

/// True from install_fault_signals() to remove_fault_signals().
[[nodiscard]] bool faults_are_told() noexcept;

/// Effects: puts the actions of before in place again, where nobody else has changed them since. A later handler of
/// another copy of this library calls them next, in place of ours.
void remove_fault_signals() noexcept;

/// Effects: gives the calling thread a signal stack until it ends, unless it has one that the kernel can enter a signal
///   handler on. A fault in a thread that has none begins on its usual stack, which is not possible when that is used
///   up.
/// Returns: false if the system refuses.
bool prepare_fault_stack() noexcept;

/// True in the thread that tells of a fault just now. Locks may then be held by code that never goes on.
[[nodiscard]] bool telling_fault() noexcept;

/// Effects: calls \p step; if that faults, comes back at once. Only while install_fault_signals() is in effect.
/// Returns: false if it faulted. Destructors of what \p step left unfinished are not called.
bool survives(void (*step)(void* context), void* context) noexcept;

}  // namespace pmr_debug::os
