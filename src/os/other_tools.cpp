#include "os/other_tools.hpp"

#include "os/environment.hpp"
#include "os/quiet.hpp"

#include <sys/mman.h>

#include <cstdint>

#if defined(PMR_DEBUG_VALGRIND) && PMR_DEBUG_VALGRIND && __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define PMR_DEBUG_HAVE_MEMCHECK 1
#else
#define PMR_DEBUG_HAVE_MEMCHECK 0
#endif

// Weak: the library need not be built with the sanitizer to be used with it.
// NOLINTBEGIN(readability-identifier-naming): the sanitizer's names.
extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* p, std::size_t bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* p, std::size_t bytes);
__attribute__((weak)) void __asan_get_shadow_mapping(std::size_t* scale, std::size_t* offset);
__attribute__((weak)) void __lsan_register_root_region(const void* p, std::size_t bytes);
__attribute__((weak)) void __lsan_unregister_root_region(const void* p, std::size_t bytes);
}
// NOLINTEND(readability-identifier-naming)

namespace pmr_debug::os {

#if PMR_DEBUG_HAVE_MEMCHECK

bool under_valgrind() noexcept {
    return RUNNING_ON_VALGRIND != 0;
}

void tell_allocated(const void* p, std::size_t bytes) noexcept {
    VALGRIND_MALLOCLIKE_BLOCK(p, bytes, 0, 0);
}

void tell_freed(const void* p) noexcept {
    VALGRIND_FREELIKE_BLOCK(p, 0);
}

void tell_inaccessible(const void* p, std::size_t bytes) noexcept {
    static_cast<void>(VALGRIND_MAKE_MEM_NOACCESS(p, bytes));
}

void tell_undefined(const void* p, std::size_t bytes) noexcept {
    static_cast<void>(VALGRIND_MAKE_MEM_UNDEFINED(p, bytes));
}

void tell_defined(const void* p, std::size_t bytes) noexcept {
    static_cast<void>(VALGRIND_MAKE_MEM_DEFINED(p, bytes));
}

void tell_stack(const void* low, const void* high) noexcept {
    static_cast<void>(VALGRIND_STACK_REGISTER(low, high));
}

unseen_by_valgrind::unseen_by_valgrind(bool active) noexcept : active_(active) {
    if (active_) {
        VALGRIND_DISABLE_ERROR_REPORTING;
    }
}

unseen_by_valgrind::~unseen_by_valgrind() {
    if (active_) {
        VALGRIND_ENABLE_ERROR_REPORTING;
    }
}

#else

bool under_valgrind() noexcept {
    return false;
}

void tell_allocated(const void*, std::size_t) noexcept {}
void tell_freed(const void*) noexcept {}
void tell_inaccessible(const void*, std::size_t) noexcept {}
void tell_undefined(const void*, std::size_t) noexcept {}
void tell_defined(const void*, std::size_t) noexcept {}
void tell_stack(const void*, const void*) noexcept {}

unseen_by_valgrind::unseen_by_valgrind(bool active) noexcept : active_(active) {}
unseen_by_valgrind::~unseen_by_valgrind() = default;

#endif

bool under_asan() noexcept {
    return __asan_poison_memory_region != nullptr && !start_environment().no_poison;
}

void poison(const void* p, std::size_t bytes) noexcept {
    if (__asan_poison_memory_region != nullptr && bytes != 0) {
        __asan_poison_memory_region(p, bytes);
    }
}

void unpoison(const void* p, std::size_t bytes) noexcept {
    if (__asan_unpoison_memory_region != nullptr && bytes != 0) {
        __asan_unpoison_memory_region(p, bytes);
    }
}

void forget_poison(const void* p, std::size_t bytes) noexcept {
    if (__asan_get_shadow_mapping != nullptr) {
        std::size_t scale = 0;
        std::size_t offset = 0;
        __asan_get_shadow_mapping(&scale, &offset);
        const std::uintptr_t shadow = (reinterpret_cast<std::uintptr_t>(p) >> scale) + offset;
        const errno_keeper keep;
        // Zero says that all may be touched, and is what a page without memory holds.
        if (::madvise(reinterpret_cast<void*>(shadow), bytes >> scale, MADV_DONTNEED) == 0) {
            return;
        }
    }
    unpoison(p, bytes);
}

bool under_leak_sanitizer() noexcept {
    return __lsan_register_root_region != nullptr;
}

void add_leak_root(const void* p, std::size_t bytes) noexcept {
    if (__lsan_register_root_region != nullptr) {
        __lsan_register_root_region(p, bytes);
    }
}

void remove_leak_root(const void* p, std::size_t bytes) noexcept {
    if (__lsan_unregister_root_region != nullptr) {
        __lsan_unregister_root_region(p, bytes);
    }
}

}  // namespace pmr_debug::os
