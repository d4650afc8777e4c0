#include "report/writer.hpp"

namespace pmr_debug::detail {

namespace {

constexpr std::string_view digits = "0123456789abcdef";

}  // namespace

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

writer& writer::quoted(std::string_view s) noexcept {
    put('"');
    for (const char c : s) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f) {
            text("\\x").put(digits[byte / 16]).put(digits[byte % 16]);
        } else if (c == '"' || c == '\\') {
            put('\\').put(c);
        } else {
            put(c);
        }
    }
    return put('"');
}

}  // namespace pmr_debug::detail
