#pragma once

// Bytes that are a function of their address, floor 4: guards and fills of a canary resource.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pmr_debug::detail {

/// What is wrong in a range that should hold a pattern.
struct canary_damage {
    const std::byte* first = nullptr;  ///< the lowest wrong byte; null: all is well
    std::size_t bytes = 0;             ///< wrong ones
    std::uint8_t found = 0;            ///< at `first`
    std::uint8_t expected = 0;

    /// Effects: adds what is wrong in a range behind this one.
    void append(const canary_damage& behind) noexcept {
        if (first == nullptr) {
            *this = behind;
        } else {
            bytes += behind.bytes;
        }
    }
};

/// A pattern: each aligned word is a mix of its address and a key, of which `kept_` bits count.
class canary_pattern {
public:
    /// Always \p value.
    [[nodiscard]] static constexpr canary_pattern constant(std::uint8_t value) noexcept { return {0, 0, value * ones}; }
    /// 0x80 … 0x9F: neither a terminating zero, nor ASCII, nor -1, nor a constant fill.
    [[nodiscard]] static constexpr canary_pattern guard(std::uint64_t key) noexcept {
        return {key, 0x1F * ones, 0x80 * ones};
    }
    /// Any byte.
    [[nodiscard]] static constexpr canary_pattern random(std::uint64_t key) noexcept { return {key, 0xFF * ones, 0}; }

    constexpr canary_pattern() noexcept = default;

    /// As write(), for guards: few bytes, and mostly whole words.
    void write_guard(std::byte* p, std::size_t n) const noexcept {
        auto at = reinterpret_cast<std::uintptr_t>(p);
        if (((at | n) & 7U) != 0) [[unlikely]] {
            write(p, n);
            return;
        }
        for (; n != 0; p += 8, at += 8, n -= 8) {
            const std::uint64_t w = in_memory(word(at));
            std::memcpy(p, &w, sizeof w);
        }
    }

    /// As intact(), for guards.
    [[nodiscard]] bool guard_intact(const std::byte* p, std::size_t n) const noexcept {
        auto at = reinterpret_cast<std::uintptr_t>(p);
        if (((at | n) & 7U) != 0) [[unlikely]] {
            return intact(p, n);
        }
        std::uint64_t wrong = 0;
        for (; n != 0; p += 8, at += 8, n -= 8) {
            std::uint64_t w = 0;
            std::memcpy(&w, p, sizeof w);
            wrong |= w ^ in_memory(word(at));
        }
        return wrong == 0;
    }

    /// Effects: writes the pattern to [p, p + n).
    void write(std::byte* p, std::size_t n) const noexcept {
        if (kept_ == 0) {
            std::memset(p, static_cast<int>(fixed_ & 0xFFU), n);
            return;
        }
        auto at = reinterpret_cast<std::uintptr_t>(p);
        if (const std::size_t lead = leading(at, n); lead != 0) {
            std::uint64_t w = word(at & ~std::uintptr_t{7}) >> (8 * (at & 7U));
            for (std::size_t i = 0; i < lead; ++i, w >>= 8U) {
                p[i] = static_cast<std::byte>(w);
            }
            p += lead;
            at += lead;
            n -= lead;
        }
        for (; n >= 8; p += 8, at += 8, n -= 8) {
            const std::uint64_t w = in_memory(word(at));
            std::memcpy(p, &w, sizeof w);
        }
        if (n != 0) {
            std::uint64_t w = word(at);
            for (std::size_t i = 0; i < n; ++i, w >>= 8U) {
                p[i] = static_cast<std::byte>(w);
            }
        }
    }

    /// Returns: true if [p, p + n) holds the pattern.
    [[nodiscard]] bool intact(const std::byte* p, std::size_t n) const noexcept {
        if (kept_ == 0) {
            // All the same: the first is right, and each is equal to the next.
            return n == 0 || (*p == static_cast<std::byte>(fixed_) && std::memcmp(p, p + 1, n - 1) == 0);
        }
        auto at = reinterpret_cast<std::uintptr_t>(p);
        std::uint64_t wrong = 0;
        if (const std::size_t lead = leading(at, n); lead != 0) {
            std::uint64_t w = word(at & ~std::uintptr_t{7}) >> (8 * (at & 7U));
            for (std::size_t i = 0; i < lead; ++i, w >>= 8U) {
                wrong |= (w ^ static_cast<std::uint64_t>(p[i])) & 0xFFU;
            }
            p += lead;
            at += lead;
            n -= lead;
        }
        for (; n >= 8; p += 8, at += 8, n -= 8) {
            std::uint64_t w = 0;
            std::memcpy(&w, p, sizeof w);
            wrong |= w ^ in_memory(word(at));
        }
        if (n != 0) {
            std::uint64_t w = word(at);
            for (std::size_t i = 0; i < n; ++i, w >>= 8U) {
                wrong |= (w ^ static_cast<std::uint64_t>(p[i])) & 0xFFU;
            }
        }
        return wrong == 0;
    }

    /// Returns: what is wrong in [p, p + n), byte by byte.
    [[nodiscard]] canary_damage examine(const std::byte* p, std::size_t n) const noexcept {
        canary_damage d;
        for (std::size_t i = 0; i < n; ++i) {
            const std::uint8_t expected = byte_at(reinterpret_cast<std::uintptr_t>(p + i));
            if (static_cast<std::uint8_t>(p[i]) != expected) {
                if (d.first == nullptr) {
                    d = {.first = p + i, .found = static_cast<std::uint8_t>(p[i]), .expected = expected};
                }
                ++d.bytes;
            }
        }
        return d;
    }

    [[nodiscard]] std::uint8_t byte_at(std::uintptr_t at) const noexcept {
        return static_cast<std::uint8_t>(word(at & ~std::uintptr_t{7}) >> (8 * (at & 7U)));
    }

private:
    static constexpr std::uint64_t ones = 0x0101'0101'0101'0101U;

    constexpr canary_pattern(std::uint64_t key, std::uint64_t kept, std::uint64_t fixed) noexcept
        : key_(key), kept_(kept), fixed_(fixed) {}

    /// Bytes before the next multiple of 8, at most \p n.
    [[nodiscard]] static std::size_t leading(std::uintptr_t at, std::size_t n) noexcept {
        const std::size_t lead = (8 - (at & 7U)) & 7U;
        return lead < n ? lead : n;
    }

    /// Of the aligned word at \p at; its lowest 8 bits are the byte at the lowest address.
    [[nodiscard]] std::uint64_t word(std::uintptr_t at) const noexcept {
        std::uint64_t w = (at / 8 + key_) * 0x9E37'79B9'7F4A'7C15U;
        w ^= w >> 32U;
        return (w & kept_) | fixed_;
    }

    [[nodiscard]] static constexpr std::uint64_t in_memory(std::uint64_t w) noexcept {
        if constexpr (std::endian::native == std::endian::big) {
            w = __builtin_bswap64(w);
        }
        return w;
    }

    std::uint64_t key_ = 0;
    std::uint64_t kept_ = 0;
    std::uint64_t fixed_ = 0;
};

}  // namespace pmr_debug::detail
