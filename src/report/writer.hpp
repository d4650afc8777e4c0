#pragma once

// Formatting without the heap, floor 3. Everything a report says goes through this: a small buffer that empties into a
// sink, and no printf, whose implementations may allocate.

#include <pmr_debug/report.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace pmr_debug::detail {

/// Returns: the length of the valid UTF-8 sequence at the start of \p s; 0 if there is none.
[[nodiscard]] std::size_t utf8_length(std::string_view s) noexcept;

/// Collects text in a fixed buffer and hands it to a sink whenever that is full, and at the end.
/// Thread safety: one thread at a time.
class writer {
public:
    writer(text_sink sink, void* context) noexcept : sink_(sink), context_(context) {}
    writer(const writer&) = delete;
    writer& operator=(const writer&) = delete;
    ~writer() { flush(); }

    writer& put(char c) noexcept {
        if (used_ == sizeof buffer_) {
            flush();
        }
        buffer_[used_++] = c;
        return *this;
    }
    writer& text(std::string_view s) noexcept;
    /// Decimal, as in `-12`.
    writer& number(std::uint64_t n) noexcept;
    writer& signed_number(std::int64_t n) noexcept;
    /// Lower case with prefix, as in `0x7f01`, padded with zeros to \p digits.
    writer& hex(std::uint64_t n, unsigned digits = 1) noexcept;
    writer& address(const void* p) noexcept { return hex(reinterpret_cast<std::uintptr_t>(p)); }
    /// Number and noun, as in `1 block`, `0 blocks`: \p noun gets an s unless \p n is 1.
    writer& count(std::uint64_t n, std::string_view noun) noexcept;
    /// Exact, and rounded too from 10 KiB up, as in `64 bytes`, `1258291 bytes (1.2 MiB)`.
    writer& bytes(std::uint64_t n) noexcept;
    /// Rounded, with one decimal from 1 KiB up, as in `64 bytes`, `1.2 MiB`.
    writer& rounded_bytes(std::uint64_t n) noexcept;
    /// With all that is no text for a terminal as `\xNN`: control characters, bytes that are no UTF-8, and what breaks
    /// lines or turns the direction of writing. \p in_quotes: quotes and backslashes get a backslash, too.
    writer& escaped(std::string_view s, bool in_quotes = false) noexcept;
    /// In double quotes, and escaped.
    writer& quoted(std::string_view s) noexcept { return put('"').escaped(s, true).put('"'); }

    /// Effects: hands over what is buffered.
    void flush() noexcept {
        if (used_ != 0) {
            sink_(std::string_view(buffer_, used_), context_);
            used_ = 0;
        }
    }

private:
    text_sink sink_;
    void* context_;
    std::size_t used_ = 0;
    char buffer_[512];
};

/// A sink that keeps the first \p N bytes and drops the rest.
template <std::size_t N>
class fixed_text {
public:
    static void sink(std::string_view text, void* context) noexcept {
        auto& self = *static_cast<fixed_text*>(context);
        const std::size_t fits = text.size() < N - self.used_ ? text.size() : N - self.used_;
        std::memcpy(self.kept_ + self.used_, text.data(), fits);
        self.used_ += fits;
    }
    [[nodiscard]] std::string_view view() const noexcept { return {kept_, used_}; }

private:
    std::size_t used_ = 0;
    char kept_[N];
};

}  // namespace pmr_debug::detail
