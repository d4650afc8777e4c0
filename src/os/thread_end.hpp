#pragma once

// What others have to do when a thread gives its index back, floor 0.

#include <atomic>

namespace pmr_debug::os::detail {

/// Called in each thread that gives its index back: what it kept by that index is another thread's from now on. Null:
/// nothing is.
extern std::atomic<void (*)() noexcept> on_index_released;

}  // namespace pmr_debug::os::detail
