#pragma once

// Whether memory can be accessed, asked of the kernel, so that nothing faults.

#include <unistd.h>

namespace test_support {

inline bool is_readable(const void* p) {
    int ends[2];
    if (::pipe(ends) != 0) {
        return false;
    }
    const bool good = ::write(ends[1], p, 1) == 1;
    ::close(ends[0]);
    ::close(ends[1]);
    return good;
}

/// Writes what is there already, if it can be read; else a zero.
inline bool is_writable(void* p) {
    int ends[2];
    if (::pipe(ends) != 0) {
        return false;
    }
    const char zero = 0;
    const bool sent = ::write(ends[1], p, 1) == 1 || ::write(ends[1], &zero, 1) == 1;
    const bool good = sent && ::read(ends[0], p, 1) == 1;
    ::close(ends[0]);
    ::close(ends[1]);
    return good;
}

}  // namespace test_support
