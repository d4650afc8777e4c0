#pragma once

// Global new and delete on a memory resource, for this test only.

#include <memory_resource>

namespace false_positives {

/// Returns: what global new takes its memory from; made at the first call, which is before main, and never destroyed.
/// To be defined by the program.
std::pmr::memory_resource& resource_below_new();

}  // namespace false_positives
