#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// A chain of resources as a picture.
///
/// \verbatim
///   "index" (tracking_resource #3): 1.2 KiB live in 12 blocks
///   └── "heap" (general_purpose_resource #2): 1.2 KiB live in 12 blocks
///       └── "pages" (page_resource #1): 1.1 MiB live in 2 blocks
/// \endverbatim
///
/// \code
///   pmr_debug::tracking_resource index({.name = "index"});
///   pmr_debug::write_chain(
///       index, [](std::string_view text, void*) noexcept { std::fwrite(text.data(), 1, text.size(), stderr); },
///       nullptr);
/// \endcode

#include <pmr_debug/report.hpp>

#include <memory_resource>

namespace pmr_debug {

/// Effects: writes \p top and its upstreams from the top down, a line each: name, type, number, live bytes and blocks.
///   A resource that is none of this library's is given by its address, the standard library's two by their names; its
///   own upstream is not known. A chain that leads back to one of its links ends there, and is reported as
///   error_kind::cycle to the default handler.
/// Preconditions: the chain lives meanwhile. Thread safety: any thread. Allocates nothing.
void write_chain(const std::pmr::memory_resource& top, text_sink sink, void* context) noexcept;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
