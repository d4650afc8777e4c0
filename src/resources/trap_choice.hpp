#pragma once

// Which freed blocks are trapped at once, as the options say, floor 4.

#include <pmr_debug/policy.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

class trap_choice {
public:
    explicit trap_choice(const trap_selection& s = {}) noexcept : selection_(s) {}

    [[nodiscard]] bool on() const noexcept { return selection_.on(); }

    /// Returns: whether a block of \p bytes is one of those. Each call counts as a block. Preconditions: on().
    [[nodiscard]] bool takes(std::size_t bytes) noexcept {
        if (bytes < selection_.at_least) {
            return false;
        }
        return selection_.one_in < 2 || turn_.fetch_add(1, std::memory_order_relaxed) % selection_.one_in == 0;
    }

    /// Effects: counts one that could not be trapped.
    void miss() noexcept { missed_.fetch_add(1, std::memory_order_relaxed); }
    [[nodiscard]] std::uint64_t missed() const noexcept { return missed_.load(std::memory_order_relaxed); }

private:
    trap_selection selection_;
    std::atomic<std::uint64_t> turn_{0};
    std::atomic<std::uint64_t> missed_{0};
};

}  // namespace pmr_debug::detail
