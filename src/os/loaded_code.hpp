#pragma once

// Which file the code at an address came from, floor 0. The C library's functions for that, dladdr and dl_iterate_phdr,
// take the loader's lock. Another thread may hold it while it waits for this one, as a static object of a plug-in that
// joins a thread does; or it was held when the process forked, so that in the child it is never released.

#include <cstddef>
#include <cstdint>
#include <span>

namespace pmr_debug::os {

struct loaded_code {
    std::uintptr_t start = 0;     ///< of the file's mappings; 0: the address is in none
    std::uintptr_t end = 0;       ///< of them
    std::uintptr_t base = 0;      ///< what to take off an address to get the one in the file
    std::uintptr_t dynamic = 0;   ///< address of its dynamic section; 0: it has none
    const void* entry = nullptr;  ///< the loader's for it, to tell it from another; null: not known
    bool program = false;         ///< the program itself, not a shared library
};

/// Returns: what \p address lies in; its path, cut to fit and NUL-terminated, in \p path (empty for the program where
/// it is not known). Code that is in no file, as made by a just-in-time compiler, is in none. Takes no lock, allocates
/// nothing; safe in signal handlers and whatever the loader is doing.
[[nodiscard]] loaded_code find_loaded_code(std::uintptr_t address, std::span<char> path) noexcept;

/// For tests, and what is done where the C library does not tell without its lock: as above, from /proc/self/maps.
[[nodiscard]] loaded_code read_loaded_code(std::uintptr_t address, std::span<char> path) noexcept;

/// Returns: a number that tells what lies there from what might be loaded in the same place later.
[[nodiscard]] std::uint64_t identity_of(const loaded_code& code) noexcept;

/// Effects: the name of the exported function that \p address lies in, cut to fit and NUL-terminated, to \p name.
/// Returns: false if there is none. Reads the dynamic symbols in memory. Slow where there are many.
[[nodiscard]] bool exported_function(const loaded_code& code, std::uintptr_t address, std::span<char> name) noexcept;

}  // namespace pmr_debug::os
