#pragma once

// What the environment says, floor 0. It is read once, when the library is loaded: later, another thread may be
// changing it, or the program may be in a state in which nothing is safe to read.

namespace pmr_debug::os {

struct environment {
    bool plain_terminal = true;  ///< NO_COLOR is set, or TERM is "dumb" or not set; see no-color.org
    bool no_poison = false;      ///< PMR_DEBUG_POISON=0
};

/// As it was when the library was loaded.
[[nodiscard]] const environment& start_environment() noexcept;

/// For tests. Effects: reads it anew. No other thread may be using the library.
void read_environment_again() noexcept;

}  // namespace pmr_debug::os
