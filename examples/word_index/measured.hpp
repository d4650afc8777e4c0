#pragma once

/// \file
/// Runs in processes of their own, so that the peak of memory is that of one run.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace demo {

/// What one run has to say.
struct run_result {
    double seconds = 0;
    std::uint64_t peak_resident_bytes = 0;
    std::uint64_t files = 0;
    std::uint64_t unreadable_files = 0;
    std::uint64_t text_bytes = 0;
    std::uint64_t words = 0;
    std::uint64_t postings = 0;
    std::uint64_t checksum = 0;
    std::uint64_t allocations = 0;
    std::uint64_t deallocations = 0;
    std::uint64_t errors = 0;
    std::uint64_t leaked_blocks = 0;
};

/// Effects: calls \p run in a child process and fills in `peak_resident_bytes`. Ends this process as the child ended if
///   that ended badly. Throws: std::system_error if there is no child to be had.
run_result in_own_process(const std::function<run_result()>& run);

/// Preconditions: \p results is not empty. Returns: the run that took the median of the times.
run_result median(std::vector<run_result> results);

}  // namespace demo
