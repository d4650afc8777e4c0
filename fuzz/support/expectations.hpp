#pragma once

// What a resource is expected to report, and what it did report.

#include <pmr_debug/report.hpp>
#include <pmr_debug/testing/fuzz.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fuzz {

using pmr_debug::error_kind;
using pmr_debug::report;

/// Keeps copies of the reports of one call, in a buffer of its own.
class report_sink final : public pmr_debug::report_handler {
public:
    static constexpr std::size_t room = 512;

    pmr_debug::action handle(const report& r) noexcept override;
    void clear() noexcept { count_ = 0; }
    [[nodiscard]] std::size_t count() const noexcept { return count_; }
    [[nodiscard]] const report& operator[](std::size_t i) const noexcept { return kept_[i]; }

private:
    std::array<report, room> kept_;
    std::size_t count_ = 0;
};

/// A block as the model knows it.
struct known_block {
    const void* p = nullptr;
    std::size_t bytes = 0;
    std::size_t alignment = 1;
    std::uint64_t serial = 0;                     ///< 0: not compared
    std::optional<pmr_debug::block_state> state;  ///< none: either
    std::uint32_t alloc_thread = 0;               ///< 0: not known yet
    std::uint32_t free_thread = 0;
};

/// Damaged bytes as the model knows them.
struct known_damage {
    const void* first = nullptr;
    std::size_t bytes = 0;
    std::uint8_t now = 0;       ///< at `first`
    std::uint8_t expected = 0;  ///< at `first`
};

/// One report to come. What is not set is not compared.
struct expectation {
    std::vector<error_kind> kinds;  ///< any of them
    const void* resource = nullptr;
    bool compare_pointer = false;
    const void* pointer = nullptr;
    bool compare_given = false;
    std::size_t given_bytes = 0;
    std::size_t given_alignment = 0;
    std::optional<known_block> block;  ///< compared if the kind is the first one
    const void* owner = nullptr;
    std::optional<known_damage> damage;
    bool compare_limit = false;
    std::size_t limit = 0;
    std::size_t in_use = 0;
    bool compare_leaks = false;
    std::size_t leaked_blocks = 0;
    std::size_t leaked_bytes = 0;
    std::uint32_t other_thread = 0;
};

/// Returns: why \p r is not what \p e says; empty if it is.
[[nodiscard]] std::string mismatch(const expectation& e, const report& r);

/// Returns: a report in words, for a finding.
[[nodiscard]] std::string words(const report& r);
[[nodiscard]] std::string words(const expectation& e);

}  // namespace fuzz
