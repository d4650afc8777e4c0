#pragma once

// Which reports were printed before, floor 3: one of equal kind and call paths is printed once by a handler, and
// counted from then on. A table of fixed size; an entry that makes room for another one is told of at that moment.
// After a fork the child begins anew, as its parent's reports may not be in its output.

#include <pmr_debug/report.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace pmr_debug::detail {

enum class report_form : std::uint8_t { text, json };

/// A report that was printed, and how often it came again.
struct repeated_report {
    const void* handler = nullptr;  ///< null: a free entry
    output_target to;
    report_form form = report_form::text;
    error_kind kind = error_kind::leak;
    trace_id here = trace_id::none;
    trace_id allocated = trace_id::none;
    trace_id freed = trace_id::none;
    trace_id other = trace_id::none;
    std::uint64_t content = 0;  ///< hash of the resource's name and type, and of the call paths of leaks
    std::uint64_t times = 0;    ///< not counting the one that was printed
    std::uint64_t blocks = 0;   ///< leaks: in all those
    std::uint64_t bytes = 0;
    const char* type = "";
    char name[64]{};

    [[nodiscard]] bool same_report(const repeated_report& other_one) const noexcept;
};

/// Reports remembered at once, of all handlers.
inline constexpr std::size_t repeats_remembered = 512;

/// Effects: counts \p r if \p handler has printed an equal one; else remembers it.
/// \p tell: called for an entry that is forgotten, if it came again.
/// Returns: true if it was printed before. False, nothing remembered, for what a fault was the cause of, and for
/// reports
///   whose call path is not known.
/// Preconditions: one thread at a time.
[[nodiscard]] bool is_repeated(const void* handler, const output_target& to, report_form form, const report& r,
                               void (*tell)(repeated_report& e) noexcept) noexcept;

/// False in the child of a fork, until it has reported itself: what is counted was the parent's. Thread safety: any
/// thread.
[[nodiscard]] bool are_of_this_process() noexcept;

/// Effects: prints what came again, of all handlers, and forgets it. Where another thread prints for too long, nothing.
void tell_all_repeats() noexcept;

/// Returns: all entries; free ones among them. Preconditions: one thread at a time, as long as they are used.
[[nodiscard]] std::span<repeated_report> all_repeats() noexcept;

}  // namespace pmr_debug::detail
