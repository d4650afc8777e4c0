#pragma once

/// \file
/// Takes printed reports apart, where a process that died left nothing else.

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace catalogue {

/// One report in its text form.
struct text_report {
    std::string headline;                       ///< without "pmr_debug: "
    std::map<std::string, std::string> facts;   ///< by the word in front: "block" -> "0x1000, 40 bytes, …"
    std::map<std::string, std::string> traces;  ///< by the title without the thread: "allocated" -> its frames
    std::string text;                           ///< all of it
};

/// Returns: the reports in \p printed, in their order.
[[nodiscard]] std::vector<text_report> parse_reports(std::string_view printed);

/// Returns: the first number behind \p word in \p fact, as in "alignment 8"; `none` if there is none.
inline constexpr std::size_t none = static_cast<std::size_t>(-1);
[[nodiscard]] std::size_t number_after(std::string_view fact, std::string_view word);

/// Returns: the first address in \p fact; `none` if there is none.
[[nodiscard]] std::size_t address_in(std::string_view fact);

}  // namespace catalogue
