#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// What happened to a resource's counters in between.
///
/// \code
///   #include <pmr_debug/testing/resource_monitor.hpp>
///   pmr_debug::tracking_resource memory;
///   std::pmr::vector<int> v(&memory);
///   const pmr_debug::testing::resource_monitor since(memory);
///   v.assign(10, 7);
///   assert(since.allocations() == 1 && since.live_bytes() == 40);
/// \endcode

#include <pmr_debug/statistics.hpp>

#include <concepts>
#include <cstdint>

namespace pmr_debug::testing {

/// Something with counters: every resource of this library.
template <class R>
concept has_statistics = requires(const R& r) {
    { r.stats() } -> std::same_as<statistics>;
};

/// Differences between a resource's counters now and at construction, or at the last reset(). Any number of them may
/// watch one resource, nested or not. Preconditions: the resource outlives it.
/// Thread safety: as stats() of the resource; reset() one thread at a time.
class resource_monitor {
public:
    template <has_statistics R>
    explicit resource_monitor(const R& resource) noexcept
        : resource_(&resource), ask_([](const void* r) noexcept { return static_cast<const R*>(r)->stats(); }) {
        reset();
    }

    /// Effects: counts from now on.
    void reset() noexcept { then_ = ask_(resource_); }

    /// Change of live blocks and bytes; negative if more was freed than allocated.
    [[nodiscard]] std::int64_t live_blocks() const noexcept { return change(&statistics::live_blocks); }
    [[nodiscard]] std::int64_t live_bytes() const noexcept { return change(&statistics::live_bytes); }
    /// By how much the resource's peak rose; 0 as long as there was more in use at some time before.
    [[nodiscard]] std::int64_t peak_blocks() const noexcept { return change(&statistics::peak_blocks); }
    [[nodiscard]] std::int64_t peak_bytes() const noexcept { return change(&statistics::peak_bytes); }
    /// Allocations and deallocations carried out, bytes allocated, and allocations that failed.
    [[nodiscard]] std::int64_t allocations() const noexcept { return change(&statistics::total_allocations); }
    [[nodiscard]] std::int64_t deallocations() const noexcept { return change(&statistics::total_deallocations); }
    [[nodiscard]] std::int64_t total_bytes() const noexcept { return change(&statistics::total_bytes); }
    [[nodiscard]] std::int64_t failed_allocations() const noexcept { return change(&statistics::failed_allocations); }

    /// True if as many blocks and bytes are live as then / if the peak did not rise / if nothing was asked of it.
    [[nodiscard]] bool live_same() const noexcept { return live_blocks() == 0 && live_bytes() == 0; }
    [[nodiscard]] bool peak_same() const noexcept { return peak_blocks() == 0 && peak_bytes() == 0; }
    [[nodiscard]] bool untouched() const noexcept {
        return allocations() == 0 && deallocations() == 0 && failed_allocations() == 0;
    }

private:
    [[nodiscard]] std::int64_t change(std::uint64_t statistics::*counter) const noexcept {
        return static_cast<std::int64_t>(ask_(resource_).*counter - then_.*counter);
    }

    const void* resource_;
    statistics (*ask_)(const void* resource) noexcept;
    statistics then_;
};

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
