#pragma once

// The executable and the shared libraries that are loaded, floor 2.

#include <cstddef>
#include <cstdint>

struct dl_phdr_info;

namespace pmr_debug::stack {

struct module {
    const char* path = "";    ///< empty if unknown; valid while the module is loaded
    std::uintptr_t base = 0;  ///< what to take off an address to get the one in the module's file
    bool executable = false;  ///< the program itself, not a shared library
};

/// How often modules were loaded and unloaded so far: another value, other modules.
struct module_changes {
    unsigned long long loaded = 0;
    unsigned long long unloaded = 0;
    bool operator==(const module_changes&) const = default;
};

/// Returns: the module that \p address lies in; an empty one for code that is in none, as made by a just-in-time
/// compiler. Takes the dynamic loader's lock, which a thread may take again. Allocates nothing.
[[nodiscard]] module find_module(std::uintptr_t address) noexcept;

[[nodiscard]] module_changes current_modules() noexcept;

/// Effects: as dl_iterate_phdr, for the one module \p m, which is shown without its name.
int show_module(const module& m, int (*callback)(dl_phdr_info*, std::size_t, void*), void* data) noexcept;

}  // namespace pmr_debug::stack
