#pragma once

// How many mappings this process has, of which the kernel allows 65 530 by default.

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>

namespace test_support {

inline std::size_t mappings() {
    std::ifstream maps("/proc/self/maps");
    return static_cast<std::size_t>(
        std::count(std::istreambuf_iterator<char>(maps), std::istreambuf_iterator<char>(), '\n'));
}

}  // namespace test_support
