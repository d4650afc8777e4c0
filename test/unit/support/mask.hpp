#pragma once

// Makes reports comparable from run to run and machine to machine.

#include <cctype>
#include <cstddef>
#include <string>
#include <string_view>

namespace test_support {

/// Returns: \p text with every `0x…` as `0x*`, file paths cut to their last part, and no line numbers behind them.
inline std::string mask(std::string_view text) {
    const auto is_hex = [&](std::size_t i) {
        return i < text.size() && std::isxdigit(static_cast<unsigned char>(text[i])) != 0;
    };
    const auto is_digit = [&](std::size_t i) {
        return i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0;
    };
    std::string masked;
    for (std::size_t i = 0; i < text.size();) {
        if (text[i] == '0' && i + 1 < text.size() && text[i + 1] == 'x' && is_hex(i + 2)) {
            masked += "0x*";
            for (i += 2; is_hex(i);) {
                ++i;
            }
        } else if (text[i] == '/') {  // drop the folder before it
            while (!masked.empty() && masked.back() != ' ' && masked.back() != '\n') {
                masked.pop_back();
            }
            ++i;
        } else if (text[i] == ':' && is_digit(i + 1)) {
            for (++i; is_digit(i);) {
                ++i;
            }
        } else {
            masked += text[i++];
        }
    }
    return masked;
}

}  // namespace test_support
