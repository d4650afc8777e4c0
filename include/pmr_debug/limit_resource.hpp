#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Refuses what would take live use over a limit; the rest goes to the upstream unchanged.
///
/// \verbatim
///   live bytes  [##############······]  limit_bytes     a request longer than the rest: limit_exceeded, bad_alloc
///   live blocks [######··············]  limit_blocks
/// \endverbatim
///
/// \code
///   pmr_debug::limit_resource budget({.name = "level", .limit_bytes = 1 << 20});
///   std::pmr::vector<int> v(&budget);  // std::bad_alloc, and a report with the trace, beyond 1 MiB
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/detail/pass_through.hpp>

#include <cstddef>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

struct limit_options {
    std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    std::size_t limit_bytes = 0;        ///< most live requested bytes; 0: no limit
    std::size_t limit_blocks = 0;       ///< most live blocks; 0: no limit
};

/// Limits are exact with any number of threads: a request is set aside before the upstream is asked.
/// Throws: std::bad_alloc, and what the upstream throws. Thread safety: synchronized.
/// Reports: limit_exceeded, null_free, bad_alignment, upstream_null, upstream_misaligned, null_upstream, cycle,
/// destroyed_resource.
class limit_resource final : public detail::pass_through_base {
public:
    /// Upstream: std::pmr::new_delete_resource().
    limit_resource() : limit_resource(limit_options{}) {}
    explicit limit_resource(detail::empty_braces /*options*/) : limit_resource() {}
    explicit limit_resource(const limit_options& o);
    explicit limit_resource(detail::upstream_argument upstream, const limit_options& o = {});

    [[nodiscard]] std::size_t limit_bytes() const noexcept;
    [[nodiscard]] std::size_t limit_blocks() const noexcept;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
};

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
