#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Makes every allocation of a piece of code fail in turn, and looks at what the code makes of it. The code must be
/// compiled with exceptions: as without them no destructor runs when std::bad_alloc comes, calls do not compile then.
///
/// \code
///   #include <pmr_debug/testing/allocation_failures.hpp>
///   const auto result = pmr_debug::testing::check_all_allocation_failures([](std::pmr::memory_resource& memory) {
///       std::pmr::vector<std::pmr::string> v(&memory);
///       v.emplace_back("a string that is too long to be kept in the object itself");
///   });
///   assert(result.ok() && result.allocations == 2);
/// \endcode

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/detail/exceptions.hpp>
#include <pmr_debug/failing_resource.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <optional>
#include <utility>

namespace pmr_debug::testing {

enum class failure_verdict : std::uint8_t {
    passed,
    swallowed,         ///< the code went on as if nothing had happened
    endless_retry,     ///< the code asked again and again
    nondeterministic,  ///< the code asked less often than the first time, so that nothing could fail
    leak,              ///< blocks were left behind
    broken_guarantee,  ///< the object is not as it was before the call that failed
    misuse,            ///< the code freed wrongly: see `error`
    too_many,          ///< more allocations than the cap allows; those up to it are as they should be
};

/// Returns: the enumerator's name, as in `broken_guarantee`.
[[nodiscard]] std::string_view to_string(failure_verdict v) noexcept;

struct failure_test_options {
    std::size_t cap = 10'000;          ///< most allocations made to fail in turn
    std::size_t retry_cap = 1'000;     ///< failures in a row after which requests succeed again, and endless_retry
    bool may_handle_failures = false;  ///< the code may go on without the memory: swallowed is then no verdict
    std::pmr::memory_resource* upstream = std::pmr::new_delete_resource();
};

/// What went wrong first. Traces stay valid.
struct failure_test_result {
    failure_verdict verdict = failure_verdict::passed;
    std::uint64_t allocations = 0;    ///< of a run without failures
    std::uint64_t failed = 0;         ///< which one was made to fail when it went wrong, 1-based; 0: none was
    trace_id where = trace_id::none;  ///< who asked for it
    std::size_t leaked_blocks = 0;
    std::size_t leaked_bytes = 0;
    trace_id leaked = trace_id::none;     ///< where the leaked blocks came from: the path with most bytes
    error_kind error = error_kind::leak;  ///< misuse: what was reported first

    [[nodiscard]] bool ok() const noexcept { return verdict == failure_verdict::passed; }
};

/// Effects: writes \p r as text for people: verdict, numbers, traces.
void write_text(const failure_test_result& r, text_sink sink, void* context) noexcept;

namespace detail {

/// A tracking resource, and a failing one on top of it.
class failure_rig {
public:
    explicit failure_rig(const failure_test_options& o)
        : options_(o),
          memory_(o.upstream, {.name = "allocation failure test", .handler = &reports_}),
          failing_(&memory_, {.handler = &reports_}) {}

    [[nodiscard]] failing_resource& resource() noexcept { return failing_; }

    /// Effects: fails request \p n (0: none) and all later ones from now on.
    void arm(std::uint64_t n) noexcept { failing_.restart({.fail_from = n, .most_failures = options_.retry_cap}); }
    void disarm() noexcept { failing_.restart({}); }

    /// Effects: judges a run in which request \p n was to fail (0: none) and which left \p thrown. To be called before
    ///   disarm(). Returns: true if nothing is wrong. \p expected_live: blocks that may be in use.
    bool judge(std::uint64_t n, bool thrown, std::uint64_t expected_live, failure_test_result& result) noexcept {
        result.failed = n;
        result.where = failing_.first_failure().where;
        if (reports_.count() != 0) {
            result.verdict = failure_verdict::misuse;
            result.error = reports_[0].facts.kind;
            return false;
        }
        if (const statistics s = memory_.stats(); s.live_blocks > expected_live) {
            result.verdict = failure_verdict::leak;
            result.leaked_blocks = static_cast<std::size_t>(s.live_blocks - expected_live);
            result.leaked_bytes = static_cast<std::size_t>(s.live_bytes);
            memory_.report_leaks();
            if (reports_.size() != 0 && !reports_.back().facts.leaks.empty()) {
                result.leaked = reports_.back().facts.leaks[0].allocated;
            }
            return false;
        }
        if (n != 0 && failing_.failures() == 0) {
            result.verdict = failure_verdict::nondeterministic;
            return false;
        }
        if (options_.retry_cap != 0 && failing_.failures() >= options_.retry_cap) {
            result.verdict = failure_verdict::endless_retry;
            return false;
        }
        if (n != 0 && !thrown && !options_.may_handle_failures) {
            result.verdict = failure_verdict::swallowed;
            return false;
        }
        result.failed = 0;
        result.where = trace_id::none;
        return true;
    }

    [[nodiscard]] statistics stats() const noexcept { return memory_.stats(); }

private:
    failure_test_options options_;
    collecting_handler reports_;
    tracking_resource memory_;
    failing_resource failing_;
};

#ifdef __cpp_exceptions
inline constexpr bool exceptions_clean_up = true;
#else
// std::bad_alloc would pass through, and no destructor run: what was left behind would be no fault of the code's.
inline constexpr bool exceptions_clean_up = false;
#endif
template <class... Code>
constexpr bool can_fail() {
    return exceptions_clean_up;
}

}  // namespace detail

/// Effects: runs \p code(resource) once as it is and counts its allocations; then runs it once for each, which fails,
///   and with it all later ones. The code should let std::bad_alloc through, leave nothing behind, and ask for the same
///   each time. Stops at the first thing that is wrong.
/// Throws: what else the code throws; std::bad_alloc if there is no memory for the test itself.
template <class Code>
failure_test_result check_all_allocation_failures(Code&& code, const failure_test_options& o = {}) {
    static_assert(detail::can_fail<Code>(), "what fails throws std::bad_alloc: compile this code with exceptions");
    failure_test_result result;
    detail::failure_rig rig(o);
    const auto run = [&] { code(static_cast<std::pmr::memory_resource&>(rig.resource())); };
    run();
    result.allocations = rig.resource().requests();
    if (!rig.judge(0, false, 0, result)) {
        return result;
    }
    for (std::uint64_t n = 1; n <= result.allocations; ++n) {
        if (n > o.cap) {
            result.verdict = failure_verdict::too_many;
            return result;
        }
        rig.arm(n);
        const bool thrown = pmr_debug::detail::throws_bad_alloc(run);
        if (!rig.judge(n, thrown, 0, result)) {
            return result;
        }
    }
    return result;
}

/// Effects: for n = 1, 2, …: makes a fresh object by \p make(resource), and calls \p mutate(object) with its nth
///   allocation failing, and all later ones, until it asks for fewer than n. Whenever it fails, the object must be as
///   before: \p unchanged(object) must be true, and as much memory in use. Stops at the first thing that is wrong.
///   With `[](const auto&) { return true; }` for \p unchanged only the memory is looked at.
/// Throws: as check_all_allocation_failures.
template <class Make, class Mutate, class Unchanged>
failure_test_result exception_test_loop(Make&& make, Mutate&& mutate, Unchanged&& unchanged,
                                        const failure_test_options& o = {}) {
    static_assert(detail::can_fail<Make, Mutate>(),
                  "what fails throws std::bad_alloc: compile this code with exceptions");
    failure_test_result result;
    detail::failure_rig rig(o);
    for (std::uint64_t n = 1;; ++n) {
        if (n > o.cap) {
            result.verdict = failure_verdict::too_many;
            return result;
        }
        rig.disarm();
        bool completed = false;
        {
            auto object = make(static_cast<std::pmr::memory_resource&>(rig.resource()));
            const std::uint64_t before = rig.stats().live_blocks;
            rig.arm(n);
            const bool thrown = pmr_debug::detail::throws_bad_alloc([&] { mutate(object); });
            completed = rig.resource().failures() == 0;
            if (completed) {
                result.allocations = rig.resource().requests();
            } else if (!rig.judge(n, thrown, thrown ? before : UINT64_MAX, result)) {
                return result;
            } else if (thrown && !unchanged(std::as_const(object))) {
                result.failed = n;
                result.where = rig.resource().first_failure().where;
                result.verdict = failure_verdict::broken_guarantee;
                return result;
            }
        }
        if (completed) {
            rig.judge(0, false, 0, result);
            return result;
        }
        if (!rig.judge(n, true, 0, result)) {  // what the object did not free in the end
            return result;
        }
    }
}

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
