#pragma once

// Programs with nothing wrong in them. Each uses pmr containers on the default resource, and everything else on global
// new, which shim.cpp sends to a resource as well. Deterministic; ends the process if its own result is wrong.

#include <cstdio>
#include <cstdlib>

namespace false_positives {

void containers();
void json();
void regular_expressions();
void threads();

inline void expect(bool right, const char* what) {
    if (!right) {
        std::fprintf(stderr, "false_positives: wrong result: %s\n", what);
        std::exit(3);
    }
}

}  // namespace false_positives
