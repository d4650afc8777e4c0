#pragma once

// The executable and the shared libraries that are loaded, floor 2.

#include "os/loaded_code.hpp"

#include <cstdint>

struct dl_phdr_info;

namespace pmr_debug::stack {

struct module {
    const char* path = "";       ///< empty if unknown; stays valid
    std::uintptr_t base = 0;     ///< what to take off an address to get the one in the module's file
    bool executable = false;     ///< the program itself, not a shared library
    std::uint64_t identity = 0;  ///< of another one in its place this is another number; 0: there is none
    os::loaded_code code;
};

/// Returns: the module that \p address lies in; an empty one for code that is in none, as made by a just-in-time
/// compiler. Takes no lock of the loader's, and waits for none. Allocates nothing.
[[nodiscard]] module find_module(std::uintptr_t address) noexcept;

/// Effects: as dl_iterate_phdr, for the one module \p m, which is shown without its name and headers.
int show_module(const module& m, int (*callback)(dl_phdr_info*, std::size_t, void*), void* data) noexcept;

}  // namespace pmr_debug::stack
