#pragma once

// The way from a resource to its handler, floor 3.

#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pmr_debug::detail {

/// What a resource keeps about its errors. Zeroed memory is a valid empty tally, and it needs no destructor.
struct error_tally {
    std::atomic<std::uint64_t> counts[error_kind_count]{};
    std::atomic<report_handler*> handler{nullptr};  ///< null: the default handler
};

/// Effects: counts r.kind; fills r.here, unless it is set, with the caller's stack, and r.thread; hands it to the
///   handler, and ends the process if the answer is action::abort, after reports that other threads are printing just
///   now are finished. A handler that causes a report itself is called again, twice at most; below that there is only
///   one raw line on standard error, and the call returns.
/// Preconditions: no lock of the resource is held. Thread safety: any thread.
void raise(error_tally& tally, report& r) noexcept;

/// The two parts of raise(): the first changes the tally, the second calls the handler.
void count_error(error_tally& tally, error_kind kind) noexcept;
void tell_error(const error_tally& tally, report& r) noexcept;

/// Effects: fills in what the call paths tell of the circumstances: r.phase and what depends on it, and whether the
///   resources named were destroyed at the program's exit. For signal handlers, too.
void add_circumstances(report& r) noexcept;

/// Returns: the counts, each one read by itself.
[[nodiscard]] error_counts snapshot(const error_tally& tally) noexcept;

/// True if nothing was ever reported.
[[nodiscard]] bool ok(const error_tally& tally) noexcept;

/// Effects: reports error_kind::null_upstream to the default handler and ends the process, whatever that answers: GSL
///   would end it without a word. \p here: the constructor's caller, or none, then it is captured.
[[noreturn]] void null_upstream(std::string_view type, std::string_view name, trace_id here) noexcept;

}  // namespace pmr_debug::detail
