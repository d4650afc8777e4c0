#include "report/writer.hpp"

namespace pmr_debug::detail {

namespace {

constexpr std::string_view digits = "0123456789abcdef";

// False for a valid sequence that does more to a terminal, or to who reads it, than it shows.
bool is_plain(std::string_view sequence) noexcept {
    const auto at = [&](std::size_t i) { return static_cast<unsigned char>(sequence[i]); };
    const auto within = [](unsigned byte, unsigned low, unsigned high) { return byte >= low && byte <= high; };
    switch (sequence.size()) {
        case 1: return at(0) >= 0x20 && at(0) != 0x7f;
        case 2: return at(0) != 0xC2 || at(1) >= 0xA0;  // U+0080 to U+009F: control characters, too
        case 3: {
            const bool marks = at(1) == 0x80 && (within(at(2), 0x8E, 0x8F) || within(at(2), 0xA8, 0xAE));
            const bool isolates = at(1) == 0x81 && within(at(2), 0xA6, 0xA9);
            return at(0) != 0xE2 || !(marks || isolates);
        }
        default: return true;
    }
}

}  // namespace

// After the table of well-formed
// sequences in the Unicode standard (chapter 3.9): no surrogates, no overlong forms, nothing above U+10FFFF.
std::size_t utf8_length(std::string_view s) noexcept {
    const auto at = [&](std::size_t i) -> unsigned { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0U; };
    const auto continues = [&](std::size_t i) { return (at(i) & 0xC0U) == 0x80; };
    const auto within = [&](unsigned low, unsigned high) { return at(1) >= low && at(1) <= high; };
    const unsigned lead = at(0);
    if (lead < 0x80) {
        return 1;
    }
    if (lead >= 0xC2 && lead <= 0xDF) {
        return continues(1) ? 2 : 0;
    }
    if (lead >= 0xE0 && lead <= 0xEF) {
        const bool second = within(lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
        return second && continues(2) ? 3 : 0;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        const bool second = within(lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
        return second && continues(2) && continues(3) ? 4 : 0;
    }
    return 0;
}

writer& writer::text(std::string_view s) noexcept {
    while (!s.empty()) {
        if (used_ == sizeof buffer_) {
            flush();
        }
        const std::size_t room = sizeof buffer_ - used_;
        const std::size_t part = s.size() < room ? s.size() : room;
        std::memcpy(buffer_ + used_, s.data(), part);
        used_ += part;
        s.remove_prefix(part);
    }
    return *this;
}

writer& writer::number(std::uint64_t n) noexcept {
    char reversed[20];
    std::size_t length = 0;
    do {
        reversed[length++] = digits[n % 10];
        n /= 10;
    } while (n != 0);
    while (length != 0) {
        put(reversed[--length]);
    }
    return *this;
}

writer& writer::signed_number(std::int64_t n) noexcept {
    if (n >= 0) {
        return number(static_cast<std::uint64_t>(n));
    }
    return put('-').number(~static_cast<std::uint64_t>(n) + 1);
}

writer& writer::hex(std::uint64_t n, unsigned least_digits) noexcept {
    char reversed[16];
    std::size_t length = 0;
    do {
        reversed[length++] = digits[n % 16];
        n /= 16;
    } while (n != 0);
    while (length < least_digits && length < sizeof reversed) {
        reversed[length++] = '0';
    }
    text("0x");
    while (length != 0) {
        put(reversed[--length]);
    }
    return *this;
}

writer& writer::count(std::uint64_t n, std::string_view noun) noexcept {
    number(n).put(' ').text(noun);
    return n == 1 ? *this : put('s');
}

writer& writer::bytes(std::uint64_t n) noexcept {
    count(n, "byte");
    return n < 10'240 ? *this : text(" (").rounded_bytes(n).put(')');
}

writer& writer::rounded_bytes(std::uint64_t n) noexcept {
    constexpr std::string_view units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (n < 1024) {
        return count(n, "byte");
    }
    // Keep the last ten bits that were divided away: they make the decimal.
    std::size_t unit = 0;
    std::uint64_t rest = n % 1024;
    for (n /= 1024; n >= 1024; n /= 1024) {
        rest = n % 1024;
        ++unit;
    }
    std::uint64_t tenths = n * 10 + (rest * 10 + 512) / 1024;
    if (tenths >= 10'240 && unit + 1 < sizeof units / sizeof units[0]) {  // 1023.96 KiB rounds up to 1.0 MiB
        tenths = 10;
        ++unit;
    }
    return number(tenths / 10).put('.').number(tenths % 10).put(' ').text(units[unit]);
}

writer& writer::escaped(std::string_view s, bool in_quotes) noexcept {
    while (!s.empty()) {
        const std::size_t length = utf8_length(s);
        const std::string_view piece = s.substr(0, length == 0 ? 1 : length);
        if (length == 0 || !is_plain(piece)) {
            for (const char c : piece) {
                const auto byte = static_cast<unsigned char>(c);
                text("\\x").put(digits[byte / 16]).put(digits[byte % 16]);
            }
        } else if (in_quotes && (piece == "\"" || piece == "\\")) {
            put('\\').text(piece);
        } else {
            text(piece);
        }
        s.remove_prefix(piece.size());
    }
    return *this;
}

}  // namespace pmr_debug::detail
