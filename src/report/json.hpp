#pragma once

// Pieces of the JSON form, floor 3.

#include "report/repeats.hpp"
#include "report/text.hpp"
#include "report/writer.hpp"

#include <span>
#include <string_view>

namespace pmr_debug::detail {

/// As the public write_json, with a choice about symbols.
void write_json(const report& r, symbols how, text_sink sink, void* context) noexcept;

/// Effects: writes one line: what came again of the handler of \p first, and how often.
void write_repeated_json(const repeated_report& first, std::span<const repeated_report> all, text_sink sink,
                         void* context) noexcept;

/// Effects: writes \p s as a JSON string, quotes included. Bytes that are no valid UTF-8 become U+FFFD, one each.
void write_json_string(writer& out, std::string_view s) noexcept;

}  // namespace pmr_debug::detail
