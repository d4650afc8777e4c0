#pragma once

// Rules of .eh_frame, floor 2: how to get from a frame to its caller's, compiled for one address at a time.
//
// Most code needs three numbers: where the frame ends (its canonical frame address, CFA) by the stack or the frame
// pointer, where the caller's frame pointer was saved, and where the return address is. What needs more is left to the
// unwinder. The format: Linux Standard Base, "Exception Frames", and DWARF 5, section 6.4.

#include <cstdint>

namespace pmr_debug::stack {

/// The rule of one address, in one word.
class frame_rule {
public:
    enum class kind : std::uint8_t {
        no_data,    ///< the code there has no unwind information
        unknown,    ///< it has, and it takes the unwinder to follow it
        outermost,  ///< nothing called this
        plain,
    };
    enum class frame_pointer : std::uint8_t { same, saved_at_cfa, saved_at_frame_pointer };

    constexpr frame_rule() = default;
    explicit constexpr frame_rule(kind k) noexcept : bits_(static_cast<std::uint64_t>(k)) {}
    explicit constexpr frame_rule(std::uint64_t bits) noexcept : bits_(bits) {}

    struct parts {
        bool by_frame_pointer = false;  ///< the CFA is at an offset from the frame pointer, not from the stack pointer
        bool loaded = false;            ///< …or what is stored there is the CFA: code that realigns its stack
        std::int64_t cfa = 0;           ///< that offset; all are bytes, and multiples of 8
        frame_pointer saved = frame_pointer::same;
        std::int64_t saved_at = 0;           ///< from the CFA, or the frame pointer
        std::int64_t return_address_at = 0;  ///< from the CFA
    };
    /// Returns: a plain rule; unknown if a number is out of range.
    [[nodiscard]] static constexpr frame_rule plain(const parts& p) noexcept {
        if (!fits(p.cfa, cfa_bits) || !fits(p.saved_at, offset_bits) ||
            !fits(p.return_address_at, return_address_bits)) {
            return frame_rule(kind::unknown);
        }
        return frame_rule(static_cast<std::uint64_t>(kind::plain) | std::uint64_t{p.by_frame_pointer} << 2 |
                          std::uint64_t{p.loaded} << 3 | static_cast<std::uint64_t>(p.saved) << 4 |
                          field(p.cfa, cfa_bits) << cfa_at | field(p.saved_at, offset_bits) << saved_at_at |
                          field(p.return_address_at, return_address_bits) << return_address_at_at);
    }

    [[nodiscard]] constexpr kind what() const noexcept { return static_cast<kind>(bits_ & 3); }
    [[nodiscard]] constexpr bool by_frame_pointer() const noexcept { return (bits_ >> 2 & 1) != 0; }
    [[nodiscard]] constexpr bool loaded() const noexcept { return (bits_ >> 3 & 1) != 0; }
    [[nodiscard]] constexpr frame_pointer saved() const noexcept { return static_cast<frame_pointer>(bits_ >> 4 & 3); }
    [[nodiscard]] constexpr std::int64_t cfa() const noexcept { return value(cfa_at, cfa_bits); }
    [[nodiscard]] constexpr std::int64_t saved_at() const noexcept { return value(saved_at_at, offset_bits); }
    [[nodiscard]] constexpr std::int64_t return_address_at() const noexcept {
        return value(return_address_at_at, return_address_bits);
    }
    /// Bits that a rule leaves alone.
    static constexpr unsigned free_bits_at = 50;
    static constexpr unsigned free_bits = 14;
    [[nodiscard]] constexpr std::uint64_t bits() const noexcept { return bits_; }

private:
    static constexpr unsigned cfa_at = 6;
    static constexpr unsigned cfa_bits = 18;  // up to 1 MiB
    static constexpr unsigned saved_at_at = cfa_at + cfa_bits;
    static constexpr unsigned offset_bits = 14;  // up to 64 KiB
    static constexpr unsigned return_address_at_at = saved_at_at + offset_bits;
    static constexpr unsigned return_address_bits = 12;  // up to 16 KiB
    static_assert(return_address_at_at + return_address_bits == free_bits_at);

    static constexpr bool fits(std::int64_t bytes, unsigned bits) noexcept {
        const std::int64_t most = std::int64_t{1} << (bits - 1);
        return bytes % 8 == 0 && bytes / 8 < most && bytes / 8 >= -most;
    }
    static constexpr std::uint64_t field(std::int64_t bytes, unsigned bits) noexcept {
        return static_cast<std::uint64_t>(bytes / 8) & ((std::uint64_t{1} << bits) - 1);
    }
    [[nodiscard]] constexpr std::int64_t value(unsigned at, unsigned bits) const noexcept {
        return static_cast<std::int64_t>(bits_ << (64 - at - bits)) >> (64 - bits) << 3;
    }

    std::uint64_t bits_ = 0;
};

/// Where the rules of some code stand: nothing outside [low, high) is read.
struct rule_source {
    const unsigned char* header = nullptr;  ///< .eh_frame_hdr
    std::uintptr_t low = 0;
    std::uintptr_t high = 0;
};

/// Returns: the rule for the instruction at \p address, which for a caller is the one before its return address. Broken
/// tables give no_data or unknown, or a wrong rule; never more is read than they have. Allocates nothing.
[[nodiscard]] frame_rule compile_rule(const rule_source& source, std::uintptr_t address) noexcept;

/// The same where the function's own entry in .eh_frame, \p entry, is known, which is taken to be right.
[[nodiscard]] frame_rule compile_rule_of(const void* entry, std::uintptr_t address) noexcept;

}  // namespace pmr_debug::stack
