#pragma once

// Which freed blocks are trapped at once, as the options say, floor 4.

#include "os/fault_signals.hpp"

#include <pmr_debug/policy.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

class trap_choice {
public:
    /// \p with_first: where the options choose none, their first small blocks are, while a fault would be told.
    explicit trap_choice(const trap_selection& s = {}, bool with_first = false) noexcept
        : selection_(s), first_(with_first && !s.on() ? s.first : 0) {}

    /// Whether the options choose blocks, of any size.
    [[nodiscard]] bool on() const noexcept { return selection_.on(); }

    /// Returns: whether a block may be one of those.
    [[nodiscard]] bool any(bool small) const noexcept {
        return on() || (small && turn_.load(std::memory_order_relaxed) < first_ && os::faults_are_told());
    }

    /// Returns: whether a block of \p bytes is one of those. Each call counts as a block. Preconditions: any().
    [[nodiscard]] bool takes(std::size_t bytes) noexcept {
        if (!on()) {
            return turn_.fetch_add(1, std::memory_order_relaxed) < first_;
        }
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
    std::uint64_t first_;
    std::atomic<std::uint64_t> turn_{0};
    std::atomic<std::uint64_t> missed_{0};
};

}  // namespace pmr_debug::detail
