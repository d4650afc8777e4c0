#pragma once

// Whose a frame is, floor 2: what a trace has room for is counted in frames of the program.

#include "os/unwind_table.hpp"

#include <cstdint>
#include <string_view>

namespace pmr_debug::stack {

enum class frame_class : std::uint8_t {
    program,
    library,  ///< of the standard library, the C library, or this one
    unknown,  ///< its file has no symbol table
    not_yet,  ///< somebody is reading one right now, perhaps the thread that a signal interrupted
};

/// Returns: the class of the code at \p address, in the file of \p where. Reads the file's symbol table the first time,
/// which takes milliseconds; its ranges of library code stay in private memory. Takes no lock, allocates nothing of the
/// program's; safe in a signal handler.
[[nodiscard]] frame_class class_of(const os::unwind_table& where, std::uintptr_t address) noexcept;

/// True if a function of this mangled name is library code.
[[nodiscard]] bool is_library_symbol(std::string_view mangled) noexcept;

/// Effects: gives its memory back, as the library is unloaded.
void give_back_classes() noexcept;

}  // namespace pmr_debug::stack
