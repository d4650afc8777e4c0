#pragma once

// What Memcheck (Valgrind), AddressSanitizer and LeakSanitizer are told about memory, floor 0. Every call does nothing
// where its tool is not at work, and each costs a function call, so they stand on slow ways only.

#include <cstddef>

// Set if this very file is compiled with AddressSanitizer; the program may have it all the same.
#if defined(__SANITIZE_ADDRESS__)
#define PMR_DEBUG_INSTRUMENTED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PMR_DEBUG_INSTRUMENTED 1
#endif
#endif
#ifndef PMR_DEBUG_INSTRUMENTED
#define PMR_DEBUG_INSTRUMENTED 0
#endif
/// For functions of this library that look into memory its users may not touch.
#if PMR_DEBUG_INSTRUMENTED
#define PMR_DEBUG_UNSEEN_BY_ASAN [[gnu::no_sanitize_address]]
#else
#define PMR_DEBUG_UNSEEN_BY_ASAN
#endif

namespace pmr_debug::os {

/// True if the process runs under Valgrind, and the library was built with Valgrind's header.
[[nodiscard]] bool under_valgrind() noexcept;

/// Effects: Memcheck lists \p p as an allocated block of \p bytes, whose contents are undefined.
void tell_allocated(const void* p, std::size_t bytes) noexcept;

/// Effects: Memcheck lists the block at \p p as freed; an access is an error from now on.
void tell_freed(const void* p) noexcept;

/// Effects: an access is an error for Memcheck from now on / is fine, but the contents are undefined / is fine.
void tell_inaccessible(const void* p, std::size_t bytes) noexcept;
void tell_undefined(const void* p, std::size_t bytes) noexcept;
void tell_defined(const void* p, std::size_t bytes) noexcept;

/// Effects: Valgrind takes [low, high) for a stack that the program switches to.
void tell_stack(const void* low, const void* high) noexcept;

/// While one exists, Memcheck reports no errors of this thread: this library reads what its users may not.
class unseen_by_valgrind {
public:
    explicit unseen_by_valgrind(bool active) noexcept;
    unseen_by_valgrind(const unseen_by_valgrind&) = delete;
    unseen_by_valgrind& operator=(const unseen_by_valgrind&) = delete;
    ~unseen_by_valgrind();

private:
    [[maybe_unused]] bool active_;  // not where there is no valgrind/memcheck.h
};

/// True if AddressSanitizer is part of the program, whether or not this library was built with it, and the environment
/// does not say PMR_DEBUG_POISON=0.
[[nodiscard]] bool under_asan() noexcept;

/// Effects: an access to the range is an error for AddressSanitizer from now on / is fine. Where the range begins or
/// ends within 8 bytes, the bytes before the end of a block decide, see its manual.
void poison(const void* p, std::size_t bytes) noexcept;
void unpoison(const void* p, std::size_t bytes) noexcept;

/// Effects: as unpoison(), for memory that is dead: gives back what the sanitizer keeps about it, an eighth of its
/// size.
void forget_poison(const void* p, std::size_t bytes) noexcept;

/// True if LeakSanitizer is part of the program. It reads all memory that looks readable, and guard markers do.
[[nodiscard]] bool under_leak_sanitizer() noexcept;

/// Effects: LeakSanitizer looks for pointers in these pages, which come from the system and not from malloc / does so
/// no more. The second must name the same range as the first.
void add_leak_root(const void* p, std::size_t bytes) noexcept;
void remove_leak_root(const void* p, std::size_t bytes) noexcept;

}  // namespace pmr_debug::os
