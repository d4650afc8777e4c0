#pragma once

// Names of functions, floor 2.

#include <span>
#include <string_view>

namespace pmr_debug::stack {

/// Returns: \p name demangled into \p buffer, cut to fit and NUL-terminated; \p name itself if it is no mangled name,
/// if the demangler is not at hand, or if it would need more stack than there may be. Allocates nothing.
[[nodiscard]] const char* demangle(const char* name, std::span<char> buffer) noexcept;

/// True if the function of this demangled name belongs to this library: one of namespace pmr_debug, or the two of
/// std::pmr::memory_resource that hand requests on to it.
[[nodiscard]] bool is_library_function(std::string_view name) noexcept;

/// True if the function of this demangled name is one that users of the standard library do not know of: allocator
/// plumbing and functions with reserved names, which fill half of a container's trace.
[[nodiscard]] bool is_standard_internal(std::string_view name) noexcept;

/// Returns: \p file, a source file as libbacktrace names it, or null, without the folder that it may have put before:
/// it joins the folder where a unit was compiled, and a slash, with each name of a version 5 line table, absolute ones
/// as well, and so clang writes the unit's own file.
[[nodiscard]] const char* source_path(const char* file) noexcept;

}  // namespace pmr_debug::stack
