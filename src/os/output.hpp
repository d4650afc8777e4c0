#pragma once

// Text to a descriptor, floor 0. Whatever state the descriptor is in, the program does not die of it, waits for some
// seconds at most where it asked not to wait at all, and finds no text in a file of its own.

#include <cstdint>

namespace pmr_debug::os {

/// Which file a descriptor is open to.
struct open_file {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    bool known = false;  ///< false: the descriptor is closed

    friend bool operator==(const open_file&, const open_file&) = default;
};

/// Returns: what \p descriptor is open to. Leaves errno alone.
[[nodiscard]] open_file file_behind(int descriptor) noexcept;

/// Effects: writes all of it, going on after interruptions and short writes.
///   - A descriptor that is non-blocking and full is waited for: 10 seconds at most, and not at all the next times,
///     until it takes something again.
///   - SIGPIPE and SIGXFSZ that a write causes are taken, not delivered.
///   - \p opened: what the descriptor was when it was handed over. Where it is another file now, nothing is written:
///   its
///     number was used again, for a file of the program's. A log that is opened for appending may follow another.
///   - Standard error is compared to what it was when the library was loaded. A program may have redirected it since,
///   or
///     closed it, so that its number went to some file: see goes_to_standard_error(). What cannot go there goes to
///     the terminal of the process, if it has one.
/// \p written: how much was written to \p descriptor.
/// Returns: false if not all of it was.
/// No point of cancellation; leaves errno alone. Thread safety: any thread, signal handlers.
bool write_all(int descriptor, const char* text, std::uint64_t bytes, const open_file& opened = {},
               std::uint64_t* written = nullptr) noexcept;

/// True if descriptor 2 is what it was when the library was loaded, or seems to have been redirected on purpose: to a
/// terminal or a pipe; to a file that is opened for appending; to what standard output is; or for a while, as the
/// former one is kept under another number. Any other file or socket is taken for one of the program's, and so is
/// whatever is closed by exec. Was descriptor 2 closed at first, only a terminal or a file opened for appending will
/// do.
[[nodiscard]] bool goes_to_standard_error() noexcept;

/// True if \p descriptor is a terminal. Leaves errno alone.
[[nodiscard]] bool is_terminal(int descriptor) noexcept;

}  // namespace pmr_debug::os
