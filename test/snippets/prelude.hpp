#pragma once

// What fragments of code in the documentation may count on.

#include <pmr_debug/pmr_debug.hpp>

#include <cassert>
#include <cstdio>
#include <iostream>
#include <memory_resource>
#include <string>
#include <vector>

/// Stands for the reader's own code.
void exercise();
