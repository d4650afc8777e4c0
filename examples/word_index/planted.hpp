#pragma once

/// \file
/// The bugs of `--plant`: each is one that a program like this might have.

#include "index.hpp"
#include "options.hpp"

#include <memory_resource>

namespace demo {

/// What a planted bug has to work with.
struct bug_site {
    word_index& index;
    std::pmr::memory_resource& memory;  ///< where the index lives
    std::pmr::memory_resource& other;   ///< another resource, which knows nothing of it
};

/// Effects: does what must not be done. Nothing for `planted_bug::none`.
void plant(planted_bug bug, bug_site site);

/// Returns: the function with the bug in it.
const char* function_of(planted_bug bug);

}  // namespace demo
