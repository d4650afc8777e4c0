#pragma once

// The functions of an ELF file on disk, floor 0.

#include <cstdint>

namespace pmr_debug::os {

/// A function as its file has it: [start, start + bytes) in the file's own addresses.
struct elf_function {
    std::uintptr_t start = 0;
    std::uintptr_t bytes = 0;
    const char* name = "";  ///< mangled; valid during the call only
};

/// Calls \p visit(function, context) for each function in the symbol table of the file at \p path, in no order. Maps
/// the table for as long. Takes no lock, allocates nothing; safe in a signal handler. Time: linear in the symbols.
/// Returns: false if it has no symbol table but the dynamic one, or cannot be read.
bool for_each_function(const char* path, void (*visit)(const elf_function&, void*) noexcept, void* context) noexcept;

}  // namespace pmr_debug::os
