#pragma once

// The pieces of the text form that are of use alone, floor 3.

#include "report/repeats.hpp"
#include "report/writer.hpp"

#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <cstddef>

namespace pmr_debug::detail {

/// Whether addresses are turned into names. Without: nothing but addresses, for when the symboliser may be busy
/// below us on this very thread.
enum class symbols : std::uint8_t { resolved, raw };

/// As the public write_text, with a choice about symbols.
void write_text(const report& r, const text_options& options, symbols how, text_sink sink, void* context) noexcept;

/// Effects: writes one line: what came again, how often, and where.
void write_repeated_text(const repeated_report& e, text_sink sink, void* context) noexcept;

/// Effects: writes a line such as `    #0 function_name  path/file.cpp:12`.
void write_frame(writer& out, const resolved_frame& frame, std::size_t index, bool colour) noexcept;

}  // namespace pmr_debug::detail
