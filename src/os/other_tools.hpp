#pragma once

// What Memcheck (Valgrind) and LeakSanitizer are told about memory, floor 0. Every call does nothing where its tool is
// not at work, and each costs a function call, so they stand on slow ways only.

#include <cstddef>

namespace pmr_debug::os {

/// True if the process runs under Valgrind, and the library was built with Valgrind's header.
[[nodiscard]] bool under_valgrind() noexcept;

/// Effects: Memcheck lists \p p as an allocated block of \p bytes, whose contents are undefined.
void tell_allocated(const void* p, std::size_t bytes) noexcept;

/// Effects: Memcheck lists the block at \p p as freed; an access is an error from now on.
void tell_freed(const void* p) noexcept;

/// Effects: an access is an error for Memcheck from now on / is fine, but the contents are undefined.
void tell_inaccessible(const void* p, std::size_t bytes) noexcept;
void tell_undefined(const void* p, std::size_t bytes) noexcept;

/// While one exists, Memcheck reports no errors of this thread: this library reads what its users may not.
class unseen_by_valgrind {
public:
    explicit unseen_by_valgrind(bool active) noexcept;
    unseen_by_valgrind(const unseen_by_valgrind&) = delete;
    unseen_by_valgrind& operator=(const unseen_by_valgrind&) = delete;
    ~unseen_by_valgrind();

private:
    bool active_;
};

/// Effects: LeakSanitizer looks for pointers in these pages, which come from the system and not from malloc / does so
/// no more. The second must name the same range as the first.
void add_leak_root(const void* p, std::size_t bytes) noexcept;
void remove_leak_root(const void* p, std::size_t bytes) noexcept;

}  // namespace pmr_debug::os
