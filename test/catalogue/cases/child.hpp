#pragma once

/// \file
/// Runs something in a child process, as some bugs do not leave the process alive.

#include <string>

namespace catalogue {

/// How a child ended.
struct child_end {
    bool signalled = false;
    int number = 0;      ///< the signal, or the exit status
    std::string output;  ///< what it wrote to standard error, if that was asked for
};

/// Effects: runs \p work in a child, with no core file, that exits with status 0 when \p work returns, 4 when it ends
///   by std::bad_alloc, or by what \p work calls itself. \p capture: standard error is read instead of shown.
child_end run_in_child(void (*work)(const void* context), const void* context, bool capture);

}  // namespace catalogue
