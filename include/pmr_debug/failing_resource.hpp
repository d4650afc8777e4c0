#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Throws std::bad_alloc on plan, so that a test reaches the code that runs when memory is out.
///
/// \verbatim
///   request       1  2  3  4  5  6  7  8
///   fail_from 4   .  .  .  x  x  x  x  x
///   fail_only 4   .  .  .  x  .  .  .  .
///   fail_every 3  .  .  x  .  .  x  .  .
/// \endverbatim
///
/// \code
///   pmr_debug::failing_resource memory({.plan = {.fail_only = 2}});
///   …
///   pmr_debug::induced_failure f = memory.last_failure();  // request, size, and the trace of who asked
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/detail/pass_through.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

/// Which requests fail. Members may be combined: a request fails if any of them says so.
struct failure_plan {
    std::uint64_t fail_from = 0;      ///< this request and all later ones, 1-based; 0: off
    std::uint64_t fail_only = 0;      ///< this request, 1-based; 0: off
    std::uint64_t fail_every = 0;     ///< every so manyth request; 0: off
    double probability = 0;           ///< share of requests that fail, 0 to 1
    std::uint64_t seed = 0;           ///< of the probability: equal seeds fail equal requests
    std::size_t budget_bytes = 0;     ///< fail what takes the bytes of all allocations so far over it; 0: off
    std::uint64_t most_failures = 0;  ///< after so many nothing fails any more; 0: no end
};

struct failing_options {
    std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    failure_plan plan{};
    unsigned frames = 32;  ///< frames kept of a failed request
};

/// A request that was made to fail.
struct induced_failure {
    std::uint64_t request = 0;  ///< its number, 1-based; 0: none failed yet
    std::size_t bytes = 0;
    std::size_t alignment = 0;
    trace_id where = trace_id::none;
};

/// An induced failure is no error: nothing is reported, and ok() stays true.
/// Throws: std::bad_alloc, and what the upstream throws. Thread safety: synchronized.
/// Reports: null_free, bad_alignment, upstream_null, upstream_misaligned, null_upstream, cycle, destroyed_resource.
class failing_resource final : public detail::pass_through_base {
public:
    /// Upstream: std::pmr::new_delete_resource().
    failing_resource() : failing_resource(failing_options{}) {}
    explicit failing_resource(detail::empty_braces /*options*/) : failing_resource() {}
    explicit failing_resource(const failing_options& o);
    explicit failing_resource(detail::upstream_argument upstream, const failing_options& o = {});

    /// Effects: forgets requests and failures so far, and goes by \p plan from now on.
    void restart(const failure_plan& plan) noexcept;

    /// Requests to allocate since construction or restart, failed ones included.
    [[nodiscard]] std::uint64_t requests() const noexcept;
    /// Requests made to fail since then.
    [[nodiscard]] std::uint64_t failures() const noexcept;
    /// The first and the last of those.
    [[nodiscard]] induced_failure first_failure() const noexcept;
    [[nodiscard]] induced_failure last_failure() const noexcept;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
};

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
