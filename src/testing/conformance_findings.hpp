#pragma once

// What a run of the conformance suite found so far, floor 5.

#include <pmr_debug/testing/conformance.hpp>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace pmr_debug::testing::detail {

/// One entry for each kind of mistake in a part: one mistake tends to be found at every step. Thread-safe.
class conformance_findings {
public:
    /// Effects: what is added from now on was found in \p part.
    void begin(conformance_part part) noexcept { part_ = part; }
    void add(conformance_error error, const std::string& what);
    [[nodiscard]] const std::vector<conformance_finding>& all() const noexcept { return all_; }

private:
    std::mutex lock_;
    conformance_part part_ = conformance_part::sizes_and_alignments;
    std::vector<conformance_finding> all_;
};

/// Returns: a request in words.
[[nodiscard]] inline std::string in_words(std::size_t bytes, std::size_t alignment) {
    return std::to_string(bytes) + " bytes with alignment " + std::to_string(alignment);
}

/// A well-mixed number for each of a row of numbers (splitmix64, Steele et al. 2014), and a generator by it.
[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t n) noexcept {
    n += 0x9E3779B97F4A7C15U;
    n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9U;
    n = (n ^ (n >> 27)) * 0x94D049BB133111EBU;
    return n ^ (n >> 31);
}
class random_numbers {
public:
    explicit random_numbers(std::uint64_t seed) noexcept : state_(mixed(seed)) {}
    /// Returns: a number below \p end.
    std::size_t below(std::size_t end) noexcept { return static_cast<std::size_t>(mixed(state_++) % end); }

private:
    std::uint64_t state_;
};

}  // namespace pmr_debug::testing::detail
