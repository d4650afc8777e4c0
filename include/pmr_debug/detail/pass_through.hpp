#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// What the thin resources share, which hand every request to an upstream and keep no record of blocks.

#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <cstddef>
#include <memory_resource>
#include <string_view>

namespace pmr_debug::detail {

struct pass_through_core;

/// Everything but the two calls. Its state sits in private pages.
class pass_through_base : public std::pmr::memory_resource {
public:
    pass_through_base(const pass_through_base&) = delete;
    pass_through_base& operator=(const pass_through_base&) = delete;

    [[nodiscard]] std::pmr::memory_resource* upstream_resource() const noexcept;
    [[nodiscard]] std::string_view name() const noexcept;
    /// Counters, consistent with each other. They go by the sizes handed to deallocate, which nobody checks here: put a
    /// checking resource above or below.
    [[nodiscard]] statistics stats() const noexcept;
    /// To be called before an arena below takes all its memory back at once, by `release()` or by its end.
    /// Effects: counts all live blocks as deallocated. Returns: how many. Preconditions: nobody uses the resource until
    ///   the memory was taken back.
    std::size_t before_upstream_release() noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;

protected:
    pass_through_base() = default;
    ~pass_through_base() override;

    // Reached only by calls to a resource that was destroyed: reports destroyed_resource to the default handler.
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    pass_through_core* core_ = nullptr;
};

}  // namespace pmr_debug::detail

#endif  // PMR_DEBUG_LANGUAGE
