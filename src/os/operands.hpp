#pragma once

// What an instruction that faulted was given, floor 0: registers hold much else, so only those that it made its address
// from say anything about the fault.

#include "os/fault_signals.hpp"

#include <cstdint>

namespace pmr_debug::os {

/// Pointers that an instruction uses.
struct operands {
    std::uintptr_t values[4]{};
    unsigned count = 0;
};

/// Effects: \p found gets the base and index registers of the memory operand, implicit ones of string instructions too;
/// for a jump, a call or a return the target; of a processor that is not known, or an instruction that is not, none.
/// Reads code, and what a call or a return reads: may fault, see survives(); \p found then holds what came before.
void pointers_used(const interruption& where, operands& found) noexcept;

}  // namespace pmr_debug::os
